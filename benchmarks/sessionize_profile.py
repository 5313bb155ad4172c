"""Where a play's time goes: `python -m benchmarks.sessionize_profile [--events 10] [--data FOLDER]`.

Runs the code of both kinds of Spark task in this process, on one thread, under cProfile, and prints nanoseconds a play
by step: first a full build of 25 days, then the next day merged into it.
"""

import argparse
import cProfile
import datetime as dt
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.lib.industrial_logs import day_folders, logs_of
from jobs.runtime import machine
from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.histories.build import BuildTask, SongIndex, build_buckets, plan_shuffle
from pipelines.histories.publish import BuildSpec, publish_shards
from pipelines.histories.shards import Manifest, ShardFile
from pipelines.histories.shuffle import Shuffle, ShuffleRun, ranges_of
from pipelines.logs import files as logs
from pipelines.logs import validate
from pipelines.schema import ITEM_ID, id_type

STEPS = {
    "read logs (Parquet)": ("_batches", "typed_batch", "_typed"),
    "judge rows": ("validate", "_all_valid", "completion"),
    "quarantine rows": ("_quarantined",),
    "collect a task's plays": ("concatenate", "_plays", "_narrowed"),
    "count songs": ("value_counts", "_sum_plays"),
    "hash listeners": ("user_hash",),
    "cut busy listeners": ("cut_busy_listeners",),
    "write runs (partition, zstd)": ("_write_run",),
    "read runs (zstd)": ("_read_range",),
    "songs to indices": ("_indexed",),
    "listeners to ranks": ("ranked",),
    "sort": ("_sorted",),
    "duplicates, trimming": ("in_given_order",),
    "listeners by bucket": ("by_bucket",),
    "distinct songs of each listener": ("lifetime_songs",),
    "cut sessions": ("session_index",),
    "lists to rows": ("to_table",),
    "read stored shards (Parquet)": ("lazy_layers", "layers", "base_users"),
    "find what is stored already": ("increment_over",),
    "write shards (Parquet, SHA-256)": ("_write_group", "_cut", "write", "close"),
}
"""Steps by the functions that do them. Time belongs to the innermost of these on the stack."""


@dataclass(frozen=True)
class Stage:
    """The profile of one kind of task."""

    name: str
    plays: int
    seconds: float
    steps: dict[str, float]


def profiled(name: str, plays: int, work: Callable[[], Any]) -> tuple[Any, Stage]:
    """Run `work` and share its processor seconds out over STEPS."""
    profile, started = cProfile.Profile(), time.process_time()
    result = profile.runcall(work)
    seconds = time.process_time() - started
    return result, Stage(name, plays, seconds, _shares(pstats.Stats(profile)))


def _shares(stats: pstats.Stats) -> dict[str, float]:
    """Assign every function's own time to the step that called it, in proportion to the time of the callers' calls."""
    table: dict[Any, Any] = stats.stats  # type: ignore[attr-defined]
    step_of = {name: step for step, names in STEPS.items() for name in names}
    memory: dict[Any, dict[str, float]] = {}

    def steps(function: Any, depth: int = 0) -> dict[str, float]:
        """The steps' shares of a function's time; they sum to 1."""
        file, _, name = function
        if name in step_of and ("pipelines" in file or name == "value_counts"):
            return {step_of[name]: 1.0}
        if function in memory or depth > 40:
            return memory.get(function, {"other": 1.0})
        callers = table[function][4]
        total = sum(caller[3] for caller in callers.values())
        if not callers or total <= 0:
            return {"other": 1.0}
        memory[function] = {"other": 1.0}  # ends the recursion of recursive functions
        shares: dict[str, float] = {}
        for caller, (_, _, _, cumulative) in callers.items():
            for step, share in steps(caller, depth + 1).items():
                shares[step] = shares.get(step, 0.0) + share * cumulative / total
        memory[function] = shares
        return shares

    by_step: dict[str, float] = {}
    for function, (_, _, own, _, _) in table.items():
        for step, share in steps(function).items():
            by_step[step] = by_step.get(step, 0.0) + own * share
    return by_step


class Shards:
    """Both kinds of task over a log, without Spark."""

    def __init__(self, folder: Path, logs_folder: Path, buckets: int):
        self.folder, self.buckets = folder, buckets
        self.spec = logs.LogSpec(path=str(logs_folder))
        self.manifest: Manifest | None = None
        self.songs = SongIndex(pa.array([], pa.int64()), np.zeros(0, np.int32))

    def read(self, files: list[logs.LogFile], shuffle: Shuffle) -> list[dict[str, Any]]:
        """The tasks that read and partition plays."""
        rules, results = validate.ValidationRules(), []
        spec = validate.CleanSpec(self.spec, rules, shuffle, f"{self.folder}/staging", f"{self.folder}/rejects")
        storage.make_folder(spec.staging)
        for number, splits in enumerate(validate.assign_to_tasks(logs.plan(self.spec, files), 2)):
            task = validate.CleanTask(spec, f"{number:05d}", attempt=files[-1].landing_day)
            for split in splits:
                task.read(split)
            results.append(task.finish())
        return results

    def index(self, results: list[dict[str, Any]]) -> None:
        """Number the songs."""
        ids = validate.merge_songs([task["songs"] for task in results], id_type("int64"))[ITEM_ID].combine_chunks()
        self.songs = SongIndex(ids, np.arange(1, len(ids) + 1, dtype=np.int32))

    def build(self, ds: dt.date, runs: list[ShuffleRun], shuffle: Shuffle) -> tuple[ShardFile, ...]:
        """The tasks that sort plays and write shards."""
        spec = BuildSpec(
            folder=f"{self.folder}/sequences/ds={ds}",
            ds=ds,
            data_end=Calendar().day_start(ds),
            vocabulary_size=len(self.songs.item_id),
            buckets=self.buckets,
            parent=self.manifest,
        )
        parents = {file.bucket: file for file in self.manifest.files} if self.manifest else {}
        built = spec.nothing_built()
        for partition in range(shuffle.partitions):
            own = {bucket: parents[bucket] for bucket in shuffle.buckets_of(partition) if bucket in parents}
            task = BuildTask(partition, shuffle.buckets_of(partition), ranges_of(runs, partition), own)
            build_buckets(spec, task, self.songs, built)
        self.manifest = publish_shards(spec, built)
        return self.manifest.files


def measure(folder: Path, logs_folder: Path, buckets: int) -> list[Stage]:
    """Profile a full build of all days but the newest, then the merge of the newest."""
    shards = Shards(folder, logs_folder, buckets)
    last = dt.date.fromisoformat(day_folders(logs_folder)[-1].name.removeprefix("ds="))
    files = logs.discover(shards.spec, before=last + dt.timedelta(days=1))
    stages = []
    for name, ds in (("full build", last), ("the day after", last + dt.timedelta(days=1))):
        own = [file for file in files if (file.landing_day < str(last)) == (name == "full build")]
        rows = sum(split.rows for split in logs.plan(shards.spec, own))
        stored = shards.manifest.events if shards.manifest else 0
        shuffle = plan_shuffle(buckets, rows, stored=stored, parallelism=2, max_history=2000)
        results, first = profiled(f"{name}: read", rows, lambda own=own, shuffle=shuffle: shards.read(own, shuffle))
        if name == "full build":
            shards.index(results)
        runs = [run for task in results for run in task["runs"]]
        _, second = profiled(
            f"{name}: build", rows, lambda ds=ds, runs=runs, shuffle=shuffle: shards.build(ds, runs, shuffle)
        )
        stages += [first, second]
        print(f"{name}: {first.seconds + second.seconds:.1f} processor seconds", file=sys.stderr, flush=True)
    return stages


def print_stages(stages: list[Stage]) -> None:
    """One table, and the JSON line."""
    table = Table(title="where a play's time goes, ns of one core a play", caption=machine.describe())
    table.add_column("")
    for stage in stages:
        table.add_column(f"{stage.name}\n{stage.plays / 1e6:.1f} M", justify="right")
    for step in (*STEPS, "other"):
        cells = [stage.steps.get(step, 0.0) / stage.plays * 1e9 for stage in stages]
        if any(cell >= 0.5 for cell in cells):
            table.add_row(step, *(f"{cell:.0f}" if cell >= 0.5 else "" for cell in cells))
    table.add_section()
    table.add_row("all", *(f"{stage.seconds / stage.plays * 1e9:.0f}" for stage in stages))
    Console(width=120).print(table)
    rows = [
        {"case": s.name, "ours": round(s.seconds / s.plays * 1e9, 1), "baseline": None, "unit": "ns", "speedup": None}
        for s in stages
    ]
    print(json.dumps({"benchmark": "sessionize_profile", "machine": machine.describe(), "rows": rows}))


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=float, default=10, help="millions [default: 10]")
    parser.add_argument("--data", help="folder that keeps the logs [default: a temporary one]")
    options = parser.parse_args()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with tempfile.TemporaryDirectory(prefix="sessionize-profile-") as scratch:
        root = Path(options.data or f"{scratch}/logs")
        events = round(options.events * 1e6)
        logs_folder = logs_of(root, events=events, workers=2)
        buckets = max(8, 1 << (max(events // 2_000_000, 1) - 1).bit_length())
        print_stages(measure(Path(scratch), logs_folder, buckets))


if __name__ == "__main__":
    main()
