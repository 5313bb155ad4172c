"""Shards of listeners like those of the published industrial data set, for benchmarks that read and train.

In the data set 19,252,028 listeners played 234,488 songs 1,023,711,774 times, 53 plays a listener on average.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.histories.merge import Block
from pipelines.histories.shards import Manifest, ShardFile, write_manifest
from pipelines.histories.writer import ShardWriter

LISTENERS, SONGS, INTERACTIONS = 19_252_028, 234_488, 1_023_711_774
MEAN, LONGEST, SIGMA = 53.0, 201, 1.2  # 200 that are read, and one to predict
NOW, DAY = 1_772_000_000, 86_400
FILES = 16


@dataclass(frozen=True)
class Scale:
    """How many listeners are generated, and what their histories look like."""

    listeners: int
    songs: int = SONGS
    mean: float = MEAN  # events of a listener
    longest: int = LONGEST
    row_group_events: int = 200_000  # smaller than a day's, so that a lane goes through many


def lengths(count: int, scale: Scale, random: np.random.Generator) -> np.ndarray:
    """Log-normal lengths between 2 and `longest` with about that mean. int64 [count]."""
    drawn = random.lognormal(0, SIGMA, count)
    factor = scale.mean / drawn.mean()
    for _ in range(50):  # cutting takes from the mean, so the rest is stretched until it is right
        factor *= scale.mean / np.clip(drawn * factor, 2, scale.longest).mean()
    return np.clip(np.rint(drawn * factor), 2, scale.longest).astype(np.int64)


def block_of(bucket: int, scale: Scale) -> Block:
    """The listeners of a bucket. The song of rank r is played in proportion to 1 / r; pauses are log-normal."""
    random = np.random.default_rng(bucket)
    count = scale.listeners // FILES
    events = lengths(count, scale, random)
    offsets = np.concatenate([[0], np.cumsum(events)])
    total = int(offsets[-1])
    elapsed = np.cumsum(np.minimum(random.lognormal(5, 3, total), 30 * DAY)).astype(np.int64)
    newest = np.repeat(elapsed[offsets[1:] - 1] + random.integers(1, 30 * DAY, count), events)
    return Block(
        user_id=np.arange(count) * FILES + bucket,
        offsets=offsets,
        item_index=np.exp(random.random(total) * np.log(scale.songs + 1)).astype(np.int32).clip(1, scale.songs),
        timestamp=NOW - newest + elapsed,
        completion=np.full(total, 100, np.uint8),
        heard_offsets=np.zeros(count + 1, np.int64),
        heard_items=np.zeros(0, np.int32),
    )


def write_shards(folder: Path, scale: Scale) -> Manifest:
    """A bucket a file, as `fuxi sessionize` writes them."""
    blocks = (block_of(bucket, scale) for bucket in range(FILES))
    return write_blocks(folder, blocks, songs=scale.songs, data_end=NOW, row_group_events=scale.row_group_events)


def write_blocks(
    folder: Path, blocks: Iterable[Block], *, songs: int, data_end: int, row_group_events: int
) -> Manifest:
    """The listeners of a bucket each, as shards of a workspace of their own."""
    files = tuple(_write(folder, bucket, block, row_group_events) for bucket, block in enumerate(blocks))
    return write_manifest(
        str(folder),
        Manifest(
            ds=dt.date(2026, 3, 4),
            run_id="benchmark",
            parent=None,
            buckets=len(files),
            max_history=2000,
            session_gap_s=1800,
            user_id_type="int64",
            item_id_type="int64",
            timezone="UTC",
            vocabulary_version=0,
            vocabulary_size=songs,
            data_end=data_end,
            item_counts="item_counts.parquet",
            inputs="inputs.parquet",
            files=files,
        ),
    )


def _write(folder: Path, bucket: int, block: Block, row_group_events: int) -> ShardFile:
    path = f"bucket={bucket:05d}/part-0.parquet"
    writer = ShardWriter(str(folder), path, bucket=bucket, user_id_type="int64", row_group_events=row_group_events)
    writer.write(block.to_table(user_id_type="int64", session_gap_s=1800))
    file = writer.close()
    assert file is not None
    return file
