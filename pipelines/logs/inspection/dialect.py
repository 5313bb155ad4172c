"""How CSV files are divided: the separator, whether the first line is a header, quotes and escapes."""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.logs import files as logs
from pipelines.logs.formats import format_of, values
from pipelines.logs.formats.base import AUTO, COLUMNS, CsvSpec, LogFile, LogSpec, open_text
from pipelines.schema import ITEM_ID, TIMESTAMP, USER_ID

_MARKS = (",", "\t", ";", "|")
_LINES = 200
_BYTES = 1 << 16
UNMAPPED = dict.fromkeys(COLUMNS, "\0")
"""`LogSpec.columns` of files of which no column is ours: their rows are only to be shown."""


@dataclass(frozen=True)
class Dialect:
    """The section `logs.csv` that divides a file, and what was guessed of it."""

    csv: CsvSpec
    notes: tuple[str, ...] = ()
    problem: str = ""  # what must be given before the file can be read


def guess(file: LogFile, spec: LogSpec) -> Dialect:
    """The dialect of a CSV file. What `spec.csv` sets is kept. InputError if it cannot be read."""
    with logs.readable(format_of(spec, file.uri), file.uri):
        lines = _first_lines(file.uri)
    given = spec.csv
    mark = given.separator if given.separator != AUTO else _separator(lines, given)
    found = replace(given, separator=mark)
    if not lines:
        return Dialect(found)
    first = _cells(lines[0], mark, given.quote)
    notes, problem = [], ""
    if given.header and given.columns and _is_row(first):
        found = replace(found, header=False)
        notes.append("the first line is a row, not a header")
    elif given.header and _is_row(first):
        names, sure = _names(lines, mark, given)
        found = replace(found, header=False, columns=names)
        notes.append(f"the first line is a row, not a header: its {len(names)} columns are named here by place")
        if ITEM_ID in names:
            notes.append("that the first column which is no time is the listener, and the second the song, is assumed")
        if not sure:
            problem = (
                "the CSV files have no header, so their columns need names: set logs.csv.header: false and "
                f"logs.csv.columns to [{', '.join(names)}] with user_id, item_id and timestamp in the places of yours"
            )
    found, more = _quoting(file, spec, found, lines)
    return Dialect(found, (*notes, *more), problem)


def _first_lines(uri: str) -> list[str]:
    """The first lines of a file that are not blank, without a last one that may be cut."""
    with open_text(uri) as source:
        head = b""
        while len(head) < _BYTES and (chunk := source.read(_BYTES)):
            head += chunk
    lines = re.split(r"\r\n|\n|\r", values.escaped(head))
    whole = lines[:-1] if len(head) >= _BYTES and len(lines) > 1 else lines
    return [line for line in whole if line.strip()][:_LINES]


def _cells(line: str, mark: str, quote: str) -> list[str]:
    """The cells of a line, without blanks around them."""
    quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    options: dict[str, Any] = {"quotechar": quote or None, "quoting": quoting, "skipinitialspace": True}
    try:
        rows = list(csv.reader([line], delimiter=mark, **options))
    except (csv.Error, ValueError):
        return [line]
    return [cell.strip() for cell in rows[0]] if rows else [line]


def _separator(lines: Sequence[str], given: CsvSpec) -> str:
    """The separator that divides most lines into equally many cells, more than one; the comma if none does."""
    best, score = _MARKS[0], (0.0, 0)
    for mark in _MARKS:
        widths = Counter(len(_cells(line, mark, given.quote)) for line in lines)
        width, count = widths.most_common(1)[0] if widths else (1, 0)
        found = (round(count / len(lines), 1) if lines else 0.0, width)
        if width > 1 and found > score:
            best, score = mark, found
    return best


def _is_row(cells: Sequence[str]) -> bool:
    """Whether the first line has values: a number, or a time."""
    return any(re.fullmatch(r"[+-]?\d+(?:\.\d+)?", cell) or values.time_seconds(cell) is not None for cell in cells)


def _names(lines: Sequence[str], mark: str, given: CsvSpec) -> tuple[tuple[str, ...], bool]:
    """Names of the columns of a file without a header, and whether ours are all among them."""
    rows = [_cells(line, mark, given.quote) for line in lines]
    width = len(rows[0])
    names = [f"column_{place + 1}" for place in range(width)]
    columns = [[row[place] for row in rows if len(row) == width] for place in range(width)]
    times = [place for place, column in enumerate(columns) if _are_times(column)]
    if len(times) == 1:
        names[times[0]] = TIMESTAMP
        others = [place for place in range(width) if place not in times]
        if width == 3:
            names[others[0]], names[others[1]] = USER_ID, ITEM_ID
    return tuple(names), {USER_ID, ITEM_ID, TIMESTAMP} <= set(names)


def _are_times(cells: Sequence[str]) -> bool:
    """Whether most texts are moments between 2000 and 2100."""
    seconds = []
    for cell in cells:
        if re.fullmatch(r"\d{9,19}(?:\.\d+)?", cell):
            number = int(cell.split(".")[0])
            seconds.append(number // values.UNITS[values.unit_of([number])])
        else:
            seconds.append(values.time_seconds(cell) or 0)
    return sum(946_684_800 <= second < 4_102_444_800 for second in seconds) * 2 > len(cells)


def _quoting(file: LogFile, spec: LogSpec, found: CsvSpec, lines: Sequence[str]) -> tuple[CsvSpec, list[str]]:
    """A backslash as the escape, or no quotes, where more lines are rows with it than without."""
    broken = _broken(file, spec, found)
    if not broken:
        return found, []
    if not found.escape and any("\\" in line for line in lines):
        other = replace(found, escape="\\")
        if _broken(file, spec, other) < broken:
            return other, [f"{broken:,} lines are rows only if a backslash escapes the character behind it"]
    quoted = re.compile(
        rf"(?:^|{re.escape(found.separator)})\s*{re.escape(found.quote)}[^\n]*?{re.escape(found.quote)}"
        rf"(?:$|{re.escape(found.separator)})"
    )
    if found.quote and not any(quoted.search(line) for line in lines):
        other = replace(found, quote="")
        if _broken(file, spec, other) < broken:
            return other, [f"{broken:,} lines are rows only if quotes are characters like others"]
    return found, []


def _broken(file: LogFile, spec: LogSpec, csv_spec: CsvSpec) -> int:
    """How many of the first lines are no rows."""
    raw = replace(spec, csv=csv_spec, columns=UNMAPPED, format="csv")
    batches = itertools.islice(logs.first_rows(raw, file, _LINES), 20)
    return sum(int(batch.unparseable.sum()) for batch in batches)
