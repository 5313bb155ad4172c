"""Merging and increments against a version of themselves made of dictionaries and loops, on examples of hypothesis.

The model keeps every play of every listener; `Stored` keeps what the shards keep: a base and the layers over it.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.histories.histories import Histories
from pipelines.histories.increments import Layer, increment_over
from pipelines.histories.merge import Plays, merge_plays, overlay
from pipelines.schema import UNCHOSEN, id_type, sequence_schema

GAP = 1800
LARGEST_INDEX = 2**31 - 1
FAR = 2**61  # two times this far apart are still less than 2^63 apart


@dataclass(frozen=True)
class World:
    """Who, what and when the plays of an example are drawn from."""

    users: list
    songs: list[int]
    times: list[int]
    max_history: int

    @property
    def kind(self) -> str:
        return "string" if isinstance(self.users[0], str) else "int64"


@st.composite
def worlds(draw):
    """A few listeners, songs and times; times span from nothing to 2^62 s, so that every way of sorting is taken."""
    kind = draw(st.sampled_from(["int64", "string"]))
    ids = {
        "int64": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 50),
        "string": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4),
    }
    users = draw(st.lists(ids[kind], min_size=1, max_size=9, unique=True))
    index = st.integers(1, 9) | st.integers(LARGEST_INDEX - 3, LARGEST_INDEX)
    songs = draw(st.lists(index, min_size=1, max_size=6, unique=True))
    bits, origin = draw(st.integers(0, 61)), draw(st.sampled_from([0, 1_767_571_200, -10_000, -FAR]))
    near = st.integers(0, 2**bits).map(lambda offset: origin + offset)
    around = st.sampled_from([0, GAP - 1, GAP, GAP + 1]).map(lambda offset: origin + offset)
    times = draw(st.lists(near | around, min_size=1, max_size=12, unique=True))
    return World(users, songs, times, draw(st.integers(1, 12)))


@st.composite
def days(draw, most_days=4, most_plays=25):
    """A world and the plays (user, timestamp, song, completion) that landed on each day; some again, played less."""
    world = draw(worlds())
    code = st.integers(0, 100) | st.integers(UNCHOSEN, UNCHOSEN + 100)  # of one that nobody chose
    one = st.tuples(*map(st.sampled_from, (world.users, world.times, world.songs)), code)
    landed = draw(st.lists(st.lists(one, max_size=most_plays), min_size=1, max_size=most_days))
    again = draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, most_days - 1), code), max_size=6))
    everything = [play for day in landed for play in day]
    for which, day, completion in again if everything else []:
        landed[day % len(landed)].append((*everything[which % len(everything)][:3], completion))
    return world, landed


class Model:
    """user -> (timestamp, song) -> the furthest it was played."""

    def __init__(self, plays=()):
        self.plays = defaultdict(dict)
        self.add(plays)

    def add(self, plays) -> int:
        """How many of them were not there yet."""
        new = 0
        for user, timestamp, song, completion in plays:
            seen = self.plays[user]
            new += (timestamp, song) not in seen
            seen[timestamp, song] = max(completion, seen.get((timestamp, song), 0))
        return new

    def rows(self, max_history):
        """Rows of a shard, as lists."""
        rows = []
        for user in sorted(self.plays):
            ordered = sorted(self.plays[user])
            kept, older = ordered[-max_history:], ordered[:-max_history]
            sessions = [0]
            for (before, _), (after, _) in itertools.pairwise(kept):
                sessions.append(sessions[-1] + (after - before > GAP))
            rows.append(
                {
                    "user_id": user,
                    "item_index": [song for _, song in kept],
                    "timestamp": [timestamp for timestamp, _ in kept],
                    "completion": [self.plays[user][event] for event in kept],
                    "session_index": sessions,
                    "heard_before": sorted({song for _, song in older}),
                    "num_events": len(kept),
                }
            )
        return rows

    def pairs(self):
        """Every (user, song)."""
        return {(user, song) for user, seen in self.plays.items() for _, song in seen}


def as_plays(day, kind, order=None) -> Plays:
    """A day's plays in the given order of rows."""
    rows = [day[place] for place in order] if order else day
    user, timestamp, song, completion = zip(*rows, strict=True) if rows else ([], [], [], [])
    return Plays(
        pa.array(user, id_type(kind)),
        np.array(timestamp, np.int64),
        np.array(song, np.int32),
        np.array(completion, np.uint8),
    )


def rows_of(histories: Histories, kind):
    table = histories.to_table(session_gap_s=GAP)
    assert table.schema == sequence_schema(kind)
    return table.to_pylist()


def events_in(rows):
    """(user, timestamp, song, completion) of stored plays."""
    for row in rows:
        columns = (row[name] for name in ("timestamp", "item_index", "completion"))
        yield from ((row["user_id"], *event) for event in zip(*columns, strict=True))


@dataclass
class Stored:
    """A bucket as the shards keep it: layers, oldest first, of which the first is whole; plays new in each."""

    world: World
    layers: list[tuple[Histories, np.ndarray]] = field(default_factory=list)
    rows_counted: int = 0  # listeners, as a manifest counts them
    events_counted: int = 0
    duplicates: int = 0
    first_heard: list[int] = field(default_factory=list)

    def add(self, day, *, compact=False) -> list[tuple]:
        """Lay a day over what is there, as an increment or into a new base; returns the plays an increment holds."""
        new, within = merge_plays(as_plays(day, self.world.kind), max_history=self.world.max_history)
        self.duplicates += within
        if not len(new):
            return []
        # The tightest bound that holds: no stored play is at `since` or later.
        since = 1 + max((int(layer.timestamp.max()) for layer, _ in self.layers if len(layer.timestamp)), default=0)
        found = increment_over([Layer.of(*layer) for layer in self.layers], new, since=since)
        self.first_heard += found.first_heard.tolist()
        self.duplicates += found.duplicates
        self._count(found)
        some = np.flatnonzero((found.histories.lengths > 0) | (np.diff(found.histories.heard_offsets) > 0))
        if compact:
            whole = overlay([*(histories for histories, _ in self.layers), new], max_history=self.world.max_history)
            self.layers = [(whole, whole.lengths)]
        else:
            self.layers.append((found.histories.take(some), found.num_new[some]))
        users = np.repeat(found.histories.users, found.histories.lengths).tolist()
        columns = (found.histories.timestamp, found.histories.item_index, found.histories.play_code)
        return list(zip(users, *(column.tolist() for column in columns), strict=True))

    def _count(self, found) -> None:
        before = np.clip(found.num_before, 0, self.world.max_history)
        self.rows_counted += int((found.num_before < 0).sum())
        self.events_counted += int((np.minimum(before + found.num_new, self.world.max_history) - before).sum())

    def rows(self):
        if not self.layers:
            return []
        whole = overlay([histories for histories, _ in self.layers], max_history=self.world.max_history)
        return rows_of(whole, self.world.kind)

    def sizes(self):
        """Stored plays of each listener from what the layers say is new in each."""
        total = defaultdict(int)
        for histories, num_new in self.layers:
            for user, count in zip(histories.user_id.tolist(), num_new.tolist(), strict=True):
                total[user] += count
        return {user: min(count, self.world.max_history) for user, count in total.items()}


@settings(max_examples=300, deadline=None)
@given(days(most_days=1), st.randoms(use_true_random=False))
def test_histories_are_those_of_the_model_in_whatever_order_plays_come(drawn, random):
    world, [day] = drawn
    order = list(range(len(day)))
    random.shuffle(order)
    histories, duplicates = merge_plays(as_plays(day, world.kind, order), max_history=world.max_history)
    model = Model()
    assert duplicates == len(day) - model.add(day)
    assert rows_of(histories, world.kind) == model.rows(world.max_history)


@settings(max_examples=300, deadline=None)
@given(days(), st.lists(st.booleans(), min_size=4, max_size=4))
def test_days_laid_over_days_are_one_build_however_they_are_cut_and_compacted(drawn, compacted):
    """Late plays, equal seconds, plays that land twice, truncated histories, days without a play."""
    world, landed = drawn
    stored, model = Stored(world), Model()
    for day, compact in zip(landed, compacted, strict=False):
        there = {play[:3]: play[3] for play in events_in(stored.rows())}
        for *play, completion in stored.add(day, compact=compact):
            assert completion > there.get(tuple(play), -1), "an increment holds what was there already"
        model.add(day)
        expected = model.rows(world.max_history)
        assert stored.rows() == expected
        assert stored.sizes() == {row["user_id"]: row["num_events"] for row in expected}
        assert stored.rows_counted == len(expected)
        assert stored.events_counted == sum(row["num_events"] for row in expected)
    everything = [play for day in landed for play in day]
    at_once, _ = merge_plays(as_plays(everything, world.kind), max_history=world.max_history)
    assert stored.rows() == rows_of(at_once, world.kind)
    assert sorted(stored.first_heard) == sorted(song for _, song in model.pairs())


@settings(max_examples=200, deadline=None)
@given(days())
def test_every_play_is_stored_or_a_duplicate_while_histories_are_whole(drawn):
    world, landed = drawn
    world = World(world.users, world.songs, world.times, max_history=10**6)
    stored, model = Stored(world), Model()
    distinct = sum(model.add(day) for day in landed)
    for day in landed:
        stored.add(day)
    assert distinct + stored.duplicates == sum(map(len, landed))
    assert stored.events_counted == distinct


@settings(max_examples=200, deadline=None)
@given(days())
def test_layers_may_be_joined_in_any_grouping(drawn):
    """overlay(overlay(a, b), c) = overlay(a, overlay(b, c)) = overlay(a, b, c): whole layers, with duplicates."""
    world, landed = drawn
    layers = [merge_plays(as_plays(day, world.kind), max_history=world.max_history)[0] for day in landed if day]
    if not layers:
        return

    def join(*layers):
        return overlay(layers, max_history=world.max_history)

    from_left, from_right = layers[0], layers[-1]
    for histories in layers[1:]:
        from_left = join(from_left, histories)
    for histories in reversed(layers[:-1]):
        from_right = join(histories, from_right)
    expected = Model(play for day in landed for play in day).rows(world.max_history)
    assert [rows_of(histories, world.kind) for histories in (from_left, from_right, join(*layers))] == [expected] * 3


@settings(max_examples=100, deadline=None)
@given(days(most_days=2), st.integers(1, 5))
def test_songs_heard_before_all_plays_are_kept_as_heard(drawn, most):
    """What travels of a busy listener whose plays were cut on the way: newest plays, and marks for older songs."""
    world, [marks, *rest] = drawn
    plays = [play for day in rest for play in day]
    given_plays = as_plays(plays, world.kind)
    with_marks = Plays(
        given_plays.user_id,
        given_plays.timestamp,
        given_plays.item_index,
        given_plays.play_code,
        pa.array([mark[0] for mark in marks], id_type(world.kind)),
        np.array([mark[2] for mark in marks], np.int32),
    )
    histories, _ = merge_plays(with_marks, max_history=most)
    expected = {row["user_id"]: (row, set(row["heard_before"])) for row in Model(plays).rows(most)}
    for user, _, song, _ in marks:
        nothing = {name: [] for name in ("item_index", "timestamp", "completion", "session_index")}
        expected.setdefault(user, ({"user_id": user, **nothing, "num_events": 0}, set()))[1].add(song)
    rows = [{**row, "heard_before": sorted(heard)} for _, (row, heard) in sorted(expected.items())]
    assert rows_of(histories, world.kind) == rows


@settings(max_examples=100, deadline=None)
@given(days(most_days=1), st.data())
def test_slices_and_rows_of_histories_are_those_of_their_table(drawn, data):
    world, [day] = drawn
    histories, _ = merge_plays(as_plays(day, world.kind), max_history=world.max_history)
    table = histories.to_table(session_gap_s=GAP)
    stop = data.draw(st.integers(0, len(histories)))
    start = data.draw(st.integers(0, stop))
    assert rows_of(histories.slice(start, stop), world.kind) == table.slice(start, stop - start).to_pylist()
    rows = data.draw(st.permutations(range(len(histories))))
    assert rows_of(histories.take(np.array(rows, np.int64)), world.kind) == [table.to_pylist()[row] for row in rows]
    again = Histories.from_table(table.slice(start, stop - start))
    assert rows_of(again, world.kind) == table.slice(start, stop - start).to_pylist()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 62), st.integers(1, 31), st.integers(0, 7), st.integers(1, 400), st.integers(0, 2**32))
@example(37, 15, 7, 300, 0)  # 60 bits and nine for listeners: sorted in portions of listeners
@example(62, 31, 7, 50, 0)  # no key: sorted by columns
@example(0, 1, 0, 400, 0)  # one time, one song: everything is a duplicate
def test_every_width_of_times_songs_and_completions_is_sorted(time_bits, song_bits, completion_bits, users, seed):
    """Sizes that hypothesis would take long to reach: hundreds of listeners and any number of bits a column."""
    rng = np.random.default_rng(seed)
    count = 2000
    user = rng.integers(0, users, count)
    timestamp = rng.integers(-(2**time_bits), 2**time_bits, count) if time_bits else np.zeros(count, np.int64)
    song = rng.integers(1, 2**song_bits, count, endpoint=True).clip(max=LARGEST_INDEX)
    completion = rng.integers(0, 2**completion_bits, count).clip(max=100)
    half = count // 2
    user[half:], timestamp[half:], song[half:] = user[:half], timestamp[:half], song[:half]  # all of them twice
    plays = Plays(pa.array(user), timestamp, song.astype(np.int32), completion.astype(np.uint8))
    histories, duplicates = merge_plays(plays, max_history=5)
    model = Model()
    listed = (column.tolist() for column in (user, timestamp, song, completion))
    assert duplicates == count - model.add(zip(*listed, strict=True))
    assert rows_of(histories, "int64") == model.rows(5)


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_a_day_without_plays_changes_nothing(kind):
    world = World(["a"] if kind == "string" else [1], [1], [0], max_history=3)
    empty, duplicates = merge_plays(as_plays([], kind), max_history=3)
    assert (len(empty), duplicates, rows_of(empty, kind)) == (0, 0, [])
    stored = Stored(world)
    stored.add([])
    stored.add([(world.users[0], 0, 1, 50)])
    stored.add([])
    assert stored.rows() == Model([(world.users[0], 0, 1, 50)]).rows(3)
