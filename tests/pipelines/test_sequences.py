"""The sequence core against a slow dictionary version of itself."""

import tracemalloc
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.schema import sequence_schema
from pipelines.sequences import Block, Tally, build, merge

GAP = 10
SONGS = 6


def reference(events, max_history):
    """Rows of a shard from (user, timestamp, item, completion) in any order, one listener after the other."""
    plays = defaultdict(dict)
    for user, timestamp, item, completion in events:
        key = (timestamp, item)
        plays[user][key] = max(completion, plays[user].get(key, 0))
    rows = []
    for user in sorted(plays):
        ordered = sorted(plays[user])
        kept, older = ordered[-max_history:], ordered[:-max_history]
        sessions, session = [], 0
        for position, (timestamp, _) in enumerate(kept):
            session += position > 0 and timestamp - kept[position - 1][0] > GAP
            sessions.append(int(session))
        rows.append(
            {
                "user_id": user,
                "item_index": [item for _, item in kept],
                "timestamp": [timestamp for timestamp, _ in kept],
                "completion": [plays[user][key] for key in kept],
                "session_index": sessions,
                "heard_before": sorted({item for _, item in older}),
                "num_events": len(kept),
            }
        )
    return rows


def listeners_reference(events):
    counts = [0] * (SONGS + 1)
    for item in range(1, SONGS + 1):
        counts[item] = len({user for user, _, i, _ in events if i == item})
    return counts


def batches(events, size, kind):
    """Sorted as Spark sorts, the completion of equal events in the order given."""
    ordered = sorted(events, key=lambda event: event[:3])
    for start in range(0, len(ordered), size):
        user, timestamp, item, completion = zip(*ordered[start : start + size], strict=True)
        yield pa.record_batch(
            {
                "user_id": pa.array(user, kind),
                "timestamp": pa.array(timestamp, pa.int64()),
                "item_index": pa.array(item, pa.int32()),
                "completion": pa.array(completion, pa.int16()),
            }
        )


def rows_of(blocks, kind="int64"):
    tables = [block.to_table(user_id_type=kind, session_gap_s=GAP) for block in blocks]
    return pa.concat_tables([sequence_schema(kind).empty_table(), *tables])


def run_day(parent_table, events, *, max_history, size, group, kind, tally):
    """One merge, the parent read in row groups of `group` rows, new events in batches of `size`."""
    parent = (Block.from_table(parent_table.slice(i, group)) for i in range(0, parent_table.num_rows, group))
    new = build(
        batches(events, size, pa.int64() if kind == "int64" else pa.string()), max_history=max_history, tally=tally
    )
    return rows_of(merge(parent, new, max_history=max_history, tally=tally), kind)


event = st.tuples(st.integers(0, 4), st.integers(0, 60), st.integers(1, SONGS), st.integers(0, 100))
days = st.lists(st.lists(event, max_size=25), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(days, st.integers(1, 8), st.integers(1, 7), st.integers(1, 4), st.sampled_from(["int64", "string"]))
def test_merging_days_equals_building_from_all_events_at_once(days, max_history, size, group, kind):
    """Late events, equal seconds, duplicates within and across days, truncation; both id types."""
    if kind == "string":
        days = [[(f"ü{'x' * user}", *rest) for user, *rest in day] for day in days]
    table, tally = rows_of([], kind), Tally.empty(SONGS)
    for day in days:
        options = {"max_history": max_history, "size": size, "group": group, "kind": kind}
        table = run_day(table, day, **options, tally=tally)
    everything = [event for day in days for event in day]
    assert table.to_pylist() == reference(everything, max_history)
    assert tally.listeners.tolist() == listeners_reference(everything)


@settings(max_examples=50, deadline=None)
@given(st.lists(event, min_size=1, max_size=40), st.integers(1, 7))
def test_duplicates_are_counted_once_each_however_the_batches_fall(events, size):
    tally = Tally.empty(SONGS)
    list(build(batches(events, size, pa.int64()), max_history=50, tally=tally))
    assert tally.duplicates == len(events) - len({event[:3] for event in events})


def test_an_event_older_than_a_truncated_history_only_adds_to_the_songs_heard_before():
    tally = Tally.empty(SONGS)
    first = run_day(
        rows_of([]), [(1, 50, 2, 100), (1, 60, 3, 100)], max_history=2, size=9, group=9, kind="int64", tally=tally
    )
    second = run_day(first, [(1, 10, 5, 100)], max_history=2, size=9, group=9, kind="int64", tally=tally)
    assert second.drop(["heard_before"]) == first.drop(["heard_before"])
    assert second["heard_before"].to_pylist() == [[5]]


def test_a_late_event_between_two_sessions_joins_them():
    tally = Tally.empty(SONGS)
    options = {"max_history": 9, "size": 9, "group": 9, "kind": "int64", "tally": tally}
    first = run_day(rows_of([]), [(1, 0, 1, 100), (1, 15, 2, 100)], **options)
    assert first["session_index"].to_pylist() == [[0, 1]]
    assert run_day(first, [(1, 7, 3, 100)], **options)["session_index"].to_pylist() == [[0, 0, 0]]


def test_listeners_without_new_events_pass_through_unchanged():
    tally = Tally.empty(SONGS)
    options = {"max_history": 3, "size": 4, "group": 2, "kind": "int64", "tally": tally}
    first = run_day(rows_of([]), [(u, t, 1 + t % SONGS, 50) for u in range(5) for t in range(5)], **options)
    second = run_day(first, [(2, 99, 1, 50)], **options)
    untouched = [row for row in range(5) if row != 2]
    assert second.take(untouched) == first.take(untouched)
    assert second["timestamp"][2].as_py() == [3, 4, 99]


def test_one_listener_with_millions_of_events_needs_the_memory_of_a_batch():
    size, count, tally = 65_536, 40, Tally.empty(1000)

    def endless():
        for number in range(count):
            yield pa.record_batch(
                {
                    "user_id": np.full(size, 7),
                    "timestamp": np.arange(size) + number * size,
                    "item_index": (np.arange(size) % 1000 + 1).astype(np.int32),
                    "completion": np.full(size, 100, np.int16),
                }
            )

    tracemalloc.start()
    [block] = build(endless(), max_history=2000, tally=tally)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(block.timestamp) == 2000 and block.timestamp[-1] == size * count - 1
    assert block.heard_items.tolist() == list(range(1, 1001))
    assert peak < 40 * 2**20, f"{peak / 2**20:.0f} MiB for {size * count:,} events"


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_a_block_survives_the_way_through_a_table(kind):
    rng = np.random.default_rng(1)
    users = [f"u{n}" if kind == "string" else n for n in range(20)]
    events = [(users[rng.integers(20)], int(rng.integers(99)), int(rng.integers(1, SONGS)), 9) for _ in range(300)]
    events = sorted(events)
    tally = Tally.empty(SONGS)
    table = run_day(rows_of([], kind), events, max_history=5, size=50, group=5, kind=kind, tally=tally)
    again = rows_of([Block.from_table(table.slice(3, 9))], kind)
    assert again == table.slice(3, 9)
    assert table.schema == sequence_schema(kind)
