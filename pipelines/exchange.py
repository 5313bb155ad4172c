"""Plays on their way to the task of their listener's bucket: a shuffle through shared storage.

A task that has read logs writes *runs*: Arrow files with one record batch for every partition, a partition being a
range of buckets. The task that builds a partition reads its batch from every run. Runs lie below the workspace, so
a lost executor loses nothing that was written, rows never leave Arrow, and an object store will do as well as a disk.

A listener with very many plays in a run is cut there to the newest `max_history`, and the songs of the older plays
travel as marks, so that no listener, however busy, makes a partition large.
"""
# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from pipelines import storage
from pipelines.buckets import user_hash
from pipelines.schema import COMPLETION, ITEM_ID, TIMESTAMP, USER_ID

RUN_ROWS = 8_000_000
"""Plays that a task holds before it writes a run: about 100 bytes each while it does."""
PASS_ROWS = 12_000_000
"""Plays that a building task holds at once; a larger partition is read several times."""
TRIM_ABOVE = 65_536
"""A listener with more plays than this in one run is cut to the newest `max_history` there."""
HEARD_MARK = 255
"""`completion` of a row that only says: this listener heard this song, before the newest `max_history` plays."""


@dataclass(frozen=True)
class Exchange:
    """How listeners are spread over partitions. Both numbers are powers of two, partitions at most buckets."""

    partitions: int
    buckets: int
    max_history: int

    def partition_of(self, hashes: np.ndarray) -> np.ndarray:
        """Partition of each listener's hash, uint16."""
        width = self.buckets // self.partitions
        return ((hashes & (self.buckets - 1)) // width).astype(np.uint16)

    def buckets_of(self, partition: int) -> range:
        """The buckets of a partition."""
        width = self.buckets // self.partitions
        return range(partition * width, (partition + 1) * width)


@dataclass(frozen=True)
class Run:
    """A file of plays, written by one task; `rows` in each partition."""

    uri: str
    bytes: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Plays of any listeners, in any order. Rows whose completion is HEARD_MARK are marks, not plays."""

    user_id: pa.Array
    item_id: pa.Array
    timestamp: np.ndarray  # int64, Unix seconds
    completion: np.ndarray  # uint8

    def __len__(self) -> int:
        return len(self.timestamp)

    def take(self, rows: np.ndarray) -> "Rows":
        """The rows at the given places."""
        return Rows(_take(self.user_id, rows), _take(self.item_id, rows), self.timestamp[rows], self.completion[rows])

    @staticmethod
    def concatenate(parts: Sequence["Rows"]) -> "Rows":
        """All rows of the parts, in their order."""
        return Rows(
            pa.concat_arrays([part.user_id for part in parts]),
            pa.concat_arrays([part.item_id for part in parts]),
            np.concatenate([part.timestamp for part in parts]),
            np.concatenate([part.completion for part in parts]),
        )


class RunWriter:
    """Collects the plays of a task and writes them as runs `<stem>-<number>.arrow`."""

    def __init__(self, exchange: Exchange, folder: str, stem: str):
        self.runs: list[Run] = []
        self.duplicates = 0  # found while busy listeners were cut
        self.songs: list[tuple[pa.Array, pa.Array]] = []  # of each run: distinct item_id, plays
        self._exchange, self._folder, self._stem = exchange, folder, stem
        self._pending: list[Rows] = []
        self._rows = 0

    def write(self, rows: Rows) -> None:
        """Add plays."""
        self._pending.append(rows)
        self._rows += len(rows)
        if self._rows >= RUN_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if not self._rows:
            return
        rows = Rows.concatenate(self._pending)
        self._pending, self._rows = [], 0
        self.songs.append(pc.value_counts(rows.item_id).flatten())
        hashes = _hashes(rows.user_id)
        rows, hashes, duplicates = cut_busy_listeners(rows, hashes, max_history=self._exchange.max_history)
        self.duplicates += duplicates
        uri = storage.join(self._folder, f"{self._stem}-{len(self.runs):03d}.arrow")
        self.runs.append(_write_run(uri, rows, self._exchange.partition_of(hashes), self._exchange.partitions))


def cut_busy_listeners(rows: Rows, hashes: np.ndarray, *, max_history: int) -> tuple[Rows, np.ndarray, int]:
    """Cut listeners of more than TRIM_ABOVE plays to their newest distinct `max_history`, and marks for the rest.

    Returns the rows, their listeners' hashes, and the duplicates that were found on the way.
    """
    slots = (hashes.view(np.uint64) >> np.uint64(44)).astype(np.int64)
    crowded = np.bincount(slots, minlength=1 << 20) > max(TRIM_ABOVE, max_history)
    if not crowded.any():
        return rows, hashes, 0
    suspects = np.flatnonzero(crowded[slots])
    users = rows.user_id.take(pa.array(suspects)).dictionary_encode()
    counts = np.bincount(users.indices.to_numpy(), minlength=len(users.dictionary))
    keep = np.ones(len(rows), bool)
    kept, duplicates = [], 0
    for busy in np.flatnonzero(counts > max(TRIM_ABOVE, max_history)):
        places = suspects[users.indices.to_numpy() == busy]
        keep[places] = False
        cut, found = _newest(rows.take(places), max_history)
        kept.append(cut)
        duplicates += found
    rest = np.flatnonzero(keep)
    result = Rows.concatenate([rows.take(rest), *kept])
    return result, np.concatenate([hashes[rest], *(_hashes(part.user_id) for part in kept)]), duplicates


def _newest(rows: Rows, max_history: int) -> tuple[Rows, int]:
    """One listener's newest distinct plays, and a mark for every song of the older ones; the duplicates among all.

    Plays at the second of the oldest kept one all stay, so that which of them are kept is decided where the order
    of songs is known.
    """
    song = rows.item_id.dictionary_encode().indices.to_numpy()
    order = np.lexsort((rows.completion, song, rows.timestamp))
    time, song = rows.timestamp[order], song[order]
    last = np.append((time[1:] != time[:-1]) | (song[1:] != song[:-1]), True)
    order, time, song = order[last], time[last], song[last]
    newest = time >= time[-min(max_history, len(time))]
    _, first = np.unique(song[~newest], return_index=True)
    marks = rows.take(order[~newest][first])
    marks = Rows(marks.user_id, marks.item_id, marks.timestamp, np.full(len(marks), HEARD_MARK, np.uint8))
    return Rows.concatenate([rows.take(order[newest]), marks]), int((~last).sum())


def read_in_passes(runs: Sequence[Run], partition: int) -> Iterator[Rows]:
    """The plays of a partition in portions of about PASS_ROWS, each with all plays of a range of user ids, ascending.

    Usually that is one portion. Of a larger partition every portion reads the runs anew and keeps its own listeners.
    """
    runs = [run for run in runs if run.rows[partition]]
    total = sum(run.rows[partition] for run in runs)
    cuts = _cuts(runs, partition, -(-total // PASS_ROWS)) if total > PASS_ROWS else []
    if not runs:
        return
    for low, high in zip([None, *cuts], [*cuts, None], strict=True):
        yield Rows.concatenate([_between(_read_batch(run, partition), low, high) for run in runs])


def _between(rows: Rows, low: Any, high: Any) -> Rows:
    """The rows of the user ids in [low, high); None: no bound."""
    if low is None and high is None:
        return rows
    inside = np.ones(len(rows), bool)
    if low is not None:
        inside &= pc.greater_equal(rows.user_id, low).to_numpy(zero_copy_only=False)
    if high is not None:
        inside &= pc.less(rows.user_id, high).to_numpy(zero_copy_only=False)
    return rows.take(np.flatnonzero(inside))


def _cuts(runs: Sequence[Run], partition: int, passes: int) -> list[Any]:
    """User ids that cut a partition into about equal portions, from every hundredth play."""
    users = pa.concat_arrays([_read_batch(run, partition, users_only=True).user_id[::100] for run in runs])
    users = users.take(pc.array_sort_indices(users))
    places = [len(users) * number // passes for number in range(1, passes)]
    return pc.unique(users.take(pa.array(places))).to_pylist()


def _hashes(user_id: pa.Array) -> np.ndarray:
    """xxhash64 of each row's listener; of strings every distinct one is hashed once."""
    if pa.types.is_integer(user_id.type):
        return user_hash(user_id)
    encoded = user_id.dictionary_encode()
    return user_hash(encoded.dictionary)[encoded.indices.to_numpy()]


def _take(column: pa.Array, rows: np.ndarray) -> pa.Array:
    if pa.types.is_integer(column.type):
        return pa.array(column.to_numpy(zero_copy_only=False)[rows])
    return column.take(pa.array(rows))


def _write_run(uri: str, rows: Rows, partition: np.ndarray, partitions: int) -> Run:
    order = np.argsort(partition, kind="stable")
    counts = np.bincount(partition, minlength=partitions).tolist()
    columns: dict[str, pa.Array] = {}
    bases: dict[str, int] = {}
    for name, column in ((USER_ID, rows.user_id), (ITEM_ID, rows.item_id), (TIMESTAMP, pa.array(rows.timestamp))):
        if pa.types.is_integer(column.type):
            narrow, bases[name] = _narrowed(column.to_numpy(zero_copy_only=False))
            columns |= _planes(name, narrow[order])
        else:
            columns[name] = column.take(pa.array(order))
    columns[COMPLETION] = pa.array(rows.completion[order])
    batch = pa.record_batch(columns).replace_schema_metadata({"bases": json.dumps(bases)})
    storage.make_parent(uri)
    fs, path = storage.filesystem(uri)
    options = ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1), use_threads=False)
    with fs.open_output_stream(path) as sink, ipc.new_file(sink, batch.schema, options=options) as writer:
        start = 0
        for count in counts:
            writer.write_batch(batch.slice(start, count))
            start += count
    return Run(uri, storage.file_info(uri).size, tuple(counts))


def _narrowed(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Integers as offsets from their least, in four bytes where that is enough."""
    least = int(values.min())
    if int(values.max()) - least < 1 << 32:
        return (values - least).astype(np.uint32), least
    return values, 0


def _planes(name: str, values: np.ndarray) -> dict[str, pa.Array]:
    """A column for each byte of integers: alike bytes side by side, which zstd makes a tenth less of."""
    split = np.ascontiguousarray(values.view(np.uint8).reshape(len(values), values.itemsize).T)
    return {f"{name}.{place}": pa.array(plane) for place, plane in enumerate(split)}


def _joined(batch: pa.RecordBatch, name: str, base: int) -> pa.Array:
    """The integers whose bytes `_planes` took apart, as int64."""
    planes = [column for column in batch.schema.names if column.startswith(f"{name}.")]
    whole = np.empty((batch.num_rows, len(planes)), np.uint8)
    for place in range(len(planes)):
        whole[:, place] = batch[f"{name}.{place}"].to_numpy()
    values = whole.view(np.uint32 if len(planes) == 4 else np.int64).ravel().astype(np.int64)
    if base:
        values += base
    return pa.array(values)


def _read_batch(run: Run, partition: int, *, users_only: bool = False) -> Rows:
    fs, path = storage.filesystem(run.uri)
    with fs.open_input_file(path) as source:
        reader = ipc.open_file(source, options=ipc.IpcReadOptions(use_threads=False))
        batch = reader.get_batch(partition)
        bases = json.loads((reader.schema.metadata or {})[b"bases"])

    def column(name: str) -> pa.Array:
        return _joined(batch, name, bases[name]) if name in bases else batch[name]

    if users_only:
        return Rows(column(USER_ID), pa.nulls(0), np.zeros(0, np.int64), np.zeros(0, np.uint8))
    return Rows(column(USER_ID), column(ITEM_ID), column(TIMESTAMP).to_numpy(), batch[COMPLETION].to_numpy())
