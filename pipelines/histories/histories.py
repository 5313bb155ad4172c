"""Listeners' histories in memory, as the shards store them; needs numpy and pyarrow only, so that any host reads them.

Shape legend: `U` listeners, `T` events of all of them, `S` songs heard before those events.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipelines import schema
from pipelines.histories.sessions import session_index

HISTORY_COLUMNS = (schema.USER_ID, schema.ITEM_INDEX, schema.TIMESTAMP, schema.COMPLETION, schema.HEARD_BEFORE)
"""The columns of a shard that `Histories.from_table` needs."""
_ITEM_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Histories:
    """Stored events of U listeners, skips included, as jagged arrays; in a shard, listeners ascend by user_id."""

    user_id: pa.Array  # [U], int64 or string
    offsets: np.ndarray  # int64 [U + 1]: listener u has the events offsets[u]:offsets[u + 1]
    item_index: np.ndarray  # int32 [T], oldest event first
    timestamp: np.ndarray  # int64 [T], Unix seconds, UTC
    play_code: np.ndarray  # uint8 [T], as a shard's `completion`: per cent played, plus UNCHOSEN
    heard_offsets: np.ndarray  # int64 [U + 1]
    heard_items: np.ndarray  # int32 [S], songs of events older than those kept, ascending and distinct per listener

    def __len__(self) -> int:
        return len(self.user_id)

    @staticmethod
    def without_plays(user_id: pa.Array) -> "Histories":
        """Listeners who never played anything."""
        offsets, items = np.zeros(len(user_id) + 1, np.int64), np.zeros(0, np.int32)
        return Histories(user_id, offsets, items, np.zeros(0, np.int64), np.zeros(0, np.uint8), offsets, items)

    @property
    def completion(self) -> np.ndarray:
        """Per cent of each song that was played. uint8 [T]."""
        return self.play_code & (schema.UNCHOSEN - 1)

    @property
    def chosen(self) -> np.ndarray:
        """Whether the listener chose the play, as far as the logs tell. bool [T]."""
        return self.play_code < schema.UNCHOSEN

    @property
    def lengths(self) -> np.ndarray:
        """Events of each listener. int64 [U]."""
        return np.diff(self.offsets)

    @property
    def listener(self) -> np.ndarray:
        """Row of the listener of each event. int64 [T]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def users(self) -> np.ndarray:
        """The user ids as numpy, to compare and search: int64, or Python strings. [U]."""
        return user_array(self.user_id)

    def before(self, end: int) -> "Histories":
        """Only events before `end` (Unix seconds). All listeners stay, even those without an event left."""
        return self.keep(self.timestamp < end)

    def keep(self, mask: np.ndarray) -> "Histories":
        """Only the events of a boolean mask [T]. All listeners stay, even those without an event left."""
        kept = np.flatnonzero(mask)
        if len(kept) == len(mask):
            return self
        before = np.zeros(len(mask) + 1, np.int64)
        np.cumsum(mask, out=before[1:])
        return replace(
            self,
            offsets=before[self.offsets],
            item_index=self.item_index[kept],
            timestamp=self.timestamp[kept],
            play_code=self.play_code[kept],
        )

    def take(self, rows: np.ndarray) -> "Histories":
        """The listeners of the given rows, in that order."""
        offsets, events = gather(self.offsets, rows)
        heard_offsets, heard = gather(self.heard_offsets, rows)
        return Histories(
            user_id=self.user_id.take(pa.array(rows, pa.int64())),
            offsets=offsets,
            item_index=self.item_index[events],
            timestamp=self.timestamp[events],
            play_code=self.play_code[events],
            heard_offsets=heard_offsets,
            heard_items=self.heard_items[heard],
        )

    def slice(self, start: int, stop: int) -> "Histories":
        """The listeners of rows start..stop - 1, as views."""
        events = slice(self.offsets[start], self.offsets[stop])
        heard = slice(self.heard_offsets[start], self.heard_offsets[stop])
        return Histories(
            user_id=self.user_id.slice(start, stop - start),
            offsets=self.offsets[start : stop + 1] - events.start,
            item_index=self.item_index[events],
            timestamp=self.timestamp[events],
            play_code=self.play_code[events],
            heard_offsets=self.heard_offsets[start : stop + 1] - heard.start,
            heard_items=self.heard_items[heard],
        )

    def heard_pairs(self, ranks: np.ndarray) -> np.ndarray:
        """`pair` of every song heard before, with ranks[u] for listener u. int64 [S]."""
        return pair(np.repeat(ranks, np.diff(self.heard_offsets)), self.heard_items)

    def pairs(self, ranks: np.ndarray) -> np.ndarray:
        """`pair` of every song of a lifetime, with ranks[u] for listener u: ascending and distinct, int64."""
        events = pair(np.repeat(ranks, self.lengths), self.item_index)
        if len(self.heard_items):
            events = np.concatenate([events, self.heard_pairs(ranks)])
        return distinct(events)

    def lifetime_songs(self) -> np.ndarray:
        """The songs of each listener's lifetime, one entry for each (listener, song). int32."""
        return songs_of_pairs(self.pairs(np.arange(len(self))))

    def to_table(self, *, session_gap_s: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a shard (`schema.sequence_schema`), or some of its columns; sessions are cut if they are wanted.

        session_gap_s: seconds, of `sessions.session_index`.
        """
        target = schema.sequence_schema(schema.id_type_name(self.user_id.type))
        if columns is not None:
            target = pa.schema([target.field(name) for name in columns])
        wanted = schema.SESSION_INDEX in target.names
        sessions = session_index(self.timestamp, self.offsets, gap_s=session_gap_s) if wanted else None
        return self._rows(target, num_events=self.lengths, sessions=sessions)

    def to_increment(self, num_new: np.ndarray) -> pa.Table:
        """Rows of an increment (`schema.increment_schema`). num_new: int [U], plays that the layers below lack."""
        target = schema.increment_schema(schema.id_type_name(self.user_id.type))
        return self._rows(target, num_events=num_new, sessions=None)

    def _rows(self, target: pa.Schema, *, num_events: np.ndarray, sessions: np.ndarray | None) -> pa.Table:
        offsets, heard_offsets = (pa.array(o.astype(np.int32)) for o in (self.offsets, self.heard_offsets))
        lists = {
            schema.ITEM_INDEX: (offsets, self.item_index),
            schema.TIMESTAMP: (offsets, self.timestamp),
            schema.COMPLETION: (offsets, self.play_code),
            schema.SESSION_INDEX: (offsets, sessions),
            schema.HEARD_BEFORE: (heard_offsets, self.heard_items),
        }
        columns = {schema.USER_ID: self.user_id, schema.NUM_EVENTS: pa.array(num_events.astype(np.int32))}
        for name, (ends, values) in lists.items():
            if name in target.names:
                items = pa.array(values, target.field(name).type.value_type)
                columns[name] = pa.ListArray.from_arrays(ends, items)
        return pa.Table.from_arrays([columns[name] for name in target.names], schema=target)

    @staticmethod
    def from_table(table: pa.Table) -> "Histories":
        """The histories in rows of a shard or an increment that have HISTORY_COLUMNS."""
        items, offsets = jagged(table[schema.ITEM_INDEX])
        heard, heard_offsets = jagged(table[schema.HEARD_BEFORE])
        return Histories(
            user_id=_one_array(table[schema.USER_ID]),
            offsets=offsets,
            item_index=items,
            timestamp=jagged(table[schema.TIMESTAMP])[0],
            play_code=jagged(table[schema.COMPLETION])[0],
            heard_offsets=heard_offsets,
            heard_items=heard,
        )


def no_histories() -> Histories:
    """Histories of no listeners."""
    return Histories.without_plays(pa.array([], pa.int64()))


def jagged(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column, and the offsets of its rows (int64); a null list is an empty one."""
    lists = _one_array(column)
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return lists.flatten().to_numpy(zero_copy_only=False), offsets_of(lengths)


def user_array(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """User ids as numpy: int64, or Python strings (which sort as UTF-8 bytes do)."""
    if pa.types.is_integer(column.type):
        numbers = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
        return np.asarray(numbers, np.int64)
    return np.array(column.to_pylist(), object)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where rows of these lengths begin when laid end to end, and where the last ends. int64 [len + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def gather(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the chosen rows of a jagged array laid end to end, and where their elements are in it. int64."""
    return ranges(offsets[rows], offsets[rows + 1] - offsets[rows])


def ranges(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of numbers laid end to end: their offsets [len + 1], and the numbers. int64."""
    offsets = offsets_of(lengths)
    filled = lengths > 0
    firsts = starts[filled]
    steps = np.ones(offsets[-1], np.int64)  # from each number to the next
    steps[offsets[:-1][filled]] = np.diff(firsts, prepend=0)
    steps[offsets[1:][filled][:-1]] -= lengths[filled][:-1] - 1
    return offsets, np.cumsum(steps, out=steps)


def pair(rank: np.ndarray, item: np.ndarray) -> np.ndarray:
    """One int64 for a (listener, song) pair, ordered by listener, then song."""
    return rank.astype(np.int64) << 32 | item.astype(np.int64)


def songs_of_pairs(pairs: np.ndarray) -> np.ndarray:
    """The song of each `pair`. int32."""
    return (pairs & _ITEM_MASK).astype(np.int32)


def distinct(values: np.ndarray) -> np.ndarray:
    """The distinct values, ascending. (np.unique hashes integers, which takes longer than sorting them.)"""
    values = np.sort(values)
    first = np.ones(len(values), bool)
    first[1:] = values[1:] != values[:-1]
    return values[first]


def places_in(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each value is in an ascending array (its first place there); -1 where it is not. Shape of `values`."""
    if not len(ascending):
        return np.full(values.shape, -1, np.int64)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.where(ascending[place] == values, place, -1)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
