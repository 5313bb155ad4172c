"""Timing by CUDA events, tables, and the output where there is no GPU.

With device "cpu" the same code is timed by the clock, so that tests run a GPU benchmark on a machine without one.
"""

import gc
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lib import timing
from jobs.runtime import machine

Result = TypeVar("Result")


def nothing_to_measure(benchmark: str) -> bool:
    """Whether there is no GPU. Then prints that, and the JSON line without rows."""
    if torch.cuda.is_available():
        return False
    print(f"{benchmark}: no GPU here, so nothing was measured")
    print(json_line(benchmark, machine.describe(), rows=[]))
    return True


def first_results(contestants: Mapping[str, Callable[[], Result]], *, needed: str) -> dict[str, Result]:
    """Call each contestant once. One that fails is printed and left out, unless it is `needed`: that raises."""
    results = {}
    for name, call in contestants.items():
        try:
            results[name] = call()
        except Exception as error:  # whatever a compiler or a baseline fails with leaves the others
            if name == needed:
                raise
            print(f"{name} failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    return results


def interleaved(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 2, device: str = "cuda"
) -> dict[str, list[float]]:
    """`timing.interleaved` by CUDA events: milliseconds on the GPU of each call, a list for each contestant."""
    if device != "cuda":
        return timing.interleaved(contestants, rounds=rounds, warm_up=warm_up)
    times: dict[str, list[float]] = {name: [] for name in contestants}
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
                times[name].append(begin.elapsed_time(end))
    return times


class Limits(NamedTuple):
    """The measured peak rates of a GPU."""

    bandwidth: float  # bytes a second of a copy within its memory, read and written
    matrix_rate: float  # operations a second of a large product in bf16

    def __str__(self) -> str:
        return f"copies at {self.bandwidth / 1e12:.2f} TB/s, bf16 products at {self.matrix_rate / 1e12:.0f} TFLOP/s"


def limits(*, copied: int = 1 << 30, size: int = 8192, device: str = "cuda") -> Limits:
    """Measure the peak rates. copied: bytes; size: rows and columns of the product's operands."""
    source = torch.empty(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    operand = torch.randn(size, size, device=device).bfloat16()
    calls = {"copy": lambda: target.copy_(source), "product": lambda: operand @ operand}
    seconds = {
        name: statistics.median(times) / 1e3 for name, times in interleaved(calls, rounds=20, device=device).items()
    }
    return Limits(2 * copied / seconds["copy"], 2 * size**3 / seconds["product"])


def synchronize(device: str) -> None:
    """Wait until the GPU has finished what was launched; nothing on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], object], *, device: str) -> float:
    """Peak GPU memory of a call beyond what was allocated before it. NaN on a CPU."""
    if device != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def show(title: str, columns: Sequence[str], rows: Sequence[tuple]) -> None:
    """Print a table of numbers and words."""
    table = Table(title=title)
    for place, column in enumerate(columns):
        words = any(isinstance(row[place], str) for row in rows)
        table.add_column(column.replace("_", " "), justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(value) for value in row))
    Console(width=120).print(table)


def json_line(benchmark: str, machine: str, **tables: Sequence[Any]) -> str:
    """The last line of a benchmark's output. tables: rows as named tuples; NaN becomes null."""
    return json.dumps(
        {"benchmark": benchmark, "machine": machine, **{k: list(map(_record, v)) for k, v in tables.items()}}
    )


def _record(row: Any) -> dict[str, Any]:
    values = row._asdict().items()
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values}


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if type(value) is int else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
