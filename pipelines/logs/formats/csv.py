"""CSV. Rows are divided here and counted, cells by Arrow, values one by one: a bad one costs its row and not the file.

A line end outside of quotes ends a row. A quote opens a cell only where the cell begins, and closes it only where the
cell ends; a line with any other quote in such a cell is not a row, and the next line is read on its own. So is a line
whose quote would swallow lines that are rows themselves: a title that begins with a quote, and another far below.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from pipelines.logs.formats.base import (
    AUTO,
    TEXT_ROW_BYTES,
    Batches,
    CsvSpec,
    Fault,
    Format,
    LogSpec,
    RawBatch,
    Split,
    located,
    parsed,
    rows_as_json,
    unique,
)
from pipelines.logs.formats.values import escaped
from pipelines.schema import REQUIRED_COLUMNS, TIMESTAMP

_SEPARATORS = (",", "\t", ";", "|")
_LONGEST_LINE = 256 << 20
_LONGEST_ROW = 1 << 20
"""Bytes of a row whose quotes span lines; a quote that is not closed by then is taken for a stray one."""


class Csv(Format):
    """CSV files, compressed or not. Within a batch, lines that are no rows of the header's width come last."""

    name, endings = "csv", (".csv", ".tsv", ".tab")

    def columns(self, spec: LogSpec, source: Any) -> pa.Schema:
        """The header's columns."""
        names = _layout(spec, _head(source)).names
        return pa.schema([(name, pa.null()) for name in names])

    def read(self, spec: LogSpec, source: Any, split: Split) -> Batches:
        """All rows of a file."""
        head = _head(source)
        layout = _layout(spec, head)
        size, counted = spec.batch_rows * TEXT_ROW_BYTES, 0
        for block in _blocks(source, head[layout.start :], size, layout):
            counted += block.count
            if block.rows:
                yield _batch(spec, layout, block, split.unit)
            if block.broken:
                yield _broken(spec, block.broken)
        return counted

    def table(self, spec: LogSpec, uri: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a small file as binary text; columns that it lacks are left out."""
        with self.open(uri) as source:
            head = _head(source)
            layout = _layout(spec, head, wanted=columns)
            blocks = _blocks(source, head[layout.start :], 4 << 20, layout)
            names = [name for name in dict.fromkeys(columns) if name in layout.names]
            empty = pa.schema([(name, pa.binary()) for name in names]).empty_table()
            parts = [_cells(layout, block).select(names) for block in blocks if block.rows]
            return pa.concat_tables([empty, *(pa.Table.from_batches([part]) for part in parts)])


@dataclass(frozen=True)
class _Layout:
    """How the lines of a file are divided."""

    names: list[str]
    start: int  # where the rows begin
    separator: bytes
    quote: bytes  # b"": none
    escape: bytes
    time: int = -1  # the column of the timestamp

    @cached_property
    def others(self) -> bytes:
        """Every byte but the separator and a line end."""
        return bytes(range(256)).translate(None, self.separator + b"\n")


@dataclass(frozen=True)
class _Block:
    """Some rows."""

    text: bytes  # those that have the header's width
    rows: int
    broken: list[bytes]  # the other lines
    count: int  # all, by line ends


def _head(stream: Any) -> bytes:
    """The beginning of a file, at least its first line that is not blank."""
    head = b""
    while len(head.lstrip().splitlines()) < 2 and (chunk := stream.read(65_536)):
        head += chunk
    if not head.strip():
        raise pa.ArrowInvalid("the file is empty, not even a header")
    return head


def _layout(spec: LogSpec, head: bytes, *, wanted: Sequence[str] = ()) -> _Layout:
    """The columns of a file and the way it divides them, which is guessed if the configuration leaves it open."""
    options = spec.csv
    start = len(head) - len(head.lstrip(b"\r\n"))
    end = next((n for n in range(start, len(head)) if head[n] in b"\r\n"), len(head))
    after = end + (2 if head[end : end + 2] == b"\r\n" else 1)
    line, required = head[start:end], [spec.column(name) for name in REQUIRED_COLUMNS]
    candidates = _SEPARATORS if options.separator == AUTO else (options.separator,)
    divided = {mark: _divide(line, mark, options.quote) for mark in candidates}
    if options.columns:
        divided = {mark: cells for mark, cells in divided.items() if len(cells) == len(options.columns)} or divided
        separator, names = next(iter(divided)), list(options.columns)
    else:
        fitting = [mark for mark, cells in divided.items() if set(wanted or required) <= set(cells)]
        best = fitting or sorted(divided, key=lambda mark: -len(set(divided[mark]) & {*wanted, *required}))
        separator, names = best[0], divided[best[0]]
    if not options.header:
        after = start
        names = list(options.columns) or [f"column_{n + 1}" for n in range(len(names))]
    time = names.index(spec.column(TIMESTAMP)) if spec.column(TIMESTAMP) in names else -1
    return _Layout(names, after, separator.encode(), options.quote.encode(), options.escape.encode(), time)


def _divide(line: bytes, separator: str, quote: str) -> list[str]:
    """The cells of a header, without their quotes and surrounding blanks."""
    quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    options: dict[str, Any] = {"quotechar": quote or None, "quoting": quoting, "skipinitialspace": True}
    try:
        [cells] = csv.reader([escaped(line)], delimiter=separator, **options)
    except (csv.Error, ValueError) as error:
        raise pa.ArrowInvalid(f"its first line is no header: {error}") from None
    return [cell.strip() for cell in cells]


def _blocks(stream: Any, head: bytes, size: int, layout: _Layout) -> Iterator[_Block]:
    """The rows of a stream, some megabytes at a time."""
    rest, chunk = b"", head
    while chunk or rest:
        following = stream.read(size)
        text = rest + chunk
        if following and text.endswith(b"\r"):  # perhaps the first half of a line end
            rest, chunk = text, following
            continue
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if following:
            whole = text.rfind(b"\n") + 1
            text, rest = text[:whole], text[whole:]
        else:
            text, rest = text if not text or text.endswith(b"\n") else text + b"\n", b""
        if len(rest) > _LONGEST_LINE:
            raise pa.ArrowInvalid(f"a line of more than {_LONGEST_LINE >> 20} MB")
        if text:
            block, open_ = _divided(text, layout, last=not following)
            rest = open_ + rest
            yield block
        chunk = following


def _divided(text: bytes, layout: _Layout, *, last: bool) -> tuple[_Block, bytes]:
    """The rows of whole lines, and what belongs to a row that goes on behind them."""
    if rows := _regular_rows(text, layout):
        return _Block(text, rows, [], rows), b""
    bytes_ = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(bytes_ == 10)
    starts = np.concatenate([[0], ends[:-1] + 1])
    marks = np.flatnonzero(bytes_ == layout.separator[0])
    doubtful = np.zeros(len(ends), bool)
    if layout.quote and layout.quote in text:
        marks, doubtful = _quoting(bytes_, marks, starts, ends, layout)
    if layout.escape and layout.escape in text:
        escapes = np.flatnonzero(bytes_ == layout.escape[0])
        doubtful[np.searchsorted(ends, escapes)] = True
    width = np.searchsorted(marks, ends) - np.searchsorted(marks, starts) + 1
    blank = ends == starts
    good = (width == len(layout.names)) & ~blank & ~doubtful
    if good.all():
        return _Block(text, len(ends), [], len(ends)), b""
    return _one_by_one(text, starts, ends, good, blank, doubtful, layout, last=last)


def _regular_rows(text: bytes, layout: _Layout) -> int:
    """The number of lines if each is plainly a row (no quote or escape, as many separators as the header), else 0."""
    width = len(layout.names)
    if width < 2 or any(mark and mark in text for mark in (layout.quote, layout.escape)):
        return 0
    marks = text.translate(None, layout.others)
    rows, rest = divmod(len(marks), width)
    return rows if not rest and marks == (layout.separator * (width - 1) + b"\n") * rows else 0


def _quoting(
    bytes_: np.ndarray, marks: np.ndarray, starts: np.ndarray, ends: np.ndarray, layout: _Layout
) -> tuple[np.ndarray, np.ndarray]:
    """The separators that are outside of quotes, and the lines whose quotes are not plainly those of whole cells."""
    quote, separator = layout.quote[0], layout.separator[0]
    quotes = np.flatnonzero(bytes_ == quote)
    line = np.searchsorted(ends, quotes)
    first = np.searchsorted(quotes, starts)
    opens = (np.arange(len(quotes)) - first[line]) % 2 == 0
    before = np.where(quotes > 0, bytes_[quotes - 1], 10)
    behind = bytes_[np.minimum(quotes + 1, len(bytes_) - 1)]
    neighbour = np.where(opens, before, behind)
    plain = (neighbour == separator) | (neighbour == 10) | (neighbour == quote)
    doubtful = np.zeros(len(ends), bool)
    doubtful[line[~plain]] = True
    doubtful |= (np.searchsorted(quotes, ends) - first) % 2 == 1
    inside = (np.searchsorted(quotes, marks) - first[np.searchsorted(ends, marks)]) % 2 == 1
    return marks[~inside], doubtful


def _one_by_one(
    text: bytes,
    starts: np.ndarray,
    ends: np.ndarray,
    good: np.ndarray,
    blank: np.ndarray,
    doubtful: np.ndarray,
    layout: _Layout,
    *,
    last: bool,
) -> tuple[_Block, bytes]:
    """As `_divided`, of lines that are not all good: the doubtful ones are read cell by cell."""
    pieces, broken, rows, spanned, done = [], [], 0, 0, 0
    unread = b""
    stop = len(ends)
    for line in np.flatnonzero(~good & ~blank):
        if line < done:
            continue  # part of a row that spans lines
        pieces.append(text[starts[done] : starts[line]])
        rows += int(good[done:line].sum())
        end, width = _row(text, int(starts[line]), layout) if doubtful[line] else (int(ends[line]) + 1, 0)
        if end < 0 and not last and len(text) - starts[line] < _LONGEST_ROW:
            stop, unread, done = int(line), text[starts[line] :], len(ends)
            break
        if end > ends[line] + 1 and _swallows_rows(text[starts[line] : end], layout):
            end = -1
        if end > 0 and width == len(layout.names):
            behind = int(np.searchsorted(ends, end - 1)) + 1
            spanned += int((~blank[line + 1 : behind]).sum())
            pieces.append(text[starts[line] : end])
            rows, done = rows + 1, behind
        else:
            broken.append(text[starts[line] : ends[line]])
            done = int(line) + 1
    if done < len(ends):
        pieces.append(text[starts[done] :])
        rows += int(good[done:].sum())
    block = _Block(b"".join(pieces), rows, broken, stop - int(blank[:stop].sum()) - spanned)
    return block, unread


def _row(text: bytes, start: int, layout: _Layout) -> tuple[int, int]:
    """Where the row that begins at `start` ends, and its number of cells; -1 if a quoted cell of it never ends well."""
    place, width, quote, escape = start, 1, layout.quote, layout.escape
    ending = re.compile(b"[\n%b%b]" % (re.escape(layout.separator), re.escape(escape)))
    closing = re.compile(b"[%b%b]" % (re.escape(quote), re.escape(escape))) if quote else None
    while True:
        if closing and text[place : place + 1] == quote:
            found = closing.search(text, place + 1, start + _LONGEST_ROW)
            while found and (found.group() != quote or text[found.end() : found.end() + 1] == quote):
                found = closing.search(text, found.end() + 1, start + _LONGEST_ROW)
            if not found:
                return -1, 0
            place = found.end()
            if text[place : place + 1] not in (layout.separator, b"\n"):
                return start, 0
        else:
            found = ending.search(text, place)
            while found and found.group() == escape:
                found = ending.search(text, found.end() + 1)
            if not found:
                return -1, 0
            place = found.start()
        if text[place : place + 1] == b"\n":
            return place + 1, width
        place, width = place + 1, width + 1


def _swallows_rows(row: bytes, layout: _Layout) -> bool:
    """Whether lines within a row that spans lines are rows themselves: of the width, with a digit in their time."""
    first, *others = row[:-1].split(b"\n")
    inner, final = others[:-1], others[-1]
    if any(_is_row(line, layout) for line in inner):
        return True
    return _is_row(first, layout) and _is_row(final, layout)


def _is_row(line: bytes, layout: _Layout) -> bool:
    cells = line.split(layout.separator)
    if len(cells) != len(layout.names) or len(cells) < 2:
        return False
    return layout.time < 0 or re.search(rb"[0-9]{4}", cells[layout.time]) is not None


def _cells(layout: _Layout, block: _Block, columns: Sequence[str] | None = None) -> pa.RecordBatch:
    """The cells of the rows of a block as binary. columns: of `layout.names`, made unique; None: all."""
    names, text = unique(layout.names), block.text
    if layout.escape and layout.escape + b"N" in text:
        text = _without_escaped_nulls(text, layout)
    table = pa_csv.read_csv(
        pa.BufferReader(text),
        pa_csv.ReadOptions(column_names=names, block_size=len(text) + 1, use_threads=False),
        pa_csv.ParseOptions(
            delimiter=layout.separator.decode(),
            quote_char=layout.quote.decode() or False,
            escape_char=layout.escape.decode() or False,
            newlines_in_values=True,
        ),
        pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()), null_values=[], include_columns=list(columns or names)
        ),
    )
    if table.num_rows != block.rows:
        raise pa.ArrowInvalid(f"{table.num_rows} rows in lines of {block.rows}: its quotes are not those of cells")
    return table.combine_chunks().to_batches()[0]


def _without_escaped_nulls(text: bytes, layout: _Layout) -> bytes:
    r"""Cells that are \N, which an escape would make the letter N, as empty ones."""
    mark, escape = re.escape(layout.separator), re.escape(layout.escape)
    return re.sub(b"(^|%b)%bN(?=%b|\n)" % (mark, escape, mark), rb"\1", text, flags=re.MULTILINE)


def _batch(spec: LogSpec, layout: _Layout, block: _Block, unit: str) -> RawBatch:
    schema = pa.schema([(name, pa.null()) for name in layout.names])
    paths = {name: path[0] for name, path in located(spec, schema).items()}
    batch = _cells(layout, block, list(dict.fromkeys(paths.values())))

    def as_read(positions: np.ndarray) -> list[str]:
        return rows_as_json(_cells(layout, block))(positions)

    return parsed(spec, {name: batch[column] for name, column in paths.items()}, block.rows, as_read, unit)


def _broken(spec: LogSpec, lines: list[bytes]) -> RawBatch:
    columns = {name: pa.nulls(len(lines), spec.type_of(name)) for name in REQUIRED_COLUMNS}
    texts = [escaped(line) for line in lines]
    faults = (Fault("", len(lines), texts[0]),)
    return RawBatch(columns, np.ones(len(lines), bool), lambda rows: [texts[row] for row in rows], faults=faults)


def one_character(options: CsvSpec) -> str:
    """What of the settings is no single ASCII character where it must be one; "" if all are."""
    for name, value, may_be_empty in (
        ("separator", "," if options.separator == AUTO else options.separator, False),
        ("quote", options.quote, True),
        ("escape", options.escape, True),
    ):
        if not (value == "" and may_be_empty) and (len(value) != 1 or not value.isascii() or value in "\r\n"):
            return f"logs.csv.{name} is {value!r}: give one ASCII character"
    return ""


FORMAT = Csv()
