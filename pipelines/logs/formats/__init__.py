"""The formats of play logs, an object each (`base.Format`), and which of them reads a file.

| file         | `logs.format` |                                                           |
| ------------ | ------------- | --------------------------------------------------------- |
| `parquet`    | parquet       | typed columns, split at row groups                        |
| `csv`        | csv           | text in cells, with a header or names from the settings   |
| `json_lines` | json          | objects: a line each, in an array, one behind the other   |
| `delta`      | delta         | a table that lists Parquet files and their landing days   |

A new format is a file in this folder and its name in `_MODULES` (CONTRIBUTING.md).
"""

import importlib
from collections.abc import Collection, Sequence

import pyarrow as pa

from pipelines import storage
from pipelines.errors import InputError
from pipelines.logs.formats import delta, values
from pipelines.logs.formats.base import AUTO, COMPRESSIONS, Format, LogSpec

_MODULES = ("parquet", "csv", "json_lines")

_FILES: tuple[Format, ...] = tuple(importlib.import_module(f"{__name__}.{name}").FORMAT for name in _MODULES)
_TABLES = {delta.TABLE.name: delta.TABLE}
FORMATS: dict[str, Format] = {
    **{format.name: format for format in _FILES},
    **{name: table.files_format for name, table in _TABLES.items()},
}
"""The format of the files, by the value of `logs.format`."""


def table_at(spec: LogSpec, folder: str) -> delta.DeltaLogs | None:
    """The table format of the logs; None where the folder's own files are the logs."""
    if spec.format == AUTO:
        return next((table for table in _TABLES.values() if table.is_at(folder)), None)
    return _TABLES.get(spec.format)


def format_of(spec: LogSpec, uri: str) -> Format:
    """The format in which a log file is to be read. InputError if its ending does not tell."""
    found = by_ending(uri) if spec.format == AUTO else FORMATS[spec.format]
    if found is None:
        raise InputError(
            f"{uri}: no log format for this file ending: set logs.format, or move the file out of the logs"
        )
    return found


def read_small(
    uri: str, columns: Sequence[str], *, spec: LogSpec | None = None, texts: Collection[str] = ()
) -> pa.Table:
    """Some columns of a small file; ValueError if its ending names no format. Columns that it lacks are left out.

    Text is valid UTF-8, with what is not escaped. A column of CSV is of numbers or of true and false only if no text of
    it would be changed by that: 007 stays a text, and so do those of `texts`. Null are empty cells and \\N alone.
    """
    format = by_ending(uri)
    if format is None:
        raise ValueError(f"no format for the ending of {storage.name(uri)}")
    table = format.table(LogSpec("") if spec is None else spec, uri, columns)
    for place, name in enumerate(table.column_names):
        column = table[name].combine_chunks()
        untyped = pa.types.is_binary(column.type)
        if untyped or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            text = values.shown_text(column)
            table = table.set_column(place, name, values.typed(text) if untyped and name not in texts else text)
    return table


def by_ending(uri: str) -> Format | None:
    """The format that a file's ending names, any case, compressed or not; None for an unknown ending."""
    name = storage.name(uri).lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((format for format in _FILES if name.endswith(format.endings)), None)
