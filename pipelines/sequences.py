"""Listeners' histories from plays: a pure numpy/Arrow core that streams, and merges a day into yesterday's.

Shape legend: `U` listeners in a block, `T` events of a block, `S` heard-before songs of a block.

The order of a history is (timestamp, item_index). An index is given to a song once and for ever, so this order,
which songs are stored and which are only heard-before do not depend on the day an event arrived: merging day by
day equals building from all logs at once with the same vocabulary. Two plays are the same event if user,
timestamp and song agree; the one played furthest is kept.
"""
# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema
from pipelines.sessions import session_index


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

    def split(self, row: int) -> tuple["Block", "Block"]:
        """The listeners before a row, and the rest."""
        return self._slice(0, row), self._slice(row, len(self))

    def _slice(self, start: int, stop: int) -> "Block":
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

    def to_table(self, *, user_id_type: str, session_gap_s: int) -> pa.Table:
        """Rows of a shard (`schema.sequence_schema`)."""
        sessions = session_index(self.timestamp, self.offsets, gap_s=session_gap_s)
        target = schema.sequence_schema(user_id_type)
        offsets, heard_offsets = (pa.array(o.astype(np.int32)) for o in (self.offsets, self.heard_offsets))
        columns = [
            pa.array(self.user_id, target.field(schema.USER_ID).type),
            pa.ListArray.from_arrays(offsets, pa.array(self.item_index, pa.int32())),
            pa.ListArray.from_arrays(offsets, pa.array(self.timestamp, pa.int64())),
            pa.ListArray.from_arrays(offsets, pa.array(self.completion, pa.uint8())),
            pa.ListArray.from_arrays(offsets, pa.array(sessions, pa.int32())),
            pa.ListArray.from_arrays(heard_offsets, pa.array(self.heard_items, pa.int32())),
            pa.array(np.diff(self.offsets).astype(np.int32)),
        ]
        return pa.Table.from_arrays(columns, schema=target)

    @staticmethod
    def from_table(table: pa.Table) -> "Block":
        """The histories in rows of a shard."""

        def jagged(name: str) -> tuple[np.ndarray, np.ndarray]:
            lists = table[name].combine_chunks()
            lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
            lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
            return lists.flatten().to_numpy(zero_copy_only=False), _offsets(lengths)

        items, offsets = jagged(schema.ITEM_INDEX)
        heard, heard_offsets = jagged(schema.HEARD_BEFORE)
        return Block(
            _ids(table[schema.USER_ID]),
            offsets,
            items,
            jagged(schema.TIMESTAMP)[0],
            jagged(schema.COMPLETION)[0],
            heard_offsets,
            heard,
        )


@dataclass
class Tally:
    """What a pass over a bucket counted."""

    listeners: np.ndarray  # int64 [highest item index + 1]: listeners who heard the song for the first time
    duplicates: int = 0  # events that were there already

    @staticmethod
    def empty(vocabulary_size: int) -> "Tally":
        """A tally for songs 1..vocabulary_size."""
        return Tally(np.zeros(vocabulary_size + 1, np.int64))


@dataclass(frozen=True)
class _Events:
    """Events of U listeners sorted by (rank, timestamp, item_index), and songs they heard before those."""

    rank: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [T] in 0..U-1
    timestamp: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    item_index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    completion: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    heard: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rank << 32 | item_index


def build(batches: Iterable[pa.RecordBatch], *, max_history: int, tally: Tally) -> Iterator[Block]:
    """Histories of a day's events, streamed: memory is one batch and one listener's newest `max_history` events.

    batches: `user_id, timestamp, item_index, completion`, all rows together ascending by the first three.
    A listener may span any number of batches. Duplicates are merged, the newest `max_history` events are kept,
    songs of older ones go to heard_before. Song counts are `merge`'s business; `tally` gets the duplicates.

    With max_history=2, one listener:

    ======  =======  ====  ==========      =============================
    before                                 after
    -------------------------------------  -----------------------------
    user    time     song  completion
    ======  =======  ====  ==========      =============================
    7       100      4     100             heard_before [4]
    7       200      5     20              item_index   [5, 4]
    7       200      5     90              timestamp    [200, 300]
    7       300      4     100             completion   [90, 100]
    ======  =======  ====  ==========      =============================

    >>> batch = pa.record_batch({
    ...     "user_id": [7, 7, 7, 7],
    ...     "timestamp": [100, 200, 200, 300],
    ...     "item_index": pa.array([4, 5, 5, 4], pa.int32()),
    ...     "completion": pa.array([100, 20, 90, 100], pa.uint8()),
    ... })
    >>> tally = Tally.empty(5)
    >>> [block] = build([batch], max_history=2, tally=tally)
    >>> table = block.to_table(user_id_type="int64", session_gap_s=1800)
    >>> for name in ("item_index", "timestamp", "completion", "session_index", "heard_before"):
    ...     print(name, table[name].to_pylist())
    item_index [[5, 4]]
    timestamp [[200, 300]]
    completion [[90, 100]]
    session_index [[0, 0]]
    heard_before [[4]]
    >>> tally.duplicates
    1
    """
    carry: Block | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        block = _collapse_batch(batch, carry, max_history, tally)
        done, carry = block.split(len(block) - 1)
        if len(done):
            yield done
    if carry is not None:
        yield carry


def merge(parent: Iterable[Block], new: Iterable[Block], *, max_history: int, tally: Tally) -> Iterator[Block]:
    """Lay a day's histories over the parent's, both ascending by user_id; yields blocks in the same order.

    Listeners without new events pass through unchanged.
    Counts listeners new to a song in `tally`: those who had it neither in their history nor in heard_before.
    """
    for old_block, new_block in _aligned(iter(parent), iter(new)):
        if new_block is None:
            assert old_block is not None
            yield old_block
        else:
            old = old_block if old_block is not None else new_block.take(np.zeros(0, np.int64))
            yield _merge_block(old, new_block, max_history, tally)


def _collapse_batch(batch: pa.RecordBatch, carry: Block | None, max_history: int, tally: Tally) -> Block:
    """The unfinished listener of the batch before, if any, and the listeners of this batch."""
    column = batch[schema.USER_ID]
    starts = _changes(column)
    users, rank = _ids(column.filter(pa.array(starts))), np.cumsum(starts, dtype=np.int64) - 1
    if carry is not None and users[0] != carry.user_id[0]:
        users, rank = np.concatenate([carry.user_id, users]), rank + 1
    events = _Events(
        rank,
        _numpy(batch[schema.TIMESTAMP], np.int64),
        _numpy(batch[schema.ITEM_INDEX], np.int32),
        _numpy(batch[schema.COMPLETION], np.uint8),
    )
    if carry is not None:
        events = _concatenate(_flatten(carry, np.zeros(1, np.int64)), events)
    block, distinct = _collapse(events, users, max_history)
    tally.duplicates += len(events.rank) - distinct
    return block


def _merge_block(old: Block, new: Block, max_history: int, tally: Tally) -> Block:
    """Histories of the listeners in either block; those only in `old` are left as they are."""
    rows = np.searchsorted(old.user_id, new.user_id)
    known = np.zeros(len(new), bool)
    inside = rows < len(old)
    known[inside] = old.user_id[rows[inside]] == new.user_id[inside]
    touched = rows[known]
    before = _flatten(old.take(touched), np.flatnonzero(known))
    after = _flatten(new, np.arange(len(new)))
    first_heard = np.setdiff1d(_pairs(after), _pairs(before), assume_unique=True)
    np.add.at(tally.listeners, first_heard & 0xFFFFFFFF, 1)

    events = _concatenate(before, after)
    order = np.lexsort((events.item_index, events.timestamp, events.rank))
    events = _Events(
        events.rank[order], events.timestamp[order], events.item_index[order], events.completion[order], events.heard
    )
    merged, distinct = _collapse(events, new.user_id, max_history)
    tally.duplicates += len(order) - distinct
    if len(touched) == len(old):
        return merged
    untouched = np.ones(len(old), bool)
    untouched[touched] = False
    both = _join(old.take(np.flatnonzero(untouched)), merged)
    return both.take(np.argsort(both.user_id, kind="stable"))


def _collapse(events: _Events, users: np.ndarray, max_history: int) -> tuple[Block, int]:
    """Merge duplicates, keep the newest `max_history`, move the songs of the rest to heard_before.

    Returns the histories and the number of distinct events before trimming.
    """
    first = np.ones(len(events.rank), bool)
    first[1:] = (np.diff(events.rank) != 0) | (np.diff(events.timestamp) != 0) | (np.diff(events.item_index) != 0)
    starts = np.flatnonzero(first)
    completion = np.maximum.reduceat(events.completion, starts) if starts.size else events.completion
    rank, timestamp, item = events.rank[starts], events.timestamp[starts], events.item_index[starts]
    lengths = np.bincount(rank, minlength=len(users))
    from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(rank))  # 1 at a listener's newest event
    keep = from_end <= max_history
    heard = np.unique(np.concatenate([events.heard, _pair(rank[~keep], item[~keep])]))
    block = Block(
        users,
        _offsets(np.minimum(lengths, max_history)),
        item[keep],
        timestamp[keep],
        completion[keep],
        _offsets(np.bincount(heard >> 32, minlength=len(users))),
        (heard & 0xFFFFFFFF).astype(np.int32),
    )
    return block, len(starts)


def _aligned(parent: Iterator[Block], new: Iterator[Block]) -> Iterator[tuple[Block | None, Block | None]]:
    """Pairs of blocks over the same range of user ids, in order; one side is None where it has nobody."""
    old_block, new_block = next(parent, None), next(new, None)
    while old_block is not None and new_block is not None:
        cut = min(old_block.user_id[-1], new_block.user_id[-1])
        old_head, old_rest = old_block.split(int(np.searchsorted(old_block.user_id, cut, side="right")))
        new_head, new_rest = new_block.split(int(np.searchsorted(new_block.user_id, cut, side="right")))
        yield old_head if len(old_head) else None, new_head if len(new_head) else None
        old_block = old_rest if len(old_rest) else next(parent, None)
        new_block = new_rest if len(new_rest) else next(new, None)
    while old_block is not None:
        yield old_block, None
        old_block = next(parent, None)
    while new_block is not None:
        yield None, new_block
        new_block = next(new, None)


def _flatten(block: Block, ranks: np.ndarray) -> _Events:
    """The events of a block, its listeners numbered as given."""
    heard_rank = np.repeat(ranks, np.diff(block.heard_offsets))
    return _Events(
        np.repeat(ranks, np.diff(block.offsets)),
        block.timestamp,
        block.item_index,
        block.completion,
        _pair(heard_rank, block.heard_items),
    )


def _concatenate(first: _Events, second: _Events) -> _Events:
    return _Events(
        np.concatenate([first.rank, second.rank]),
        np.concatenate([first.timestamp, second.timestamp]),
        np.concatenate([first.item_index, second.item_index]),
        np.concatenate([first.completion, second.completion]),
        np.concatenate([first.heard, second.heard]),
    )


def _join(first: Block, second: Block) -> Block:
    """The listeners of both, one block after the other."""
    return Block(
        np.concatenate([first.user_id, second.user_id]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        np.concatenate([first.item_index, second.item_index]),
        np.concatenate([first.timestamp, second.timestamp]),
        np.concatenate([first.completion, second.completion]),
        np.concatenate([first.heard_offsets, second.heard_offsets[1:] + first.heard_offsets[-1]]),
        np.concatenate([first.heard_items, second.heard_items]),
    )


def _pair(rank: np.ndarray, item: np.ndarray) -> np.ndarray:
    """One int64 for a (listener, song) pair, ordered by listener, then song."""
    return rank.astype(np.int64) << 32 | item.astype(np.int64)


def _pairs(events: _Events) -> np.ndarray:
    """Distinct (listener, song) pairs of the events and of what was heard before them."""
    return np.unique(np.concatenate([events.heard, _pair(events.rank, events.item_index)]))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _jagged_take(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the elements of the given rows of a jagged array, and the offsets of the result."""
    lengths = np.diff(offsets)[rows]
    taken = _offsets(lengths)
    return np.arange(taken[-1]) + np.repeat(offsets[:-1][rows] - taken[:-1], lengths), taken


def _changes(column: pa.Array) -> np.ndarray:
    """Whether each row's id differs from the row before; the first row's does."""
    changes = np.ones(len(column), bool)
    changes[1:] = pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]
    return changes


def _ids(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """User ids as numpy: int64, or Python strings (which sort as Spark sorts UTF-8 bytes)."""
    if pa.types.is_integer(column.type):
        return np.asarray(
            column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy(), np.int64
        )
    return np.array(column.to_pylist(), object)


def _numpy(column: pa.Array, dtype: type) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
