"""Listeners' histories from plays, and days laid over days: the numpy core of sessionizing.

Shape legend: `U` listeners in a block, `T` events of a block, `S` heard-before songs of a block.

The order of a history is (timestamp, item_index). An index is given to a song once and for ever, so this order,
which songs are stored and which are only heard-before do not depend on the day an event arrived: laying day over day
equals building from all logs at once with the same vocabulary. Two plays are the same event if user, timestamp and
song agree; the one played furthest is kept.

Events are sorted as one array of 64-bit keys (listener | time | song | completion, each in as few bits as it needs):
numpy sorts those with vector instructions, fifty times faster than by three columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema
from pipelines.histories.sessions import session_index

_ITEM_MASK = 0xFFFFFFFF
_FILTER_BITS = 20  # a megabyte, which stays in the cache


@dataclass(frozen=True)
class Block:
    """Complete histories of some listeners, ascending by user_id."""

    user_id: np.ndarray  # [U], int64 or Python strings
    offsets: np.ndarray  # int64 [U+1] into the three below
    item_index: np.ndarray  # int32 [T], oldest event first
    timestamp: np.ndarray  # int64 [T], Unix seconds
    completion: np.ndarray  # uint8 [T], percent
    heard_offsets: np.ndarray  # int64 [U+1]
    heard_items: np.ndarray  # int32 [S], ascending and distinct within a listener

    def __len__(self) -> int:
        return len(self.user_id)

    @property
    def lengths(self) -> np.ndarray:
        """Events of each listener, int64 [U]."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "Block":
        """The given listeners, in that order."""
        events, offsets = _jagged_take(self.offsets, rows)
        heard, heard_offsets = _jagged_take(self.heard_offsets, rows)
        return Block(
            self.user_id[rows],
            offsets,
            self.item_index[events],
            self.timestamp[events],
            self.completion[events],
            heard_offsets,
            self.heard_items[heard],
        )

    def part(self, start: int, stop: int) -> "Block":
        """The listeners in [start, stop)."""
        events = slice(self.offsets[start], self.offsets[stop])
        heard = slice(self.heard_offsets[start], self.heard_offsets[stop])
        return Block(
            self.user_id[start:stop],
            self.offsets[start : stop + 1] - self.offsets[start],
            self.item_index[events],
            self.timestamp[events],
            self.completion[events],
            self.heard_offsets[start : stop + 1] - self.heard_offsets[start],
            self.heard_items[heard],
        )

    def keep(self, events: np.ndarray) -> "Block":
        """Only the events of a boolean mask [T]; listeners stay, maybe with nothing left."""
        before = np.concatenate([[0], np.cumsum(events)])
        return Block(
            self.user_id,
            before[self.offsets],
            self.item_index[events],
            self.timestamp[events],
            self.completion[events],
            self.heard_offsets,
            self.heard_items,
        )

    def to_table(self, *, user_id_type: str, session_gap_s: int) -> pa.Table:
        """Rows of a shard (`schema.sequence_schema`)."""
        sessions = session_index(self.timestamp, self.offsets, gap_s=session_gap_s)
        return self._rows(schema.sequence_schema(user_id_type), num_events=self.lengths, sessions=sessions)

    def to_delta(self, num_new: np.ndarray, *, user_id_type: str) -> pa.Table:
        """Rows of a delta (`schema.delta_schema`). num_new: int [U], plays that the layers below do not have."""
        return self._rows(schema.delta_schema(user_id_type), num_events=num_new)

    def _rows(self, target: pa.Schema, *, num_events: np.ndarray, sessions: np.ndarray | None = None) -> pa.Table:
        offsets, heard_offsets = (pa.array(o.astype(np.int32)) for o in (self.offsets, self.heard_offsets))
        lists = {
            schema.ITEM_INDEX: (offsets, self.item_index),
            schema.TIMESTAMP: (offsets, self.timestamp),
            schema.COMPLETION: (offsets, self.completion),
            schema.SESSION_INDEX: (offsets, sessions),
            schema.HEARD_BEFORE: (heard_offsets, self.heard_items),
        }
        flat = {schema.USER_ID: self.user_id, schema.NUM_EVENTS: num_events.astype(np.int32)}
        columns = []
        for field in target:
            if field.name in flat:
                columns.append(pa.array(flat[field.name], field.type))
            else:
                ends, values = lists[field.name]
                columns.append(pa.ListArray.from_arrays(ends, pa.array(values, field.type.value_type)))
        return pa.Table.from_arrays(columns, schema=target)

    @staticmethod
    def from_table(table: pa.Table) -> "Block":
        """The histories in rows of a shard; session_index and num_events may be missing."""
        items, offsets = jagged(table[schema.ITEM_INDEX])
        heard, heard_offsets = jagged(table[schema.HEARD_BEFORE])
        return Block(
            user_array(table[schema.USER_ID]),
            offsets,
            items,
            jagged(table[schema.TIMESTAMP])[0],
            jagged(table[schema.COMPLETION])[0],
            heard_offsets,
            heard,
        )

    def first_heard(self) -> np.ndarray:
        """The song of every distinct (listener, song) pair, int32: what `additions` finds where nothing is known."""
        return (_pairs(self, np.arange(len(self))) & _ITEM_MASK).astype(np.int32)


@dataclass(frozen=True)
class Plays:
    """Plays of many listeners in any order, [T]; and songs some of them heard before those, [S]."""

    user_id: pa.Array  # [T]
    timestamp: np.ndarray  # int64 [T], Unix seconds
    item_index: np.ndarray  # int32 [T]
    completion: np.ndarray  # uint8 [T], percent
    heard_user_id: pa.Array | None = None  # [S]
    heard_item: np.ndarray | None = None  # int32 [S]


@dataclass(frozen=True)
class Layer:
    """Stored histories as `additions` reads them: times and completions only where it asks for them."""

    user_id: np.ndarray  # [U], ascending
    offsets: np.ndarray  # int64 [U+1]
    item_index: np.ndarray  # int32 [T]
    heard_offsets: np.ndarray  # int64 [U+1]
    heard_items: np.ndarray  # int32 [S]
    num_events: np.ndarray  # int32 [U], plays that are in no layer below
    timestamp: Callable[[], np.ndarray]  # int64 [T]
    completion: Callable[[], np.ndarray]  # uint8 [T]

    @staticmethod
    def of(block: Block, num_events: np.ndarray | None = None) -> "Layer":
        """A layer in memory."""
        return Layer(
            block.user_id,
            block.offsets,
            block.item_index,
            block.heard_offsets,
            block.heard_items,
            block.lengths if num_events is None else num_events,
            lambda: block.timestamp,
            lambda: block.completion,
        )


@dataclass(frozen=True)
class Additions:
    """What a day adds to the histories that are there."""

    block: Block  # the day's histories without the plays that are there already, played as far
    num_new: np.ndarray  # int32 [U], plays of each listener that were not there
    num_before: np.ndarray  # int64 [U], plays that were there; -1 for listeners who were not
    first_heard: np.ndarray  # int32, the song of each (listener, song) pair that was not there
    duplicates: int


@dataclass(frozen=True)
class _Events:
    """Events of U listeners, and songs they heard before those."""

    rank: np.ndarray  # int64 [T] in 0..U-1
    timestamp: np.ndarray
    item_index: np.ndarray
    completion: np.ndarray


def histories(plays: Plays, *, max_history: int) -> tuple[Block, int]:
    """The histories that plays make, and how many plays were duplicates.

    Duplicates are merged, the newest `max_history` events are kept, songs of older ones go to heard_before.
    With max_history=2, one listener:

    ======  =======  ====  ==========      =============================
    before                                 after
    -------------------------------------  -----------------------------
    user    time     song  completion
    ======  =======  ====  ==========      =============================
    7       300      4     100             heard_before [4]
    7       200      5     20              item_index   [5, 4]
    7       200      5     90              timestamp    [200, 300]
    7       100      4     100             completion   [90, 100]
    ======  =======  ====  ==========      =============================

    >>> plays = Plays(
    ...     user_id=pa.array([7, 7, 7, 7]),
    ...     timestamp=np.array([300, 200, 200, 100]),
    ...     item_index=np.array([4, 5, 5, 4], np.int32),
    ...     completion=np.array([100, 20, 90, 100], np.uint8),
    ... )
    >>> block, duplicates = histories(plays, max_history=2)
    >>> table = block.to_table(user_id_type="int64", session_gap_s=1800)
    >>> for name in ("item_index", "timestamp", "completion", "session_index", "heard_before"):
    ...     print(name, table[name].to_pylist())
    item_index [[5, 4]]
    timestamp [[200, 300]]
    completion [[90, 100]]
    session_index [[0, 0]]
    heard_before [[4]]
    >>> duplicates
    1
    """
    everybody, heard = plays.user_id, np.zeros(0, np.int64)
    if plays.heard_user_id is not None:
        everybody = pa.concat_arrays([everybody, plays.heard_user_id])
    users, rank = _factorized(everybody)
    count = len(plays.timestamp)
    if plays.heard_item is not None:
        heard = _pair(rank[count:], plays.heard_item)
    events, duplicates = _sorted(_Events(rank[:count], plays.timestamp, plays.item_index, plays.completion))
    return _collapse(events, users, heard, max_history), duplicates


def in_given_order(user_id: np.ndarray, timestamp: np.ndarray, item_index: np.ndarray, *, max_history: int) -> Block:
    """Histories of distinct plays, heard to the end, that are sorted by user and time; ties stay as they are."""
    starts = np.ones(len(user_id), bool)
    starts[1:] = user_id[1:] != user_id[:-1]
    completion = np.full(len(user_id), 100, np.uint8)
    events = _Events(np.cumsum(starts, dtype=np.int64) - 1, timestamp, item_index.astype(np.int32), completion)
    return _collapse(events, user_id[starts], np.zeros(0, np.int64), max_history)


def no_histories() -> Block:
    """A block of nobody."""
    return in_given_order(*(np.zeros(0, np.int64),) * 3, max_history=1)


def overlay(layers: Sequence[Block], *, max_history: int) -> Block:
    """Several layers of histories as one: all of everybody's events in order, newest `max_history` kept."""
    if len(layers) == 1:
        return layers[0]
    users = np.unique(np.concatenate([layer.user_id for layer in layers]))
    ranks = [np.searchsorted(users, layer.user_id) for layer in layers]
    events = _Events(
        np.concatenate([np.repeat(rank, layer.lengths) for rank, layer in zip(ranks, layers, strict=True)]),
        np.concatenate([layer.timestamp for layer in layers]),
        np.concatenate([layer.item_index for layer in layers]),
        np.concatenate([layer.completion for layer in layers]),
    )
    heard = [_heard_pairs(layer, rank) for rank, layer in zip(ranks, layers, strict=True)]
    return _collapse(_sorted(events)[0], users, np.concatenate(heard), max_history)


def additions(layers: Sequence[Layer], new: Block, *, since: int) -> Additions:
    """What `new` adds to `layers`: plays that are in a layer already are left out, unless now played further.

    since: Unix second from which on there is no play in the layers.
    """
    rank = np.repeat(np.arange(len(new)), new.lengths)
    pair, all_new = _pair(rank, new.item_index), _pairs(new, np.arange(len(new)))
    stored = [_Stored.of(layer, new.user_id, all_new) for layer in layers]
    known = np.zeros(len(all_new), bool)
    for layer in stored:
        known[layer.places] = True

    late = np.flatnonzero(new.timestamp < since)
    place = np.searchsorted(all_new, pair[late])
    late, place = late[known[place]], place[known[place]]
    duplicate, completion = _duplicates(stored, place, new.timestamp[late])
    duplicate = late[duplicate]
    kept = np.ones(len(pair), bool)
    kept[duplicate[new.completion[duplicate] <= completion]] = False
    num_new = new.lengths - np.bincount(rank[duplicate], minlength=len(new))
    num_before = np.full(len(new), -1, np.int64)
    for layer in stored:
        num_before[layer.rank] = np.maximum(num_before[layer.rank], 0) + layer.num_events
    first_heard = (all_new[~known] & _ITEM_MASK).astype(np.int32)
    return Additions(new.keep(kept), num_new.astype(np.int32), num_before, first_heard, len(duplicate))


@dataclass(frozen=True)
class _Stored:
    """What a layer holds of the listeners and the (listener, song) pairs that are asked for."""

    layer: Layer
    rank: np.ndarray  # of each of those listeners that the layer has, among all that were asked for (int32)
    num_events: np.ndarray  # theirs
    events: np.ndarray  # places in the layer of the events with a wanted pair
    pair_of: np.ndarray  # the place of each such event's pair among the wanted
    places: np.ndarray  # of all wanted pairs that the layer has, heard-before ones too; with repetitions

    @staticmethod
    def of(layer: Layer, user_id: np.ndarray, wanted: np.ndarray) -> "_Stored":
        rank = np.minimum(np.searchsorted(user_id, layer.user_id), len(user_id) - 1).astype(np.int32)
        touched = user_id[rank] == layer.user_id
        lengths = np.diff(layer.offsets)
        events = np.flatnonzero(_filter(wanted)[_slots(np.repeat(_rank_hash(rank), lengths), layer.item_index)])
        row = np.repeat(np.arange(len(rank), dtype=np.int32), lengths)[events]
        events, row = events[touched[row]], row[touched[row]]
        place = _places(wanted, _pair(rank[row], layer.item_index[events]))
        events, place = events[place >= 0], place[place >= 0]
        heard = np.repeat(touched, np.diff(layer.heard_offsets))
        heard_pair = _pair(np.repeat(rank, np.diff(layer.heard_offsets))[heard], layer.heard_items[heard])
        heard_place = _places(wanted, heard_pair)
        places = np.concatenate([place, heard_place[heard_place >= 0]])
        return _Stored(layer, rank[touched], layer.num_events[touched], events, place, places)


def _filter(pairs: np.ndarray) -> np.ndarray:
    """A table that is true at the slots of some (listener, song) pairs, and so at few others."""
    there = np.zeros(1 << _FILTER_BITS, bool)
    there[_slots(_rank_hash(pairs >> 32), pairs & _ITEM_MASK)] = True
    return there


def _rank_hash(rank: np.ndarray) -> np.ndarray:
    return rank.astype(np.uint32) * np.uint32(0x85EBCA6B)


def _slots(rank_hash: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Where in the filter a pair is looked up. All in 32 bits: this is done for every event that is stored."""
    slot = item.astype(np.uint32, copy=False) if item.dtype != np.int32 else item.view(np.uint32)
    slot = slot * np.uint32(0x9E3779B1)
    slot += rank_hash
    slot >>= np.uint32(32 - _FILTER_BITS)
    return slot


def _places(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each value is in a distinct ascending array; -1 where it is not."""
    if not len(ascending):
        return np.full(len(values), -1, np.int64)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.where(ascending[place] == values, place, -1)


def _duplicates(stored: Sequence[_Stored], pair: np.ndarray, timestamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the given plays a layer has, and the furthest that each was played there."""
    asked = np.unique(pair)
    pairs, times, completions = [], [], []
    for layer in stored if len(asked) else ():
        some = np.flatnonzero(_places(asked, layer.pair_of) >= 0)
        if len(some):
            events = layer.events[some]
            pairs.append(layer.pair_of[some])
            times.append(layer.layer.timestamp()[events])
            possible = np.isin(times[-1], timestamp)
            pairs[-1], times[-1] = pairs[-1][possible], times[-1][possible]
            found = layer.layer.completion()[events[possible]] if possible.any() else np.zeros(0, np.uint8)
            completions.append(found)
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.uint8)
    old = tuple(np.concatenate(column) for column in (pairs, times, completions))
    return _same_events(old, (pair, timestamp))


def jagged(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column, and the offsets of its rows (int64)."""
    lists = column.combine_chunks()
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return lists.flatten().to_numpy(zero_copy_only=False), _offsets(lengths)


def user_array(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """User ids as numpy: int64, or Python strings (which sort as UTF-8 bytes do)."""
    if pa.types.is_integer(column.type):
        numbers = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
        return np.asarray(numbers, np.int64)
    return np.array(column.to_pylist(), object)


def _factorized(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids in ascending order, and the place of each row's id among them (int64)."""
    encoded = column.dictionary_encode()
    order = pc.array_sort_indices(encoded.dictionary)  # type: ignore[attr-defined]
    place = np.empty(len(order), np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    return user_array(encoded.dictionary.take(order)), place[encoded.indices.to_numpy()]


def _sorted(events: _Events) -> tuple[_Events, int]:
    """Distinct events by (rank, timestamp, item_index), each as it was played furthest, and how many were not."""
    if not len(events.rank):
        return events, 0
    start, least = int(events.timestamp.min()), int(events.completion.min())
    widths = (
        (int(events.timestamp.max()) - start).bit_length(),
        int(events.item_index.max()).bit_length(),
        (int(events.completion.max()) - least).bit_length(),
    )
    room = 64 - sum(widths)
    needed = int(events.rank.max()).bit_length()
    if room >= needed:
        return _sorted_by_key(events, start, least, widths)
    if needed - room > 16 or room < 1:
        return _sorted_by_columns(events)
    # Too many listeners for one key: block by block of as many as there is room for.
    block = (events.rank >> room).astype(np.uint16)
    order = np.argsort(block, kind="stable")
    parts, begin, duplicates = [], 0, 0
    for number, end in enumerate(np.cumsum(np.bincount(block)).tolist()):
        if end > begin:
            rows, first = order[begin:end], number << room
            local = _Events(events.rank[rows] - first, *(column[rows] for column in _columns(events)[1:]))
            done, again = _sorted_by_key(local, start, least, widths)
            parts.append((done.rank + first, *_columns(done)[1:]))
            duplicates += again
        begin = end
    return _Events(*(np.concatenate(column) for column in zip(*parts, strict=True))), duplicates


def _sorted_by_columns(events: _Events) -> tuple[_Events, int]:
    """`_sorted` of events that no key has room for."""
    order = np.lexsort((events.completion, events.item_index, events.timestamp, events.rank))
    rank, time, item, completion = (column[order] for column in _columns(events))
    last = np.append((rank[1:] != rank[:-1]) | (time[1:] != time[:-1]) | (item[1:] != item[:-1]), True)
    return _Events(rank[last], time[last], item[last], completion[last]), int((~last).sum())


def _sorted_by_key(events: _Events, start: int, least: int, widths: tuple[int, int, int]) -> tuple[_Events, int]:
    """`_sorted` of events whose columns are so many bits wide, from `start` and `least`."""
    time_bits, item_bits, completion_bits = (np.uint64(width) for width in widths)
    key = events.rank.astype(np.uint64)
    key <<= time_bits
    key |= (events.timestamp - start).astype(np.uint64)
    key <<= item_bits
    key |= events.item_index.astype(np.uint64)
    key <<= completion_bits
    if widths[2]:
        key |= (events.completion - np.uint8(least)).astype(np.uint64)
    key.sort()
    last = np.append((key[1:] ^ key[:-1]) >> completion_bits != 0, True)
    duplicates = len(key) - int(np.count_nonzero(last))
    if duplicates:
        key = key[last]
    completion = np.full(len(key), least, np.uint8)
    if widths[2]:
        completion += (key & np.uint64((1 << widths[2]) - 1)).astype(np.uint8)
        key >>= completion_bits
    item = (key & np.uint64((1 << widths[1]) - 1)).astype(np.int32)
    key >>= item_bits
    timestamp = (key & np.uint64((1 << widths[0]) - 1)).view(np.int64)
    timestamp += start
    key >>= time_bits
    return _Events(key.view(np.int64), timestamp, item, completion), duplicates


def _columns(events: _Events) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return events.rank, events.timestamp, events.item_index, events.completion


def _collapse(events: _Events, users: np.ndarray, heard: np.ndarray, max_history: int) -> Block:
    """Keep the newest `max_history` of each listener, move the songs of the rest to heard_before.

    events: sorted and distinct. heard: pairs of what was heard before them.
    """
    distinct = len(events.rank)
    lengths = np.bincount(events.rank, minlength=len(users))
    if distinct and lengths.max() > max_history:
        from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(distinct)  # 1 at a listener's newest event
        newest = from_end <= max_history
        heard = np.concatenate([heard, _pair(events.rank[~newest], events.item_index[~newest])])
        events = _Events(*(column[newest] for column in _columns(events)))
        lengths = np.minimum(lengths, max_history)
    heard = _distinct(heard)
    return Block(
        users,
        _offsets(lengths),
        events.item_index,
        events.timestamp,
        events.completion,
        _offsets(np.bincount(heard >> 32, minlength=len(users))),
        (heard & _ITEM_MASK).astype(np.int32),
    )


def _same_events(old: tuple[np.ndarray, ...], new: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Places in `new` of the events that are in `old` too, and the furthest that each was played there.

    old: (pair, timestamp, completion) with repetitions; new: (pair, timestamp), distinct.
    """
    pair, time = (np.concatenate([a, b]) for a, b in zip(old[:2], new, strict=True))
    count = len(old[0])
    is_new = np.arange(len(pair)) >= count
    completion = np.concatenate([old[2], np.zeros(len(new[0]), np.uint8)])
    order = np.lexsort((completion, is_new, time, pair))
    pair, time, is_new = pair[order], time[order], is_new[order]
    same = (pair[1:] == pair[:-1]) & (time[1:] == time[:-1]) & is_new[1:] & ~is_new[:-1]
    return order[1:][same] - count, completion[order[:-1][same]]


def _pair(rank: np.ndarray, item: np.ndarray) -> np.ndarray:
    """One int64 for a (listener, song) pair, ordered by listener, then song."""
    return rank.astype(np.int64) << 32 | item.astype(np.int64)


def _heard_pairs(block: Block, ranks: np.ndarray) -> np.ndarray:
    return _pair(np.repeat(ranks, np.diff(block.heard_offsets)), block.heard_items)


def _pairs(block: Block, ranks: np.ndarray) -> np.ndarray:
    """Distinct (listener, song) pairs of a block's events and of what was heard before them, ascending."""
    events = _pair(np.repeat(ranks, block.lengths), block.item_index)
    if len(block.heard_items):
        events = np.concatenate([events, _heard_pairs(block, ranks)])
    return _distinct(events)


def _distinct(values: np.ndarray) -> np.ndarray:
    """The distinct values, ascending. (np.unique hashes integers, which takes longer than sorting them.)"""
    values = np.sort(values)
    first = np.ones(len(values), bool)
    first[1:] = values[1:] != values[:-1]
    return values[first]


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _jagged_take(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the elements of the given rows of a jagged array, and the offsets of the result."""
    lengths = np.diff(offsets)[rows]
    taken = _offsets(lengths)
    return np.arange(taken[-1]) + np.repeat(offsets[:-1][rows] - taken[:-1], lengths), taken
