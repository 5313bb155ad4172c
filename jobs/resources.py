"""Peak memory of a process and everything it started."""

import threading
from types import TracebackType

import psutil

INTERVAL_S = 1.0


class PeakMemory:
    """Sample the memory of this process tree while the block runs; `gigabytes` is the highest sum seen.

    Proportional set size where the system tells it (pages shared by several processes count once), else
    resident set size.
    """

    def __init__(self) -> None:
        self.gigabytes = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        root = psutil.Process()
        while not self._done.wait(INTERVAL_S):
            total = sum(_bytes(process) for process in [root, *root.children(recursive=True)])
            self.gigabytes = max(self.gigabytes, total / 1e9)


def _bytes(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0
    return getattr(info, "pss", info.rss)
