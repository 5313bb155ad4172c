"""A series of runs: those that are missing, several side by side, each in a process of its own.

A finished run is its file, so a series that was interrupted goes on with the runs that are missing.
"""

import contextlib
import multiprocessing as mp
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from jobs.reproduce.runs import finished
from jobs.reproduce.single import Task, perform
from jobs.runtime.console import bars, interactive, log
from jobs.training.ray import WORKER_ENVIRONMENT
from pipelines.errors import InputError

_POLL_S, _LOG_EVERY_S = 0.5, 60
_messages: Any = None  # in a worker: where its progress goes


def run_missing(tasks: Sequence[Task], *, workers: int) -> dict[str, str]:
    """Perform the tasks whose runs are not there, `workers` at a time. Returns what failed, by run: one line each.

    A run that fails (a loss that is not finite, say) does not stop the others; a broken shard stops all.
    """
    missing = [task for task in tasks if not finished(task.folder, task.spec.name)]
    log("reproduce", runs=len(tasks), finished_before=len(tasks) - len(missing), to_do=len(missing))
    if not missing:
        return {}
    workers = min(workers, len(missing))
    context = mp.get_context("spawn")
    messages = context.Queue()
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    with (
        _environment(WORKER_ENVIRONMENT),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(messages, threads)) as pool,
        _Shown(messages) as shown,
    ):
        futures = {pool.submit(_perform, task): task for task in missing}
        try:
            return _collect(futures, shown)
        except BaseException:
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _collect(futures: dict[Future[Any], Task], shown: "_Shown") -> dict[str, str]:
    failed: dict[str, str] = {}
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        shown.update()
        for future in done:
            name = futures[future].spec.name
            try:
                run = future.result()
            except InputError:
                raise
            except BrokenProcessPool:
                raise InputError(
                    f"a process died in the midst of {name} (out of memory?): run the same command with --workers 1"
                ) from None
            except (ArithmeticError, ValueError) as error:
                failed[name] = " ".join(str(error).split())
                log("run failed", run=name, reason=failed[name])
            else:
                log("run finished", run=name, **{key: round(value, 4) for key, value in run.items()})
    return failed


def _start(messages: Any, threads: int) -> None:
    """In a new worker, before its first run."""
    import torch

    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everybody; the parent ends its workers itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on for an hour, and write a run that nobody waits for."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _perform(task: Task) -> dict[str, float]:
    """In a worker: one run. Returns its headline."""
    name = task.spec.name

    def on_step(done: int, total: int) -> None:
        if done % 8 == 0 or done == total:
            _messages.put((name, done, total))

    run = perform(task, on_step)[0]
    return {**run.metrics["all"], "seconds": run.train_seconds}


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that processes started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _Shown:
    """What the workers say of their runs: a bar each on a terminal, a line a minute elsewhere."""

    def __init__(self, messages: Any) -> None:
        self._messages = messages
        self._bars = bars("steps", remaining=True) if interactive() else None
        self._tasks: dict[str, Any] = {}
        self._logged = time.monotonic()

    def __enter__(self) -> "_Shown":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self) -> None:
        """Show what is new."""
        latest: dict[str, tuple[int, int]] = {}
        with contextlib.suppress(queue.Empty):
            while True:
                name, *steps = self._messages.get_nowait()
                latest[name] = tuple(steps)
        for name, (done, total) in latest.items():
            if self._bars is not None:
                task = self._tasks.setdefault(name, None) or self._bars.add_task(name, total=total)
                self._tasks[name] = task
                self._bars.update(task, completed=done, visible=done < total)
        if self._bars is None and latest and time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            log("training", **{name: f"{done}/{total}" for name, (done, total) in latest.items()})
