"""Histories as jagged arrays and as rows of shards and increments."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import InputError
from pipelines.histories.histories import HISTORY_COLUMNS, Histories, gather, no_histories
from pipelines.schema import increment_schema, sequence_schema

GAP = 10


def rows(kind="int64", count=20, seed=1):
    """Rows of a shard: listeners with 0 to 6 events, some with songs heard before."""
    rng = np.random.default_rng(seed)
    found = []
    for user in range(count):
        events = int(rng.integers(0, 7))
        times = np.sort(rng.integers(0, 60, events))
        sessions = np.cumsum(np.diff(times, prepend=times[:1]) > GAP)
        found.append(
            {
                "user_id": f"u{user:02d}" if kind == "string" else user,
                "item_index": rng.integers(1, 9, events).tolist(),
                "timestamp": times.tolist(),
                "completion": rng.integers(0, 101, events).tolist(),
                "session_index": sessions.tolist(),
                "heard_before": np.unique(rng.integers(1, 9, rng.integers(0, 4))).tolist(),
                "num_events": events,
            }
        )
    return found


def histories_of(content, kind="int64"):
    return Histories.from_table(pa.Table.from_pylist(content, schema=sequence_schema(kind)))


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_rows_of_a_shard_survive_the_way_through_histories(kind):
    table = pa.Table.from_pylist(rows(kind), schema=sequence_schema(kind)).slice(3, 9)
    again = Histories.from_table(table).to_table(session_gap_s=GAP)
    assert again.schema == sequence_schema(kind)
    assert again == table


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_an_increment_has_the_new_plays_and_no_sessions(kind):
    content = rows(kind)
    num_new = np.arange(len(content), dtype=np.int32)
    table = histories_of(content, kind).to_increment(num_new)
    assert table.schema == increment_schema(kind)
    assert table.to_pylist() == [
        {name: row[name] for name in HISTORY_COLUMNS} | {"num_events": n} for n, row in enumerate(content)
    ]


def test_only_the_wanted_columns_become_a_table_in_their_order():
    table = histories_of(rows()).to_table(session_gap_s=GAP, columns=["num_events", "user_id"])
    assert table.column_names == ["num_events", "user_id"]
    assert table["num_events"].to_pylist() == [row["num_events"] for row in rows()]


def test_take_keeps_rows_whole_in_the_given_order_with_repetitions():
    content, chosen = rows(), np.array([5, 0, 3, 3, 19])
    taken = histories_of(content).take(chosen).to_table(session_gap_s=GAP)
    assert taken.to_pylist() == [content[row] for row in chosen]


def test_a_slice_is_some_rows_without_a_copy():
    content = rows()
    whole = histories_of(content)
    part = whole.slice(4, 11)
    assert part.to_table(session_gap_s=GAP).to_pylist() == content[4:11]
    assert np.shares_memory(part.timestamp, whole.timestamp)


def test_keep_drops_events_and_no_listener():
    content = rows()
    whole = histories_of(content)
    kept = whole.before(30)
    assert kept.user_id == whole.user_id and kept.heard_items is whole.heard_items
    expected = [[time for time in row["timestamp"] if time < 30] for row in content]
    assert kept.to_table(session_gap_s=GAP, columns=["timestamp"])["timestamp"].to_pylist() == expected
    assert whole.before(60) is whole


def test_lifetime_songs_are_distinct_within_a_listener():
    content = rows()
    expected = [song for row in content for song in sorted({*row["item_index"], *row["heard_before"]})]
    assert histories_of(content).lifetime_songs().tolist() == expected


def test_gather_lays_chosen_rows_end_to_end_empty_ones_too():
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, 4, 30)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    for chosen in (rng.integers(0, 30, 50), np.zeros(0, np.int64), np.flatnonzero(lengths == 0)):
        found, places = gather(offsets, chosen)
        assert found.tolist() == np.concatenate([[0], np.cumsum(lengths[chosen])]).tolist()
        assert places.tolist() == [n for row in chosen for n in range(offsets[row], offsets[row + 1])]


def test_no_histories_have_no_listener():
    nothing = no_histories()
    assert (len(nothing), nothing.offsets.tolist(), nothing.heard_offsets.tolist()) == (0, [0], [0])
    assert nothing.to_table(session_gap_s=GAP).num_rows == 0


def test_ids_that_no_shard_can_store_are_refused():
    whole = histories_of(rows())
    floats = replace(whole, user_id=whole.user_id.cast(pa.float64()))
    with pytest.raises(InputError, match="ids of type double are not supported"):
        floats.to_table(session_gap_s=GAP)
