"""The task of the daily list, and the evaluation: `python -m benchmarks.recommend [--quick] [--evaluate]`.

A task reads a shard file, makes the lists of its listeners and writes them as a part of the Delta table; it has one
thread, as Ray gives it. 33,162 songs, D 64, two layers of FuXi-beta, listeners with 100 plays on average, lists of 30:

- with no rule but that nobody gets a song heard before;
- under the default rules with a catalogue that names artists, two songs each, and the lists of seven days before,
  with the two plays that are the reasons of each song.

The rate of one core is by processor time, which other programs change less than wall time, in a process of its own;
then two processes at once against one, by wall time. A profile in another process says where the time goes.

--evaluate: instead, the protocol `next_day` for two models, popularity and Markov, raw and as served.
"""

import argparse
import cProfile
import datetime as dt
import json
import multiprocessing
import pickle
import pstats
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lib import list_days
from benchmarks.lib.list_days import CALENDAR, DS, Size
from benchmarks.lib.timing import say
from fuxi_beta.baselines.markov import fit_markov
from fuxi_beta.baselines.popularity import fit_popularity
from fuxi_beta.config import EvaluateConfig, TrainConfig
from fuxi_beta.evaluation.next_day import evaluate_next_day
from jobs.runtime import machine
from jobs.serving.make_lists import ListJob, make_part

CASES = {"heard songs only": False, "default rules": True}
PARTS = {
    "reading": ("_active",),
    "batches": ("inference_batch",),
    "network": ("trace",),
    "search": ("top_k",),
    "rules": ("lists",),
    "reasons": ("_reasons",),
    "quality": ("count",),
    "rows": ("list_table",),
    "writing": ("write_part",),
}
"""Functions by what they do; `lists` calls those above it, which are not counted twice."""
_INSIDE_LISTS = ("batches", "network", "search")


@dataclass(frozen=True)
class Worked:
    """What one process did: listeners, its seconds by both clocks, and its memory at the peak."""

    listeners: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    shares: dict[str, float]  # of the time, by PARTS; empty without a profile


def work(path: Path, places: Sequence[int], start: Barrier, done: "Queue[Worked]", *, profiled: bool = False) -> None:
    """Make the lists of some files of a stored job, after those of one to warm up."""
    torch.set_num_threads(1)
    job: ListJob = pickle.loads(path.read_bytes())
    make_part(job, job.manifest.files[places[0]])
    profile = cProfile.Profile()
    start.wait()
    started, cpu = time.perf_counter(), time.process_time()
    if profiled:
        profile.enable()
    parts = [make_part(job, job.manifest.files[place]) for place in places]
    profile.disable()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    done.put(Worked(sum(part.rows for part in parts), seconds, cpu, peak, _shares(profile) if profiled else {}))


def _shares(profile: cProfile.Profile) -> dict[str, float]:
    """Shares of the time of the main thread; reading is of another, so it is what the main thread waits for it."""
    stats = pstats.Stats(profile)
    spent: dict[str, float] = {}
    for (_, _, name), (_, _, _, seconds, _) in stats.stats.items():  # type: ignore[attr-defined]
        spent[name] = max(spent.get(name, 0.0), seconds)
    of_part = {part: sum(spent.get(name, 0.0) for name in names) for part, names in PARTS.items()}
    of_part["reading"] = spent.get("<method 'acquire' of '_thread.lock' objects>", 0.0)
    of_part["rules"] -= sum(of_part[part] for part in _INSIDE_LISTS)
    return {part: seconds / stats.total_tt for part, seconds in of_part.items()}  # type: ignore[attr-defined]


def at_once(path: Path, shares: Sequence[Sequence[int]], *, profiled: bool = False) -> list[Worked]:
    """A process for each share of the files, all started together."""
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(len(shares)), context.Queue()
    options = {"profiled": profiled}
    processes = [context.Process(target=work, args=(path, share, start, done), kwargs=options) for share in shares]
    for process in processes:
        process.start()
    worked = [done.get() for _ in processes]
    for process in processes:
        process.join()
    return worked


def rate(worked: Sequence[Worked]) -> float:
    """Listeners a second of processes that ran together."""
    return sum(one.listeners for one in worked) / max(one.wall_s for one in worked)


def measure_tasks(folder: Path, size: Size) -> list[dict[str, object]]:
    """A row for each case."""
    manifest = list_days.write_histories(folder / "shards", size)
    files, rows = range(len(manifest.files)), []
    for case, rules in CASES.items():
        path = folder / f"rules-{rules}.pickle"
        path.write_bytes(pickle.dumps(list_days.list_job(folder / path.stem, manifest, size, rules=rules)))
        say(f"{case}: {manifest.rows:,} listeners, {manifest.events:,} plays")
        (one,), two = at_once(path, [files]), at_once(path, [files[::2], files[1::2]])
        (profile,) = at_once(path, [files[: len(files) // 4]], profiled=True)
        row: dict[str, object] = {
            "case": case,
            "lists/s/core": round(one.listeners / one.cpu_s),
            "two processes": round(rate(two) / rate([one]), 2),
            "peak MB": round(one.peak_mb),
        }
        rows.append(row | {part: round(share, 3) for part, share in profile.shares.items()})
    return rows


def measure_evaluation(folder: Path, size: Size) -> list[dict[str, object]]:
    """Two models and two baselines on all listeners, raw lists and lists under the default rules."""
    manifest = list_days.write_histories(folder / "shards", size)
    job = list_days.list_job(folder / "rules", manifest, size, rules=True)
    cut, train = CALENDAR.day_start(DS - dt.timedelta(days=1)), TrainConfig()
    popularity = fit_popularity(manifest, end=cut, train=train, config=EvaluateConfig())
    recommenders = {
        "challenger": job.model,
        "champion": list_days.untrained(size, list_days.artists(size.songs), seed=1),
        "popularity": popularity,
        "markov": fit_markov(manifest, end=cut, train=train),
    }

    def evaluate(names: Sequence[str]) -> int:
        return evaluate_next_day(
            manifest,
            {name: recommenders[name] for name in names},  # type: ignore[misc]
            ds=DS,
            calendar=CALENDAR,
            model=size.model,
            train=train,
            config=replace(EvaluateConfig(), max_listeners=size.listeners),
            fallback=popularity,
            served=job.rules.as_list_maker,
        ).listeners

    every = list(recommenders)
    return [_timed(", ".join(names), evaluate, names) for names in (every, *([name] for name in every))]


def _timed(case: str, evaluate: Callable[[Sequence[str]], int], names: Sequence[str]) -> dict[str, object]:
    say(case)
    started, cpu = time.perf_counter(), time.process_time()
    listeners = evaluate(names)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    for_many = {"s for 100,000": round(1e5 * seconds / listeners, 1), "CPU s": round(1e5 * cpu / listeners, 1)}
    return {"case": case, "listeners": listeners, **for_many}


def run(size: Size, *, evaluate: bool) -> None:
    """Print the table and the JSON line."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = (measure_evaluation if evaluate else measure_tasks)(Path(scratch), size)
    described = f"{machine.describe()}, {size.listeners:,} listeners, {size.songs:,} songs"
    table = Table(title="recommend", caption=described, caption_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=140).print(table)
    print(json.dumps({"benchmark": "recommend", "machine": described, "rows": rows}))


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the listeners")
    parser.add_argument("--evaluate", action="store_true", help="measure evaluation instead of the task")
    options = parser.parse_args()
    run(Size(6_400 if options.quick else 64_000), evaluate=options.evaluate)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
