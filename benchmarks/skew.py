"""Skewed and extreme logs at full size: `python -m benchmarks.skew [--quick] [--events 30]`.

Each case is sessionized in a fresh process on all cores; an even log of the same size is the baseline. Memory is the
peak of the whole process tree. `tests/jobs/stages/test_sessionize_limits.py` checks the shards of such logs.
"""

import argparse
import datetime as dt
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.lib import processes
from benchmarks.lib.timing import Row, report
from pipelines.calendar import DAY_SECONDS, Calendar

FIRST = dt.date(2018, 1, 1)
DAYS, SONGS = 10, 200_000
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # user_id, item_id, Unix seconds


@dataclass(frozen=True)
class Case:
    """A generated log, and how it is sessionized."""

    name: str
    day: Callable[[np.random.Generator, int, int], Columns]  # random numbers, day number, rows -> a day's plays
    days: int = DAYS
    buckets: int = 64
    laid_over: int = 0  # days that are sessionized before the measured run


def even(rng: np.random.Generator, day: int, rows: int) -> Columns:
    """Uniform over listeners, songs and seconds."""
    users = rng.integers(0, rows * DAYS // 53, rows)
    return users, rng.integers(1, SONGS + 1, rows), _seconds(rng, day, rows)


def busy_listener(rng: np.random.Generator, day: int, rows: int) -> Columns:
    """One listener has a tenth of all events."""
    users, items, seconds = even(rng, day, rows)
    return np.where(rng.random(rows) < 0.1, 1, users), items, seconds


def popular_song(rng: np.random.Generator, day: int, rows: int) -> Columns:
    """One song has three tenths of all plays."""
    users, items, seconds = even(rng, day, rows)
    return users, np.where(rng.random(rows) < 0.3, 1, items), seconds


def once_each(rng: np.random.Generator, day: int, rows: int) -> Columns:
    """Every listener plays once, ever."""
    return day * rows + rng.permutation(rows), rng.integers(1, SONGS + 1, rows), _seconds(rng, day, rows)


def late_only(rng: np.random.Generator, day: int, rows: int) -> Columns:
    """The last day's events all happened on the days before."""
    users, items, seconds = even(rng, day, rows)
    return users, items, seconds - (rng.integers(1, DAYS, rows) * DAY_SECONDS if day == DAYS - 1 else 0)


def _seconds(rng: np.random.Generator, day: int, rows: int) -> np.ndarray:
    return Calendar().day_start(FIRST + dt.timedelta(days=day)) + np.sort(rng.integers(0, DAY_SECONDS, rows))


def cases(events: int) -> list[tuple[Case, int]]:
    """Every case with its number of events."""
    return [
        (Case("even", even), events),
        (Case("one listener has a tenth of all events", busy_listener), events),
        (Case("one song has three tenths of all plays", popular_song), events),
        (Case("every listener has one event", once_each), events // 3),
        (Case("3,000 landing days", even, days=3000), events),
        (Case("65,536 buckets", even, buckets=65_536), events),
        (Case("a day of late events only, laid over the others", late_only, laid_over=DAYS - 1), events),
    ]


def write_logs(folder: Path, case: Case, events: int) -> int:
    """Write the days of a case. Returns the rows of the days that are measured."""
    measured = 0
    for day in range(case.days):
        rows = events * (day + 1) // case.days - events * day // case.days
        user, item, seconds = case.day(np.random.default_rng([7, day]), day, rows)
        target = folder / f"ds={FIRST + dt.timedelta(days=day)}" / "part-0.parquet"
        target.parent.mkdir(parents=True)
        pq.write_table(pa.table({"user_id": user, "item_id": item, "timestamp": seconds}), target, compression="zstd")
        measured += rows if day >= case.laid_over else 0
    return measured


def sessionize(folder: Path, logs: Path, ds: dt.date, buckets: int) -> processes.Cost:
    """`fuxi sessionize` in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "jobs.cli",
        "sessionize",
        "--ds",
        str(ds),
        "--workspace",
        str(folder / "workspace"),
    ]
    command += ["--set", f"logs.path={logs}", "--set", f"sequences.buckets={buckets}", "--accept-quality"]
    cost = processes.run(command, folder=folder)
    if cost.returncode:
        raise RuntimeError(f"sessionize ended with {cost.returncode}:\n{cost.output[-4000:]}")
    return cost


def measure(case: Case, events: int) -> tuple[int, processes.Cost]:
    """Rows and cost of one case."""
    with tempfile.TemporaryDirectory(prefix="skew-") as scratch:
        logs, folder = Path(scratch, "logs"), Path(scratch, "run")
        folder.mkdir()
        rows = write_logs(logs, case, events)
        if case.laid_over:
            sessionize(folder, logs, FIRST + dt.timedelta(days=case.laid_over), case.buckets)
        return rows, sessionize(folder, logs, FIRST + dt.timedelta(days=case.days), case.buckets)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=float, default=30, help="millions [default: 30]")
    parser.add_argument("--quick", action="store_true", help="3 million events")
    options = parser.parse_args()
    rows: list[Row] = []
    baseline: list[float] = []
    for case, events in cases(3_000_000 if options.quick else round(options.events * 1e6)):
        count, cost = measure(case, events)
        wall = cost.wall_s / count * 1e6
        baseline = baseline or [wall]
        note = f"{count / 1e6:.0f} M, {cost.wall_s:.0f} s, {cost.cpu_s:.0f} CPU-s, peak {cost.peak_gb:.2f} GB"
        rows.append(Row(case.name, [wall], baseline, unit="s/M", note=note))
        print(f"{case.name}: {note}", file=sys.stderr, flush=True)
    report(f"skew, {os.cpu_count()} cores", rows, ours="this log", baseline="even log")


if __name__ == "__main__":
    main()
