"""The shuffle: what goes into runs comes out of partitions, and no listener makes one large."""

import itertools
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from pipelines.histories import shuffle
from pipelines.histories.buckets import user_bucket
from pipelines.histories.shuffle import HEARD_MARK, Shuffle, ShuffleRows, ShuffleWriter, ranges_of, read_in_passes

SPREAD = Shuffle(partitions=4, buckets=16, max_history=50)


def rows(count, *, users=40, text=False, seed=0, first=1_700_000_000):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, users, count), rng.integers(1, 30, count)
    return ShuffleRows(
        pa.array([f"u{n}" for n in user]) if text else pa.array(user),
        pa.array([f"ß{n}" for n in item]) if text else pa.array(item),
        first + rng.integers(0, 86_400, count),
        rng.integers(0, 101, count).astype(np.uint8),
    )


def as_tuples(part):
    return list(
        zip(
            part.user_id.to_pylist(),
            part.item_id.to_pylist(),
            part.timestamp.tolist(),
            part.play_code.tolist(),
            strict=True,
        )
    )


def written(folder, parts, spread=SPREAD):
    writer = ShuffleWriter(spread, str(folder), "plays-1")
    for part in parts:
        writer.write(part)
    writer.flush()
    return writer


@pytest.mark.parametrize("text", [False, True])
def test_every_play_comes_out_once_in_the_partition_of_its_bucket(tmp_path, monkeypatch, text):
    monkeypatch.setattr(shuffle, "RUN_ROWS", 700)
    parts = [rows(300, text=text, seed=seed) for seed in range(5)]
    writer = written(tmp_path, parts)
    assert len(writer.runs) == 2
    found = []
    for partition in range(SPREAD.partitions):
        for part in read_in_passes(ranges_of(writer.runs, partition)):
            assert set(user_bucket(part.user_id, 16)) <= set(SPREAD.buckets_of(partition))
            found += as_tuples(part)
    assert sorted(found) == sorted(play for part in parts for play in as_tuples(part))
    plays = Counter()
    for ids, counts in writer.songs:
        plays.update(dict(zip(ids.to_pylist(), counts.to_pylist(), strict=True)))
    assert plays == Counter(play[1] for play in found)


def test_numbers_of_any_width_survive(tmp_path):
    far = ShuffleRows(
        pa.array([-(2**62), 2**62, 5]),
        pa.array([2**40, -(2**40), 0]),
        np.array([-(2**50), 2**50, 0]),
        np.array([0, 100, 7], np.uint8),
    )
    runs = written(tmp_path, [far]).runs
    found = [play for p in range(4) for part in read_in_passes(ranges_of(runs, p)) for play in as_tuples(part)]
    assert sorted(found) == sorted(as_tuples(far))


@pytest.mark.parametrize("text", [False, True])
def test_a_large_partition_is_read_in_portions_of_whole_listeners_in_ascending_order(tmp_path, monkeypatch, text):
    monkeypatch.setattr(shuffle, "PASS_ROWS", 1000)
    one = Shuffle(partitions=1, buckets=1, max_history=50)
    given = rows(6000, text=text)
    runs = written(tmp_path, [given], one).runs
    portions = [as_tuples(part) for part in read_in_passes(ranges_of(runs, 0))]
    assert len(portions) == 6 and max(map(len, portions)) < 2000
    assert sorted(play for portion in portions for play in portion) == sorted(as_tuples(given))
    ranges = [(min(portion)[0], max(portion)[0]) for portion in portions if portion]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


def test_a_busy_listener_is_cut_to_the_newest_plays_and_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "TRIM_ABOVE", 200)
    busy = rows(3000, users=1, seed=1)
    again = busy.take(np.arange(100))
    others = rows(300, seed=2)
    writer = written(tmp_path, [busy, again, others])
    found = [play for p in range(4) for part in read_in_passes(ranges_of(writer.runs, p)) for play in as_tuples(part)]
    given = as_tuples(busy) + as_tuples(others)
    mine = {(time, item) for user, item, time, _ in given if user == 0}
    ordered = sorted(mine)
    kept = {(time, item) for user, item, time, done in found if user == 0 and done != HEARD_MARK}
    marked = {item for user, item, _, done in found if user == 0 and done == HEARD_MARK}
    assert len(kept) < 60 and set(ordered[-50:]) <= kept
    assert marked == {item for time, item in ordered if (time, item) not in kept}
    assert writer.duplicates == len(as_tuples(busy)) + 100 + sum(p[0] == 0 for p in as_tuples(others)) - len(mine)
    assert sorted(play for play in found if play[0]) == sorted(play for play in as_tuples(others) if play[0])
