"""A series of runs: those whose files are missing, several at a time, in worker processes.

A series that was interrupted continues with the runs that have no file, a run with its newest finished epoch.
"""

import contextlib
import multiprocessing as mp
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from jobs.reproduce.days import HEADLINE
from jobs.reproduce.runs import finished
from jobs.reproduce.single import RunTask, perform
from jobs.runtime.console import bars, interactive, log
from jobs.training.ray import WORKER_ENVIRONMENT
from pipelines.errors import InputError

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

    from rich.progress import Progress, TaskID

    Steps = Queue[tuple[str, int, int]]  # progress of the workers: run, steps done, steps in all

_POLL_S, _LOG_EVERY_S = 0.5, 60
_steps: "Steps | None" = None  # in a worker


def run_missing(tasks: Sequence[RunTask], *, workers: int) -> dict[str, str]:
    """Perform the tasks whose runs are not finished, `workers` at a time. Returns failed run -> reason in one line.

    A run that fails (a loss that is not finite, say) does not stop the others. InputError, a broken shard for
    instance, stops all.
    """
    missing = [task for task in tasks if not finished(task.folder, task.spec.name)]
    log("reproduce", runs=len(tasks), finished_before=len(tasks) - len(missing), to_do=len(missing))
    if not missing:
        return {}
    workers = min(workers, len(missing))
    context = mp.get_context("spawn")
    steps: Steps = context.Queue()
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    others = set(mp.active_children())
    os.environ.update(WORKER_ENVIRONMENT)  # inherited by the workers; this process has read its own
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(steps, threads)) as pool,
        bars("steps", remaining=True) if interactive() else contextlib.nullcontext() as shown,
    ):
        futures = {pool.submit(_perform, task): task for task in missing}
        try:
            return _collect(futures, _ProgressDisplay(steps, shown))
        except BaseException:
            for process in set(mp.active_children()) - others:
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _collect(futures: dict[Future[dict[str, float]], RunTask], display: "_ProgressDisplay") -> dict[str, str]:
    failed: dict[str, str] = {}
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        display.update()
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
                values: dict[str, Any] = {key: round(value, 4) for key, value in run.items()}
                log("run finished", run=name, **values)
    return failed


def _start(steps: "Steps", threads: int) -> None:
    import torch

    global _steps
    _steps = steps
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """End this worker when its parent is killed, or it would finish its run, which may take hours."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _perform(task: RunTask) -> dict[str, float]:
    """One run, in a worker. Returns its main metrics over all listeners and the seconds of training."""

    def on_step(done: int, total: int) -> None:
        if _steps and (done % 8 == 0 or done == total):
            _steps.put((task.spec.name, done, total))

    run = perform(task, on_step)[0]
    shown = HEADLINE if run.protocol == "next_day" else run.metrics["all"]
    return {**{name: run.metrics["all"][name] for name in shown}, "seconds": run.train_seconds}


class _ProgressDisplay:
    """The workers' progress: a bar a run on a terminal, a log line a minute elsewhere."""

    def __init__(self, steps: "Steps", shown: "Progress | None") -> None:
        self._steps, self._bars = steps, shown
        self._bar_of: dict[str, TaskID] = {}
        self._logged = time.monotonic()

    def update(self) -> None:
        """Show the steps that were reported since the last call."""
        latest: dict[str, tuple[int, int]] = {}
        with contextlib.suppress(queue.Empty):
            while True:
                name, done, total = self._steps.get_nowait()
                latest[name] = done, total
        for name, (done, total) in latest.items():
            if self._bars is not None:
                if name not in self._bar_of:
                    self._bar_of[name] = self._bars.add_task(name, total=total)
                self._bars.update(self._bar_of[name], completed=done, visible=done < total)
        if self._bars is None and latest and time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            log("training", **{name: f"{done}/{total}" for name, (done, total) in latest.items()})
