"""From shards to batches on one core: `python -m benchmarks.reader [--quick]`.

Sequences a second of `TrainingBatches`, one thread, shards on the local disk: short histories (8 events on average) in
batches of 4,096, and histories of 120 events in batches of 128, each in both modes. The baseline reads the same shards
with `pyarrow.dataset` and makes the same batches one listener at a time, as a `torch.utils.data.Dataset` with a
collate function does: the newest N plays, their targets and times, and nothing else. Ours also cuts days, marks first
listens and shuffles.
"""

import argparse
import datetime as dt
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch

from benchmarks.timing import Row, report
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.reader import TrainingBatches
from pipelines import schema
from pipelines.sequences import Block
from pipelines.shard_writer import ShardWriter
from pipelines.shards import Manifest, write_manifest

SONGS, NOW, FILES = 50_000, 1_772_000_000, 8


def write_shards(folder: Path, listeners: int, mean_events: int) -> Manifest:
    """Random histories of geometric length as sequence shards."""
    random = np.random.default_rng(0)
    files = []
    for bucket in range(FILES):
        count = listeners // FILES
        lengths = random.geometric(1 / mean_events, count)
        total = int(lengths.sum())
        times = NOW - random.integers(0, 50 * 86_400, total)
        block = Block(
            user_id=np.arange(count) + bucket * count,
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            item_index=random.integers(1, SONGS + 1, total).astype(np.int32),
            timestamp=times[np.lexsort((times, np.repeat(np.arange(count), lengths)))],
            completion=np.full(total, 100, np.uint8),
            heard_offsets=np.zeros(count + 1, np.int64),
            heard_items=np.zeros(0, np.int32),
        )
        writer = ShardWriter(
            str(folder),
            f"bucket={bucket:05d}/part-0.parquet",
            bucket=bucket,
            user_id_type="int64",
            row_group_events=1_000_000,
        )
        writer.write(block.to_table(user_id_type="int64", session_gap_s=1800))
        file = writer.close()
        assert file is not None
        files.append(file)
    manifest = Manifest(
        ds=dt.date(2026, 3, 4),
        run_id="benchmark",
        parent=None,
        buckets=FILES,
        max_history=2000,
        session_gap_s=1800,
        user_id_type="int64",
        item_id_type="int64",
        timezone="UTC",
        vocabulary_version=0,
        vocabulary_size=SONGS,
        data_end=NOW,
        item_counts="item_counts.parquet",
        inputs="inputs.parquet",
        files=tuple(files),
    )
    return write_manifest(str(folder), manifest)


def ours(manifest: Manifest, train: TrainConfig, model: ModelConfig) -> Callable[[], int]:
    """An epoch of ours, as a call that returns the number of listeners."""
    reader = TrainingBatches(
        manifest, model=model, train=train, data_end=NOW, rank=0, world_size=1, vocabulary_size=SONGS
    )
    return lambda: sum(batch.num_listeners for batch in reader.epoch(0))


def baseline(folder: Path, train: TrainConfig, model: ModelConfig, most: int) -> Callable[[], int]:
    """Listener by listener; stops after `most` of them."""
    shards = ds.dataset(folder, format="parquet", exclude_invalid_files=True)
    columns = [schema.ITEM_INDEX, schema.TIMESTAMP]

    def call() -> int:
        done, rows = 0, []
        for chunk in shards.to_batches(columns=columns, batch_size=train.batch_size):
            for items, times in zip(*(chunk.column(name).to_pylist() for name in columns), strict=True):
                newest = slice(max(0, len(items) - 1 - model.max_history), len(items) - 1)
                rows.append([torch.tensor(part) for part in (items[newest], items[1:][newest], times[1:][newest])])
            [torch.cat(part) for part in zip(*rows, strict=True)]
            done += len(rows)
            rows = []
            if done >= most:
                break
        return done

    return call


def measure(listeners: int, mean_events: int, train: TrainConfig, rounds: int) -> Row:
    """One shape."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, model = Path(scratch), ModelConfig(max_history=200)
        manifest = write_shards(folder, listeners, mean_events)
        calls = {
            "ours": ours(manifest, train, model),
            "baseline": baseline(folder, train, model, listeners // 20),
        }
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(rounds + 1):
            for name, call in calls.items():
                started = time.perf_counter()
                done = call()
                if number:
                    rates[name].append(done / (time.perf_counter() - started))
    case = f"{mean_events} events, batches of {train.batch_size:,}, mode {train.mode}"
    return Row(case, rates["ours"], rates["baseline"], unit="sequences/s", higher_is_better=True)


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
    for listeners, events, batch in ((800_000, 8, 4096), (64_000, 120, 128)):
        for mode in ("all", "exclusive"):
            train = TrainConfig(mode=mode, batch_size=batch)
            rows.append(measure(listeners // scale, events, train, rounds))
    report("reader", rows, ours="ours", baseline="listener by listener")


if __name__ == "__main__":
    main()
