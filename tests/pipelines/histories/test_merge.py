"""Merging and increments against a slow dictionary version of themselves."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.histories.histories import distinct, pair, places_in
from pipelines.histories.increments import Layer, _PairTable, increment_over
from pipelines.histories.merge import Events, Plays, in_given_order, merge_plays, overlay

GAP = 10
SONGS = 6
FOREVER = 2**40


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


def plays(events, kind="int64"):
    """Events as the shuffle brings them: in any order."""
    user, timestamp, item, completion = zip(*events, strict=True) if events else ((), (), (), ())
    return Plays(
        pa.array(user, pa.int64() if kind == "int64" else pa.string()),
        np.array(timestamp, np.int64),
        np.array(item, np.int32),
        np.array(completion, np.uint8),
    )


def rows_of(histories, kind="int64"):
    return histories.to_table(session_gap_s=GAP)


class Days:
    """A bucket as days arrive: layers with what `increment_over` leaves of each, compacted on request."""

    def __init__(self, max_history):
        self.max_history, self.layers = max_history, []
        self.listeners, self.duplicates = np.zeros(SONGS + 1, np.int64), 0

    def add(self, events, kind="int64", *, compact=False):
        new, duplicates = merge_plays(plays(events, kind), max_history=self.max_history)
        found = increment_over([Layer.of(*layer) for layer in self.layers], new, since=FOREVER)
        self.duplicates += duplicates + found.duplicates
        self.listeners += np.bincount(found.first_heard, minlength=SONGS + 1)
        self.layers.append((found.histories, found.num_new))
        if compact:
            histories = self.whole()
            self.layers = [(histories, histories.lengths)]

    def whole(self):
        return overlay([histories for histories, _ in self.layers], max_history=self.max_history)

    def num_events(self):
        """What the layers say that each listener has."""
        totals = defaultdict(int)
        for histories, num_new in self.layers:
            for user, count in zip(histories.user_id.tolist(), num_new.tolist(), strict=True):
                totals[user] += count
        return {user: min(total, self.max_history) for user, total in totals.items()}


event = st.tuples(st.integers(0, 4), st.integers(0, 60), st.integers(1, SONGS), st.integers(0, 100))
days = st.lists(st.tuples(st.lists(event, min_size=1, max_size=25), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(days, st.integers(1, 30), st.sampled_from(["int64", "string"]))
def test_laying_days_over_each_other_equals_building_from_all_events_at_once(days, max_history, kind):
    """Late events, equal seconds, duplicates within and across days, truncation, compaction; both id types."""
    if kind == "string":
        days = [([(f"ü{'x' * user}", *rest) for user, *rest in events], compact) for events, compact in days]
    bucket, everything = Days(max_history), []
    for events, compact in days:
        bucket.add(events, kind, compact=compact)
        everything += events
        expected = reference(everything, max_history)
        assert rows_of(bucket.whole(), kind).to_pylist() == expected
        assert bucket.num_events() == {row["user_id"]: row["num_events"] for row in expected}
        assert bucket.listeners.tolist() == listeners_reference(everything)


@settings(max_examples=100, deadline=None)
@given(days)
def test_duplicates_are_counted_once_each_however_the_days_fall(days):
    bucket, everything = Days(10_000), []
    for events, compact in days:
        bucket.add(events, compact=compact)
        everything += events
    assert bucket.duplicates == len(everything) - len({event[:3] for event in everything})


wide = st.tuples(
    st.integers(-(2**62), 2**62), st.integers(-(2**40), 2**40), st.integers(1, 2**31 - 1), st.integers(0, 100)
)


@settings(max_examples=100, deadline=None)
@given(st.lists(wide, max_size=30), st.booleans())
def test_numbers_too_wide_for_one_key_sort_the_same(events, far):
    """Ids, times and songs of any size; with `far` the times alone need more than a key has."""
    events = [(user, timestamp * 2**21 if far else timestamp, item, done) for user, timestamp, item, done in events]
    histories, _ = merge_plays(plays(events), max_history=50)
    assert rows_of(histories).to_pylist() == reference(events, 50)


def test_more_listeners_than_a_key_has_room_for_are_sorted_in_portions():
    rng = np.random.default_rng(3)
    count = 60_000
    users, times = rng.integers(0, 20_000, count), rng.integers(0, 2**33, count)
    items, done = rng.integers(1, 2**17, count), rng.integers(0, 101, count)
    events = Plays(pa.array(users), times, items.astype(np.int32), done.astype(np.uint8))
    histories, _ = merge_plays(events, max_history=1000)
    order = np.lexsort((items, times, users))
    assert np.array_equal(np.repeat(histories.users, histories.lengths), users[order])
    for found, given_ in ((histories.timestamp, times), (histories.item_index, items), (histories.play_code, done)):
        assert np.array_equal(found, given_[order])


def test_an_event_older_than_a_truncated_history_only_adds_to_the_songs_heard_before():
    bucket = Days(max_history=2)
    bucket.add([(1, 50, 2, 100), (1, 60, 3, 100)])
    first = rows_of(bucket.whole())
    bucket.add([(1, 10, 5, 100)])
    second = rows_of(bucket.whole())
    assert second.drop(["heard_before"]) == first.drop(["heard_before"])
    assert second["heard_before"].to_pylist() == [[5]]


def test_a_late_event_between_two_sessions_joins_them():
    bucket = Days(max_history=9)
    bucket.add([(1, 0, 1, 100), (1, 15, 2, 100)])
    assert rows_of(bucket.whole())["session_index"].to_pylist() == [[0, 1]]
    bucket.add([(1, 7, 3, 100)])
    assert rows_of(bucket.whole())["session_index"].to_pylist() == [[0, 0, 0]]


def test_a_play_that_is_there_already_is_stored_again_only_when_played_further():
    bucket = Days(max_history=9)
    bucket.add([(1, 0, 1, 50), (1, 5, 2, 50), (2, 0, 1, 50)])
    bucket.add([(1, 0, 1, 40), (1, 5, 2, 60), (2, 0, 1, 50)])
    histories, num_new = bucket.layers[1]
    assert (histories.lengths.tolist(), histories.item_index.tolist(), num_new.tolist()) == ([1, 0], [2], [0, 0])
    assert bucket.whole().completion.tolist() == [50, 60, 50]


def test_marks_of_earlier_plays_become_songs_heard_before():
    marked = Plays(
        pa.array([1, 1]),
        np.array([5, 6]),
        np.array([3, 4], np.int32),
        np.array([9, 9], np.uint8),
        pa.array([1, 2, 1]),
        np.array([7, 8, 7], np.int32),
    )
    histories, _ = merge_plays(marked, max_history=1)
    assert rows_of(histories)["heard_before"].to_pylist() == [[3, 7], [8]]
    assert histories.lengths.tolist() == [1, 0]
    assert sorted(histories.lifetime_songs().tolist()) == [3, 4, 7, 8]


def test_pairs_that_meet_in_a_slot_of_the_hash_table_are_told_apart():
    random = np.random.default_rng(0)
    ranks, items = random.integers(0, 9_000, 400_000, np.int32), random.integers(1, 3_000, 400_000, np.int32)
    pairs = distinct(pair(ranks[:200_000], items[:200_000]))
    table = _PairTable(pairs)
    assert len(table._displaced) > 10_000
    found, place = table.look_up(ranks, items)
    there = places_in(pairs, pair(ranks, items))
    np.testing.assert_array_equal(found, np.flatnonzero(there >= 0))
    np.testing.assert_array_equal(place, there[found])


def test_ties_stay_as_given_where_the_order_is_the_callers():
    events = Events(np.zeros(3, np.int64), np.array([5, 5, 6]), np.array([9, 2, 4], np.int32), np.full(3, 99, np.uint8))
    histories = in_given_order(events, pa.array([1]), max_history=2)
    assert rows_of(histories).select(["item_index", "heard_before"]).to_pylist() == [
        {"item_index": [2, 4], "heard_before": [9]}
    ]
