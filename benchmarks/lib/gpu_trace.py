"""What a GPU does during a call, and whether its host waits for it: by torch.profiler and CUDA's sync debug mode."""

import json
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity

ROOT = Path(__file__).parents[2]
KERNELS, OPERATORS = "kernel", "cpu_op"
"""Categories of a trace's events. Without a GPU a trace has operators alone."""


class Kernel(NamedTuple):
    """All launches of one kernel."""

    name: str
    launches: float  # a step
    ms: float  # a step
    share: float  # of the time of all kernels


class Summary(NamedTuple):
    """What a trace of some steps shows."""

    computing: float  # share of the time from the first kernel to the last in which at least one ran
    busy_ms: float  # a step, in which at least one ran
    wall_ms: float  # a step; a profiler slows down launches
    kernels: list[Kernel]  # by time, the longest first
    waits: dict[str, float]  # calls a step by which the host waited, by name


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, end)."""
    covered, until = 0.0, -float("inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


def summary(events: Sequence[dict[str, Any]], *, steps: int, category: str = KERNELS) -> Summary:
    """Sum up the events of a category. events: of a Chrome trace, in microseconds. ValueError if it has none."""
    of_category = [event for event in events if event.get("cat") == category and event.get("ph") == "X"]
    if not of_category:
        raise ValueError(f"the trace has no event of category {category!r}: is another profiler at work?")
    intervals = [(float(event["ts"]), float(event["ts"]) + float(event["dur"])) for event in of_category]
    wall = max(end for _, end in intervals) - min(start for start, _ in intervals)
    times: dict[str, list[float]] = defaultdict(list)
    for event, (start, end) in zip(of_category, intervals, strict=True):
        times[event["name"]].append(end - start)
    total = sum(map(sum, times.values()))
    kernels = [
        Kernel(name, len(each) / steps, sum(each) / steps / 1e3, sum(each) / total) for name, each in times.items()
    ]
    busy = union(intervals)
    return Summary(
        computing=busy / wall,
        busy_ms=busy / steps / 1e3,
        wall_ms=wall / steps / 1e3,
        kernels=sorted(kernels, key=lambda kernel: -kernel.ms),
        waits={name: count / steps for name, count in sorted(_waits(events).items())},
    )


def _waits(events: Sequence[dict[str, Any]]) -> Counter[str]:
    """The host's synchronizing calls by name, without those of a whole device: `traced` and the profiler make them."""
    names = (event["name"] for event in events if event.get("cat") in {"cuda_runtime", "cuda_driver"})
    return Counter(name for name in names if "Synchronize" in name and "Device" not in name)


def traced(call: Callable[[], object], *, device: str = "cuda") -> list[dict[str, Any]]:
    """The events of a Chrome trace of the second of two calls; the first one pays for the profiler's start."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        for _ in range(2):
            with torch.profiler.profile(activities=[activity]) as profile:
                call()
                if device == "cuda":
                    torch.cuda.synchronize()
        profile.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def wait_in(call: Callable[[], object]) -> str:
    """The line at which a call first synchronizes implicitly with the GPU; empty if it never does.

    CUDA's sync debug mode reports copies to and from pageable memory and most reads of a number, but nothing in
    `torch.sparse`; `Summary.waits` has those too. Waiting for an event, by which the training loop reads the results of
    steps that are long done, is in `Summary.waits` alone.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return place_of(error)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return ""


def place_of(error: BaseException) -> str:
    """The innermost line of this repository in an error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename]
    frame = (ours or list(frames))[-1]
    path = Path(frame.filename)
    where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return f"{where}:{frame.lineno}, {frame.name}: {frame.line}"
