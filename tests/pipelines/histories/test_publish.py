"""New bases, when buckets are compacted, and what a manifest takes over from its parent."""

import datetime as dt
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.histories.publish import BuildSpec, publish_shards, write_bases
from pipelines.histories.shards import IncrementFile, ShardFile, inputs_table, read_item_counts

from ...small_histories import histories_of

FIRST = dt.date(2026, 3, 2)
SPEC = BuildSpec(folder="", ds=FIRST, data_end=99, vocabulary_size=4, buckets=4)


def bucket(number: int, increments: int) -> ShardFile:
    increment = IncrementFile("increment.parquet", 1, 1, 1, "", (1,))
    return ShardFile("part.parquet", number, 1, 1, 1, "", (1,), increments=(increment,) * increments)


@pytest.mark.parametrize("most", [3, 7])
def test_every_day_an_equal_share_of_the_buckets_is_compacted_and_each_in_turn(most: int) -> None:
    chosen: Counter[int] = Counter()
    for n in range(most + 1):
        day = replace(SPEC, ds=FIRST + dt.timedelta(days=n), max_increments=most)
        turns = [number for number in range(16) if day.compacts(bucket(number, 1))]
        assert len(turns) == 16 // (most + 1)
        chosen.update(turns)
    assert chosen == Counter(range(16))


def test_a_bucket_is_compacted_when_it_has_as_many_increments_as_it_may() -> None:
    for n in range(8):
        day = replace(SPEC, ds=FIRST + dt.timedelta(days=n))
        assert day.compacts(bucket(0, 7)) and not day.compacts(bucket(0, 0))
        assert replace(day, max_increments=0).compacts(bucket(0, 0))


def test_bases_have_the_listeners_of_every_song_and_empty_buckets_no_file(tmp_path: Path) -> None:
    spec = replace(SPEC, folder=str(tmp_path))
    one = histories_of({7: [(2, 10, 100), (2, 20, 100)], 9: [(3, 5, 30)]}, heard_before={9: [2]})
    built = write_bases(spec, [(0, one), (1, one.slice(0, 0)), (3, one.slice(0, 1))])
    assert [(file.bucket, file.rows, file.events) for file in built.files] == [(0, 2, 3), (3, 1, 2)]
    assert built.listeners.tolist() == [0, 0, 3, 1, 0]
    manifest = publish_shards(spec, built)
    assert [manifest.histories(file).users.tolist() for file in manifest.files] == [[7, 9], [7]]
    assert read_item_counts(manifest).tolist() == built.listeners.tolist()


def test_a_day_over_a_parent_starts_from_its_listeners_and_lists_its_inputs_too(tmp_path: Path) -> None:
    first = replace(SPEC, folder=str(tmp_path / f"ds={FIRST}"))
    log = {"uri": "a", "size": 1, "etag": "", "landing_day": "2026-03-01"}
    plays = histories_of({7: [(2, 10, 100)]})
    parent = publish_shards(first, write_bases(first, [(0, plays)]), inputs=inputs_table([log]))
    ds = FIRST + dt.timedelta(days=1)
    second = replace(SPEC, folder=str(tmp_path / f"ds={ds}"), ds=ds, vocabulary_size=5, parent=parent)
    assert second.listeners_before().tolist() == [0, 0, 1, 0, 0, 0]
    built = write_bases(second, [(0, plays)])
    manifest = publish_shards(second, built, inputs=inputs_table([{**log, "uri": "b"}]), counts={"accepted": 1})
    assert (manifest.parent, manifest.counts) == (FIRST, {"accepted": 1})
    assert storage.read_table(manifest.uri(manifest.inputs))["uri"].to_pylist() == ["a", "b"]
