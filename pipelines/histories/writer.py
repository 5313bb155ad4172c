"""Writes the files of a bucket: histories in row groups of about equal events, and a day's additions to them."""

import hashlib
import io
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.histories.merge import Block
from pipelines.histories.shards import DeltaFile, ShardFile
from pipelines.schema import (
    COMPLETION,
    HEARD_BEFORE,
    ITEM_INDEX,
    NUM_EVENTS,
    SESSION_INDEX,
    TIMESTAMP,
    delta_schema,
    sequence_schema,
)

_SPLIT = {
    f"{name}.list.element": "BYTE_STREAM_SPLIT"
    for name in (ITEM_INDEX, TIMESTAMP, COMPLETION, SESSION_INDEX, HEARD_BEFORE)
}
"""The high bytes of neighbouring songs and times are alike: side by side zstd makes a third less of them."""


class ShardWriter:
    """Writes one file of a bucket. Row groups are cut by events alone, so equal rows give equal files.

    A group ends with the row that brings it to `row_group_events` events. The file is invisible until `close`.
    """

    def __init__(self, folder: str, path: str, *, bucket: int, user_id_type: str, row_group_events: int):
        self.path, self.bucket = path, bucket
        self._file = ParquetSink(storage.join(folder, path), sequence_schema(user_id_type))
        self._row_group_events = row_group_events
        self._pending: list[pa.Table] = []
        self._pending_events = self._events = 0

    def write(self, table: pa.Table) -> None:
        """Append rows (`schema.sequence_schema`, ascending user_id)."""
        if not table.num_rows:
            return
        self._pending.append(table)
        self._pending_events += _events(table)
        if self._pending_events >= self._row_group_events:
            self._cut()

    def close(self) -> ShardFile | None:
        """Finish the file and describe it; None if no row was written (then there is no file)."""
        if self._pending:
            self._write_group(pa.concat_tables(self._pending))
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
            self._write_group(table.slice(start, stop - start))
            start, done = stop, int(ends[stop - 1])
        rest = table.slice(start)
        self._pending = [rest] if rest.num_rows else []
        self._pending_events = int(ends[-1]) - done

    def _write_group(self, table: pa.Table) -> None:
        self._file.write(table)
        self._events += _events(table)


class DeltaWriter:
    """Writes what a day adds to a bucket: a row group for every row group of the base in which somebody played."""

    def __init__(self, folder: str, path: str, *, user_id_type: str):
        self.path, self._user_id_type = path, user_id_type
        self._file = ParquetSink(storage.join(folder, path), delta_schema(user_id_type))
        self._groups: list[int] = []
        self._events = 0

    def write(self, block: Block, num_new: np.ndarray) -> None:
        """Append the rows that belong to the next row group of the base; maybe none.

        num_new: int32, plays of each row that the layers below do not have (`sequences.Additions`).
        """
        self._groups.append(len(block))
        self._events += len(block.timestamp)
        if not len(block):
            return
        self._file.write(block.to_delta(num_new, user_id_type=self._user_id_type))

    def close(self) -> DeltaFile | None:
        """Finish the file and describe it; None if nobody played (then there is no file)."""
        if not self._file.close():
            return None
        return DeltaFile(
            path=self.path,
            rows=sum(self._groups),
            events=self._events,
            bytes=self._file.size,
            sha256=self._file.sha256,
            groups=tuple(self._groups),
        )


class ParquetSink:
    """A Parquet file that is made with its first row group and appears when it is closed."""

    def __init__(self, uri: str, schema: pa.Schema):
        self.row_groups: list[int] = []
        self.size, self.sha256 = 0, ""
        self._uri, self._schema = uri, schema
        self._sink: _HashingSink | None = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append a row group."""
        if self._writer is None:
            self._sink = _HashingSink(self._uri)
            options: dict[str, Any] = {
                "compression": "zstd",
                "compression_level": 1,
                "use_dictionary": False,
                "column_encoding": {p: how for p, how in _SPLIT.items() if p.partition(".")[0] in self._schema.names},
            }
            self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), self._schema, **options)
        self._writer.write_table(table.combine_chunks(), row_group_size=table.num_rows)
        self.row_groups.append(table.num_rows)

    def close(self) -> bool:
        """Let the file appear; False if there is none."""
        if self._writer is None or self._sink is None:
            return False
        self._writer.close()
        self._sink.commit()
        self.size, self.sha256 = self._sink.size, self._sink.sha256.hexdigest()
        return True


def _events(table: pa.Table) -> int:
    return int(np.sum(table[NUM_EVENTS].to_numpy(), dtype=np.int64))


class _HashingSink(io.RawIOBase):
    """A file that hashes what is written and appears under its name when committed."""

    def __init__(self, uri: str):
        self.sha256, self.size = hashlib.sha256(), 0
        storage.make_parent(uri)
        self._fs, self._path = storage.filesystem(uri)
        # An object appears when its upload completes; a local file needs a name of its own until then.
        self._written = self._path if storage.is_s3(uri) else f"{self._path}.{uuid.uuid4().hex}.tmp"
        self._stream = self._fs.open_output_stream(self._written)

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self.sha256.update(content)
        self.size += len(content)
        self._stream.write(content)
        return len(content)

    def commit(self) -> None:
        """Let the file appear. Not `close`, which a garbage collector also calls on a half-written file."""
        self._stream.close()
        if self._written != self._path:
            self._fs.move(self._written, self._path)
