"""Play logs as they arrive: which files there are, and their rows with our column names and types.

`<path>/ds=YYYY-MM-DD/*` holds what landed on that day, in any of `pipelines.logs.formats`; or the folder is a Delta
table partitioned by ds. Files are read with pyarrow on the driver (footers) and inside Spark's tasks (rows), so logs
on S3 need no Hadoop jars and an unreadable file is named in one line.
"""

import contextlib
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipelines import progress, storage
from pipelines.errors import InputError
from pipelines.logs import faults
from pipelines.logs.formats import FORMATS, format_of, table_at, values
from pipelines.logs.formats.base import (
    AUTO,
    UNREADABLE,
    Format,
    LogFile,
    LogSpec,
    RawBatch,
    Split,
    located,
    path_of,
    type_at,
)
from pipelines.schema import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, TIMESTAMP, parse_ds

_ENOUGH_ROWS = 20
"""Rows of a sample from which a column without one value that can be read is refused at once."""


def discover(spec: LogSpec, *, before: dt.date) -> list[LogFile]:
    """Log files that landed before a day, by landing day and name. Raises InputError if there is no log folder."""
    if not spec.path:
        raise InputError("logs.path is empty: set it to the folder with the ds=YYYY-MM-DD folders of play logs")
    folder = storage.absolute(spec.path)
    if table := table_at(spec, folder):
        files = table.files(spec, folder)
    else:
        found = storage.list_files(folder)
        files = [LogFile(f.uri, f.size, f.etag, landing_day(spec, f.uri, folder)) for f in found]
        _check_found(spec, folder, files)
    files = [file for file in files if file.landing_day and file.landing_day < before.isoformat()]
    return sorted(files, key=lambda file: (file.landing_day, file.uri))


def landing_day(spec: LogSpec, uri: str, root: str) -> str:
    """ISO date that the folders of a file say, "" if they lack one of the keys. InputError if they say no date."""
    parts = [unquote(part) for part in uri[len(root) + 1 :].split("/")[:-1]]
    keys = dict(part.split("=", 1) for part in parts if "=" in part)
    if not set(spec.partition) <= keys.keys():
        return ""
    found = [keys[key].strip() for key in spec.partition]
    text = found[0].removesuffix(" 00:00:00") if len(found) == 1 else "-".join(part.zfill(2) for part in found)
    try:
        return parse_ds(text).isoformat()
    except InputError:
        shown = "/".join(f"{key}={keys[key]}" for key in spec.partition)
        wanted = f"{spec.partition[0]}=YYYY-MM-DD" if len(found) == 1 else f"{'=../'.join(spec.partition)}=.. of a date"
        raise InputError(f"{root}/{shown}: its name is not a landing day: rename it to {wanted}") from None


def rewritten(spec: LogSpec) -> dict[str, list[str]]:
    """Files that hold only rows of earlier files of the logs, and these: what a table's maintenance wrote."""
    folder = storage.absolute(spec.path)
    table = table_at(spec, folder)
    return table.rewritten(folder) if table else {}


def changed(files: Iterable[LogFile]) -> list[str]:
    """One message for each file that is not as it was listed: its URI and what is there now."""
    files = list(files)
    problems = []
    for file, info in zip(files, storage.file_infos([file.uri for file in files]), strict=True):
        if info is None:
            problems.append(f"{file.uri} is not there")
        elif (info.size, info.etag) != (file.size, file.etag):
            problems.append(f"{file.uri} has changed ({file.size} bytes then, {info.size} now)")
    return problems


def plan(spec: LogSpec, files: Sequence[LogFile], *, split_bytes: int = 64 << 20) -> list[Split]:
    """Check the columns of every file (footers and headers only) and cut big files where their format allows it.

    The first file of each landing day is looked into: its times say what unit those of the day are in, if the
    configuration leaves it open, and a required column without a single value that can be read is refused.

    Raises InputError, one line naming file and column: unreadable file, missing column, wrong type.
    """
    firsts: dict[str, LogFile] = {}
    for file in files:
        if file.size:
            firsts.setdefault(file.landing_day, file)
    with ThreadPoolExecutor(16) as pool:
        inspected = []
        for splits in pool.map(lambda file: _inspect(spec, file, split_bytes), files):
            inspected.append(splits)
            progress.amount("looking into play logs", len(inspected), len(files), "files")
        units = dict(zip(firsts, pool.map(lambda file: _unit(spec, file), firsts.values()), strict=True))
    return [replace(split, unit=units.get(split.file.landing_day, "s")) for splits in inspected for split in splits]


def read(spec: LogSpec, split: Split) -> Iterator[RawBatch]:
    """The rows of a split. InputError names a file that cannot be read, or whose rows are not as many as it has."""
    format, rows = FORMATS[split.format], 0
    with _opened(format, split.file.uri) as source:
        batches = format.read(spec, source, split)
        while True:
            try:
                batch = next(batches)
            except StopIteration as end:
                counted = end.value
                break
            rows += len(batch.unparseable)
            yield batch
    if counted is not None and counted != rows:
        raise InputError(
            f"{split.file.uri} has {counted:,} rows, and {rows:,} came out as {format.name}: replace or remove the "
            "file, or correct logs.format and logs.csv"
        )


def sample(spec: LogSpec, file: LogFile) -> RawBatch | None:
    """Some of the first rows of a file, for its times' unit or for a look at it; None if it has none."""
    format = format_of(spec, file.uri)
    with readable(format, file.uri):
        return format.sample(spec, file)


def schema(spec: LogSpec, file: LogFile) -> pa.Schema | None:
    """The columns that a file says it has; null is the type of those of text. None if only its rows tell them."""
    format = format_of(spec, file.uri)
    with _opened(format, file.uri) as source:
        return format.columns(spec, source)


def first_rows(spec: LogSpec, file: LogFile, rows: int, *, unit: str = "s") -> Iterator[RawBatch]:
    """The first rows of a file, at least `rows` if it has as many. InputError if it cannot be read so far."""
    format, seen = format_of(spec, file.uri), 0
    with _opened(format, file.uri) as source:
        for split in format.splits(file, source, 1 << 60):
            for batch in format.read(replace(spec, batch_rows=rows), source, replace(split, unit=unit)):
                yield batch
                seen += len(batch.unparseable)
                if seen >= rows:
                    return


def _check_found(spec: LogSpec, folder: str, files: Sequence[LogFile]) -> None:
    """Refuse a folder that is not there, or whose files are all outside of folders of days."""
    if not storage.exists(folder) and not storage.is_s3(folder):
        raise InputError(f"logs.path: there is no folder {folder}: correct it")
    if files and not any(file.landing_day for file in files):
        wanted = "/".join(f"{key}=..." for key in spec.partition)
        raise InputError(
            f"logs.path: {len(files):,} files are in {folder}, none of them in a folder {wanted} (for example "
            f"{files[0].uri}): put each into the folder of the day on which it arrived, or set logs.partition to the "
            "keys of your folders"
        )


def _inspect(spec: LogSpec, file: LogFile, split_bytes: int) -> list[Split]:
    """The splits of a file, whose columns are checked."""
    format = format_of(spec, file.uri)
    with _opened(format, file.uri) as source:
        columns = format.columns(spec, source)
        if columns is not None:
            _check_columns(spec, file.uri, columns)
        return format.splits(file, source, split_bytes)


def _unit(spec: LogSpec, file: LogFile) -> str:
    """The unit of times that are numbers. InputError if the values of a required column cannot be read."""
    batch = sample(spec, file)
    if batch is None:
        return "s" if spec.timestamp_unit == AUTO else spec.timestamp_unit
    rows = len(batch.unparseable)
    for fault in batch.faults:
        if fault.column in REQUIRED_COLUMNS and fault.rows >= _ENOUGH_ROWS and fault.rows == rows:
            raise InputError(f"{file.uri}: {faults.explained(spec, fault)}")
    if spec.timestamp_unit != AUTO:
        return spec.timestamp_unit
    return values.unit_of(batch.columns[TIMESTAMP].drop_null().to_pylist())


@contextlib.contextmanager
def _opened(format: Format, uri: str) -> Iterator[Any]:
    """The source of a file. An InputError that names the file takes the place of errors while it is open."""
    with readable(format, uri), format.open(uri) as source:
        yield source


@contextlib.contextmanager
def readable(format: Format, uri: str) -> Iterator[None]:
    """Within it, errors of a broken file become an InputError that names the file and its format."""
    try:
        yield
    except InputError:
        raise
    except UNREADABLE as error:
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())
        raise InputError(
            f"{uri} cannot be read as {format.name} ({values.escaped(reason)}): replace or remove the file"
        ) from None


def _check_columns(spec: LogSpec, uri: str, columns: pa.Schema) -> None:
    """Refuse a file that lacks a column, has it twice, or has one of a type that is never read as it."""
    paths = located(spec, columns)
    for name in (*REQUIRED_COLUMNS, *(n for n in OPTIONAL_COLUMNS if n in spec.columns and n in spec.wanted)):
        if name not in paths:
            raise InputError(
                f"{uri}: column {spec.column(name)} ({name}) is missing, found {_few(columns.names)}: "
                f"correct logs.columns or the file{_hint(spec.column(name), columns)}"
            )
    for name, path in paths.items():
        if columns.names.count(path[0]) > 1:
            raise InputError(f"{uri}: column {path[0]} ({name}) is there twice: rename one of the two in the file")
        type_ = type_at(columns, path)
        if not values.accepts(spec.kind(name), type_):
            fields = [f"{'.'.join(path)}.{field.name}" for field in type_] if pa.types.is_struct(type_) else []
            hint = f"name a field of it in logs.columns, for example {{{name}: {fields[0]}}}" if fields else ""
            raise InputError(
                f"{uri}: column {'.'.join(path)} ({name}) is {type_}, expected {values.EXPECTED[spec.kind(name)]}: "
                f"{hint or 'correct logs.columns or rewrite the file'}"
            )


def _few(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(values.escaped(name) for name in names[:most]) + more


def _hint(column: str, schema: pa.Schema) -> str:
    """What would read it where a struct has a field of this name, or where the header looks like a row."""
    if any(name.isdigit() for name in schema.names) and all(pa.types.is_null(type_) for type_ in schema.types):
        return "; if its first line is a row, set logs.csv.header: false and logs.csv.columns"
    for field in schema:
        if pa.types.is_struct(field.type) and path_of(f"{field.name}.{column}", schema):
            return f", for example logs.columns: {{...: {field.name}.{column}}}"
    return ""
