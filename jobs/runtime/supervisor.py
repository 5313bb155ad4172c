"""A command in a child process that is ended, and begun again, when something in it dies or stands still.

Ray and Spark take the process that uses them along when one of their own processes dies, or let it wait for ever. So
the work has a process of its own, the attempt. This one starts no engine and holds no lease: it reads what the attempt
tells (`jobs.runtime.attempt`) and what it and its engines write, passes signals on, and when the
attempt has died it kills whatever is left of it. A new attempt skips what is finished and goes on with the rest, as
`fuxi daily` does when it is run again.
"""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import psutil

from jobs.runtime import attempt, deaths, log_lines, scratch, signals
from jobs.runtime.attempt import Attempt, DayStage
from pipelines.redact import redact

POLL_S = 0.5
KEPT_BYTES = 1 << 20
"""Of what engines wrote, the newest."""
END_S = 10.0
"""Engines of an attempt that ended by itself may take so long to end, too."""
FIRST_STALL_S = 1800.0
"""Until the attempt has read the configuration."""
EXIT_S = 60.0
"""An attempt whose work is done may take so long to exit."""
EXIT_BROKE_OFF, EXIT_REFUSED = 1, 2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Ended:
    """How a command has ended."""

    ds: str  # "" if it has read no day
    code: int
    run: str  # `attempt.run`
    died: dict[DayStage, str]  # stages that died too often, and in which way


def supervise(at_end: Callable[[Ended], None]) -> None:
    """Return in a child process, again and again until an attempt comes to its end; this process exits as that did.

    at_end: called in this process before it exits, if the configuration names somebody to tell (`attempt.configure`).
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the attempt leaves behind becomes a child of this process
    with contextlib.suppress(OSError):
        scratch.remove_engine_logs()
    _Supervisor(at_end).run()


class _Supervisor:
    def __init__(self, at_end: Callable[[Ended], None]) -> None:
        self.at_end, self.watched, self.attempt = at_end, False, Attempt()
        self.ds, self.run_id, self.stage, self.last = "", "", "", ""
        self.stall_s, self.retries, self.optional = FIRST_STALL_S, 0, frozenset[str]()
        self.code: int | None = None  # that the attempt said it would exit with
        self.died: str | None = None
        self.keep = False  # what engines wrote, whatever the exit code is
        self.begun: set[DayStage] = set()
        self.given_up: dict[DayStage, str] = {}
        self.died_for_good = ""
        self.deaths: Counter[DayStage] = Counter()
        self.child, self.asked, self.silent_s = 0, 0, 0.0
        self.written = b""  # by engines
        self.logs: list[scratch.EngineLog] = []
        self.others = {child.pid for child in psutil.Process().children(recursive=True)}  # not this command's

    def run(self) -> None:
        """Return in each child; never here."""
        while True:
            self.code = self.died = None
            self.stage = self.last = ""
            self.silent_s = 0.0
            messages, errors = os.pipe(), os.pipe()
            if self._fork(messages, errors):
                return
            status = self._wait(_Lines(messages[0]), errors[0])
            culprits = _end_descendants(END_S if self.code is not None else 0.0, besides=self.others)
            if self.code is not None:
                self._leave(self.code)
            if self.asked:
                self._leave(128 + self.asked)
            if self.died is None and os.waitstatus_to_exitcode(status) == EXIT_REFUSED:
                self._leave(EXIT_REFUSED)  # its lease is lost, as it has said
            self._after_death(self.died or _cause(self.child, status, culprits))

    def _fork(self, messages: tuple[int, int], errors: tuple[int, int]) -> bool:
        """Begin an attempt. True in the child."""
        sys.stdout.flush()
        sys.stderr.flush()
        passed_on = set(signals.heeded())
        signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
        if self.asked:  # to stop, while there was no attempt to pass it on to
            self._leave(128 + self.asked)
        parent = os.getpid()
        self.child = os.fork()
        if self.child:
            for number in passed_on:
                signal.signal(number, self._pass_on)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
            for end in (messages[1], errors[1]):
                os.close(end)
            return False
        for number in passed_on:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.setpgid(0, 0)  # a terminal's Ctrl-C is the supervisor's to pass on; Ray leaves the group anyway
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may write to the terminal all the same
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        for end in (messages[0], errors[0]):
            os.close(end)
        # What C++ and the JVM write is read by the supervisor; this process writes where it did.
        sys.stdout, sys.stderr = (
            os.fdopen(os.dup(number), "w", buffering=1, errors="backslashreplace") for number in (1, 2)
        )
        for number in (1, 2):
            os.dup2(errors[1], number)
        attempt.become(Attempt(messages[1], frozenset(self.begun), dict(self.given_up), run=self.attempt.run))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
        return True

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.asked = number
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, number)

    def _wait(self, messages: "_Lines", errors: int) -> int:
        """Until the child has ended; a silent one is killed. Returns its wait status."""
        os.set_blocking(errors, False)
        with selectors.DefaultSelector() as selector:
            for end in (messages.end, errors):
                selector.register(end, selectors.EVENT_READ)
            status = None
            while status is None:
                before = time.monotonic()
                ready = [key.fd for key, _ in selector.select(POLL_S)]
                status = _ended(self.child)
                if messages.end in ready or status is not None:
                    self._take(messages)
                    if messages.closed and messages.end in selector.get_map():
                        selector.unregister(messages.end)
                if errors in ready or status is not None:
                    self._keep(errors)
                # Time in which this process itself was stopped does not count.
                self.silent_s += min(time.monotonic() - before, 4 * POLL_S)
                most = self.stall_s if self.code is None else EXIT_S
                if status is None and most and self.silent_s > most:
                    self.died = self._stalled()
                    os.kill(self.child, signal.SIGKILL)
                    self.silent_s = 0.0
        os.close(messages.end)
        os.close(errors)
        return status

    def _take(self, messages: "_Lines") -> None:
        for line in messages.read():
            self.silent_s = 0.0
            message = json.loads(line)
            self.last = message.get("on") or self.last
            self.run_id = message.get("run_id") or self.run_id
            if "log_format" in message:
                log_lines.choose(message["log_format"])
                self.watched = message["watched"]
            if "ds" in message:
                self.ds, self.optional = message["ds"], frozenset(message["optional"])
                self.stall_s, self.retries = 60.0 * message["stall_minutes"], message["retries"]
            if "begun" in message:
                self.stage, self.last = message["begun"], ""
                self.begun.add((self.ds, self.stage))
            if "finished" in message:
                self.stage = self.last = ""
            self.keep |= message.get("keep", False)
            self.code = message.get("code", self.code)
            self.died = message.get("died", self.died)

    def _keep(self, errors: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while found := os.read(errors, 1 << 16):
                self.written = (self.written + found)[-KEPT_BYTES:]

    def _stalled(self) -> str:
        """What stands still, and who is stopped."""
        stopped = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED:
                    stopped.append(f"{_name(process)} (process {process.pid}) is stopped")
        minutes = f"{self.stall_s / 60:g}"
        last = f" after {self.last!r}" if self.last else ""
        return "; ".join([f"no progress for {minutes} minutes{last} (cluster.stall_minutes)", *stopped])

    def _after_death(self, died: str) -> None:
        """Say what died, in which stage, and what happens now; exit if nothing does."""
        where = " of ".join(filter(None, [self.stage or "the command", self.ds]))
        self.deaths[self.ds, self.stage] += 1
        number = self.deaths[self.ds, self.stage]
        if self.ds and number <= self.retries:
            self._say(f"{where}: {died}: it is begun again, {number} of {self.retries} times")
            return
        times = f", {number} times in this run" if number > 1 else ""
        written = self._store_written()
        if self.stage in self.optional:
            self.given_up[self.ds, self.stage] = f"{died}{times}{written}"
            self._say(f"{where}: {died}{times}: the day goes on without it{written}")
            return
        self.died_for_good = f"{died}{times}"
        self._say(f"{where}: {died}{times}: what was published is unchanged, run it again to go on{written}", died=True)
        self._leave(EXIT_BROKE_OFF)

    def _store_written(self) -> str:
        """Keep what engines wrote in a file of the system's folder for temporary ones; names it if there is room."""
        text, self.written = redact(self.written.decode(errors="backslashreplace")), b""
        if not text.strip():
            return ""
        try:
            self.logs.append(scratch.EngineLog(text))
        except OSError as error:
            return f"; what Spark and Ray wrote is lost ({error.strerror or error})"
        return f"; what Spark and Ray wrote is in {self.logs[-1].name}"

    def _say(self, line: str, *, died: bool = False) -> None:
        """died: it is the command's last line."""
        context = {"ds": self.ds or None, "run_id": self.run_id or None, "stage": self.stage or None}
        end = {"kind": "died", "exit_code": EXIT_BROKE_OFF, "remedy": log_lines.remedy(line)} if died else {}
        log_lines.say(line, "error" if died else "warning", logger="fuxi.supervisor", **context, **end)

    def _tell_end(self, code: int) -> None:
        """Bounded in time, so that it is not interrupted."""
        for number in signals.STOPPING:
            signal.signal(number, signal.SIG_IGN)
        log_lines.install(output=True)
        died = dict(self.given_up)
        if self.died_for_good:
            died[self.ds, self.stage] = self.died_for_good
        self.at_end(Ended(self.ds, code, self.attempt.run, died))

    def _leave(self, code: int) -> NoReturn:
        if (self.keep or code == EXIT_BROKE_OFF) and (written := self._store_written()):
            self._say(written.removeprefix("; "))
        for log in self.logs if code == 0 else ():
            log.remove()
        if self.watched:
            self._tell_end(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Lines:
    """Whole lines of a pipe that is not waited for."""

    def __init__(self, end: int) -> None:
        self.end, self.closed, self._rest = end, False, b""
        os.set_blocking(end, False)

    def read(self) -> Sequence[bytes]:
        with contextlib.suppress(BlockingIOError):
            while found := os.read(self.end, 1 << 16):
                self._rest += found
            self.closed = True
        *lines, self._rest = self._rest.split(b"\n")
        return lines


def _ended(child: int) -> int | None:
    """The wait status of a process, if it has ended; it stays to be waited for until then."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return status if pid else None


def _name(process: psutil.Process) -> str:
    """The name of a process, as Ray sets it: "ray::RayTrainWorker"."""
    found = process.name()
    if found.startswith(("ray::", "python")):
        found = next(iter(process.cmdline()), found) if found.startswith("ray::") else found
    return deaths.NAMES.get(found, found)


def _cause(child: int, status: int, culprits: Sequence[str]) -> str:
    """What ended an attempt that did not say so itself."""
    code = os.waitstatus_to_exitcode(status)
    return culprits[0] if culprits and code != -signal.SIGKILL else deaths.ended("the process of the work", child, code)


def _end_descendants(grace_s: float, *, besides: Collection[int]) -> list[str]:
    """Wait so long for what the attempt started, then kill it. Returns engines that had been killed before."""
    culprits = _reap(say=True)
    until = time.monotonic() + grace_s
    while left := [child for child in psutil.Process().children(recursive=True) if child.pid not in besides]:
        if time.monotonic() >= until:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        if time.monotonic() >= until + END_S:
            break  # in a system call that does not end
        _reap()
        time.sleep(0.02)
    return culprits


def _reap(*, say: bool = False) -> list[str]:
    """Wait for everything that has ended. say: name the engines among it that a signal has killed."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while one := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            with contextlib.suppress(psutil.Error):
                name = psutil.Process(one.si_pid).name()
                killed = one.si_code != os.CLD_EXITED and one.si_status != signal.SIGTERM
                if say and killed and name in deaths.NAMES:
                    found.append(deaths.ended(deaths.NAMES[name], one.si_pid, -one.si_status))
            os.waitpid(one.si_pid, 0)
    return found


def _prctl(option: int, value: int) -> None:
    """Linux alone; elsewhere what an attempt leaves behind is ended by its engines."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
