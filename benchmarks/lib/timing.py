"""Timing by turns: contestants alternate in one process, so that other load on the machine affects all alike."""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from jobs.runtime import machine


@dataclass(frozen=True)
class Row:
    """Ours against the baseline in one case; a number a round, in `unit`."""

    case: str
    ours: list[float]
    baseline: list[float]
    unit: str = "ms"
    higher_is_better: bool = False
    note: str = ""

    @property
    def speedup(self) -> float:
        """How many times better ours is, by medians over rounds."""
        ours, baseline = statistics.median(self.ours), statistics.median(self.baseline)
        return ours / baseline if self.higher_is_better else baseline / ours


def interleaved(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Call each contestant once a round. Returns its milliseconds in every round after `warm_up`."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(-warm_up, rounds):
        for name, call in contestants.items():
            gc.collect()
            started = time.perf_counter()
            call()
            elapsed = (time.perf_counter() - started) * 1e3
            if round_number >= 0:
                times[name].append(elapsed)
    return times


def spread(values: list[float]) -> float:
    """Interquartile range; 0 below two values."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def report(benchmark: str, rows: list[Row], *, ours: str, baseline: str, about: str = "") -> None:
    """Print one table, and as the last line one JSON object. about: added to the description of the machine."""
    described = ", ".join(filter(None, [machine.describe(), about]))
    table = Table(title=benchmark, caption=described, caption_justify="left")
    table.add_column("case")
    for column in (f"{ours}", "spread", f"{baseline}", "spread", "speed-up"):
        table.add_column(column, justify="right")
    if any(row.note for row in rows):
        table.add_column("")
    for row in rows:
        cells = [row.case]
        for values in (row.ours, row.baseline):
            cells += [f"{_short(statistics.median(values))} {row.unit}", _short(spread(values))]
        table.add_row(*cells, f"{row.speedup:.1f}x", *([row.note] if any(r.note for r in rows) else []))
    Console(width=120).print(table)
    lines = [
        {
            "case": row.case,
            "ours": round(statistics.median(row.ours), 4),
            "baseline": round(statistics.median(row.baseline), 4),
            "unit": row.unit,
            "speedup": round(row.speedup, 2),
        }
        for row in rows
    ]
    print(json.dumps({"benchmark": benchmark, "machine": described, "rows": lines}))


def say(text: str) -> None:
    """Print a line of progress on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
