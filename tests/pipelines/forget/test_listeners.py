"""The listeners to be forgotten: whose rows are found, in which bucket, and what counts as found."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.forget.listeners import ListenersToForget, Matches
from pipelines.histories.buckets import user_bucket

BUCKETS = 4


@pytest.mark.parametrize("ids", [[40, 10, 30, 20, 10], ["d", "a", "c", "b", "a"]])
def test_what_is_found_of_a_bucket_is_found_of_the_whole(tmp_path, ids):
    listeners = ListenersToForget(pa.array(ids))
    assert len(listeners) == 4
    members = listeners.by_bucket(BUCKETS)
    buckets = dict(zip(listeners.ids.to_pylist(), user_bucket(listeners.ids, BUCKETS).tolist(), strict=True))
    assert {n: part.ids.to_pylist() for n, part in members.items()} == {
        n: [user for user in buckets if buckets[user] == n] for n in set(buckets.values())
    }
    pq.write_table(pa.table({"user_id": ids[1:3] * 2}), tmp_path / "a.parquet", row_group_size=2)
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert sum(part.rows_in(file) for part in members.values()) == 4
    assert listeners.found.tolist() == [False, True, True, False]
    assert listeners.rows_in(file, [1]) == 2
    assert members[buckets[ids[0]]].any_of([ids[0], ids[1]]) and listeners.found.tolist() == [True, True, True, False]
    assert not ListenersToForget(listeners.ids.slice(0, 0)).by_bucket(BUCKETS)


def test_a_token_names_a_listener_by_the_whole_id_alone():
    listeners = ListenersToForget(pa.array([12, 7]))
    assert [listeners.named_by(token) for token in ("12", "+12", "112", "12x", "9" * 30)] == [True, True] + [False] * 3
    assert np.array_equal(listeners.found, [True, False])


def test_rows_that_are_not_counted_make_a_sum_without_rows():
    assert Matches(1, 2) + Matches(2, 3) == Matches(3, 5)
    assert Matches(1, 2) + Matches(2, None) == Matches(3, None)
