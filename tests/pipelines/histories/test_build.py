"""Partitions of a build and look-up of songs; tests/jobs/stages/test_sessionize*.py test what it writes."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.histories.build import SongIndex, plan_shuffle


def test_partitions_grow_with_the_events_and_never_exceed_the_buckets():
    def partitions(buckets, events):
        return plan_shuffle(buckets, events, parallelism=2, max_history=9).partitions

    assert [partitions(256, n) for n in (0, 10_000_000, 100_000_000, 10**9)] == [8, 8, 32, 256]
    assert partitions(8, 10**9) == 8 and partitions(65_536, 10**12) == 4096


def test_a_merge_has_partitions_by_its_new_plays_more_than_by_what_is_stored():
    merged = plan_shuffle(256, 40_000_000, stored=10**9, parallelism=2, max_history=9)
    assert merged.partitions == 32


@pytest.mark.parametrize("ids", [[5, 900, 7], [5, 2**62, -(2**62)], ["b", "ß", "a"]])
def test_songs_have_their_index_however_far_apart_their_ids_are(ids):
    songs = SongIndex(pa.array(ids), np.array([3, 1, 2], np.int32))
    asked = pa.array([ids[2], ids[0], ids[0], ids[1]])
    assert songs.of(asked).tolist() == [2, 3, 3, 1] and songs.of(asked).dtype == np.int32
