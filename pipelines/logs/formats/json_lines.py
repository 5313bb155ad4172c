"""JSON: an object a line; also objects one behind the other, over several lines, or in one array a file.

A line is read on its own, so what a row becomes depends on that row alone. Only a file that begins with an array, or
with an object that goes on behind its first line, is read value by value.
"""

import codecs
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.logs.formats.base import (
    TEXT_ROW_BYTES,
    Batches,
    Fault,
    Format,
    LogSpec,
    RawBatch,
    Split,
    parsed,
)
from pipelines.logs.formats.values import LABEL, TEXT, escaped
from pipelines.schema import OPTIONAL_COLUMNS, REQUIRED_COLUMNS

_HEAD_ROWS = 100
_LONGEST_VALUE = 16 << 20
"""Characters of an object that spans lines; one that is not complete by then is taken for a broken line."""
_CHUNK_BYTES = 4 << 20
_DECODER = json.JSONDecoder()
_NEXT_VALUE = re.compile(r"\n|\}(?=[ \t\r,]*\{)")  # where reading goes on behind a value that is broken

Row = tuple[bytes | str, dict[str, Any] | None]
"""The text of a row, and its object; None if it is not one."""


class JsonLines(Format):
    """Files of JSON objects, compressed or not."""

    name, endings = "json", (".json", ".jsonl", ".ndjson")

    def columns(self, spec: LogSpec, source: Any) -> pa.Schema | None:
        """Keys of the first hundred rows, and of more until every required column is there; None without an object."""
        names: dict[str, None] = {}
        missing = {spec.column(name).split(".")[0] for name in REQUIRED_COLUMNS}
        whole = {spec.column(name) for name in REQUIRED_COLUMNS}
        for number, (_, row) in enumerate(_rows(source, _CHUNK_BYTES, [])):
            names.update(dict.fromkeys(row or ()))
            if number >= _HEAD_ROWS and all(name in names or name.split(".")[0] in names for name in whole | missing):
                break
        return pa.schema([(name, pa.null()) for name in names]) if names else None

    def read(self, spec: LogSpec, source: Any, split: Split) -> Batches:
        """All rows of a file."""
        counts: list[int] = []
        rows = _rows(source, max(spec.batch_rows * TEXT_ROW_BYTES, 1 << 16), counts)
        while batch := list(itertools.islice(rows, spec.batch_rows)):
            yield _batch(spec, batch, split.unit)
        return sum(counts)

    def table(self, spec: LogSpec, uri: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a small file, of one type where their values are, else text; those it lacks are left out."""
        with self.open(uri) as source:
            rows = [row or {} for _, row in _rows(source, _CHUNK_BYTES, [])]
        names = [name for name in dict.fromkeys(columns) if any(_value(row, name) is not None for row in rows)]
        return pa.table({name: _column([_value(row, name) for row in rows], "")[0] for name in names})


def _rows(stream: Any, size: int, counts: list[int]) -> Iterator[Row]:
    """The rows of a stream. counts gets how many each piece of it has, counted by the pieces and not by the parser."""
    head = b""
    while not head.strip() and (chunk := stream.read(size)):
        head += chunk
    if _spans_lines(head, stream):
        yield from _values(stream, head, size, counts)
        return
    for line in _lines(stream, head, size):
        counts.append(1)
        row = _object(line)
        if row is not None:
            yield line, row
        else:
            several = _several(line)
            counts.append(len(several) - 1)
            yield from several


def _lines(stream: Any, head: bytes, size: int) -> Iterator[bytes]:
    """Lines of a stream that are not blank."""
    rest, chunk = [], head
    while chunk:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield from (line for line in (b"".join(rest), *others[:-1]) if line.strip())
            rest = [others[-1]]
        chunk = stream.read(size)
    line = b"".join(rest)
    if line.strip():
        yield line


def _decoded(line: bytes) -> str:
    """Text in which bytes that are not UTF-8 are unpaired surrogates: they spoil the value that has them."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode(errors="surrogateescape")


def _object(line: bytes) -> dict[str, Any] | None:
    """A line's object; None if it is not one."""
    try:
        row = json.loads(_decoded(line))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _several(line: bytes) -> list[Row]:
    """The rows of a line that is not an object: objects one behind the other, or in an array; else one broken row."""
    text, place, rows = _decoded(line), 0, []
    try:
        while (place := _skip(text, place, " \t\r,")) < len(text):
            value, end = _DECODER.raw_decode(text, place)
            found = value if isinstance(value, list) else [value]
            if not found or not all(isinstance(row, dict) for row in found):
                return [(line, None)]
            rows += [(text[place:end] if found[0] is value else json.dumps(row), row) for row in found]
            place = end
    except (ValueError, RecursionError):
        return [(line, None)]
    return rows or [(line, None)]


def _spans_lines(head: bytes, stream: Any) -> bool:
    """Whether a file is to be read value by value: its first line begins an array or an object and does not end it."""
    start = head.lstrip()
    first, newline, _ = start.partition(b"\n")
    if start[:1] == b"[":
        return not newline or _several(first)[0][1] is None
    if start[:1] != b"{" or not newline or _object(first) is not None or _several(first)[0][1] is not None:
        return False
    try:
        value, end = _DECODER.raw_decode(_decoded(start))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and end > len(first)


def _values(stream: Any, head: bytes, size: int, counts: list[int]) -> Iterator[Row]:
    """The objects of a stream, wherever its lines end. What is no object is a broken row up to where one may begin."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, place, more = decoder.decode(head), 0, True
    while True:
        place = _skip(text, place, " \t\r\n,[]")
        row, end = _object_at(text, place, more) if place < len(text) else (None, -1)
        if end < 0 and more:
            chunk = stream.read(size)
            text, place, more = text[place:] + decoder.decode(chunk, final=not chunk), 0, bool(chunk)
        elif place < len(text):
            counts.append(1)
            end = end if end > 0 else len(text)
            yield text[place:end], row
            place = end
        else:
            return


def _object_at(text: str, place: int, more: bool) -> tuple[dict[str, Any] | None, int]:
    """The object at a place and where it ends; None and the end of what is none; -1 if that is still to come."""
    try:
        value, end = _DECODER.raw_decode(text, place)
        if isinstance(value, dict):
            return value, end
    except json.JSONDecodeError as error:
        at_the_end = error.pos > len(text) - 64 or error.msg.startswith("Unterminated")
        if more and at_the_end and len(text) - place < _LONGEST_VALUE:
            return None, -1
    except (ValueError, RecursionError):
        pass
    found = _NEXT_VALUE.search(text, place)
    return None, found.end() if found else -1


def _skip(text: str, place: int, characters: str) -> int:
    while place < len(text) and text[place] in characters:
        place += 1
    return place


def _value(row: dict[str, Any], column: str) -> Any:
    """The value of a column: of a key that is written so, or of nested objects for `a.b`; None if it lacks it."""
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _has(row: dict[str, Any], column: str) -> bool:
    return column in row or ("." in column and _value(row, column) is not None)


def _batch(spec: LogSpec, rows: list[Row], unit: str) -> RawBatch:
    bad = np.array([row is None for _, row in rows], bool)
    objects = [row or {} for _, row in rows]
    faults = []
    if bad.any():
        faults.append(Fault("", int(bad.sum()), escaped(rows[int(bad.argmax())][0])))
    twice = _with_a_key_twice(spec, rows)
    if twice.any():
        faults.append(Fault("", int(twice.sum()), escaped(rows[int(twice.argmax())][0])))
    found, lacking = {}, {}
    for name in spec.wanted:
        column = spec.column(name)
        found[name], wrong = _column([_value(row, column) for row in objects], spec.kind(name))
        if wrong is not None:
            bad |= wrong
            first = _value(objects[int(wrong.argmax())], column)
            faults.append(Fault(name, int(wrong.sum()), escaped(json.dumps(first))))
        if name in OPTIONAL_COLUMNS:
            lacking[name] = np.array([not _has(row, column) for row in objects], bool)
            if lacking[name].all():
                del found[name]

    def as_read(positions: np.ndarray) -> list[str]:
        return [escaped(rows[row][0]).strip() for row in positions]

    batch = parsed(spec, found, len(rows), as_read, unit, bad=bad | twice, faults=tuple(faults))
    return RawBatch(batch.columns, batch.unparseable, as_read, lacking, batch.faults)


def _with_a_key_twice(spec: LogSpec, rows: list[Row]) -> np.ndarray:
    """Rows that have the key of a used column twice, so that nobody knows which one counts. bool."""
    names = {spec.column(name) for name in spec.wanted}
    names |= {part for name in names for part in name.split(".")}
    keys = {json.dumps(name, ensure_ascii=plain) for name in names for plain in (True, False)}
    marks = {str: tuple(keys), bytes: tuple(key.encode("utf-8", "surrogatepass") for key in keys)}
    twice = np.zeros(len(rows), bool)
    for position, (text, row) in enumerate(rows):
        if row is not None and any(text.count(mark) > 1 for mark in marks[type(text)]):
            objects: list[list[str]] = []
            source = text if isinstance(text, str) else _decoded(text)
            json.loads(source, object_pairs_hook=lambda pairs, seen=objects: seen.append([key for key, _ in pairs]))
            twice[position] = any(keys.count(name) > 1 for keys in objects for name in names)
    return twice


def _column(found: list[Any], kind: str) -> tuple[pa.Array, np.ndarray | None]:
    """Values of JSON as an Arrow column: of whole numbers, of numbers, or of text; and where they are none of these."""
    kinds = {type(value) for value in found} - {type(None)}
    try:
        if kinds <= {int}:
            return pa.array(found, pa.int64()), None
        if kinds <= {str}:
            return pa.array(found, pa.string()), None
        if kinds <= {float}:
            return pa.array(found, pa.float64()), None
    except (OverflowError, UnicodeEncodeError, pa.ArrowException):
        pass
    wrong = np.zeros(len(found), bool)
    texts: list[bytes | None] = []
    for position, value in enumerate(found):
        text = _text(value, kind)
        wrong[position] = text is None and value is not None
        texts.append(text)
    return pa.array(texts, pa.binary()), wrong if wrong.any() else None


def _text(value: Any, kind: str) -> bytes | None:
    """A number or a text as its UTF-8, None for what is neither. A surrogate becomes bytes that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bool):
        return str(value).lower().encode() if kind == LABEL else None
    if not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return b""
        if value == int(value) and abs(value) < 2**53:
            value = int(value)
        elif kind in (TEXT, LABEL):
            return None
    return repr(value).encode()


FORMAT = JsonLines()
