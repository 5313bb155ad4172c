"""Writes the files of a bucket: a base in row groups of about equal events, and a day's increment over it."""

import hashlib
import io
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.histories.histories import Histories
from pipelines.histories.shards import IncrementFile, ShardFile
from pipelines.schema import (
    COMPLETION,
    HEARD_BEFORE,
    ITEM_INDEX,
    NUM_EVENTS,
    SESSION_INDEX,
    TIMESTAMP,
    increment_schema,
    sequence_schema,
)

_SPLIT = {
    f"{name}.list.element": "BYTE_STREAM_SPLIT"
    for name in (ITEM_INDEX, TIMESTAMP, COMPLETION, SESSION_INDEX, HEARD_BEFORE)
}
"""Neighbouring songs and times have equal high bytes: with those side by side, zstd output is a third smaller."""


class ShardWriter:
    """Writes a bucket's base. Row groups are cut by events alone, so equal histories give equal files.

    A group ends with the listener that brings it to `row_group_events` events. The file is invisible until `close`.
    """

    def __init__(
        self, folder: str, path: str, *, bucket: int, user_id_type: str, session_gap_s: int, row_group_events: int
    ):
        self.path, self.bucket = path, bucket
        self._file = ParquetSink(storage.join(folder, path), sequence_schema(user_id_type))
        self._session_gap_s, self._row_group_events = session_gap_s, row_group_events
        self._pending: list[pa.Table] = []
        self._pending_events = self._events = 0

    def write(self, histories: Histories) -> None:
        """Append listeners, ascending by user_id."""
        if not len(histories):
            return
        self._pending.append(histories.to_table(session_gap_s=self._session_gap_s))
        self._events += len(histories.timestamp)
        self._pending_events += len(histories.timestamp)
        if self._pending_events >= self._row_group_events:
            self._cut()

    def close(self) -> ShardFile | None:
        """Finish the file and describe it; None if no listener was written (then there is no file)."""
        if self._pending:
            self._file.write(pa.concat_tables(self._pending))
        if not self._file.close():
            return None
        groups = self._file.row_groups
        return ShardFile(
            path=self.path,
            bucket=self.bucket,
            rows=sum(groups),
            events=self._events,
            bytes=self._file.size,
            sha256=self._file.sha256,
            row_groups=tuple(groups),
        )

    def _cut(self) -> None:
        table = pa.concat_tables(self._pending)
        ends = np.cumsum(table[NUM_EVENTS].to_numpy(), dtype=np.int64)
        start, done = 0, 0
        while True:
            stop = int(np.searchsorted(ends, done + self._row_group_events)) + 1
            if stop > len(ends):
                break
            self._file.write(table.slice(start, stop - start))
            start, done = stop, int(ends[stop - 1])
        rest = table.slice(start)
        self._pending = [rest] if rest.num_rows else []
        self._pending_events = int(ends[-1]) - done


class IncrementWriter:
    """Writes a bucket's increment: a row group for each row group of the base that has or gets listeners who played."""

    def __init__(self, folder: str, path: str, *, user_id_type: str):
        self.path = path
        self._file = ParquetSink(storage.join(folder, path), increment_schema(user_id_type))
        self._groups: list[int] = []
        self._events = 0

    def write(self, histories: Histories, num_new: np.ndarray) -> None:
        """Append what belongs to the next row group of the base; maybe nothing.

        num_new: int32, plays of each listener that the layers below lack (`increments.Increment`).
        """
        self._groups.append(len(histories))
        self._events += len(histories.timestamp)
        if len(histories):
            self._file.write(histories.to_increment(num_new))

    def close(self) -> IncrementFile | None:
        """Finish the file and describe it; None if no listener was written (then there is no file)."""
        if not self._file.close():
            return None
        return IncrementFile(
            path=self.path,
            rows=sum(self._groups),
            events=self._events,
            bytes=self._file.size,
            sha256=self._file.sha256,
            groups=tuple(self._groups),
        )


class ParquetSink:
    """A Parquet file that is begun with its first row group and becomes visible when it is closed.

    Every table that is written becomes a row group, or joins the next ones until they have `row_group_rows` together.
    """

    def __init__(self, uri: str, schema: pa.Schema, *, row_group_rows: int = 0):
        self.row_groups: list[int] = []
        self.size, self.sha256 = 0, ""
        self._uri, self._schema, self._row_group_rows = uri, schema, row_group_rows
        self._pending: list[pa.Table] = []
        self._sink: _HashingSink | None = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._pending.append(table)
        if sum(pending.num_rows for pending in self._pending) >= self._row_group_rows:
            self._write_row_group()

    def _write_row_group(self) -> None:
        table, self._pending = pa.concat_tables(self._pending), []
        if self._writer is None:
            self._sink = _HashingSink(self._uri)
            options: dict[str, Any] = {
                "compression": "zstd",
                "compression_level": 1,
                "use_dictionary": False,
                "write_page_checksum": True,
                "column_encoding": {p: how for p, how in _SPLIT.items() if p.partition(".")[0] in self._schema.names},
            }
            self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), self._schema, **options)
        self._writer.write_table(table.combine_chunks(), row_group_size=table.num_rows)
        self.row_groups.append(table.num_rows)

    def close(self) -> bool:
        """Make the file visible; False if nothing was written (then there is no file)."""
        if self._pending:
            self._write_row_group()
        if self._writer is None or self._sink is None:
            return False
        self._writer.close()
        self._sink.commit()
        self.size, self.sha256 = self._sink.size, self._sink.sha256.hexdigest()
        return True


class _HashingSink(io.RawIOBase):
    """A file that hashes what is written and becomes visible under its name when committed."""

    def __init__(self, uri: str):
        self.sha256, self.size = hashlib.sha256(), 0
        storage.make_parent(uri)
        self._uri = uri
        self._fs, self._path = storage.filesystem(uri)
        # An object becomes visible when its upload completes; a local file needs another name until then.
        self._written = self._path if storage.is_s3(uri) else f"{self._path}.{uuid.uuid4().hex}.tmp"
        self._stream = self._fs.open_output_stream(self._written)

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self.sha256.update(content)
        self.size += len(content)
        with storage.writing(self._uri):
            self._stream.write(content)
        return len(content)

    def commit(self) -> None:
        """Make the file visible. Not `close`, which a garbage collector also calls on a half-written file."""
        with storage.writing(self._uri):
            self._stream.close()
        if self._written != self._path:
            self._fs.move(self._written, self._path)
