"""What died: the name of a process of Spark or Ray whose death ended a piece of work, in one line."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil

POLL_S = 0.3
NAMES = {"raylet": "Ray's raylet", "gcs_server": "Ray's gcs_server", "java": "Spark's JVM"}
"""Processes that this one starts, and without which nothing of their engine works, by the kernel's name for them."""

DYING_S = 2.0
_OF_RAY = {
    "ActorDiedError": "an actor of Ray",
    "ActorUnavailableError": "an actor of Ray",
    "RayActorError": "an actor of Ray",
    "WorkerCrashedError": "a worker of Ray",
    "NodeDiedError": "a node of Ray",
    "LocalRayletDiedError": "Ray's raylet",
    "RaySystemError": "a part of Ray",
    "OutOfMemoryError": "a worker of Ray, because memory ran out,",
    "ObjectLostError": "a process of Ray that held an object",
    "OwnerDiedError": "a process of Ray that held an object",
    "ObjectReconstructionFailedError": "a process of Ray that held an object",
    "RpcError": "a part of Ray",
}
_WORKER = re.compile(
    r"Python worker (?:exited unexpectedly|failed to connect|process terminated)"
    r"|(?:java\.io\.EOFException|java\.net\.SocketException)(?s:.){0,600}org\.apache\.spark\.api\.python\."
)
_START = re.compile(r"timed out during startup")  # of Ray, where one of its processes dies meanwhile: a bare Exception
_EXECUTOR = re.compile(r"ExecutorLostFailure|Executor heartbeat timed out|Slave lost|Remote RPC client disassociated")
_OF_SPARK = ((_WORKER, "a Python worker of Spark died"), (_EXECUTOR, "an executor of Spark died"))


JVM_DIED = f"{NAMES['java']} died"
MAYBE_ENGINES = {JVM_DIED, *(f"{name} died" for name in _OF_RAY.values())}


class StageDiedError(RuntimeError):
    """A process died that a stage works with. The message says which one."""


def what_died(error: BaseException) -> str | None:
    """Which process died, if that is what an error came from: "Spark's JVM (process 7) was ended by SIGKILL"."""
    chained = list(chain(error))
    found = next(filter(None, map(_of_one, chained)), None)
    # Py4J answers a command whose JVM is gone with an error that has neither a cause nor a reason.
    if found is None and not any(type(one).__name__ == "Py4JError" for one in chained):
        return None
    until = time.monotonic() + DYING_S  # its end may be seen a little later than its silence
    while _watched and (found is None or found in MAYBE_ENGINES) and time.monotonic() < until:
        if dead := dead_engines():
            return dead[0]
        time.sleep(0.05)
    return found


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, also in a worker of Ray."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            failures = getattr(one, "worker_failures", None) or {}
            inner = [getattr(failure, "_base_exc", failure) for failure in failures.values()]
            todo += [getattr(one, "cause", None), *inner, one.__cause__, one.__context__]


def text_of(error: BaseException) -> str | None:
    """What an error says, and the error of Java that it stands for; None for one of Py4J whose JVM is gone.

    Those ask the JVM for their text each time.
    """
    try:
        return f"{error} {getattr(error, 'java_exception', '')}"
    except Exception:
        return None


def _of_one(error: BaseException) -> str | None:
    text = text_of(error)
    if text is None:
        return JVM_DIED
    return str(error) if isinstance(error, StageDiedError) else _of_engine(error, text)


def _of_engine(error: BaseException, text: str) -> str | None:
    kind = type(error)
    if kind.__module__.startswith("ray.") and (name := _named(kind)):
        return f"{name} died"
    if kind is Exception and _START.search(text):
        return "a part of Ray died while it started"
    of_spark = _OF_SPARK if kind.__module__.startswith(("py4j.", "pyspark.")) else ()
    if found := next((name for pattern, name in of_spark if pattern.search(text)), None):
        return found
    if kind.__name__ == "Py4JNetworkError" or (isinstance(error, ConnectionError | EOFError) and _from_py4j(error)):
        return JVM_DIED
    return None


def _named(kind: type) -> str | None:
    return next((_OF_RAY[base.__name__] for base in kind.__mro__ if base.__name__ in _OF_RAY), None)


def _from_py4j(error: BaseException) -> bool:
    """Whether an error of the network was raised below Py4J."""
    trace = error.__traceback__
    while trace:
        if "py4j" in trace.tb_frame.f_code.co_filename:
            return True
        trace = trace.tb_next
    return False


def ended(name: str, pid: int, code: int) -> str:
    """How a process ended, in words. code: negative for a signal."""
    if code >= 0:
        return f"{name} (process {pid}) ended with code {code}"
    number = -code
    known = number in signal.valid_signals()
    why = ", as the kernel does where memory runs out" if number == signal.SIGKILL else ""
    return f"{name} (process {pid}) was ended by {signal.Signals(number).name if known else number}{why}"


def dead_engines() -> list[str]:
    """Processes of engines that this process has started and that have ended, in words."""
    return [ended(name, pid, code) for pid, name in _watched.items() if (code := exit_code(pid)) is not None]


def exit_code(pid: int) -> int | None:
    """How a child of this process has ended, a signal as a negative number. None: it runs. It is not waited for."""
    with contextlib.suppress(ChildProcessError):  # somebody has waited for it
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    return None


_watched: dict[int, str] = {}
_watching: list[threading.Thread] = []


def watch(tell: Callable[[str], None]) -> None:
    """Call `tell` with what died when an engine's process ends that this process has started by now.

    Engines notice such a death late (a minute after Ray's gcs_server), never, or by ending this process.
    """
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() in NAMES:
                _watched[child.pid] = NAMES[child.name()]
    if not _watching:
        _watching.append(threading.Thread(target=_watch, args=(tell,), daemon=True))
        _watching[0].start()


def unwatch() -> None:
    """Engines are ended on purpose from now on."""
    _watched.clear()


def _watch(tell: Callable[[str], None]) -> None:
    while True:
        for died in dead_engines():
            tell(died)
            return
        time.sleep(POLL_S)
