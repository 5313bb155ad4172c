"""Play logs as they arrive: which files there are, and their rows with our column names and types.

`<path>/ds=YYYY-MM-DD/*` holds what landed on that day, as Parquet, CSV, JSON lines, or a Delta table partitioned
by ds. Files are read with pyarrow on the driver (footers) and inside Spark's tasks (rows), so logs on S3 need no
Hadoop jars and an unreadable file is named in one line.
"""
# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import datetime as dt
import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import InputError
from pipelines.schema import (
    DS,
    DURATION_MS,
    EVENT_TYPE,
    ITEM_ID,
    OPTIONAL_COLUMNS,
    PLAY_MS,
    REQUIRED_COLUMNS,
    TIMESTAMP,
    USER_ID,
    id_type,
    parse_ds,
)

BATCH_ROWS = 65_536
_CHUNK_BYTES = 4 << 20
_INTEGER = r"^(?P<sign>[+-]?)0*(?P<digits>[0-9]{1,19})(?P<rest>)$"
_FRACTION = r"^(?P<sign>[+-]?)0*(?P<digits>[0-9]{1,19})(?P<rest>(?:\.[0-9]*)?)$"
_LARGEST = ("9223372036854775808", "9223372036854775807")  # digits of an int64 below zero, and above
_TEXT_ROW_BYTES = 60  # of a play in CSV or JSON lines, to guess how many there are
_ENDINGS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
_COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError)


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
    format: str = "auto"  # auto (by file ending), parquet, csv, json, delta
    columns: dict[str, str] = field(default_factory=dict)  # our column -> the logs' column
    user_id_type: str = "int64"
    item_id_type: str = "int64"

    def __post_init__(self) -> None:
        known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
        for name in self.columns:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise InputError(f"logs.columns: {name!r} is not a column of plays: did you mean {near!r}?")

    def column(self, name: str) -> str:
        """What the logs call our column."""
        return self.columns.get(name, name)

    def type_of(self, name: str) -> pa.DataType:
        """The Arrow type in which a column is handed on."""
        ids = {USER_ID: self.user_id_type, ITEM_ID: self.item_id_type}
        if name in ids:
            return id_type(ids[name])
        return pa.string() if name == EVENT_TYPE else pa.int64()


@dataclass(frozen=True)
class Split:
    """What one task reads at least: a file, or consecutive row groups of a Parquet file."""

    file: LogFile
    format: str
    bytes: int
    rows: int  # of text files an estimate
    row_groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class RawBatch:
    """Rows with our names and types, and how to show them as they were."""

    columns: dict[str, pa.Array]  # required ones always, optional ones where the file has them
    unparseable: np.ndarray  # bool, a value of the row does not have the column's type
    as_read: Callable[[np.ndarray], list[str]]  # positions -> the rows as text, JSON where they could be parsed


def discover(spec: LogSpec, *, before: dt.date) -> list[LogFile]:
    """Log files that landed before a day, by landing day and name. Raises InputError if there is no log folder."""
    if not spec.path:
        raise InputError("logs.path is empty: set it to the folder with the ds=YYYY-MM-DD folders of play logs")
    path = storage.absolute(spec.path)
    if is_delta(spec):
        found = _delta_files(path)
    else:
        found = [LogFile(f.uri, f.size, f.etag, _landing_day(f.uri, path)) for f in storage.list_files(path)]
    found = [file for file in found if file.landing_day and file.landing_day < before.isoformat()]
    return sorted(found, key=lambda file: (file.landing_day, file.uri))


def is_delta(spec: LogSpec) -> bool:
    """Whether the logs are a Delta table."""
    if spec.format != "auto":
        return spec.format == "delta"
    return storage.exists(storage.join(storage.absolute(spec.path), "_delta_log"))


def changed(files: Iterable[LogFile]) -> list[str]:
    """What is no longer as listed, one text a file: its URI and what was found."""
    files = list(files)
    if not files:
        return []
    fs, _ = storage.filesystem(files[0].uri)
    found = fs.get_file_info([storage.filesystem(file.uri)[1] for file in files])
    problems = []
    for file, info in zip(files, found, strict=True):
        if info.size is None:
            problems.append(f"{file.uri} is not there")
        elif (info.size, _etag(info)) != (file.size, file.etag):
            problems.append(f"{file.uri} has changed ({file.size} bytes then, {info.size} now)")
    return problems


def plan(spec: LogSpec, files: Sequence[LogFile], *, split_bytes: int = 64 << 20) -> list[Split]:
    """Check the columns of every file (footers and headers only) and cut big Parquet files.

    Raises InputError, one line naming file and column: unreadable file, missing column, wrong type, id column
    whose type differs between files or from the configuration.
    """
    with ThreadPoolExecutor(16) as pool:
        inspected = list(pool.map(lambda file: _inspect(spec, file, split_bytes), files))
    for name, wanted in ((USER_ID, spec.user_id_type), (ITEM_ID, spec.item_id_type)):
        first: dict[str, str] = {}
        for (_, kinds), file in zip(inspected, files, strict=True):
            if name in kinds:
                first.setdefault(kinds[name], file.uri)
        if len(first) > 1:
            (kind_a, uri_a), (kind_b, uri_b) = list(first.items())[:2]
            raise InputError(
                f"{uri_b}: column {spec.column(name)} ({name}) is {kind_b}, but {kind_a} in {uri_a}: "
                "an id column must have one type in all files; rewrite one of them"
            )
        for kind, uri in first.items():
            if kind != wanted:
                raise InputError(
                    f"{uri}: column {spec.column(name)} ({name}) is {kind}, but sequences.{name}_type is {wanted}: "
                    "rewrite the file or set the option (in a new workspace)"
                )
    return [split for splits, _ in inspected for split in splits]


def read(spec: LogSpec, split: Split) -> Iterator[RawBatch]:
    """The rows of a split. An unreadable file is an InputError that names it."""
    readers = {"parquet": _read_parquet, "csv": _read_csv, "json": _read_json}
    try:
        yield from readers[split.format](spec, split)
    except _UNREADABLE as error:
        raise _unreadable(split.file.uri, split.format, error) from None


def _landing_day(uri: str, root: str) -> str:
    """ISO date of the ds= folder of a file, "" outside one."""
    folder = uri[len(root) + 1 :].split("/", maxsplit=1)[0]
    if not folder.startswith("ds=") or "/" not in uri[len(root) + 1 :]:
        return ""
    try:
        return parse_ds(folder.removeprefix("ds=")).isoformat()
    except InputError:
        raise InputError(f"{root}/{folder}: its name is not a landing day: rename it to ds=YYYY-MM-DD") from None


def _delta_files(path: str) -> list[LogFile]:
    """The live files of a Delta table; a plain listing would return dead ones."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        table = DeltaTable(path, storage_options=storage.delta_options(path))
    except TableNotFoundError:
        raise InputError(f"{path} is not a Delta table: correct logs.path or logs.format") from None
    if table.metadata().partition_columns != [DS]:
        found = table.metadata().partition_columns
        raise InputError(f"{path} is partitioned by {found}: a Delta table of logs must be partitioned by [{DS!r}]")
    unsupported = {"deletionVectors", "columnMapping"} & set(table.protocol().reader_features or ())
    if unsupported:
        raise InputError(f"{path} uses {', '.join(sorted(unsupported))}: rewrite the table without (REORG ... PURGE)")
    uris = [uri.removeprefix("file://") for uri in table.file_uris()]
    days = [uri.rsplit(f"/{DS}=", 1)[1].split("/")[0] for uri in uris]
    if not uris:
        return []
    fs, _ = storage.filesystem(path)
    infos = fs.get_file_info([storage.filesystem(uri)[1] for uri in uris])
    missing = [uri for uri, info in zip(uris, infos, strict=True) if info.size is None]
    if missing:
        raise InputError(f"{missing[0]} is listed by the Delta table {path} but not there: restore it")
    return [
        LogFile(uri, info.size, _etag(info), parse_ds(day).isoformat())
        for uri, info, day in zip(uris, infos, days, strict=True)
    ]


def _etag(info: Any) -> str:
    return f"{info.mtime_ns or 0:x}-{info.size:x}"  # as storage.list_files


def _format_of(spec: LogSpec, uri: str) -> str:
    if spec.format == "delta":
        return "parquet"
    if spec.format != "auto":
        return spec.format
    name = storage.name(uri).lower()
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    for ending, format in _ENDINGS.items():
        if name.endswith(ending):
            return format
    raise InputError(f"{uri}: no log format for this file ending: set logs.format, or move the file out of the logs")


def _unreadable(uri: str, format: str, error: BaseException) -> InputError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(f"{uri} cannot be read as {format} ({reason}): replace or remove the file")


def _inspect(spec: LogSpec, file: LogFile, split_bytes: int) -> tuple[list[Split], dict[str, str]]:
    """Splits of a file and the types of its id columns ("int64" or "string"), where the format tells them."""
    format = _format_of(spec, file.uri)
    fs, path = storage.filesystem(file.uri)
    try:
        if format == "parquet":
            with fs.open_input_file(path) as source:
                metadata = pq.ParquetFile(source).metadata
            kinds = _check_types(spec, file.uri, metadata.schema.to_arrow_schema())
            return _cut(file, metadata, split_bytes), kinds
        with fs.open_input_stream(path) as stream:
            names = _csv_names(stream) if format == "csv" else _json_names(stream)
    except _UNREADABLE as error:
        raise _unreadable(file.uri, format, error) from None
    if names is not None:
        _check_present(spec, file.uri, names)
    return [Split(file, format, file.size, file.size // _TEXT_ROW_BYTES + 1)], {}


def _cut(file: LogFile, metadata: pq.FileMetaData, split_bytes: int) -> list[Split]:
    splits, groups, size, rows = [], [], 0, 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        size += metadata.row_group(group).total_byte_size
        rows += metadata.row_group(group).num_rows
        if size >= split_bytes or group == metadata.num_row_groups - 1:
            splits.append(Split(file, "parquet", size, rows, tuple(groups)))
            groups, size, rows = [], 0, 0
    return splits


def _check_present(spec: LogSpec, uri: str, names: Sequence[str]) -> None:
    for name in (*REQUIRED_COLUMNS, *(n for n in OPTIONAL_COLUMNS if n in spec.columns)):
        if spec.column(name) not in names:
            raise InputError(
                f"{uri}: column {spec.column(name)} ({name}) is missing, found {', '.join(names)}: "
                "correct logs.columns or the file"
            )


def _check_types(spec: LogSpec, uri: str, found: pa.Schema) -> dict[str, str]:
    _check_present(spec, uri, found.names)
    kinds = {}
    for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS):
        if spec.column(name) not in found.names:
            continue
        type_ = found.field(spec.column(name)).type
        kind = _kind(type_)
        allowed = {
            USER_ID: ("int64", "string"),
            ITEM_ID: ("int64", "string"),
            TIMESTAMP: ("int64", "timestamp"),
            EVENT_TYPE: ("string",),
        }.get(name, ("int64", "float"))
        if kind not in allowed and kind != "null":
            raise InputError(
                f"{uri}: column {spec.column(name)} ({name}) is {type_}, expected {' or '.join(allowed)}: "
                "correct logs.columns or rewrite the file"
            )
        if name in (USER_ID, ITEM_ID) and kind != "null":
            kinds[name] = kind
    return kinds


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_integer(type_) and type_ != pa.uint64():
        return "int64"
    for kind, test in (
        ("string", lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t)),
        ("timestamp", pa.types.is_timestamp),
        ("float", pa.types.is_floating),
        ("null", pa.types.is_null),
    ):
        if test(type_):
            return kind
    return str(type_)


def _read_parquet(spec: LogSpec, split: Split) -> Iterator[RawBatch]:
    fs, path = storage.filesystem(split.file.uri)
    with fs.open_input_file(path) as source:
        reader = pq.ParquetFile(source)
        there = reader.schema_arrow.names
        wanted = {name: spec.column(name) for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)}
        wanted = {name: column for name, column in wanted.items() if column in there}
        rest = [column for column in there if column not in wanted.values()]
        for group in split.row_groups:
            others = _Lazy(reader, group, rest)
            for number, batch in enumerate(_batches(reader, group, sorted(set(wanted.values())))):
                columns = {name: _typed(batch[column], spec.type_of(name)) for name, column in wanted.items()}
                yield RawBatch(columns, np.zeros(batch.num_rows, bool), _rows_as_json(batch, others, number))


def _batches(reader: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    return reader.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)


class _Lazy:
    """The columns of a row group that only a quarantined row needs: read when the first batch is asked for."""

    def __init__(self, reader: pq.ParquetFile, group: int, columns: list[str]):
        self._open = lambda: enumerate(_batches(reader, group, columns))
        self._columns = columns
        self._found: Iterator[tuple[int, pa.RecordBatch]] | None = None
        self._last: tuple[int, pa.RecordBatch] | None = None

    def batch(self, number: int) -> pa.RecordBatch | None:
        """The batch of a number, asked for in ascending order; None if there are no such columns."""
        if not self._columns:
            return None
        if self._found is None:
            self._found = self._open()
        if self._last is None or self._last[0] != number:
            self._last = next((found, batch) for found, batch in self._found if found == number)
        return self._last[1]


def _typed(column: pa.Array, target: pa.DataType) -> pa.Array:
    """A Parquet column in our type: seconds from timestamps, null for what is not a number or an empty string."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
    if pa.types.is_floating(column.type):
        finite = pc.if_else(pc.is_finite(column), column, None)
        return pc.floor(finite).cast(pa.int64(), safe=False)
    column = column.cast(target)
    return _without_empty(column) if pa.types.is_string(target) else column


def _without_empty(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def _rows_as_json(
    batch: pa.RecordBatch, others: _Lazy | None = None, number: int = 0
) -> Callable[[np.ndarray], list[str]]:
    def as_read(positions: np.ndarray) -> list[str]:
        rows = batch.take(pa.array(positions))
        more = others.batch(number) if others else None
        if more is None and all(pa.types.is_integer(kind) for kind in rows.schema.types):
            return _integers_as_json(rows)
        found = rows.to_pylist()
        if more is not None:
            found = [a | b for a, b in zip(found, more.take(pa.array(positions)).to_pylist(), strict=True)]
        return [_JSON.encode(row) for row in found]

    return as_read


def _integers_as_json(rows: pa.RecordBatch) -> list[str]:
    """Rows of integers as `_JSON` writes them, by whole columns."""
    pairs = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        number = column.cast(pa.string()).fill_null("null")
        pairs.append(pc.binary_join_element_wise(f"{_JSON.encode(name)}: ", number, ""))
    inside = pc.binary_join_element_wise(*pairs, ", ")
    return pc.binary_join_element_wise("{", inside, "}", "").to_pylist()


def _plain(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


_JSON = json.JSONEncoder(default=_plain, ensure_ascii=False)  # one for all rows: dumps() would make one for each


def _csv_names(stream: Any) -> list[str]:
    """The header of a CSV file."""
    head = b""
    while b"\n" not in head and (chunk := stream.read(65_536)):
        head += chunk
    if not head.strip():
        raise pa.ArrowInvalid("the file is empty, not even a header")
    return pa_csv.read_csv(io.BytesIO(head.split(b"\n")[0] + b"\n")).column_names


def _read_csv(spec: LogSpec, split: Split) -> Iterator[RawBatch]:
    fs, path = storage.filesystem(split.file.uri)
    with fs.open_input_stream(path) as stream:
        names = _csv_names(stream)
    broken: list[str] = []

    def keep(row: Any) -> str:
        broken.append(row.text)
        return "skip"

    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.binary()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    with fs.open_input_stream(path) as stream:
        reader = pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=_CHUNK_BYTES),
            parse_options=pa_csv.ParseOptions(invalid_row_handler=keep),
            convert_options=convert,
        )
        for batch in reader:
            yield _csv_batch(spec, batch)
    for start in range(0, len(broken), BATCH_ROWS):
        yield _unparsed(spec, broken[start : start + BATCH_ROWS])


def _csv_batch(spec: LogSpec, batch: pa.RecordBatch) -> RawBatch:
    columns, unparseable = {}, np.zeros(batch.num_rows, bool)
    for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS):
        if spec.column(name) not in batch.schema.names:
            continue
        text, bad = _text(batch[spec.column(name)])
        if not pa.types.is_string(spec.type_of(name)):
            text, bad_number = _numbers(text, times=name == TIMESTAMP, fractions=name in (PLAY_MS, DURATION_MS))
            bad = bad | bad_number
        columns[name], unparseable = text, unparseable | bad
    return RawBatch(columns, unparseable, _rows_as_json(batch))


def _text(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Binary as trimmed UTF-8, null where empty; and where it is not UTF-8."""
    bad = np.zeros(len(column), bool)
    try:
        text = column.cast(pa.string())
    except pa.ArrowInvalid:
        values: list[str | None] = []
        for position, value in enumerate(column.to_pylist()):
            try:
                values.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                values.append(None)
                bad[position] = True
        text = pa.array(values, pa.string())
    return _without_empty(pc.utf8_trim_whitespace(text)), bad


def _numbers(text: pa.Array, *, times: bool, fractions: bool) -> tuple[pa.Array, np.ndarray]:
    """int64 from text, and where it is none. `times` also reads ISO times (UTC unless they say otherwise).

    Fractions are rounded down, as in the other formats.
    """
    found = pc.extract_regex(text, _FRACTION if fractions else _INTEGER)
    sign, digits, rest = (pc.struct_field(found, part) for part in ("sign", "digits", "rest"))
    negative = pc.equal(sign, "-")
    largest = pc.if_else(negative, _LARGEST[0], _LARGEST[1])
    # Text of equal length sorts as the numbers do.
    fits = pc.or_(pc.less(pc.utf8_length(digits), len(_LARGEST[1])), pc.less_equal(digits, largest))
    whole = pc.binary_join_element_wise(pc.if_else(negative, "-", ""), digits, "")
    numbers = pc.if_else(fits, whole, pa.scalar(None, pa.string())).cast(pa.int64())
    if fractions:
        down = pc.and_(negative, pc.match_substring_regex(rest, "[1-9]"))
        numbers = pc.if_else(down.fill_null(False), pc.subtract(numbers, 1), numbers)
    bad = pc.and_(pc.is_valid(text), pc.is_null(numbers)).to_numpy(zero_copy_only=False)
    if times and bad.any():
        values = numbers.to_pylist()
        for position in np.flatnonzero(bad):
            values[position] = _iso_seconds(text[int(position)].as_py())
            bad[position] = values[position] is None
        numbers = pa.array(values, pa.int64())
    return numbers, bad


def _iso_seconds(text: str) -> int | None:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() // 1)


def _unparsed(spec: LogSpec, texts: list[str]) -> RawBatch:
    columns = {name: pa.nulls(len(texts), spec.type_of(name)) for name in REQUIRED_COLUMNS}
    return RawBatch(columns, np.ones(len(texts), bool), lambda positions: [texts[p] for p in positions])


def _json_names(stream: Any) -> list[str] | None:
    """Keys of the first hundred rows of a JSON lines file; None if none of them is an object."""
    names: dict[str, None] = {}
    for count, line in enumerate(_lines(stream)):
        if count == 100:
            break
        row = _loads(line)
        names.update(dict.fromkeys(row or ()))
    return list(names) or None


def _read_json(spec: LogSpec, split: Split) -> Iterator[RawBatch]:
    fs, path = storage.filesystem(split.file.uri)
    with fs.open_input_stream(path) as stream:
        lines: list[bytes] = []
        for line in _lines(stream):
            lines.append(line)
            if len(lines) == BATCH_ROWS:
                yield _json_batch(spec, lines)
                lines = []
        if lines:
            yield _json_batch(spec, lines)


def _lines(stream: Any) -> Iterator[bytes]:
    """Lines of a stream that are not blank."""
    rest = b""
    while chunk := stream.read(_CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def _loads(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _json_batch(spec: LogSpec, lines: list[bytes]) -> RawBatch:
    names = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    readers = [(spec.column(name), _json_reader(name, spec.type_of(name))) for name in names]
    values: list[list[Any]] = [[] for _ in names]
    present = [name in REQUIRED_COLUMNS for name in names]
    unparseable = np.zeros(len(lines), bool)
    for position, line in enumerate(lines):
        row = _loads(line)
        unparseable[position] = row is None
        for n, (key, reader) in enumerate(readers):
            value = row.get(key) if row else None
            if value is not None:
                present[n] = True
                try:
                    value = reader(value)
                except (TypeError, ValueError, OverflowError):
                    value, unparseable[position] = None, True
            values[n].append(value)
    columns = {name: pa.array(values[n], spec.type_of(name)) for n, name in enumerate(names) if present[n]}
    return RawBatch(columns, unparseable, lambda positions: [_plain(lines[p]) for p in positions])


def _json_reader(name: str, target: pa.DataType) -> Callable[[Any], Any]:
    """How a JSON value becomes a column's type. The reader raises where the value has another type."""

    def text(value: Any) -> str | None:
        if not isinstance(value, str):
            raise TypeError(name)
        return value or None

    def integer(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
            raise TypeError(name)
        return value

    def number(value: Any) -> int:
        return integer(value if isinstance(value, int) else int(value // 1))

    def time(value: Any) -> int:
        if not isinstance(value, str):
            return number(value)
        seconds = int(value) if value.strip().lstrip("+-").isdigit() else _iso_seconds(value)
        return integer(seconds)

    if pa.types.is_string(target):
        return text
    return {USER_ID: integer, ITEM_ID: integer, TIMESTAMP: time}.get(name, number)
