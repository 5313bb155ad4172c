"""What a day adds to stored histories: the plays that no layer (base or increment) has yet. `merge.overlay` reads them.

Shape legend: `U` listeners, `T` events, `S` songs heard before those events.

Most of what is stored has nothing to do with a day's plays. So stored events are first looked up in a Bloom filter of
the day's (listener, song) pairs, and times and play codes are read only of layers that may have a duplicate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.histories.histories import Histories, pair, places_in, songs_of_pairs
from pipelines.schema import COMPLETION, TIMESTAMP

_FILTER_BITS = 20  # a megabyte, which stays in the cache


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
    matches = [_Matches.of(layer, new.users, all_new) for layer in layers]
    known = np.zeros(len(all_new), bool)
    for match in matches:
        known[match.places] = True

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
    events: np.ndarray  # events of the layer that have a given pair
    pair_of: np.ndarray  # the place of each such event's pair among the given ones
    places: np.ndarray  # of the given pairs that the layer has, heard-before ones too; with repetitions

    @staticmethod
    def of(layer: Layer, users: np.ndarray, pairs: np.ndarray) -> "_Matches":
        rank = np.minimum(np.searchsorted(users, layer.users), len(users) - 1).astype(np.int32)
        touched = users[rank] == layer.users
        lengths = np.diff(layer.offsets)
        slots = _filter_slots(np.repeat(_rank_hash(rank), lengths), layer.item_index)
        events = np.flatnonzero(_bloom_filter(pairs)[slots])
        row = np.repeat(np.arange(len(rank), dtype=np.int32), lengths)[events]
        events, row = events[touched[row]], row[touched[row]]
        place = places_in(pairs, pair(rank[row], layer.item_index[events]))
        events, place = events[place >= 0], place[place >= 0]
        heard_lengths = np.diff(layer.heard_offsets)
        heard = np.repeat(touched, heard_lengths)
        heard_place = places_in(pairs, pair(np.repeat(rank, heard_lengths)[heard], layer.heard_items[heard]))
        places = np.concatenate([place, heard_place[heard_place >= 0]])
        return _Matches(layer, rank[touched], layer.num_events[touched], events, place, places)


def _bloom_filter(pairs: np.ndarray) -> np.ndarray:
    """A Bloom filter with one hash function: true at the slot of every given pair, bool [2^_FILTER_BITS]."""
    present = np.zeros(1 << _FILTER_BITS, bool)
    present[_filter_slots(_rank_hash(pairs >> 32), songs_of_pairs(pairs))] = True
    return present


def _rank_hash(rank: np.ndarray) -> np.ndarray:
    return rank.astype(np.uint32) * np.uint32(0x85EBCA6B)


def _filter_slots(rank_hash: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The slot of each (listener, song) pair, in 32-bit arithmetic: it is computed for every stored event."""
    slot = item.view(np.uint32) * np.uint32(0x9E3779B1)
    slot += rank_hash
    slot >>= np.uint32(32 - _FILTER_BITS)
    return slot


def _duplicates(matches: Sequence[_Matches], pairs: np.ndarray, timestamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the given plays (places of their pairs, times) a layer has, and the furthest each was played there."""
    wanted = np.unique(pairs)
    stored: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for match in matches if len(wanted) else ():
        some = np.flatnonzero(places_in(wanted, match.pair_of) >= 0)
        if len(some):
            times = match.layer.read(TIMESTAMP)[match.events[some]]
            possible = np.isin(times, timestamp)
            some, times = some[possible], times[possible]
        if len(some):
            stored.append((match.pair_of[some], times, match.layer.read(COMPLETION)[match.events[some]]))
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
