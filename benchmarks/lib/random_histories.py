"""Random histories of many listeners, for benchmarks that read shards."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.histories.histories import Histories

SONGS, NOW, FILES = 50_000, 1_772_000_000, 8


def histories_of(listeners: int, mean_events: int, *, heavy_tail: bool = False) -> Iterator[Histories]:
    """Random histories, a bucket at a time. Lengths are geometric, or log-normal with a fifth of the plays skipped."""
    random = np.random.default_rng(0)
    count = listeners // FILES
    for bucket in range(FILES):
        lengths = random.geometric(1 / mean_events, count)
        if heavy_tail:
            lengths = random.lognormal(np.log(mean_events) - 1.2**2 / 2, 1.2, count).round().astype(np.int64)
            lengths = lengths.clip(1, 2000)
        total = int(lengths.sum())
        times = NOW - random.integers(0, 50 * 86_400, total)
        yield Histories(
            user_id=pa.array(np.arange(count) + bucket * count),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            item_index=random.integers(1, SONGS + 1, total).astype(np.int32),
            timestamp=times[np.lexsort((times, np.repeat(np.arange(count), lengths)))],
            play_code=np.where(random.random(total) < 0.2 * heavy_tail, 10, 100).astype(np.uint8),
            heard_offsets=np.zeros(count + 1, np.int64),
            heard_items=np.zeros(0, np.int32),
        )
