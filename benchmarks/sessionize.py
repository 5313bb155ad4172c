"""Our sessionize stage against DuckDB and Polars: `python -m benchmarks.sessionize [--quick] [--events 3,10,30,100]`.

All three turn the same industrial logs (`fuxi synth --preset daily-recommendations`, one part in a hundred dirty) into
the same sequence shards; `benchmarks/lib/contestants.py` says what the work is and how each does it. Every run is a
fresh process with the same processors, contestants take turns, and one reader computes the checksums of what each
wrote: a difference is an error. DuckDB is held to `--memory-gb`; for the others the peak is reported beside it.

Wall time is from the start of the process to its end. Processor seconds are those of the process and all its
descendants, memory is the largest sum of their proportional set sizes. "Start" is the part before the work begins:
interpreter, imports and, for ours, the JVM and the Spark session. It does not grow with the data, so a second table
gives the processor seconds of one more million events between one size and the next.
"""

import argparse
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.lib import contestants, industrial_logs, processes, timing
from benchmarks.lib.contestants import CONTESTANTS, Work, versions
from benchmarks.lib.industrial_logs import buckets_for, folder_for
from benchmarks.lib.sequence_checksums import Checksums, checksums
from benchmarks.lib.timing import say
from pipelines.errors import InputError

BYTES_AN_EVENT = 60
"""Disk that any of the contestants needs for temporary files and output together, with room to spare."""
DEFAULT = ("ours", "duckdb", "polars")
NAMES = {"ours": "ours (Spark)", "ours-on-executors": "ours, executors", "duckdb": "DuckDB", "polars": "Polars"}


@dataclass(frozen=True)
class Measured:
    """One run of a contestant, and what it stored."""

    run: contestants.StageRun
    output_bytes: int
    stored: Checksums

    @property
    def cost(self) -> processes.Cost:
        """Of the process and all its descendants."""
        return self.run.cost

    @property
    def temporary_bytes(self) -> int:
        """Peak disk use less the output."""
        return max(self.cost.peak_disk_bytes - self.output_bytes, 0)


@dataclass(frozen=True)
class Size:
    """All runs on logs of one size."""

    events: int  # rows in the logs
    buckets: int
    runs: dict[str, list[Measured]]  # by contestant, a round each

    def wall(self, name: str) -> list[float]:
        """Seconds, one a round."""
        return [run.cost.wall_s for run in self.runs[name]]

    def cpu(self, name: str) -> list[float]:
        """Processor seconds, one a round."""
        return [run.cost.cpu_s for run in self.runs[name]]

    def peak(self, name: str) -> list[float]:
        """Gigabytes at the peak, one a round."""
        return [run.cost.peak_gb for run in self.runs[name]]


def run_once(name: str, logs: Path, *, buckets: int, cores: int, memory_gb: float) -> Measured:
    """One contestant in a fresh process and a fresh folder. Raises RuntimeError if it fails."""
    with tempfile.TemporaryDirectory(prefix=f"sessionize-{name}-") as folder:
        work = Work(str(logs), folder, industrial_logs.serving_day(logs), buckets, cores, memory_gb)
        run = contestants.run_in_process(name, work)
        stored = checksums(
            contestants.histories_of(name, work),
            contestants.songs_of(name, work),
            session_gap_s=contestants.SESSION_GAP_S,
        )
        output = processes.folder_bytes(contestants.output_folder(name, work))
    return Measured(run, output, stored)


def measure(logs: Path, names: Sequence[str], *, rounds: int, cores: int, memory_gb: float) -> Size:
    """Every contestant once a round. Raises RuntimeError if two stored different histories."""
    events = industrial_logs.rows_in(logs)
    buckets = buckets_for(events)
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            done = run_once(name, logs, buckets=buckets, cores=cores, memory_gb=memory_gb)
            runs[name].append(done)
            say(
                f"{events:,} events, round {number + 1} of {rounds}, {name}: {done.cost.wall_s:.1f} s, "
                f"{done.cost.cpu_s:.1f} processor seconds, {done.cost.peak_gb:.2f} GB"
            )
            expected = runs[names[0]][0].stored
            if differences := expected.differences(done.stored):
                raise RuntimeError(f"{names[0]} and {name} stored different histories: {'; '.join(differences)}")
    say(f"{events:,} events: all stored the same: {runs[names[0]][0].stored}")
    return Size(events, buckets, runs)


def print_sizes(sizes: Sequence[Size], *, cores: int, memory_gb: float) -> None:
    """Print a table: a section a size, a row a contestant."""
    table = Table(caption="medians; in brackets the distance between the quartiles", title="sessionize")
    table.add_column("events")
    table.add_column("")
    columns = ("wall s", "CPU-s", "start\nwall s", "start\nCPU-s", "peak\nGB", "temporary\nGB", "output\nGB")
    ratios = ("wall\n/DuckDB", "CPU\n/DuckDB", "wall\n/Polars", "CPU\n/Polars")
    for column in (*columns, "events\n/s/core", *ratios):
        table.add_column(column, justify="right")
    above = False
    for size in sizes:
        for name, runs in size.runs.items():
            peak = max(run.cost.peak_gb for run in runs)
            above |= peak > memory_gb
            cells = _cells(size, name, cores=cores)
            cells[6] = f"{peak:.2f}{'!' if peak > memory_gb else ''}"
            table.add_row(*cells, *_ratios(size, name))
        table.add_section()
    Console(width=160).print(table)
    if above:
        print(f"! above the bound of {memory_gb:g} GB, which only DuckDB takes as a setting")


def _cells(size: Size, name: str, *, cores: int) -> list[str]:
    def median(of: Callable[[Measured], float]) -> float:
        return statistics.median(map(of, size.runs[name]))

    wall, cpu = size.wall(name), size.cpu(name)
    return [
        f"{size.events:,}",
        NAMES.get(name, name),
        f"{statistics.median(wall):.1f} ({timing.spread(wall):.1f})",
        f"{statistics.median(cpu):.1f} ({timing.spread(cpu):.1f})",
        f"{median(lambda m: m.run.ready_s):.1f}",
        f"{median(lambda m: m.run.ready_cpu_s):.1f}",
        "",
        f"{median(lambda m: m.temporary_bytes) / 1e9:.2f}",
        f"{median(lambda m: m.output_bytes) / 1e9:.2f}",
        f"{size.events / statistics.median(wall) / cores:,.0f}",
    ]


def _ratios(size: Size, name: str) -> list[str]:
    return [
        f"{statistics.median(of(name)) / statistics.median(of(baseline)):.2f}" if baseline in size.runs else ""
        for baseline in ("duckdb", "polars")
        for of in (size.wall, size.cpu)
    ]


def marginal(small: Size, large: Size, name: str) -> list[float]:
    """Processor seconds of one more million events, one a round."""
    more = (large.events - small.events) / 1e6
    return [(b - a) / more for a, b in zip(small.cpu(name), large.cpu(name), strict=True)]


def print_marginal(sizes: Sequence[Size]) -> None:
    """Print the cost of one more million events, between consecutive sizes and from 10M to the largest."""
    table = Table(title="processor seconds of one more million events")
    table.add_column("from")
    table.add_column("to")
    names = list(sizes[0].runs)
    for name in names:
        table.add_column(NAMES.get(name, name), justify="right")
    for baseline in ("duckdb", "polars"):
        table.add_column(f"ours/{NAMES[baseline]}", justify="right")
    for small, large in steps(sizes):
        costs = {name: statistics.median(marginal(small, large, name)) for name in names}
        cells = [f"{small.events:,}", f"{large.events:,}", *(f"{cost:.3f}" for cost in costs.values())]
        baselines = [name for name in ("duckdb", "polars") if name in costs and "ours" in costs]
        table.add_row(*cells, *(f"{costs['ours'] / costs[name]:.2f}" for name in baselines))
    Console(width=120).print(table)


def steps(sizes: Sequence[Size]) -> list[tuple[Size, Size]]:
    """Consecutive sizes, and 10M with the largest."""
    pairs = list(pairwise(sizes))
    ten = next((size for size in sizes if 9e6 < size.events < 11e6), None)
    if ten and len(sizes) > 2 and sizes[-1].events > ten.events and (ten, sizes[-1]) not in pairs:
        pairs.append((ten, sizes[-1]))
    return pairs


def comparison(sizes: Sequence[Size]) -> list[timing.Row]:
    """Ours against each baseline, in wall time, processor seconds and marginal processor seconds."""
    rows = []
    for baseline in ("duckdb", "polars"):
        for size in sizes:
            if not {"ours", baseline} <= size.runs.keys():
                continue
            case = f"{size.events / 1e6:.1f}M events, {NAMES[baseline]}"
            rows.append(timing.Row(f"{case}, wall", size.wall("ours"), size.wall(baseline), "s"))
            rows.append(timing.Row(f"{case}, processors", size.cpu("ours"), size.cpu(baseline), "CPU-s"))
            rows.append(timing.Row(f"{case}, peak memory", size.peak("ours"), size.peak(baseline), "GB"))
        for small, large in steps(sizes):
            if not {"ours", baseline} <= small.runs.keys():
                continue
            case = f"one more million, {small.events / 1e6:.0f}M to {large.events / 1e6:.0f}M, {NAMES[baseline]}"
            rows.append(timing.Row(case, marginal(small, large, "ours"), marginal(small, large, baseline), "CPU-s"))
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3M events, two rounds: within two minutes")
    parser.add_argument("--events", default="3,10,30,100", help="sizes in millions, ascending")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=processes.available_cores())
    parser.add_argument("--memory-gb", type=float, default=8.0, help="DuckDB's memory_limit; peaks above are marked")
    parser.add_argument("--contestants", default=",".join(DEFAULT), help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--data", metavar="DIR", help="keep the logs here and find them again; default: temporary")
    options = parser.parse_args()
    options.sizes = [3.0] if options.quick else sorted(float(text) for text in options.events.split(","))
    options.rounds = min(options.rounds, 2) if options.quick else options.rounds
    options.names = options.contestants.split(",")
    if unknown := sorted(set(options.names) - set(CONTESTANTS)):
        parser.error(f"--contestants: {unknown[0]!r} is none of {', '.join(CONTESTANTS)}")
    return options


def measure_all(options: argparse.Namespace) -> Iterator[Size]:
    """Every size, smallest first. Logs are removed after use unless `--data` keeps them."""
    largest = int(options.sizes[-1] * 1e6)
    industrial_logs.check_space(Path(tempfile.gettempdir()), BYTES_AN_EVENT * largest, f"{largest:,} events")
    with folder_for(options.data) as root:
        for millions in options.sizes:
            events = int(millions * 1e6)
            say(f"logs of {events:,} plays")
            logs = industrial_logs.logs_of(root, events=events, workers=options.cores)
            yield measure(logs, options.names, rounds=options.rounds, cores=options.cores, memory_gb=options.memory_gb)
            if not options.data:
                shutil.rmtree(logs.parent)


def main() -> None:
    """Print the tables and the JSON line."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that folders and processes are cleaned up
    sizes: list[Size] = []
    problem = ""
    try:
        for size in measure_all(options):
            sizes.append(size)
    except (InputError, RuntimeError, ValueError) as error:
        problem = f"benchmarks.sessionize: {error}"
    if sizes:
        print_sizes(sizes, cores=options.cores, memory_gb=options.memory_gb)
        if len(sizes) > 1:
            print_marginal(sizes)
        about = f"{options.cores} cores used, {options.memory_gb:g} GB allowed, {versions()}"
        timing.report("sessionize", comparison(sizes), ours="ours", baseline="baseline", about=about)
    if problem:
        sys.exit(problem)


if __name__ == "__main__":
    main()
