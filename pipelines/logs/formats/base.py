"""What log formats share: files and splits, which they are given, batches, which they return, and their base class."""

import datetime as dt
import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.errors import InputError
from pipelines.schema import EVENT_TYPE, ITEM_ID, OPTIONAL_COLUMNS, REQUIRED_COLUMNS, USER_ID, id_type

AUTO = "auto"
"""The value of `logs.format` with which each file is read by its ending."""
BATCH_ROWS = 65_536
CHUNK_BYTES = 4 << 20
UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError)
"""Errors of a broken file; `pipelines.logs.files` names the file in their place."""
_COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
_TEXT_ROW_BYTES = 60  # an average play in CSV or JSON lines


@dataclass(frozen=True)
class LogFile:
    """A log file as it was when listed."""

    uri: str
    size: int
    etag: str
    landing_day: str  # ISO date of its partition


@dataclass(frozen=True)
class LogSpec:
    """Where the logs are and how to read them."""

    path: str
    format: str = AUTO  # or a key of `formats.FORMATS`
    columns: dict[str, str] = field(default_factory=dict)  # our column -> the logs' column
    user_id_type: str = "int64"
    item_id_type: str = "int64"

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in _COLUMNS:
                near = difflib.get_close_matches(name, _COLUMNS, n=1, cutoff=0.0)[0]
                raise InputError(f"logs.columns: {name!r} is not a column of plays: did you mean {near!r}?")

    def column(self, name: str) -> str:
        """The logs' name of one of our columns."""
        return self.columns.get(name, name)

    def mapped(self, available: Iterable[str]) -> dict[str, str]:
        """Our column -> the logs' column, of those that a file has."""
        available = set(available)
        return {name: self.column(name) for name in _COLUMNS if self.column(name) in available}

    def type_of(self, name: str) -> pa.DataType:
        """The Arrow type of one of our columns in a `RawBatch`."""
        ids = {USER_ID: self.user_id_type, ITEM_ID: self.item_id_type}
        if name in ids:
            return id_type(ids[name])
        return pa.string() if name == EVENT_TYPE else pa.int64()


@dataclass(frozen=True)
class Split:
    """The smallest piece of work of a task: a whole file, or consecutive row groups of a Parquet file."""

    file: LogFile
    format: str
    bytes: int
    rows: int  # estimated for text files
    row_groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class RawBatch:
    """Rows with our column names and types, before validation."""

    columns: dict[str, pa.Array]  # every required column, and the optional ones that the file has
    unparseable: np.ndarray  # bool: a value of the row does not have its column's type
    as_read: Callable[[np.ndarray], list[str]]  # positions -> rows as the file has them: JSON, or text if unsplittable


class Format(ABC):
    """How plays are stored in a file. A subclass is stateless; `formats.FORMATS` holds one object of each."""

    name: str
    """The value of `logs.format` that reads every file in this format."""
    endings: tuple[str, ...]
    """File endings by which `logs.format: auto` chooses it; a compression's ending may follow."""

    def open(self, uri: str) -> AbstractContextManager[Any]:
        """The `source` of the other methods. By default a stream, decompressed according to the file ending."""
        fs, path = storage.filesystem(uri)
        return fs.open_input_stream(path)

    @abstractmethod
    def columns(self, source: Any) -> pa.Schema | None:
        """The columns of a file, from its footer or its beginning; None if they are not known before it is read.

        A column of type null is accepted whatever it holds: its values are parsed one by one.
        """

    def splits(self, file: LogFile, source: Any, split_bytes: int) -> list[Split]:
        """The pieces, of `split_bytes` or more, in which tasks read a file. By default the whole file is one."""
        return [Split(file, self.name, file.size, file.size // _TEXT_ROW_BYTES + 1)]

    @abstractmethod
    def read(self, spec: LogSpec, source: Any, split: Split) -> Iterator[RawBatch]:
        """The rows of a split, in batches of any size."""

    def table(self, uri: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a small file with the types it gives them; columns that it lacks are left out."""
        import pyarrow.dataset as pads

        fs, path = storage.filesystem(uri)
        data = pads.dataset(path, filesystem=fs, format=self.name)
        return data.to_table(columns=[name for name in columns if name in data.schema.names])


def typed_batch(
    spec: LogSpec, batch: pa.RecordBatch, unmapped: Callable[[], pa.RecordBatch | None] = lambda: None
) -> RawBatch:
    """A batch of typed columns, in our types. unmapped: the rest of its columns, read only if `as_read` is called."""
    mapped = spec.mapped(batch.schema.names)
    columns = {name: _typed(batch[column], spec.type_of(name)) for name, column in mapped.items()}
    return RawBatch(columns, np.zeros(batch.num_rows, bool), rows_as_json(batch, unmapped))


def _typed(column: pa.Array, target: pa.DataType) -> pa.Array:
    """A column cast to `target`: timestamps to seconds, fractions rounded down; NaN, infinity and "" become null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
    if pa.types.is_floating(column.type):
        finite = pc.if_else(pc.is_finite(column), column, None)
        return pc.floor(finite).cast(pa.int64(), safe=False)
    column = column.cast(target)
    return empty_as_null(column) if pa.types.is_string(target) else column


def empty_as_null(column: pa.Array) -> pa.Array:
    """Strings with "" replaced by null."""
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def rows_as_json(
    batch: pa.RecordBatch, unmapped: Callable[[], pa.RecordBatch | None] = lambda: None
) -> Callable[[np.ndarray], list[str]]:
    """`RawBatch.as_read` of a batch whose rows could be split into columns. unmapped: more columns of the same rows."""

    def as_read(positions: np.ndarray) -> list[str]:
        rows = batch.take(pa.array(positions))
        more = unmapped()
        if more is None and all(pa.types.is_integer(kind) for kind in rows.schema.types):
            return _integers_as_json(rows)
        values = rows.to_pylist()
        if more is not None:
            values = [a | b for a, b in zip(values, more.take(pa.array(positions)).to_pylist(), strict=True)]
        return [_JSON.encode(row) for row in values]

    return as_read


def _integers_as_json(rows: pa.RecordBatch) -> list[str]:
    """Rows of integers as `_JSON` writes them, by whole columns."""
    pairs = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        number = column.cast(pa.string()).fill_null("null")
        pairs.append(pc.binary_join_element_wise(f"{_JSON.encode(name)}: ", number, ""))
    inside = pc.binary_join_element_wise(*pairs, ", ")
    return pc.binary_join_element_wise("{", inside, "}", "").to_pylist()


def as_text(value: Any) -> str:
    """A value that JSON cannot hold as text; bytes that are not UTF-8 are escaped."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


_JSON = json.JSONEncoder(default=as_text, ensure_ascii=False)  # json.dumps() would make one for each row


def iso_seconds(text: str) -> int | None:
    """Unix seconds of an ISO time, UTC unless it says otherwise; None if it is not one."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() // 1)
