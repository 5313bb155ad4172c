"""What the columns of a sample of files hold: types, nulls, distinct values, ranges, and as what they can be read."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import InputError
from pipelines.logs import files as logs
from pipelines.logs.formats import format_of, values
from pipelines.logs.formats.base import COLUMNS, LogFile, LogSpec
from pipelines.logs.inspection.dialect import UNMAPPED

FIRST_TIME = 946_684_800
"""2000-01-01 UTC: no play is older."""
_DEEPEST = 4
_ZONE = re.compile(r"(?:z|utc|gmt|[+-]\d\d:?\d\d|[+-]\d\d|\])\s*$", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d+(?:\.0*)?")


@dataclass(frozen=True)
class Sample:
    """The first rows of a file, as it has them."""

    file: LogFile
    format: str
    types: dict[str, str]  # of columns whose file says a type; nested ones as a.b
    rows: list[dict[str, Any]]  # nested values as a.b
    broken: list[str]  # lines that are no rows


@dataclass(frozen=True)
class Profile:
    """What a column holds in all samples."""

    name: str
    types: tuple[str, ...]  # as the files say, or what their values are
    files: int  # that have it
    rows: int  # of these files
    nulls: int
    distinct: int
    example: str
    least: str  # "" where values have no order that says anything
    greatest: str
    as_id: float  # share of the values that are whole numbers without loss
    as_time: float  # ... that are times between 2000 and the day behind the last landing day
    as_length: float  # ... that are numbers
    middle: float  # median of numbers
    unit: str  # of times that are numbers; "" if they are texts or timestamps
    nested: bool  # lists, objects, true and false: nothing that is read here
    lossy: str = ""  # a value of digits that is not itself as a whole number of 64 bits, for example 007
    no_number: str = ""  # another value that is no whole number
    digits: float = 0.0  # share of the values that are digits
    zoneless: str = ""  # a time that names no zone
    counts: dict[str, int] = field(default_factory=dict)  # of the values, where there are few

    @property
    def null_share(self) -> float:
        """In [0, 1]."""
        return self.nulls / max(self.rows, 1)


def sample(spec: LogSpec, file: LogFile, rows: int) -> Sample:
    """The first rows of a file. InputError if it cannot be read."""
    raw = replace(spec, columns=UNMAPPED)
    found: list[dict[str, Any]] = []
    broken: list[str] = []
    first = ""
    for batch in logs.first_rows(raw, file, rows):
        for text in batch.as_read(np.arange(len(batch.unparseable))):
            row = _object(text)
            if row is None:
                broken.append(text)
            else:
                first = first or next(iter(row), "")
                found.append(dict(_flat(row)))
        if len(found) + len(broken) >= rows:
            break
    # A column that is there: a format without a header would read on to the end for one that is not.
    types = dict(_types(logs.schema(replace(spec, columns=dict.fromkeys(COLUMNS, first)), file))) if found else {}
    if types and not all(found):
        raise InputError(
            f"{file.uri}: its columns cannot be read, although it says which they are: replace or remove it"
        )
    return Sample(file, format_of(spec, file.uri).name, types, found[:rows], broken)


def profiles(samples: Sequence[Sample], *, until: int, null_texts: Sequence[str] = values.NULL_TEXTS) -> list[Profile]:
    """A profile of every column, in the order of the files. until: Unix second before which all times must be."""
    names = dict.fromkeys(name for part in samples for name in (*part.types, *_keys(part.rows)))
    return [_profile(name, samples, until, null_texts) for name in names]


def _object(text: str) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _flat(row: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, dict) and value and depth < _DEEPEST:
            yield from _flat(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def _types(schema: pa.Schema | None) -> Iterator[tuple[str, str]]:
    """The types that a file says, nested fields by their path. Text formats say none."""
    pending = [(field.name, field.type) for field in schema or ()]
    while pending:
        name, type_ = pending.pop(0)
        if pa.types.is_struct(type_) and type_.num_fields:
            pending = [(f"{name}.{field.name}", field.type) for field in type_] + pending
        elif not pa.types.is_null(type_):
            yield name, str(type_)


def _keys(rows: Iterable[dict[str, Any]]) -> dict[str, None]:
    return {key: None for row in rows for key in row}


def _profile(name: str, samples: Sequence[Sample], until: int, null_texts: Sequence[str]) -> Profile:
    """The profile of one column."""
    having = [part for part in samples if name in part.types or any(name in row for row in part.rows)]
    found = [row.get(name) for part in having for row in part.rows]
    said = dict.fromkeys(part.types[name] for part in having if name in part.types)
    kinds = {type(value) for value in found} - {type(None)}
    column = _array(found)
    text = values.read_column(values.TEXT, column, null_texts=null_texts).values
    there = column.filter(text.is_valid()) if pa.types.is_string(column.type) else column.drop_null()
    if pa.types.is_floating(there.type):
        there = there.filter(pc.is_finite(there))
    nested = bool(kinds & {list, dict, bool})
    whole = values.read_column(values.ID, there, null_texts=null_texts)
    number = values.read_column(values.LENGTH, there, null_texts=null_texts)
    seconds, unit = _times(there, null_texts)
    zoned = (*(kind for kind in said if kind.startswith("timestamp")),)
    counts = {str(pair["values"]): pair["counts"] for pair in pc.value_counts(there).to_pylist()} if len(there) else {}
    least, greatest = _bounds(there, number, seconds, until)
    shown = there.cast(pa.string())
    return Profile(
        name=name,
        types=tuple(said) or _kinds(kinds, {part.format for part in having}),
        files=len(having),
        rows=len(found),
        nulls=len(found) - len(there),
        distinct=len(counts),
        example=str(shown[0].as_py()) if len(shown) else "",
        least=least,
        greatest=greatest,
        as_id=0.0 if nested else _share(whole.bad, there),
        as_time=0.0 if nested else _plausible(seconds, there, until),
        as_length=0.0 if nested else _share(number.bad, there),
        middle=float(np.median(number.values.drop_null().to_numpy())) if number.values.null_count < len(there) else 0.0,
        unit=unit,
        nested=nested,
        lossy=_first(shown, whole.bad, digits=True),
        no_number=_first(shown, whole.bad, digits=False),
        digits=_digits(counts, len(there)),
        zoneless=_zoneless(shown.filter(_inside(seconds, until)), zoned, unit),
        counts=counts if len(counts) <= 50 else {},
    )


def _kinds(kinds: set[type], formats: set[str]) -> tuple[str, ...]:
    """The types of values, in words."""
    if formats == {"csv"} or not kinds:
        return ("text",) if kinds else ("null",)
    names = {int: "integer", float: "number", str: "text", bool: "true/false", list: "list", dict: "object"}
    return tuple(sorted(names.get(kind, kind.__name__) for kind in kinds))


def _array(found: Sequence[Any]) -> pa.Array:
    """Values as a column of numbers if they all are, else of text."""
    kinds = {type(value) for value in found} - {type(None)}
    try:
        if kinds <= {int}:
            return pa.array(found, pa.int64())
        if kinds <= {float}:
            return pa.array(found, pa.float64())
    except OverflowError:
        pass
    return pa.array([None if value is None else _text(value) for value in found], pa.string())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return values.escaped(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, ensure_ascii=True, default=str)


def _times(column: pa.Array, null_texts: Sequence[str]) -> tuple[pa.Array, str]:
    """Unix seconds of a column, null where it has no times; and the unit of numbers, "" if it has none."""
    read = values.read_column(values.TIME, column, null_texts=null_texts).values
    is_text = pa.types.is_string(column.type)
    digits = pc.all(pc.match_substring_regex(column, r"^\s*[+-]?[0-9.]+\s*$")).as_py() if is_text else True
    if not len(column) or not digits:
        return read, ""
    unit = values.unit_of(read.drop_null().to_pylist())
    return values.read_column(values.TIME, column, unit=unit, null_texts=null_texts).values, unit


def _share(bad: np.ndarray | None, column: pa.Array) -> float:
    """The share of values that are not bad; 0 of no values."""
    return float(len(column) and 1 - (0.0 if bad is None else bad.mean()))


def _plausible(seconds: pa.Array, column: pa.Array, until: int) -> float:
    return float((pc.sum(_inside(seconds, until)).as_py() or 0) / max(len(column), 1))


def _inside(seconds: pa.Array, until: int) -> pa.Array:
    """Which times are between 2000 and `until`."""
    return pc.and_(pc.greater_equal(seconds, FIRST_TIME), pc.less(seconds, until)).fill_null(False)


def _bounds(there: pa.Array, number: values.Column, seconds: pa.Array, until: int) -> tuple[str, str]:
    """The least and the greatest value, of times as they are in UTC, of numbers; of neither none."""
    if not len(there):
        return "", ""
    if _plausible(seconds, there, until) >= 0.5:
        bounds = pc.min_max(seconds).as_py()
        return moment(bounds["min"]), moment(bounds["max"])
    if number.bad is not None or number.values.null_count:
        return "", ""
    bounds = pc.min_max(number.values if pa.types.is_string(there.type) else there).as_py()
    return str(bounds["min"]), str(bounds["max"])


def moment(second: int) -> str:
    """A Unix second as text in UTC, also where no calendar has it."""
    try:
        return str(np.datetime64(second, "s")).replace("T", " ")
    except (ValueError, OverflowError):
        return f"{second} s"


def _first(shown: pa.Array, bad: np.ndarray | None, *, digits: bool) -> str:
    """The first bad value that is of digits alone, or is not; "" if there is none."""
    texts = [] if bad is None else shown.filter(pa.array(bad)).to_pylist()
    return next((text for text in texts if bool(_WHOLE.fullmatch(text.strip())) == digits), "")


def _digits(counts: dict[str, int], rows: int) -> float:
    return sum(count for value, count in counts.items() if _WHOLE.fullmatch(value.strip())) / max(rows, 1)


def _zoneless(shown: pa.Array, timestamps: Sequence[str], unit: str) -> str:
    """An example of times without a zone; "" if they have one, or are numbers."""
    if timestamps:
        return str(shown[0].as_py()) if len(shown) and any("tz=" not in type_ for type_ in timestamps) else ""
    if unit:
        return ""
    texts = shown.slice(0, 1000).to_pylist()
    return next((t for t in texts if values.time_seconds(t) is not None and not _ZONE.search(_time_of_day(t))), "")


def _time_of_day(text: str) -> str:
    """A written time without its date, whose last part would look like an offset."""
    return re.sub(r"^\s*\d{4}-\d\d-\d\d", "", text)
