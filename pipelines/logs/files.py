"""Play logs as they arrive: which files there are, and their rows with our column names and types.

`<path>/ds=YYYY-MM-DD/*` holds what landed on that day, in any of `pipelines.logs.formats`; or the folder is a Delta
table partitioned by ds. Files are read with pyarrow on the driver (footers) and inside Spark's tasks (rows), so logs
on S3 need no Hadoop jars and an unreadable file is named in one line.
"""

import contextlib
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines import storage
from pipelines.errors import InputError
from pipelines.logs.formats import FORMATS, format_of, table_at
from pipelines.logs.formats.base import UNREADABLE, Format, LogFile, LogSpec, RawBatch, Split
from pipelines.schema import EVENT_TYPE, ITEM_ID, OPTIONAL_COLUMNS, REQUIRED_COLUMNS, TIMESTAMP, USER_ID, parse_ds

_ALLOWED_TYPES = {
    USER_ID: ("int64", "string"),
    ITEM_ID: ("int64", "string"),
    TIMESTAMP: ("int64", "timestamp"),
    EVENT_TYPE: ("string",),
}
"""What a column may be in a file; other columns are numbers."""


def discover(spec: LogSpec, *, before: dt.date) -> list[LogFile]:
    """Log files that landed before a day, by landing day and name. Raises InputError if there is no log folder."""
    if not spec.path:
        raise InputError("logs.path is empty: set it to the folder with the ds=YYYY-MM-DD folders of play logs")
    folder = storage.absolute(spec.path)
    if table := table_at(spec, folder):
        files = table.files(folder)
    else:
        files = [LogFile(f.uri, f.size, f.etag, _landing_day(f.uri, folder)) for f in storage.list_files(folder)]
    files = [file for file in files if file.landing_day and file.landing_day < before.isoformat()]
    return sorted(files, key=lambda file: (file.landing_day, file.uri))


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

    Raises InputError, one line naming file and column: unreadable file, missing column, wrong type, id column
    whose type differs between files or from the configuration.
    """
    with ThreadPoolExecutor(16) as pool:
        inspected = list(pool.map(lambda file: _inspect(spec, file, split_bytes), files))
    for name, expected in ((USER_ID, spec.user_id_type), (ITEM_ID, spec.item_id_type)):
        first: dict[str, str] = {}  # type -> the first file whose column has it
        for (_, id_types), file in zip(inspected, files, strict=True):
            if name in id_types:
                first.setdefault(id_types[name], file.uri)
        if len(first) > 1:
            (type_a, uri_a), (type_b, uri_b) = list(first.items())[:2]
            raise InputError(
                f"{uri_b}: column {spec.column(name)} ({name}) is {type_b}, but {type_a} in {uri_a}: "
                "an id column must have one type in all files; rewrite one of them"
            )
        for found, uri in first.items():
            if found != expected:
                raise InputError(
                    f"{uri}: column {spec.column(name)} ({name}) is {found}, but sequences.{name}_type is {expected}: "
                    "rewrite the file or set the option (in a new workspace)"
                )
    return [split for splits, _ in inspected for split in splits]


def read(spec: LogSpec, split: Split) -> Iterator[RawBatch]:
    """The rows of a split. An unreadable file is an InputError that names it."""
    format = FORMATS[split.format]
    with _opened(format, split.file.uri) as source:
        yield from format.read(spec, source, split)


def _landing_day(uri: str, root: str) -> str:
    """ISO date of the ds= folder of a file, "" outside one."""
    folder, separator, _ = uri[len(root) + 1 :].partition("/")
    if not separator or not folder.startswith("ds="):
        return ""
    try:
        return parse_ds(folder.removeprefix("ds=")).isoformat()
    except InputError:
        raise InputError(f"{root}/{folder}: its name is not a landing day: rename it to ds=YYYY-MM-DD") from None


def _inspect(spec: LogSpec, file: LogFile, split_bytes: int) -> tuple[list[Split], dict[str, str]]:
    """Splits of a file, and the types of its id columns ("int64" or "string") where the file tells them."""
    format = format_of(spec, file.uri)
    with _opened(format, file.uri) as source:
        columns, splits = format.columns(source), format.splits(file, source, split_bytes)
    return splits, {} if columns is None else _check_columns(spec, file.uri, columns)


@contextlib.contextmanager
def _opened(format: Format, uri: str) -> Iterator[Any]:
    """The source of a file. An InputError that names the file takes the place of errors while it is open."""
    try:
        with format.open(uri) as source:
            yield source
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{uri} cannot be read as {format.name} ({reason}): replace or remove the file") from None


def _check_columns(spec: LogSpec, uri: str, columns: pa.Schema) -> dict[str, str]:
    """Refuse a file that lacks a column or has one of a wrong type. Returns the types of its id columns."""
    types = dict(zip(columns.names, columns.types, strict=True))
    for name in (*REQUIRED_COLUMNS, *(n for n in OPTIONAL_COLUMNS if n in spec.columns)):
        if spec.column(name) not in types:
            raise InputError(
                f"{uri}: column {spec.column(name)} ({name}) is missing, found {', '.join(columns.names)}: "
                "correct logs.columns or the file"
            )
    id_types = {}
    for name, column in spec.mapped(types).items():
        kind = _kind(types[column])
        allowed = _ALLOWED_TYPES.get(name, ("int64", "float"))
        if kind not in allowed and kind != "null":
            raise InputError(
                f"{uri}: column {column} ({name}) is {types[column]}, expected {' or '.join(allowed)}: "
                "correct logs.columns or rewrite the file"
            )
        if name in (USER_ID, ITEM_ID) and kind != "null":
            id_types[name] = kind
    return id_types


def _kind(type_: pa.DataType) -> str:
    """The name of a column type in `_ALLOWED_TYPES`; "null" for one that any column may have."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    kinds = {
        "int64": pa.types.is_integer(type_) and type_ != pa.uint64(),
        "string": type_ in (pa.string(), pa.large_string(), pa.string_view()),
        "timestamp": pa.types.is_timestamp(type_),
        "float": pa.types.is_floating(type_),
        "null": pa.types.is_null(type_),
    }
    return next((kind for kind, matches in kinds.items() if matches), str(type_))
