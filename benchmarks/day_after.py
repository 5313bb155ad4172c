"""What the day after costs: `python -m benchmarks.day_after [--events 100] [--quick]`.

Shards are built from all landing days but the newest; then the newest day, 4 % of the plays, is merged into them. The
baseline is a full build from all days in a fresh workspace with the same vocabulary. Both run the sessionize stage in
a fresh process and take turns, and what they store must be equal: one hash a column, over listeners, songs, times,
completions, sessions and songs heard before.

Cases: the whole history, half of it and a quarter; the newest day's plays by fewer listeners, and by all of them; and
day after day, so that buckets carry increments and are compacted in turn, which does not happen in the first merge
after a build.

"Work" leaves out interpreter, JVM and session, which cost the same at any size; "tasks" are the processor seconds of
the Python code of Spark's tasks, without the start of its workers and without Spark itself.
"""

import argparse
import datetime as dt
import hashlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.lib import contestants, industrial_logs, processes, timing
from benchmarks.lib.contestants import StageRun, Work, versions
from benchmarks.lib.industrial_logs import buckets_for, folder_for
from benchmarks.lib.timing import say
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest, read_manifest

BYTES_AN_EVENT = 70
"""Disk for two workspaces, a snapshot's new files and the logs of the newest day, with room to spare."""


@dataclass(frozen=True)
class Compared:
    """The runs of one case: a merge and a full build a round."""

    case: str
    history: int  # rows in the logs before the newest day
    new: int  # rows of the newest day
    active: float  # share of all listeners who play on it
    merges: list[StageRun]
    builds: list[StageRun]


class Bench:
    """A folder with logs and the workspaces that are built from them."""

    def __init__(self, root: Path, *, buckets: int, cores: int):
        self.root, self.logs = root, root / "logs"
        self._buckets, self._cores = buckets, cores
        self.logs.mkdir()

    def work(self, workspace: str, ds: str) -> Work:
        """The stage's input and output for a ds in one of the workspaces."""
        return Work(str(self.logs), str(self.root / workspace), ds, self._buckets, self._cores, 0)

    def run(self, workspace: str, ds: str) -> StageRun:
        """The stage, in a fresh process. Raises RuntimeError if it fails."""
        run = contestants.run_in_process("ours", self.work(workspace, ds))
        cost = run.cost
        say(f"ds {ds} in {workspace}: {cost.wall_s:.1f} s, {cost.cpu_s:.1f} processor seconds, {cost.peak_gb:.2f} GB")
        return run

    def manifest(self, workspace: str, ds: str) -> Manifest:
        """What a run published."""
        return read_manifest(f"{self.root}/{workspace}/workspace/sequences/ds={ds}")

    def copy(self, source: str, target: str, part: str = "") -> None:
        """Copy a workspace, or a folder of it, by hard links: files are never changed in place."""
        shutil.rmtree(self.root / target, ignore_errors=True)
        shutil.copytree(
            self.root / source / "workspace" / part,
            self.root / target / "workspace" / part,
            copy_function=os.link,
        )

    def land(self, folders: Sequence[Path]) -> None:
        """Replace the logs by those of the given landing days."""
        shutil.rmtree(self.logs)
        for folder in folders:
            link_folder(folder, self.logs / folder.name)


def link_folder(source: Path, target: Path) -> None:
    """Link the files of a folder into another one; copy them where that is on another disk."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)


def compare(bench: Bench, case: str, *, parent: str, before: str, ds: str, rounds: int) -> Compared:
    """Merge the newest day into a copy of workspace `parent` (of ds `before`), and build everything; `rounds` times.

    Raises RuntimeError if the two stored different histories.
    """
    merges, builds = [], []
    for number in range(rounds):
        bench.copy(parent, "merged")
        merges.append(bench.run("merged", ds))
        bench.copy("merged", "full", "vocabulary")
        builds.append(bench.run("full", ds))
        if number == 0:
            check_equal(case, bench.manifest("merged", ds), bench.manifest("full", ds))
    history, new, active = day_figures(bench, before, ds)
    say(f"{case}: equal, {median(merges, work_cpu_s):.1f} processor seconds of work to merge")
    return Compared(case, history, new, active, merges, builds)


def day_figures(bench: Bench, before: str, ds: str) -> tuple[int, int, float]:
    """Rows of the history, rows of the newest day, share of listeners who play on it."""
    rows = [
        sum(pq.ParquetFile(f).metadata.num_rows for f in d.iterdir()) for d in industrial_logs.day_folders(bench.logs)
    ]
    newest = pa.concat_arrays(
        [
            pc.unique(pq.read_table(file, columns=["user_id"])["user_id"]).drop_null()
            for file in industrial_logs.day_folders(bench.logs)[-1].iterdir()
        ]
    )
    listeners = bench.manifest("merged", ds).rows
    return sum(rows[:-1]), rows[-1], len(newest.unique()) / listeners


def check_equal(case: str, merged: Manifest, full: Manifest) -> None:
    """Raise RuntimeError that names the columns in which the histories of two manifests differ."""
    if full.parent is not None or merged.parent is None:
        raise RuntimeError(f"{case}: the full build has a parent, or the merge has none")
    ours, theirs = content(merged), content(full)
    if different := [name for name in ours if ours[name] != theirs[name]]:
        raise RuntimeError(f"{case}: merged and full differ in {', '.join(different)}")


def content(manifest: Manifest) -> dict[str, str]:
    """A digest of every column, bucket after bucket; how rows fall into row groups does not matter."""
    digests = {name: hashlib.sha256() for name in ("rows", "lengths")}
    for file in sorted(manifest.files, key=lambda file: file.bucket):
        digests["rows"].update(f"{file.bucket} {file.rows} {file.events};".encode())
        for group in range(len(file.row_groups)):
            table = manifest.read(file, group)
            for name in table.schema.names:
                column = table[name].combine_chunks()
                if pa.types.is_list(column.type):
                    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
                    digests["lengths"].update(lengths.astype(np.int64).tobytes())
                    column = column.flatten()
                digests.setdefault(name, hashlib.sha256()).update(np.asarray(column).tobytes())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def history_cases(bench: Bench, days: Sequence[Path], shares: Sequence[float], rounds: int) -> Iterator[Compared]:
    """The newest day over more and more history. Leaves the shards of all of it in workspace `base`."""
    before, ds = day_names(days)
    for share in sorted(shares):
        kept = [*days[:-1][-round(share * (len(days) - 1)) :], days[-1]]
        bench.land(kept)
        shutil.rmtree(bench.root / "base", ignore_errors=True)
        bench.run("base", before)
        yield compare(bench, f"{share:.0%} of the history", parent="base", before=before, ds=ds, rounds=rounds)


def active_cases(bench: Bench, days: Sequence[Path], shares: Sequence[float], rounds: int) -> Iterator[Compared]:
    """The same number of plays on the newest day by fewer or more listeners, over all of the history in `base`."""
    before, ds = day_names(days)
    manifest = bench.manifest("base", before)
    listeners = np.concatenate([manifest.read(*at[:2], columns=["user_id"])["user_id"] for at in manifest.row_groups()])
    for share in shares:
        bench.land(days[:-1])
        among = np.random.default_rng(7).permutation(listeners)[: max(round(share * len(listeners)), 1)]
        rewrite_day(days[-1], bench.logs / days[-1].name, among)
        yield compare(bench, f"played by {share:.0%}", parent="base", before=before, ds=ds, rounds=rounds)


def rewrite_day(source: Path, target: Path, listeners: np.ndarray) -> None:
    """Copy a landing day with its plays dealt out evenly to the given listeners."""
    target.mkdir()
    place = 0
    for file in sorted(source.iterdir()):
        table = pq.read_table(file)
        users = listeners[np.arange(place, place + len(table)) % len(listeners)]
        place += len(table)
        pq.write_table(table.set_column(0, "user_id", pa.array(users)), target / file.name, compression="zstd")


def steady_case(bench: Bench, days: Sequence[Path], merged: int, full: Compared) -> list[Compared]:
    """The last `merged` days one after the other, over a base of those before.

    The baseline of each is the full build of all days (of `full`), although all but the last have less history.
    """
    first = len(days) - merged
    compared = []
    bench.land(days[:first])
    shutil.rmtree(bench.root / "merged", ignore_errors=True)
    bench.run("merged", day_after(days[first - 1]))
    for place in range(first, len(days)):
        link_folder(days[place], bench.logs / days[place].name)
        before, ds = day_names(days[: place + 1])
        run = bench.run("merged", ds)
        history, new, active = day_figures(bench, before, ds)
        case = f"day {place - first + 1} after the build"
        compared.append(Compared(case, history, new, active, [run], full.builds))
    ds = day_after(days[-1])
    bench.copy("merged", "full", "vocabulary")
    bench.run("full", ds)
    check_equal("day after day", bench.manifest("merged", ds), bench.manifest("full", ds))
    say(f"{merged} days, one after the other: equal to a full build")
    return compared


def day_after(folder: Path) -> str:
    """The serving day of a newest landing day."""
    return str(dt.date.fromisoformat(folder.name.removeprefix("ds=")) + dt.timedelta(days=1))


def day_names(days: Sequence[Path]) -> tuple[str, str]:
    """The ds built without the newest landing day, and the ds with it."""
    return day_after(days[-2]), day_after(days[-1])


def work_cpu_s(run: StageRun) -> float:
    """Processor seconds after Spark was ready."""
    return run.cost.cpu_s - run.ready_cpu_s


SECONDS: dict[str, Callable[[StageRun], float]] = {
    "wall s": lambda run: run.cost.wall_s,
    "CPU-s": lambda run: run.cost.cpu_s,
    "work\nCPU-s": work_cpu_s,
    "tasks\nCPU-s": lambda run: run.task_cpu_s or 0.0,
}
GIGABYTES: dict[str, Callable[[StageRun], float]] = {
    "read\nGB": lambda run: run.cost.worker_read_bytes / 1e9,
    "written\nGB": lambda run: run.cost.worker_written_bytes / 1e9,
}


def print_table(cases: Sequence[Compared]) -> None:
    """Print one table, a line a case: merge, full build, and the merge as a share of the build."""
    table = Table(title="the day after", caption="medians over rounds; GB are what Spark's tasks read and wrote")
    table.add_column("", no_wrap=True)
    for column in ("history\nrows", "new\nrows", "active\nlisteners"):
        table.add_column(column, justify="right")
    for kind in ("merge", "full"):
        for name in (*SECONDS, *GIGABYTES):
            table.add_column(f"{kind}\n{name}", justify="right")
    for name in SECONDS:
        table.add_column(f"/full\n{name.removesuffix(' s')}", justify="right")
    for row in cases:
        cells = [row.case, f"{row.history:,}", f"{row.new:,}", f"{row.active:.1%}"]
        for runs in (row.merges, row.builds):
            cells += [f"{median(runs, of):.1f}" for of in SECONDS.values()]
            cells += [f"{median(runs, of):.2f}" for of in GIGABYTES.values()]
        cells += [f"{median(row.merges, of) / median(row.builds, of):.0%}" for of in SECONDS.values()]
        table.add_row(*cells)
    Console(width=200).print(table)


def median(runs: Sequence[StageRun], of: Callable[[StageRun], float]) -> float:
    """Median over runs."""
    return statistics.median(map(of, runs))


def rows_for_report(cases: Sequence[Compared]) -> list[timing.Row]:
    """Merging against building, in wall time and in processor seconds of all, of the work and of the tasks."""
    return [
        timing.Row(
            f"{row.case}, {' '.join(name.split())}",
            [of(run) for run in row.merges],
            [of(run) for run in row.builds],
            "s" if name == "wall s" else "CPU-s",
        )
        for row in cases
        for name, of in SECONDS.items()
    ]


def measure(options: argparse.Namespace, root: Path, days: Sequence[Path]) -> Iterator[Compared]:
    """Every case."""
    events = sum(pq.ParquetFile(file).metadata.num_rows for day in days for file in day.iterdir())
    bench = Bench(root, buckets=buckets_for(events), cores=options.cores)
    for row in history_cases(bench, days, options.histories, options.rounds):
        yield row
    yield from active_cases(bench, days, options.shares, options.rounds)
    if options.steady:
        yield from steady_case(bench, days, options.steady, row)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3M events, fewer cases, one round")
    parser.add_argument("--events", type=float, default=100, help="size in millions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=processes.available_cores())
    parser.add_argument("--histories", default="0.25,0.5,1", help="shares of the history; all of it is always measured")
    parser.add_argument("--shares", default="0.02,0.1,1", help="shares of the listeners who play on the newest day")
    parser.add_argument("--steady", type=int, default=10, help="days merged one after the other; 0: none")
    parser.add_argument("--data", metavar="DIR", help="keep the logs here and find them again; default: temporary")
    options = parser.parse_args()
    if options.quick:
        options.events, options.rounds, options.steady = 3, 1, 0
        options.histories, options.shares = "0.25,1", "0.02"
    options.histories = sorted({*map(float, options.histories.split(",")), 1.0})  # the other cases build on all of it
    options.shares = [float(share) for share in options.shares.split(",") if share]
    return options


def main() -> None:
    """Print the table and the JSON line."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that folders and processes are cleaned up
    events = int(options.events * 1e6)
    cases: list[Compared] = []
    problem = ""
    try:
        with folder_for(options.data) as data, tempfile.TemporaryDirectory(prefix="day-after-") as root:
            industrial_logs.check_space(Path(root), BYTES_AN_EVENT * events, f"{events:,} events")
            say(f"logs of {events:,} plays")
            logs = industrial_logs.logs_of(data, events=events, workers=options.cores)
            for row in measure(options, Path(root), industrial_logs.day_folders(logs)):
                cases.append(row)
    except (InputError, RuntimeError, ValueError) as error:
        problem = f"benchmarks.day_after: {error}"
    if cases:
        print_table(cases)
        about = f"{options.cores} cores used, {versions()}"
        timing.report("day_after", rows_for_report(cases), ours="merge", baseline="full build", about=about)
    if problem:
        sys.exit(problem)


if __name__ == "__main__":
    main()
