"""JSON lines: an object a line, whose values have the types of JSON."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.logs.formats.base import BATCH_ROWS, CHUNK_BYTES, Format, LogSpec, RawBatch, Split, as_text, iso_seconds
from pipelines.schema import ITEM_ID, OPTIONAL_COLUMNS, REQUIRED_COLUMNS, TIMESTAMP, USER_ID

_HEAD_ROWS = 100


class JsonLines(Format):
    """Files of JSON objects, one a line, compressed or not."""

    name, endings = "json", (".json", ".jsonl", ".ndjson")

    def columns(self, source: Any) -> pa.Schema | None:
        """Keys of the first hundred rows; None if none of them is an object."""
        names: dict[str, None] = {}
        for line in itertools.islice(_lines(source), _HEAD_ROWS):
            names.update(dict.fromkeys(_object(line) or ()))
        return pa.schema([(name, pa.null()) for name in names]) if names else None

    def read(self, spec: LogSpec, source: Any, split: Split) -> Iterator[RawBatch]:
        """All rows of a file."""
        lines = _lines(source)
        while batch := list(itertools.islice(lines, BATCH_ROWS)):
            yield _parsed(spec, batch)


def _lines(stream: Any) -> Iterator[bytes]:
    """Lines of a stream that are not blank."""
    rest = b""
    while chunk := stream.read(CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def _object(line: bytes) -> dict[str, Any] | None:
    """A line's object; None if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _parsed(spec: LogSpec, lines: list[bytes]) -> RawBatch:
    names = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    parsers = [(spec.column(name), _parser(name, spec.type_of(name))) for name in names]
    values: list[list[Any]] = [[] for _ in names]
    present = [name in REQUIRED_COLUMNS for name in names]
    unparseable = np.zeros(len(lines), bool)
    for position, line in enumerate(lines):
        row = _object(line)
        unparseable[position] = row is None
        for n, (key, parse) in enumerate(parsers):
            value = row.get(key) if row else None
            if value is not None:
                present[n] = True
                try:
                    value = parse(value)
                except (TypeError, ValueError, OverflowError):
                    value, unparseable[position] = None, True
            values[n].append(value)
    columns = {name: pa.array(values[n], spec.type_of(name)) for n, name in enumerate(names) if present[n]}
    return RawBatch(columns, unparseable, lambda positions: [as_text(lines[p]) for p in positions])


def _parser(name: str, target: pa.DataType) -> Callable[[Any], Any]:
    """The function from a JSON value to a column's type. It raises TypeError or ValueError for any other value."""

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
        seconds = int(value) if value.strip().lstrip("+-").isdigit() else iso_seconds(value)
        return integer(seconds)

    if pa.types.is_string(target):
        return text
    return {USER_ID: integer, ITEM_ID: integer, TIMESTAMP: time}.get(name, number)


FORMAT = JsonLines()
