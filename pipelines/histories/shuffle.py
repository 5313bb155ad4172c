"""The shuffle: plays go to the task of their listener's bucket through files in shared storage.

A task that reads logs writes *runs*: Arrow files with one record batch for every partition, a partition being a range
of buckets. The task that builds a partition reads its batch from every run. Runs lie below the workspace, so a lost
executor loses nothing that was written, rows never leave Arrow, and an object store serves as well as a disk.

A listener with very many plays in a run is cut there to the newest `max_history`; the songs of the older plays are
kept as marks. So no listener, however busy, makes a partition large.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from pipelines import storage
from pipelines.histories.buckets import user_hash
from pipelines.schema import COMPLETION, ITEM_ID, TIMESTAMP, USER_ID

RUN_ROWS = 8_000_000
"""Plays that a task collects before it writes a run: about 100 bytes of memory each."""
PASS_ROWS = 12_000_000
"""Plays that a building task has in memory at once; a larger partition is read several times."""
TRIM_ABOVE = 65_536
"""A listener with more plays than this in one run is cut to the newest `max_history`."""
HEARD_MARK = 255
"""`play_code` of a mark, a row that is no play: the listener heard the song before the newest `max_history` plays."""


@dataclass(frozen=True)
class Shuffle:
    """How listeners are spread over partitions. Both numbers are powers of two, partitions at most buckets."""

    partitions: int
    buckets: int
    max_history: int

    def partition_of(self, hashes: np.ndarray) -> np.ndarray:
        """Partition of each listener's hash, uint16."""
        bits = (self.buckets // self.partitions).bit_length() - 1
        return ((hashes & (self.buckets - 1)) >> bits).astype(np.uint16)

    def buckets_of(self, partition: int) -> range:
        """The buckets of a partition."""
        width = self.buckets // self.partitions
        return range(partition * width, (partition + 1) * width)


@dataclass(frozen=True)
class StoredColumn:
    """How a column of a run is stored.

    Integers: as offsets from `base`, a column for each of their `planes` bytes. Everything else: unchanged, planes 0.
    """

    name: str
    planes: int = 0
    base: int = 0


@dataclass(frozen=True)
class ShuffleRange:
    """The plays of one partition in one run: a byte range of the file, read at once."""

    uri: str
    columns: tuple[StoredColumn, ...]
    rows: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class ShuffleRun:
    """A file of plays, written by one task."""

    uri: str
    columns: tuple[StoredColumn, ...]
    rows: tuple[int, ...]  # in each partition
    offsets: tuple[int, ...]  # where each partition begins, and where the last ends

    @property
    def bytes(self) -> int:
        """Size of the plays in the file."""
        return self.offsets[-1]


def ranges_of(runs: Sequence[ShuffleRun], partition: int) -> tuple[ShuffleRange, ...]:
    """Where the plays of a partition are, in all runs that have any."""
    ranges = []
    for run in runs:
        start, end = run.offsets[partition : partition + 2]
        ranges.append(ShuffleRange(run.uri, run.columns, run.rows[partition], start, end - start))
    return tuple(piece for piece in ranges if piece.rows)


@dataclass(frozen=True)
class ShuffleRows:
    """Plays of any listeners, in any order; rows whose play_code is HEARD_MARK are marks, not plays."""

    user_id: pa.Array
    item_id: pa.Array
    timestamp: np.ndarray  # int64, Unix seconds
    play_code: np.ndarray  # uint8, per cent played, plus UNCHOSEN

    def __len__(self) -> int:
        return len(self.timestamp)

    def take(self, places: np.ndarray) -> "ShuffleRows":
        """The rows at the given places."""
        user_id, item_id = _take(self.user_id, places), _take(self.item_id, places)
        return ShuffleRows(user_id, item_id, self.timestamp[places], self.play_code[places])

    @staticmethod
    def concatenate(pieces: Sequence["ShuffleRows"]) -> "ShuffleRows":
        """The rows of all pieces, in their order."""
        return ShuffleRows(
            pa.concat_arrays([piece.user_id for piece in pieces]),
            pa.concat_arrays([piece.item_id for piece in pieces]),
            np.concatenate([piece.timestamp for piece in pieces]),
            np.concatenate([piece.play_code for piece in pieces]),
        )


class ShuffleWriter:
    """Collects the plays of a task and writes them as runs `<stem>-<number>.arrow` into a folder that is there.

    On a disk a task that goes on after its stage, whose folder is gone, ends by FileNotFoundError.
    """

    def __init__(self, shuffle: Shuffle, folder: str, stem: str):
        self.runs: list[ShuffleRun] = []
        self.duplicates = 0  # found while busy listeners were cut
        self.songs: list[tuple[pa.Array, pa.Array]] = []  # of each run: distinct item_id, plays
        self._shuffle, self._folder, self._stem = shuffle, folder, stem
        self._pending: list[ShuffleRows] = []
        self._hashes: list[np.ndarray] = []
        self._rows = 0

    def write(self, rows: ShuffleRows) -> None:
        """Add plays."""
        self._pending.append(rows)
        self._hashes.append(_hashes(rows.user_id))  # now, while they are in the cache
        self._rows += len(rows)
        if self._rows >= RUN_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if not self._rows:
            return
        rows, hashes = ShuffleRows.concatenate(self._pending), np.concatenate(self._hashes)
        self._pending, self._hashes, self._rows = [], [], 0
        self.songs.append(pc.value_counts(rows.item_id).flatten())
        rows, hashes, duplicates = cut_busy_listeners(rows, hashes, max_history=self._shuffle.max_history)
        self.duplicates += duplicates
        uri = storage.join(self._folder, f"{self._stem}-{len(self.runs):03d}.arrow")
        self.runs.append(_write_run(uri, rows, self._shuffle.partition_of(hashes), self._shuffle.partitions))


def cut_busy_listeners(
    rows: ShuffleRows, hashes: np.ndarray, *, max_history: int
) -> tuple[ShuffleRows, np.ndarray, int]:
    """Cut listeners of more than TRIM_ABOVE plays to their newest distinct `max_history`, and marks for the rest.

    Returns the rows, their listeners' hashes, and the duplicates that were found on the way.
    """
    busy_from = max(TRIM_ABOVE, max_history)
    slots = (hashes.view(np.uint64) >> np.uint64(44)).astype(np.int64)
    crowded = np.bincount(slots, minlength=1 << 20) > busy_from  # only in these slots can a busy listener be
    if not crowded.any():
        return rows, hashes, 0
    suspects = np.flatnonzero(crowded[slots])
    users = rows.user_id.take(pa.array(suspects)).dictionary_encode()
    counts = np.bincount(users.indices.to_numpy(), minlength=len(users.dictionary))
    unchanged = np.ones(len(rows), bool)
    cuts, duplicates = [], 0
    for busy in np.flatnonzero(counts > busy_from):
        places = suspects[users.indices.to_numpy() == busy]
        unchanged[places] = False
        cut, found = _newest(rows.take(places), max_history)
        cuts.append(cut)
        duplicates += found
    rest = np.flatnonzero(unchanged)
    result = ShuffleRows.concatenate([rows.take(rest), *cuts])
    return result, np.concatenate([hashes[rest], *(_hashes(cut.user_id) for cut in cuts)]), duplicates


def _newest(rows: ShuffleRows, max_history: int) -> tuple[ShuffleRows, int]:
    """One listener's newest distinct plays, and a mark for every song of the older ones; the duplicates among all.

    All plays of the same second as the oldest kept one stay too: which of them are kept is decided when songs have
    their index, by which equal times are ordered.
    """
    song = rows.item_id.dictionary_encode().indices.to_numpy()
    order = np.lexsort((rows.play_code, song, rows.timestamp))
    time, song = rows.timestamp[order], song[order]
    last = np.append((time[1:] != time[:-1]) | (song[1:] != song[:-1]), True)
    order, time, song = order[last], time[last], song[last]
    newest = time >= time[-min(max_history, len(time))]
    _, first = np.unique(song[~newest], return_index=True)
    marks = rows.take(order[~newest][first])
    marks = replace(marks, play_code=np.full(len(marks), HEARD_MARK, np.uint8))
    return ShuffleRows.concatenate([rows.take(order[newest]), marks]), int((~last).sum())


def read_in_passes(ranges: Sequence[ShuffleRange]) -> Iterator[ShuffleRows]:
    """The plays of a partition in portions of about PASS_ROWS, each with all plays of a range of user ids, ascending.

    Usually that is one portion. For each portion of a larger partition the runs are read again, and the plays of other
    listeners are dropped.
    """
    total = sum(piece.rows for piece in ranges)
    cuts = _cuts(ranges, -(-total // PASS_ROWS)) if total > PASS_ROWS else []
    if not ranges:
        return
    for low, high in zip([None, *cuts], [*cuts, None], strict=True):
        yield ShuffleRows.concatenate([_between(_read_range(piece), low, high) for piece in ranges])


def _between(rows: ShuffleRows, low: Any, high: Any) -> ShuffleRows:
    """The rows of the user ids in [low, high); None: no bound."""
    if low is None and high is None:
        return rows
    inside = np.ones(len(rows), bool)
    if low is not None:
        inside &= pc.greater_equal(rows.user_id, low).to_numpy(zero_copy_only=False)
    if high is not None:
        inside &= pc.less(rows.user_id, high).to_numpy(zero_copy_only=False)
    return rows.take(np.flatnonzero(inside))


def _cuts(ranges: Sequence[ShuffleRange], passes: int) -> list[Any]:
    """User ids that cut a partition into about equal portions, estimated from every hundredth play."""
    users = pa.concat_arrays([_read_range(piece).user_id[::100] for piece in ranges])
    users = users.take(pc.array_sort_indices(users))
    places = [len(users) * number // passes for number in range(1, passes)]
    return pc.unique(users.take(pa.array(places))).to_pylist()


def _hashes(user_id: pa.Array) -> np.ndarray:
    """xxhash64 of each row's listener; every distinct string is hashed once."""
    if pa.types.is_integer(user_id.type):
        return user_hash(user_id)
    encoded = user_id.dictionary_encode()
    return user_hash(encoded.dictionary)[encoded.indices.to_numpy()]


def _take(column: pa.Array, places: np.ndarray) -> pa.Array:
    if pa.types.is_integer(column.type):
        return pa.array(column.to_numpy(zero_copy_only=False)[places])
    return column.take(pa.array(places))


def _write_run(uri: str, rows: ShuffleRows, partition: np.ndarray, partitions: int) -> ShuffleRun:
    order = np.argsort(partition, kind="stable")
    counts = np.bincount(partition, minlength=partitions).tolist()
    columns, stored = [], []
    for name, values in ((USER_ID, rows.user_id), (ITEM_ID, rows.item_id), (TIMESTAMP, pa.array(rows.timestamp))):
        if pa.types.is_integer(values.type):
            narrow, base = _narrowed(values.to_numpy(zero_copy_only=False))
            columns.append(StoredColumn(name, narrow.itemsize, base))
            stored += _planes(narrow[order])
        else:
            columns.append(StoredColumn(name))
            stored.append(values.take(pa.array(order)))
    columns.append(StoredColumn(COMPLETION))
    stored.append(pa.array(rows.play_code[order]))
    batch = pa.record_batch(stored, schema=_stored_schema(columns))
    fs, path = storage.filesystem(uri)
    options = ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1), use_threads=False)
    with (
        storage.writing(uri),
        fs.open_output_stream(path) as sink,
        ipc.new_file(sink, batch.schema, options=options) as writer,
    ):
        writer.write_batch(batch.slice(0, 0))  # writes the schema too, which is in no partition's range then
        start, offsets = 0, [sink.tell()]
        for count in counts:
            writer.write_batch(batch.slice(start, count))
            start += count
            offsets.append(sink.tell())
    return ShuffleRun(uri, tuple(columns), tuple(counts), tuple(offsets))


def _stored_schema(columns: Sequence[StoredColumn]) -> pa.Schema:
    fields = []
    for column in columns:
        fields += [(f"{column.name}.{plane}", pa.uint8()) for plane in range(column.planes)]
        if not column.planes:
            fields.append((column.name, pa.uint8() if column.name == COMPLETION else pa.string()))
    return pa.schema(fields)


def _narrowed(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Integers as offsets from a base, in four bytes if their smallest can be one; else unchanged, with base 0."""
    least = int(values.min())
    if int(values.max()) - least < 1 << 32:
        return (values - least).astype(np.uint32), least
    return values, 0


def _planes(values: np.ndarray) -> list[pa.Array]:
    """A column for each byte of integers: with bytes of equal weight side by side, zstd output is a tenth smaller."""
    split = np.ascontiguousarray(values.view(np.uint8).reshape(len(values), values.itemsize).T)
    return [pa.array(plane) for plane in split]


def _read_range(piece: ShuffleRange) -> ShuffleRows:
    fs, path = storage.filesystem(piece.uri)
    with fs.open_input_file(path) as source:
        content = source.read_at(piece.bytes, piece.offset)
    batch = ipc.read_record_batch(ipc.read_message(content), _stored_schema(piece.columns))
    user, item, time, _ = (_joined(batch, column) for column in piece.columns)
    return ShuffleRows(user, item, time.to_numpy(), batch[COMPLETION].to_numpy())


def _joined(batch: pa.RecordBatch, column: StoredColumn) -> pa.Array:
    """A column of a run as it was before it was stored; integers as int64."""
    if not column.planes:
        return batch[column.name]
    whole = np.empty((batch.num_rows, column.planes), np.uint8)
    for plane in range(column.planes):
        whole[:, plane] = batch[f"{column.name}.{plane}"].to_numpy()
    values = whole.view(np.uint32 if column.planes == 4 else np.int64).ravel().astype(np.int64)
    if column.base:
        values += column.base
    return pa.array(values)
