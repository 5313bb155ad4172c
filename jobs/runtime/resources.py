"""Memory at the peak and processor seconds of a process and all its children."""

import contextlib
import threading
import time

import psutil

INTERVAL_S = 1.0


class Usage:
    """Measure this process tree while the block runs.

    `gigabytes` is the highest sum of memory sampled: proportional set size where the system has it (pages shared by
    several processes count once), else resident set size. `seconds` is wall time. `cpu_seconds` is the user and system
    time of running processes and of ended ones whose parent runs and has waited for them.
    """

    def __init__(self) -> None:
        self.gigabytes = self.seconds = self.cpu_seconds = 0.0
        self._started = self._cpu_before = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Usage":
        self._started, self._cpu_before = time.monotonic(), _tree_cpu_seconds()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._started
        self.cpu_seconds = max(_tree_cpu_seconds() - self._cpu_before, 0.0)

    def _sample(self) -> None:
        while True:
            started = time.thread_time()
            self.gigabytes = max(self.gigabytes, sum(map(_bytes, _tree())) / 1e9)
            # Counting shared pages is slow; it takes at most a fiftieth of a core.
            if self._done.wait(max(INTERVAL_S, 50 * (time.thread_time() - started))):
                return


def _tree() -> list[psutil.Process]:
    root = psutil.Process()
    return [root, *root.children(recursive=True)]


def _tree_cpu_seconds() -> float:
    total = 0.0
    for process in _tree():
        with contextlib.suppress(psutil.Error):  # it may have ended
            times = process.cpu_times()
            total += times.user + times.system
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


def _bytes(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
    except psutil.Error:
        return 0
    return getattr(info, "pss", info.rss)
