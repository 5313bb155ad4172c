"""What benchmarks of GPU kernels share: timing by CUDA events, and what to print where there is no GPU."""

import gc
import json
from collections.abc import Callable, Mapping

import torch

from jobs import machine


def nothing_to_measure(benchmark: str) -> bool:
    """Whether there is no GPU; says so, and prints the JSON line without rows."""
    if torch.cuda.is_available():
        return False
    print(f"{benchmark}: no GPU here, so nothing was measured")
    print(json.dumps({"benchmark": benchmark, "machine": machine.describe(), "rows": []}))
    return True


def interleaved(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Milliseconds on the GPU of each call, as `benchmarks.timing.interleaved`: each once a round, between events."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(-warm_up, rounds):
        for name, call in contestants.items():
            gc.collect()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            end.synchronize()
            if round_number >= 0:
                found[name].append(begin.elapsed_time(end))
    return found
