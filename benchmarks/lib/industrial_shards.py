"""Shards of listeners like those of the published industrial data set, for benchmarks that read and train.

In the data set 19,252,028 listeners played 234,488 songs 1,023,711,774 times, 53 plays a listener on average.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.histories.histories import Histories
from pipelines.histories.publish import BuildSpec, publish_shards, write_bases
from pipelines.histories.shards import Manifest

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


def histories_of(bucket: int, scale: Scale) -> Histories:
    """The listeners of a bucket. The song of rank r is played in proportion to 1 / r; pauses are log-normal."""
    random = np.random.default_rng(bucket)
    count = scale.listeners // FILES
    events = lengths(count, scale, random)
    offsets = np.concatenate([[0], np.cumsum(events)])
    total = int(offsets[-1])
    elapsed = np.cumsum(np.minimum(random.lognormal(5, 3, total), 30 * DAY)).astype(np.int64)
    newest = np.repeat(elapsed[offsets[1:] - 1] + random.integers(1, 30 * DAY, count), events)
    return Histories(
        user_id=pa.array(np.arange(count) * FILES + bucket),
        offsets=offsets,
        item_index=np.exp(random.random(total) * np.log(scale.songs + 1)).astype(np.int32).clip(1, scale.songs),
        timestamp=NOW - newest + elapsed,
        play_code=np.full(total, 100, np.uint8),
        heard_offsets=np.zeros(count + 1, np.int64),
        heard_items=np.zeros(0, np.int32),
    )


def write_shards(folder: Path, scale: Scale) -> Manifest:
    """A bucket a file, as `fuxi sessionize` writes them."""
    buckets = (histories_of(bucket, scale) for bucket in range(FILES))
    return write_buckets(folder, buckets, songs=scale.songs, data_end=NOW, row_group_events=scale.row_group_events)


def write_buckets(
    folder: Path, buckets: Iterable[Histories], *, songs: int, data_end: int, row_group_events: int
) -> Manifest:
    """Histories of one bucket after the other, as shards of a workspace of their own."""
    spec = BuildSpec(
        folder=str(folder),
        ds=dt.date(2026, 3, 4),
        data_end=data_end,
        vocabulary_size=songs,
        row_group_events=row_group_events,
    )
    built = write_bases(spec, enumerate(buckets))
    return publish_shards(replace(spec, buckets=len(built.files)), built)
