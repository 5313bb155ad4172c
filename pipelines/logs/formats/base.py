"""What log formats share: files and splits, which they are given, batches, which they return, and their base class."""

import codecs
import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.errors import InputError
from pipelines.logs.formats import values
from pipelines.logs.formats.values import NULL_TEXTS, escaped
from pipelines.schema import (
    DS,
    EVENT_TYPE,
    ITEM_ID,
    OPTIONAL_COLUMNS,
    PLAY_SOURCE,
    REQUIRED_COLUMNS,
    TIMESTAMP,
    USER_ID,
    id_type,
)

AUTO = "auto"
"""The value of `logs.format`, `logs.timestamp_unit` and `logs.csv.separator` with which the logs themselves decide."""
BATCH_ROWS = 65_536
TEXT_ROW_BYTES = 64  # an average play in CSV or JSON lines
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError)
"""Errors of a broken file; `pipelines.logs.files` names the file in their place."""
COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)

Batches = Generator["RawBatch", None, int | None]
"""Batches of rows; returns how many there must be, counted without the parser (None: nothing counts them)."""


@dataclass(frozen=True)
class LogFile(storage.FileInfo):
    """A log file as it was when listed."""

    landing_day: str  # ISO date of its partition


@dataclass(frozen=True)
class CsvSpec:
    """How CSV files are written: the section `logs.csv`."""

    separator: str = AUTO  # auto: the first of , tab ; | that divides the header into the columns that are looked for
    quote: str = '"'  # "": cells are never quoted
    escape: str = ""  # before a quote, a separator or itself, for example a backslash
    null_values: tuple[str, ...] = NULL_TEXTS  # texts that stand for no value, in every format
    header: bool = True
    columns: tuple[str, ...] = ()  # names of the columns in place of a header


@dataclass(frozen=True)
class LogSpec:
    """Where the logs are and how to read them."""

    path: str
    format: str = AUTO  # or a key of `formats.FORMATS`
    columns: dict[str, str] = field(default_factory=dict)  # our column -> the logs' column; a.b: field b of column a
    user_id_type: str = "int64"
    item_id_type: str = "int64"
    timestamp_unit: str = AUTO  # of times that are numbers; or a key of `values.UNITS`
    partition: tuple[str, ...] = (DS,)  # folders' keys: of a date, or of year, month, day
    csv: CsvSpec = CsvSpec()
    unchosen_sources: tuple[str, ...] = ()  # values of play_source of plays that listeners did not choose
    batch_rows: int = BATCH_ROWS

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in COLUMNS:
                near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.0)[0]
                raise InputError(f"logs.columns: {name!r} is not a column of plays: did you mean {near!r}?")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Our columns that are looked for: `play_source` only where it makes a difference."""
        return COLUMNS if self.unchosen_sources else tuple(name for name in COLUMNS if name != PLAY_SOURCE)

    def column(self, name: str) -> str:
        """The logs' name of one of our columns."""
        return self.columns.get(name, name)

    def mapped(self, available: Iterable[str]) -> dict[str, str]:
        """Our column -> the logs' column, of those that a file has at its top level."""
        available = set(available)
        return {name: self.column(name) for name in self.wanted if self.column(name) in available}

    def kind(self, name: str) -> str:
        """What one of our columns holds: a kind of `values`."""
        if name in (USER_ID, ITEM_ID):
            return values.ID if self.type_of(name) == pa.int64() else values.TEXT
        kinds = {EVENT_TYPE: values.TEXT, PLAY_SOURCE: values.LABEL, TIMESTAMP: values.TIME}
        return kinds.get(name, values.LENGTH)

    def type_of(self, name: str) -> pa.DataType:
        """The Arrow type of one of our columns in a `RawBatch`."""
        if name in (USER_ID, ITEM_ID):
            return id_type(self.user_id_type if name == USER_ID else self.item_id_type)
        return pa.string() if name in (EVENT_TYPE, PLAY_SOURCE) else pa.int64()


@dataclass(frozen=True)
class Split:
    """The smallest piece of work of a task: a whole file, or consecutive row groups of a Parquet file."""

    file: LogFile
    format: str
    bytes: int
    rows: int  # estimated for text files
    row_groups: tuple[int, ...] = ()
    unit: str = "s"  # of times that are numbers


@dataclass(frozen=True)
class Fault:
    """Why rows cannot be parsed: a column of ours (or "" for the whole row), how many, and the first value."""

    column: str
    rows: int
    example: str


@dataclass(frozen=True)
class RawBatch:
    """Rows with our column names and types, before validation."""

    columns: dict[str, pa.Array]  # every required column, and the optional ones that the file has
    unparseable: np.ndarray  # bool: a value of the row does not have its column's type
    as_read: Callable[[np.ndarray], list[str]]  # positions -> rows as the file has them: JSON, or text if unsplittable
    lacking: dict[str, np.ndarray] = field(default_factory=dict)
    """Our column -> bool: rows that do not have it at all, of a format whose rows have keys of their own."""
    faults: tuple[Fault, ...] = ()


class TextStream:
    """A file of text, decompressed, as UTF-8 without a byte order mark: UTF-16 that begins with one is recoded."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._decoder = stream, None
        self._head = stream.read(4)
        if self._head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            self._decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
        elif self._head.startswith(codecs.BOM_UTF8):
            self._head = self._head[len(codecs.BOM_UTF8) :]

    def __enter__(self) -> "TextStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        """About `size` bytes; none at the end."""
        raw = self._head + self._stream.read(size)
        self._head = b""
        if self._decoder is None:
            return raw
        text = self._decoder.decode(raw, final=not raw)
        return text.encode("utf-8", "surrogatepass") or (self.read(size) if raw else b"")


_COMPRESSION_OF = {".gz": "gzip", ".gzip": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
COMPRESSIONS = tuple(_COMPRESSION_OF)
"""Endings of compressed files, in lower case."""
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}


def open_text(uri: str) -> TextStream:
    """A text file, decompressed as its ending (in any case) or its first bytes say."""
    fs, path = storage.filesystem(uri)
    source = fs.open_input_file(path)
    head = source.read(4)
    source.seek(0)
    ending = next((codec for end, codec in _COMPRESSION_OF.items() if path.lower().endswith(end)), None)
    codec = ending or next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)
    return TextStream(pa.CompressedInputStream(source, codec) if codec else source)


class Format(ABC):
    """How plays are stored in a file. A subclass is stateless; `formats.FORMATS` holds one object of each."""

    name: str
    """The value of `logs.format` that reads every file in this format."""
    endings: tuple[str, ...]
    """File endings by which `logs.format: auto` chooses it; a compression's ending may follow."""

    def open(self, uri: str) -> AbstractContextManager[Any]:
        """The `source` of the other methods. By default a stream of text, decompressed."""
        return open_text(uri)

    @abstractmethod
    def columns(self, spec: LogSpec, source: Any) -> pa.Schema | None:
        """The columns of a file, from its footer or its beginning; None if they are not known before it is read.

        A column of type null is accepted whatever it holds: its values are parsed one by one.
        """

    def splits(self, file: LogFile, source: Any, split_bytes: int) -> list[Split]:
        """The pieces, of `split_bytes` or more, in which tasks read a file. By default the whole file is one."""
        return [Split(file, self.name, file.size, file.size // TEXT_ROW_BYTES + 1)]

    @abstractmethod
    def read(self, spec: LogSpec, source: Any, split: Split) -> Batches:
        """The rows of a split, in batches of any size; returns their number, counted without the parser, or None."""

    def sample(self, spec: LogSpec, file: LogFile) -> RawBatch | None:
        """Some of the first rows of a file, numbers of times as they are; None if it has no rows."""
        with self.open(file.uri) as source:
            for split in self.splits(file, source, 1)[:1]:
                return next(iter(self.read(replace(spec, batch_rows=1000), source, split)), None)
        return None

    def table(self, spec: LogSpec, uri: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a small file, as it has them, text where it does not tell types; those it lacks left out."""
        raise NotImplementedError


def typed_batch(
    spec: LogSpec,
    batch: pa.RecordBatch,
    unit: str = "s",
    unmapped: Callable[[], pa.RecordBatch | None] = lambda: None,
) -> RawBatch:
    """A batch of typed columns, in our types. unmapped: the rest of its columns, read only if `as_read` is called."""
    found = {name: column_at(batch, path) for name, path in located(spec, batch.schema).items()}
    return parsed(spec, found, batch.num_rows, rows_as_json(batch, unmapped), unit)


def parsed(
    spec: LogSpec,
    found: dict[str, pa.Array],
    rows: int,
    as_read: Callable[[np.ndarray], list[str]],
    unit: str,
    *,
    bad: np.ndarray | None = None,
    faults: tuple[Fault, ...] = (),
) -> RawBatch:
    """A batch from columns as a file has them. bad, faults: of rows that are unparseable already."""
    unparseable = np.zeros(rows, bool) if bad is None else bad
    columns, all_faults = {}, list(faults)
    for name, column in found.items():
        read = values.read_column(spec.kind(name), column, unit=unit, null_texts=spec.csv.null_values)
        columns[name] = read.values
        if read.bad is not None:
            unparseable = unparseable | read.bad
            first = shown(column.slice(int(read.bad.argmax()), 1))[0]
            all_faults.append(Fault(name, int(read.bad.sum()), first if isinstance(first, str) else as_text(first)))
    return RawBatch(columns, unparseable, as_read, faults=tuple(all_faults))


def located(spec: LogSpec, schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Our column -> where a file has it: its name, or those of a column and its nested fields."""
    found = {}
    for name in spec.wanted:
        path = path_of(spec.column(name), schema)
        if path is not None:
            found[name] = path
    return found


def path_of(column: str, schema: pa.Schema) -> tuple[str, ...] | None:
    """The names that lead to a column: one that is written so, or `a.b` for the field b of a struct a."""
    if column in schema.names:
        return (column,)
    top, *fields = column.split(".")
    if not fields or schema.names.count(top) != 1:
        return None
    type_ = schema.field(top).type
    for name in fields:
        if pa.types.is_null(type_):  # text formats do not know it yet
            break
        if not pa.types.is_struct(type_) or type_.get_field_index(name) < 0:
            return None
        type_ = type_.field(name).type
    return (top, *fields)


def type_at(schema: pa.Schema, path: Sequence[str]) -> pa.DataType:
    """The type of a column that `path_of` found."""
    type_ = schema.field(path[0]).type
    for name in path[1:]:
        if pa.types.is_struct(type_):
            type_ = type_.field(name).type
    return type_


def column_at(batch: pa.RecordBatch, path: Sequence[str]) -> pa.Array:
    """The column that `path_of` found; null where a struct on the way is."""
    column = batch.column(path[0])
    return column if len(path) == 1 else pc.struct_field(column, list(path[1:]))


def rows_as_json(
    batch: pa.RecordBatch, unmapped: Callable[[], pa.RecordBatch | None] = lambda: None
) -> Callable[[np.ndarray], list[str]]:
    """`RawBatch.as_read` of a batch whose rows could be split into columns. unmapped: more columns of the same rows."""

    def as_read(positions: np.ndarray) -> list[str]:
        places = pa.array(positions, pa.int64())
        rows = batch.take(places)
        more = unmapped()
        if more is None and not rows.num_columns:
            return ["{}"] * len(positions)
        if more is None and all(pa.types.is_integer(kind) for kind in rows.schema.types):
            return _integers_as_json(rows)
        names, columns = list(rows.schema.names), [shown(column) for column in rows.columns]
        if more is not None:
            names += more.schema.names
            columns += [shown(column.take(places)) for column in more.columns]
        keys = unique(names)
        return [escaped(_JSON.encode(dict(zip(keys, row, strict=True)))) for row in zip(*columns, strict=True)]

    return as_read


def unique(names: Sequence[str]) -> list[str]:
    """Names of which later ones that are equal to an earlier one get a number: a, a (2)."""
    found: list[str] = []
    for name in names:
        other, number = name, 2
        while other in found:
            other, number = f"{name} ({number})", number + 1
        found.append(other)
    return found


def shown(column: pa.Array) -> list[Any]:
    """The values of any column as values of JSON, whatever they are: what Python cannot hold becomes text."""
    try:
        return column.to_pylist()
    except Exception:  # of Arrow, Python or a zone: years beyond 9999, bytes that are no UTF-8, fields of one name
        return [_shown(scalar) for scalar in column]


def _shown(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception:
        if isinstance(scalar, pa.StructScalar):
            struct = pa.array([scalar], scalar.type)
            fields = [shown(struct.field(n))[0] for n in range(scalar.type.num_fields)]
            return dict(zip(unique([field.name for field in scalar.type]), fields, strict=True))
        if isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
            return shown(scalar.values)
        if hasattr(scalar, "as_buffer"):
            return escaped(scalar.as_buffer().to_pybytes())
        return f"{scalar.value} ({scalar.type})" if hasattr(scalar, "value") else f"a value of {scalar.type}"


def _integers_as_json(rows: pa.RecordBatch) -> list[str]:
    """Rows of integers as `_JSON` writes them, by whole columns."""
    pairs = []
    for name, column in zip(unique(rows.schema.names), rows.columns, strict=True):
        number = column.cast(pa.string()).fill_null("null")
        pairs.append(pc.binary_join_element_wise(f"{_JSON.encode(name)}: ", number, ""))
    inside = pc.binary_join_element_wise(*pairs, ", ")
    return pc.binary_join_element_wise("{", inside, "}", "").to_pylist()


def as_text(value: Any) -> str:
    """A value that JSON cannot hold as text; bytes that are not UTF-8 are escaped."""
    return escaped(value) if isinstance(value, bytes) else str(value)


_JSON = json.JSONEncoder(default=as_text, ensure_ascii=False)  # json.dumps() would make one for each row
