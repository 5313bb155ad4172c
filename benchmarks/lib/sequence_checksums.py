"""Checksums of sequence shards that do not depend on buckets, files or their order.

One reader for the shards of every engine; it refuses shards that are not sorted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.histories.sessions import session_index

_MODULUS_BITS = 61


@dataclass(frozen=True)
class Checksums:
    """Equal shards have equal checksums."""

    users: int
    events: int
    plays: int  # sum of a 64-bit mix of (user, item_id, timestamp), mod 2^61
    session_index: int  # sum over events
    sessions: int
    songs: int  # distinct, of stored events
    heard_before: int  # sum of a mix of (user, item_id), mod 2^61

    def differences(self, other: "Checksums") -> list[str]:
        """A text for each number in which two differ."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return [f"{name} {ours} and {theirs}" for name, ours, theirs in pairs if ours != theirs]


def checksums(tables: Iterable[pa.Table], songs: pa.Table, *, session_gap_s: int) -> Checksums:
    """The checksums of all histories. songs: columns item_id, item_index.

    Raises ValueError if a listener occurs twice, events are not ascending by (timestamp, item_index) and distinct,
    num_events is wrong, or a session is not cut where the pause is longer than `session_gap_s`.
    """
    item_of = np.zeros(int(np.max(songs["item_index"].to_numpy())) + 1, np.int64)
    item_of[songs["item_index"].to_numpy()] = songs["item_id"].to_numpy()
    heard_songs = np.zeros(len(item_of), bool)
    users: list[np.ndarray] = []
    total = np.zeros(5, np.uint64)
    for table in tables:
        users.append(table["user_id"].to_numpy())
        for user, columns in _flat(table):
            total += _sums(user, columns, item_of, heard_songs, session_gap_s)
    listeners = np.concatenate(users) if users else np.zeros(0, np.int64)
    if repeated := len(listeners) - len(np.unique(listeners)):
        raise ValueError(f"{repeated} listeners occur more than once")
    events, plays, session, sessions, heard = (int(number) for number in total)
    mask = 2**_MODULUS_BITS - 1
    return Checksums(len(listeners), events, plays & mask, session, sessions, int(heard_songs.sum()), heard & mask)


def _flat(table: pa.Table) -> Iterator[tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]]:
    """user_id, and the values and offsets of every list column; about a million events at a time."""
    for batch in table.to_batches(max_chunksize=16_384):
        columns = {}
        for name in ("item_index", "timestamp", "session_index", "heard_before"):
            lists = batch[name]
            lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
            offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            columns[name] = lists.flatten().to_numpy(zero_copy_only=False), offsets
        if not np.array_equal(batch["num_events"].to_numpy(), np.diff(columns["timestamp"][1])):
            raise ValueError("num_events is not the length of a history")
        yield batch["user_id"].to_numpy(), columns


def _sums(
    user: np.ndarray,
    columns: dict[str, tuple[np.ndarray, np.ndarray]],
    item_of: np.ndarray,
    heard_songs: np.ndarray,
    session_gap_s: int,
) -> np.ndarray:
    """The five sums over some listeners, uint64; marks their songs in `heard_songs`."""
    item, offsets = columns["item_index"]
    timestamp, session = columns["timestamp"][0], columns["session_index"][0]
    if np.any(np.diff(user) <= 0):
        raise ValueError("listeners are not ascending within a file")
    inside = np.ones(len(item), bool)
    inside[offsets[:-1][np.diff(offsets) > 0]] = False  # not a listener's first event
    later = (timestamp[1:] > timestamp[:-1]) | ((timestamp[1:] == timestamp[:-1]) & (item[1:] > item[:-1]))
    if np.any(inside[1:] & ~later):
        raise ValueError("events are not ascending by (timestamp, item_index), or occur twice")
    if not np.array_equal(session, session_index(timestamp, offsets, gap_s=session_gap_s)):
        raise ValueError("session_index is not cut by the pauses")
    heard_songs[item] = True
    of_event = np.repeat(user, np.diff(offsets))
    heard, heard_offsets = columns["heard_before"]
    ends = offsets[1:][np.diff(offsets) > 0] - 1
    return np.array(
        [
            len(item),
            _total(_mix(_mix(of_event) ^ item_of[item].view(np.uint64)) ^ timestamp.view(np.uint64)),
            int(session.sum(dtype=np.int64)),
            int(session[ends].sum(dtype=np.int64)) + len(ends),
            _total(_mix(np.repeat(user, np.diff(heard_offsets))) ^ item_of[heard].view(np.uint64)),
        ],
        np.uint64,
    )


def _total(values: np.ndarray) -> int:
    return int(_mix(values).sum(dtype=np.uint64))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, uint64 to uint64."""
    with np.errstate(over="ignore"):
        mixed = values.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
