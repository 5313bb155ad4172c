"""The task of the daily list, and the evaluation: `python -m benchmarks.recommend [--quick] [--evaluate]`.

A task reads a shard file, makes the lists of its listeners and writes them as a part of the Delta table; it has one
thread, as Ray gives it. 33,162 songs, D 64, two layers of FuXi-beta, listeners with 100 plays on average, lists of 30:

- with no rule but that nobody gets a song heard before;
- under the default rules with a catalogue that names artists, two songs each, and the lists of seven days before,
  with the two plays that are the reasons of each song.

The rate of one core is by processor time, which other programs change less than wall time, in a process of its own;
then two processes at once against one, by wall time, which needs two idle cores.

--evaluate: instead, the protocol `next_day` for two models, popularity and Markov, raw and as served.
"""

import argparse
import datetime as dt
import functools
import json
import multiprocessing
import pickle
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lib import list_days
from benchmarks.lib.list_days import CALENDAR, DS, Size
from benchmarks.lib.timing import say
from fuxi_beta.baselines.markov import fit_markov
from fuxi_beta.baselines.popularity import fit_popularity
from fuxi_beta.config import EvaluateConfig, TrainConfig
from fuxi_beta.evaluation import protocol
from fuxi_beta.evaluation.next_day import evaluate_next_day
from fuxi_beta.ops import TopKSearch
from fuxi_beta.training.checkpoint import TrainedModel
from jobs.runtime import machine
from jobs.serving import make_lists
from jobs.serving.count_quality import QualityCount
from jobs.serving.make_lists import ListJob
from jobs.serving.rules import ListRules
from jobs.serving.stored_listeners import StoredListeners

CASES = {"heard songs only": False, "default rules": True}
PARTS: dict[str, tuple[tuple[object, str], ...]] = {
    "batches": ((protocol, "inference_batch"),),
    "network": ((TrainedModel, "trace"),),
    "search": ((TopKSearch, "top_k"),),
    "rules": ((ListRules, "lists"), (StoredListeners, "facts")),
    "reasons": ((make_lists, "_reasons"),),
    "quality": ((QualityCount, "count"),),
    "rows": ((make_lists, "list_table"),),
    "writing": ((make_lists, "write_part"),),
}
"""Functions by what they do. The rest is mostly the wait for the thread that reads."""
_WHOLE = "quality"  # whatever is called for it is a part of it


class Watch:
    """Divides time among PARTS: what a part calls of another is the other's. For one process that ends soon after."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._since = 0.0
        for part, functions in PARTS.items():
            for owner, name in functions:
                setattr(owner, name, self._timed(part, getattr(owner, name)))

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if _WHOLE in self._open:
                return function(*arguments, **options)
            self._charge()
            self._open.append(part)
            try:
                return function(*arguments, **options)
            finally:
                self._charge()
                self._open.pop()

        return call

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@dataclass(frozen=True)
class Worked:
    """What one process did: listeners, its seconds by both clocks, and its memory at the peak."""

    listeners: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    shares: dict[str, float]  # of the time, by PARTS


def work(path: Path, places: Sequence[int], start: Barrier, done: "Queue[Worked]") -> None:
    """Make the lists of some files of a stored job, after those of one to warm up."""
    torch.set_num_threads(1)
    job: ListJob = pickle.loads(path.read_bytes())
    make_lists.make_part(job, job.manifest.files[places[0]])
    start.wait()
    watch, started, cpu = Watch(), time.perf_counter(), time.process_time()
    parts = [make_lists.make_part(job, job.manifest.files[place]) for place in places]
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    shares = {part: spent / seconds for part, spent in watch.seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    done.put(Worked(sum(part.rows for part in parts), seconds, cpu, peak, shares | {"rest": 1 - sum(shares.values())}))


def at_once(path: Path, shares: Sequence[Sequence[int]]) -> list[Worked]:
    """A process for each share of the files, all started together."""
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(len(shares)), context.Queue()
    processes = [context.Process(target=work, args=(path, share, start, done)) for share in shares]
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
        row: dict[str, object] = {
            "case": case,
            "lists/s/core": round(one.listeners / one.cpu_s),
            "two processes": round(rate(two) / rate([one]), 2),
            "peak MB": round(one.peak_mb),
        }
        rows.append(row | {part: round(share, 3) for part, share in one.shares.items()})
    return rows


def measure_evaluation(folder: Path, size: Size) -> list[dict[str, object]]:
    """Two models and two baselines on all listeners, raw lists and lists under the default rules."""
    manifest = list_days.write_histories(folder / "shards", size)
    job = list_days.list_job(folder / "rules", manifest, size, rules=True)
    cut, train = CALENDAR.day_start(DS - dt.timedelta(days=1)), TrainConfig()
    popularity = fit_popularity(manifest, end=cut, train=train, config=EvaluateConfig())
    recommenders = {
        "challenger": job.recommender,
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


if __name__ == "__main__":
    main()
