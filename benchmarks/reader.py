"""From shards to batches: `python -m benchmarks.reader [--quick]`.

Events a second of `TrainingBatches` that the network reads, shards on the local disk, learning from all plays and from
first listens:

- short histories (8 events on average) in batches of 4,096, and histories of 120 events in batches of 128;
- the shape of a large service: 53 events on average with a heavy tail (log-normal, cut at 2,000), a fifth of them
  skipped, in batches of 512 listeners and of 65,536 events.

The rate of one core is by processor time (of all threads, pinned to the core), which other programs do not change; that
of two, with two threads that read row groups, is by wall time. The baseline has one core. It reads the same shards with
`pyarrow.dataset` and makes the same batches one listener at a time, as a `torch.utils.data.Dataset` with a collate
function does: the newest N plays, their targets and times, and nothing else. Ours also cuts days, marks first listens
and shuffles.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.dataset as ds
import torch

from benchmarks.lib.industrial_shards import write_buckets
from benchmarks.lib.random_histories import NOW, SONGS, histories_of
from benchmarks.lib.timing import Row, report
from fuxi_beta.config import LearnFrom, ModelConfig, TrainConfig
from fuxi_beta.data.reader import TrainingBatches, prefetched
from pipelines import schema
from pipelines.histories.shards import Manifest


@dataclass(frozen=True)
class Shape:
    """Random histories, and the batches that are made of them."""

    listeners: int
    events: int  # on average
    batches: tuple[TrainConfig, ...]
    heavy_tail: bool = False  # and a fifth of the events skipped
    cores: tuple[int, ...] = (1,)


SHAPES = (
    Shape(400_000, 8, (TrainConfig(batch_size=4096),)),
    Shape(32_000, 120, (TrainConfig(batch_size=128),)),
    Shape(
        160_000,
        53,
        (TrainConfig(batch_size=512), TrainConfig(batch_tokens=65_536)),
        heavy_tail=True,
        cores=(1, 2),
    ),
)


def ours(manifest: Manifest, train: TrainConfig, model: ModelConfig, threads: int) -> Callable[[], tuple[int, int]]:
    """An epoch of ours as a function that returns the numbers of listeners and of events."""
    reader = TrainingBatches(
        manifest, model=model, train=train, data_end=NOW, rank=0, world_size=1, vocabulary_size=SONGS
    )
    reader.threads = threads

    def call() -> tuple[int, int]:
        listeners = events = 0
        for batch in prefetched(reader.epoch(0)):
            listeners, events = listeners + batch.num_listeners, events + len(batch.item_index)
        return listeners, events

    return call


def baseline(folder: Path, train: TrainConfig, model: ModelConfig, most: int) -> Callable[[], tuple[int, int]]:
    """The baseline as a function that stops after `most` listeners."""
    shards = ds.dataset(folder, format="parquet", exclude_invalid_files=True)
    names = [schema.ITEM_INDEX, schema.TIMESTAMP, schema.COMPLETION]
    context, chunk_size = model.max_history, train.batch_size

    def call() -> tuple[int, int]:
        listeners, events, rows = 0, 0, []
        for chunk in shards.to_batches(columns=names, batch_size=chunk_size):
            for row in zip(*(chunk.column(name).to_pylist() for name in names), strict=True):
                items, times, completion = (torch.tensor(values) for values in row)
                played = completion >= train.min_completion
                items, times = items[played][-context - 1 :], times[played][-context - 1 :]
                rows.append((items[:-1], items[1:], times[:-1], times[1:]))
            items, *_ = (torch.cat(part) for part in zip(*rows, strict=True))
            listeners, events = listeners + len(rows), events + len(items)
            rows = []
            if listeners >= most:
                break
        return listeners, events

    return call


@contextmanager
def pinned(cores: int) -> Iterator[None]:
    """Pin this thread, and those that it starts, to the first `cores` of its cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def measure(folder: Path, manifest: Manifest, shape: Shape, train: TrainConfig, rounds: int) -> list[Row]:
    """A row for each number of cores, for one way to make batches of a shape."""
    model = ModelConfig(max_history=200)
    calls = {cores: ours(manifest, train, model, cores) for cores in shape.cores}
    calls[0] = baseline(folder, train, model, manifest.rows // 20)
    rates: dict[int, list[tuple[float, float]]] = {cores: [] for cores in calls}
    for number in range(rounds + 1):
        for cores, call in calls.items():
            clock = time.perf_counter if cores > 1 else time.process_time
            with pinned(cores or 1):
                started = clock()
                listeners, events = call()
                seconds = clock() - started
            if number:
                rates[cores].append((listeners / seconds, events / seconds))
    size = f"{train.batch_tokens:,} events" if train.batch_tokens else f"{train.batch_size:,}"
    case = f"{shape.events} events, batches of {size}, learning from {train.learn_from}"
    return [
        Row(
            f"{case}, 2 cores" if cores > 1 else case,
            [events / 1e6 for _, events in rates[cores]],
            [events / 1e6 for _, events in rates[0]],
            unit="M events/s",
            higher_is_better=True,
            note=f"{statistics.median(listeners for listeners, _ in rates[cores]):,.0f} sequences/s",
        )
        for cores in shape.cores
    ]


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds over a fifth of the listeners")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    scale, rounds = (5, 3) if options.quick else (1, 7)
    rows = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            buckets = histories_of(shape.listeners // scale, shape.events, heavy_tail=shape.heavy_tail)
            manifest = write_buckets(folder, buckets, songs=SONGS, data_end=NOW, row_group_events=1_000_000)
            for batches in shape.batches:
                for learn_from in get_args(LearnFrom):
                    rows += measure(folder, manifest, shape, replace(batches, learn_from=learn_from), rounds)
    report("reader", rows, ours="ours", baseline="listener by listener")


if __name__ == "__main__":
    main()
