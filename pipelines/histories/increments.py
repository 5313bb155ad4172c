"""What a day adds to stored histories: the plays that no layer (base or increment) has yet. `merge.overlay` reads them.

Shape legend: `U` listeners, `T` events, `S` songs heard before those events.

Most of what is stored has nothing to do with a day's plays. So stored events, of the listeners who played alone, are
looked up in a hash table of the day's (listener, song) pairs, and times and play codes are read only of layers that may
have a duplicate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.histories.histories import Histories, pair, places_in, songs_of_pairs
from pipelines.schema import COMPLETION, TIMESTAMP

_TABLE_BITS = 19  # slots of a hash table: two megabytes, which stay in the cache


@dataclass(frozen=True)
class Layer:
    """Stored histories as `increment_over` reads them: times and play codes only when they are needed."""

    users: np.ndarray  # [U], ascending
    offsets: np.ndarray  # int64 [U+1]
    item_index: np.ndarray  # int32 [T]
    heard_offsets: np.ndarray  # int64 [U+1]
    heard_items: np.ndarray  # int32 [S]
    num_events: np.ndarray  # int32 [U], plays that no layer below has
    read: Callable[[str], np.ndarray]  # values [T] of a column: TIMESTAMP (int64), COMPLETION (uint8, play codes)

    @staticmethod
    def of(histories: Histories, num_events: np.ndarray | None = None) -> "Layer":
        """A layer in memory. num_events: every event of the histories unless given."""
        return Layer(
            histories.users,
            histories.offsets,
            histories.item_index,
            histories.heard_offsets,
            histories.heard_items,
            histories.lengths if num_events is None else num_events,
            {TIMESTAMP: histories.timestamp, COMPLETION: histories.play_code}.__getitem__,
        )


@dataclass(frozen=True)
class Increment:
    """What a day adds to the stored histories."""

    histories: Histories  # the day's, without the plays that are stored already and were played as far then
    num_new: np.ndarray  # int32 [U], plays of each listener that were not stored
    num_before: np.ndarray  # int64 [U], plays that were stored; -1 for new listeners
    first_heard: np.ndarray  # int32, the song of each (listener, song) pair that was not stored
    duplicates: int


def increment_over(layers: Sequence[Layer], new: Histories, *, since: int) -> Increment:
    """What `new` adds to `layers`: plays that a layer has are left out, unless they were played further now.

    since: Unix second from which on there is no play in the layers.
    """
    rank = new.listener
    new_pair, all_new = pair(rank, new.item_index), new.pairs(np.arange(len(new)))
    table = _PairTable(all_new)
    matches = [_Matches.of(layer, new.users, table) for layer in layers]
    known = np.zeros(len(all_new), bool)
    for match in matches:
        known[match.pair_of] = known[match.heard_place] = True

    late = np.flatnonzero(new.timestamp < since)
    place = np.searchsorted(all_new, new_pair[late])
    late, place = late[known[place]], place[known[place]]
    duplicate, play_code = _duplicates(matches, place, new.timestamp[late])
    duplicate = late[duplicate]
    kept = np.ones(len(new_pair), bool)
    kept[duplicate[new.play_code[duplicate] <= play_code]] = False
    num_new = new.lengths - np.bincount(rank[duplicate], minlength=len(new))
    num_before = np.full(len(new), -1, np.int64)
    for match in matches:
        num_before[match.rank] = np.maximum(num_before[match.rank], 0) + match.num_events
    first_heard = songs_of_pairs(all_new[~known])
    return Increment(new.keep(kept), num_new.astype(np.int32), num_before, first_heard, len(duplicate))


@dataclass(frozen=True)
class _Matches:
    """What a layer has of given listeners and given (listener, song) pairs."""

    layer: Layer
    rank: np.ndarray  # int32, the place among the given listeners of each that the layer has
    num_events: np.ndarray  # of each of those
    of_touched: np.ndarray  # bool, the events of the layer that are of one of those
    found: np.ndarray  # which of these events have a given pair, ascending
    pair_of: np.ndarray  # the place of each such event's pair among the given ones
    heard_place: np.ndarray  # of the given pairs that the layer has as heard before

    @staticmethod
    def of(layer: Layer, users: np.ndarray, pairs: "_PairTable") -> "_Matches":
        rank = np.minimum(np.searchsorted(users, layer.users), len(users) - 1).astype(np.int32)
        touched = users[rank] == layer.users
        rank, lengths = rank[touched], np.diff(layer.offsets)
        of_touched = np.repeat(touched, lengths)
        found, place = pairs.look_up(np.repeat(rank, lengths[touched]), layer.item_index[of_touched])
        heard_lengths = np.diff(layer.heard_offsets)
        heard = layer.heard_items[np.repeat(touched, heard_lengths)]
        _, heard_place = pairs.look_up(np.repeat(rank, heard_lengths[touched]), heard)
        return _Matches(layer, rank, layer.num_events[touched], of_touched, found, place, heard_place)

    def events(self, some: np.ndarray) -> np.ndarray:
        """The events of the layer that the given ones of `found` are."""
        return np.flatnonzero(self.of_touched)[self.found[some]]


class _PairTable:
    """A hash table of distinct (listener, song) pairs, int64, ascending: the place of a pair among them.

    A slot has one pair. Few of a day's pairs meet another one in their slot; those are searched for in a list.
    """

    def __init__(self, pairs: np.ndarray) -> None:
        self.pairs = pairs
        number = np.arange(1, len(pairs) + 1, dtype=np.int32)
        slots = _slots((pairs >> 32).astype(np.int32), songs_of_pairs(pairs))
        self._number = np.zeros(1 << _TABLE_BITS, np.int32)  # place + 1 of a slot's pair, 0 without any
        self._number[slots] = number
        self._displaced = np.flatnonzero(self._number[slots] != number)
        self._crowded = np.zeros(1 << _TABLE_BITS if len(self._displaced) else 0, bool)
        self._crowded[slots[self._displaced]] = True

    def look_up(self, rank: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the given int32 (rank, song) are in the table, ascending, and the place of the pair of each."""
        slots = _slots(rank, item)
        number = self._number.take(slots, mode="clip")
        some = np.flatnonzero(number)
        wanted, place = pair(rank[some], item[some]), number[some] - 1
        found = self.pairs[place] == wanted
        if len(self._displaced):
            again = np.flatnonzero(~found)
            again = again[self._crowded[slots[some[again]]]]
            other = places_in(self.pairs[self._displaced], wanted[again])
            again, other = again[other >= 0], other[other >= 0]
            place[again], found[again] = self._displaced[other], True
        return some[found], place[found]


def _slots(rank: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The slot of each (listener, song) pair, in 32-bit arithmetic: it is computed for very many stored events."""
    slot = item.view(np.uint32) * np.uint32(0x9E3779B1)
    slot += rank.view(np.uint32) * np.uint32(0x85EBCA6B)
    slot >>= np.uint32(32 - _TABLE_BITS)
    return slot


def _duplicates(matches: Sequence[_Matches], pairs: np.ndarray, timestamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the given plays (places of their pairs, times) a layer has, and the furthest each was played there."""
    wanted = np.unique(pairs)
    stored: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for match in matches if len(wanted) else ():
        some = np.flatnonzero(places_in(wanted, match.pair_of) >= 0)
        if len(some):
            times = match.layer.read(TIMESTAMP)[match.events(some)]
            possible = np.isin(times, timestamp)
            some, times = some[possible], times[possible]
        if len(some):
            stored.append((match.pair_of[some], times, match.layer.read(COMPLETION)[match.events(some)]))
    if not stored:
        return np.zeros(0, np.int64), np.zeros(0, np.uint8)
    pair_of, times, play_code = (np.concatenate(column) for column in zip(*stored, strict=True))
    return _same_events((pair_of, times, play_code), (pairs, timestamp))


def _same_events(
    old: tuple[np.ndarray, np.ndarray, np.ndarray], new: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Places in `new` of the events that are in `old` too, and the furthest that each was played there.

    old: (pair, timestamp, play_code) with repetitions; new: (pair, timestamp), distinct.
    """
    pairs, time = (np.concatenate([a, b]) for a, b in zip(old[:2], new, strict=True))
    count = len(old[0])
    is_new = np.arange(len(pairs)) >= count
    play_code = np.concatenate([old[2], np.zeros(len(new[0]), np.uint8)])
    order = np.lexsort((play_code, is_new, time, pairs))
    pairs, time, is_new = pairs[order], time[order], is_new[order]
    same = (pairs[1:] == pairs[:-1]) & (time[1:] == time[:-1]) & is_new[1:] & ~is_new[:-1]
    return order[1:][same] - count, play_code[order[:-1][same]]
