"""Reading histories from a base shard with increments: `python -m benchmarks.layers [--quick]`.

Plays a second of `Manifest.read`, one thread, shards on the local disk: a base with 1, 3 and 7 increments of 4 % each,
against the base alone. Either way whole histories are read: merged, sorted, sessions cut anew.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.lib.industrial_shards import write_buckets
from benchmarks.lib.random_histories import NOW, SONGS, histories_of
from benchmarks.lib.timing import Row, report
from pipelines.calendar import DAY_SECONDS
from pipelines.histories.merge import Plays, merge_plays
from pipelines.histories.shards import Manifest, ShardFile
from pipelines.histories.writer import IncrementWriter

SHARE = 0.04


def lay_day(manifest: Manifest, file: ShardFile, day: int) -> ShardFile:
    """Add an increment to a bucket: the plays of a day by random listeners of each row group."""
    random = np.random.default_rng(day)
    writer = IncrementWriter(manifest.folder, f"bucket={file.bucket:05d}/increment-{day}.parquet", user_id_type="int64")
    rows = []
    for group in range(len(file.row_groups)):
        users, events = manifest.sizes(file, group)
        count = int(events.sum() * SHARE / (1 + SHARE * day))
        plays = Plays(
            pa.array(random.choice(users, count)),
            NOW + day * DAY_SECONDS + random.integers(0, DAY_SECONDS, count),
            random.integers(1, SONGS + 1, count).astype(np.int32),
            np.full(count, 100, np.uint8),
        )
        histories, _ = merge_plays(plays, max_history=manifest.max_history)
        writer.write(histories, histories.lengths.astype(np.int32))
        rows.append(len(users))
    increment = writer.close()
    assert increment is not None
    increments = (*file.increments, increment)
    return replace(file, events=file.events + increment.events, row_groups=tuple(rows), increments=increments)


def plays_a_second(manifest: Manifest) -> float:
    """Rate of reading every row group once."""
    started, plays = time.perf_counter(), 0
    for file, group, _ in manifest.row_groups():
        plays += int(np.sum(manifest.read(file, group)["num_events"].to_numpy(), dtype=np.int64))
    return plays / (time.perf_counter() - started)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds over a fifth of the listeners")
    options = parser.parse_args()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    listeners, rounds = (30_000, 3) if options.quick else (150_000, 5)
    with tempfile.TemporaryDirectory() as scratch:
        buckets = histories_of(listeners, 53)
        base = write_buckets(Path(scratch), buckets, songs=SONGS, data_end=NOW, row_group_events=1_000_000)
        laid, manifests = base, {}
        for day in range(7):
            laid = replace(laid, files=tuple(lay_day(laid, file, day) for file in laid.files))
            manifests[day + 1] = laid
        rates: dict[int, list[float]] = {number: [] for number in (0, 1, 3, 7)}
        for number in range(rounds + 1):
            for increments, measured in rates.items():
                rate = plays_a_second(manifests[increments] if increments else base)
                if number:
                    measured.append(rate)
    rows = [
        Row(f"{number} increments", rates[number], rates[0], unit="plays/s", higher_is_better=True)
        for number in (1, 3, 7)
    ]
    report("layers", rows, ours="base and increments", baseline="base alone")


if __name__ == "__main__":
    main()
