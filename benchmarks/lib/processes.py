"""What a command costs: wall time, processor time, memory and disk of the process and all its descendants.

A contestant starts processes that start others (Python, a JVM, Python workers), and some outlive their parent. This
process adopts such orphans (`PR_SET_CHILD_SUBREAPER`) and waits for every descendant; the kernel then reports the exact
processor time of each, together with that of the children that it waited for itself.

The kernel drops the time of children whose parent ignores SIGCHLD, as PySpark's daemon does, and its workers do nearly
all the work. Their time is sampled while they live. They are idle when they end, so the last sample misses nothing.
On other systems than Linux neither orphans nor these are counted.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 0.2
_PR_SET_CHILD_SUBREAPER = 36
_ORPHANS_END_S = 30.0


@dataclass(frozen=True)
class Cost:
    """Resources that a command and all its descendants used."""

    returncode: int
    wall_s: float  # from the start of the process to its end
    cpu_s: float  # user and system, all processes
    peak_gb: float  # largest sum of proportional set sizes seen
    peak_disk_bytes: int  # largest size of the folder seen
    output: str  # standard output and error together
    worker_read_bytes: int = 0  # by read() and write() of PySpark's workers, the page cache included
    worker_written_bytes: int = 0


def run(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None, sample_s: float = SAMPLE_S
) -> Cost:
    """Run a command and measure it. folder: the one it writes to, whose size is sampled.

    Children that this process already has are not counted; it must start no others meanwhile.
    """
    adopt_orphans(True)
    try:
        return _run(command, folder, {**os.environ, **(environment or {})}, sample_s)
    finally:
        adopt_orphans(False)


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str], sample_s: float) -> Cost:
    sampler = _Sampler(folder, sample_s)
    log = folder / "log.txt"
    with log.open("wb") as stream:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        try:
            with sampler:
                _, status, usage = os.wait4(process.pid, 0)
                wall_s = time.perf_counter() - started
        except BaseException:
            sampler.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s = usage.ru_utime + usage.ru_stime + sampler.collect_orphans()
    output = log.read_text(errors="replace")
    log.unlink()
    peaks = (sampler.memory_bytes / 1e9, sampler.disk_bytes)
    return Cost(process.returncode, wall_s, cpu_s, *peaks, output, *sampler.transferred())


def log_message(line: str) -> str:
    """The message of a log line of a command in JSON; "" for other lines."""
    try:
        content = json.loads(line)
    except ValueError:
        return ""
    return str(content.get("message", "")) if isinstance(content, dict) else ""


def tree_cpu_s() -> float:
    """Processor seconds so far of this process, its living descendants, and the children they have waited for."""
    total = sum(os.times()[:4])
    for process in psutil.Process().children(recursive=True):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue  # it has just ended
    return total


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder. Files that vanish meanwhile are not counted."""
    total, pending = 0, [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


class _Sampler:
    """Samples the descendants that this process gets within the block, and the size of a folder."""

    def __init__(self, folder: Path, interval_s: float):
        self.memory_bytes = self.disk_bytes = 0
        self._folder, self._interval_s = folder, interval_s
        self._others = {child.pid for child in psutil.Process().children()}
        self._uncollected: dict[int, float] = {}  # processor seconds of children whose parent ignores SIGCHLD
        self._transferred: dict[int, tuple[int, int]] = {}  # bytes that they read and wrote
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._sample()

    def collect_orphans(self) -> float:
        """Wait for the remaining descendants. Returns their processor seconds, and those that were sampled."""
        total, deadline = 0.0, time.monotonic() + _ORPHANS_END_S
        while self._children():
            pid, _, usage = os.wait4(-1, os.WNOHANG)
            if pid and pid not in self._others:
                total += usage.ru_utime + usage.ru_stime
                self._uncollected.pop(pid, None)  # its parent ended first, so the kernel did report it
            elif time.monotonic() > deadline:
                raise RuntimeError(f"processes of the contestant are there {_ORPHANS_END_S:.0f} s after its end")
            else:
                time.sleep(0.02)
        return total + sum(self._uncollected.values())

    def transferred(self) -> tuple[int, int]:
        """Bytes read and written by children whose parent ignores SIGCHLD: PySpark's workers."""
        pairs = list(self._transferred.values())
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def kill(self) -> None:
        """Kill every descendant, when the measurement is aborted."""
        for child in self._children():
            for process in [*_descendants(child), child]:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def _children(self) -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child.pid not in self._others]

    def _watch(self) -> None:
        while not self._done.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        memory, careless = 0, {}
        for child in self._children():
            for process in [child, *_descendants(child)]:
                try:
                    memory += _memory(process)
                    parent = process.ppid()
                    if parent not in careless:
                        careless[parent] = _ignores_children(parent)
                    if careless[parent]:
                        self._uncollected[process.pid] = sum(process.cpu_times()[:4])
                        self._transferred[process.pid] = process.io_counters()[4:6]
                except psutil.Error:
                    continue  # it has just ended
        self.memory_bytes = max(self.memory_bytes, memory)
        self.disk_bytes = max(self.disk_bytes, folder_bytes(self._folder))


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _memory(process: psutil.Process) -> int:
    """Proportional set size (shared pages count once) where the system has it, else resident set size."""
    info = process.memory_full_info()
    return getattr(info, "pss", info.rss)


def _ignores_children(pid: int) -> bool:
    """Whether a process ignores SIGCHLD: then the kernel drops its children's times."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = int(status.split("SigIgn:")[1].split()[0], 16)
    return bool(mask >> (signal.SIGCHLD - 1) & 1)


def adopt_orphans(adopt: bool = True) -> None:
    """Become the parent of processes whose own ends before them, so that none is lost; or no longer (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)
