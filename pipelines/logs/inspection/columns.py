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
_WHOLE = r"^\s*[+-]?[0-9]+(?:\.0*)?\s*$"
_DIGITS = r"^\s*[+-]?[0-9.]+\s*$"
_PROBE = 1000
"""Distinct values by which a column of text is judged to hold no number, or no time, at all."""
_FEW = 50
"""Distinct values at most of which a profile has the counts."""


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
    nested: bool  # lists, objects, true and false: nothing that is read here
    counts: dict[str, int] = field(default_factory=dict)  # of the values, where there are few
    least: str = ""  # of numbers and times; "" where the order of values says nothing
    greatest: str = ""
    as_id: float = 0.0  # share of the values that are whole numbers without loss
    as_length: float = 0.0  # ... that are numbers
    as_time: float = 0.0  # ... that are times between 2000 and the day behind the last landing day
    middle: float = 0.0  # median of the distinct numbers
    unit: str = ""  # of times that are numbers; "" if they are texts or timestamps
    lossy: str = ""  # a value of digits that is not itself as a whole number of 64 bits, for example 007
    no_number: str = ""  # another value that is no whole number
    digits: float = 0.0  # share of the values that are digits
    zoneless: str = ""  # a time that names no zone

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
        if isinstance(value, dict) and depth < _DEEPEST:
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


@dataclass(frozen=True)
class _Distinct:
    """The distinct values of a column, in the order in which they come, and how often each does."""

    values: pa.Array
    weights: np.ndarray

    @property
    def rows(self) -> int:
        return int(self.weights.sum())

    def share(self, mask: np.ndarray) -> float:
        """The share of rows of whose values a mask is true; 0 of no rows."""
        return float(self.weights[mask].sum() / max(self.rows, 1))

    def first(self, most: int) -> "_Distinct":
        """At most so many distinct values."""
        return _Distinct(self.values.slice(0, most), self.weights[:most])

    @property
    def texts(self) -> pa.Array:
        return self.values.cast(pa.string())


def _profile(name: str, samples: Sequence[Sample], until: int, null_texts: Sequence[str]) -> Profile:
    """The profile of one column."""
    having = [part for part in samples if name in part.types or any(name in row for row in part.rows)]
    found = [row.get(name) for part in having for row in part.rows]
    said = dict.fromkeys(part.types[name] for part in having if name in part.types)
    kinds = {type(value) for value in found} - {type(None)}
    there = _distinct(_array(found), null_texts)
    texts = there.texts
    few = len(texts) <= _FEW
    plain = Profile(
        name=name,
        types=tuple(said) or _kinds(kinds, {part.format for part in having}),
        files=len(having),
        rows=len(found),
        nulls=len(found) - there.rows,
        distinct=len(texts),
        example=str(texts[0].as_py()) if len(texts) else "",
        nested=bool(kinds & {list, dict, bool}),
        counts=dict(zip(texts.to_pylist(), there.weights.tolist(), strict=True)) if few else {},
    )
    if plain.nested or not plain.distinct:
        return plain
    return _as_time(_as_number(plain, there, null_texts), there, until, null_texts)


def _distinct(column: pa.Array, null_texts: Sequence[str]) -> _Distinct:
    """The values of a column without those that stand for none."""
    counted = pc.value_counts(column)
    unique, weights = counted.field("values"), counted.field("counts").to_numpy(zero_copy_only=False)
    kept = unique.is_valid()
    if pa.types.is_string(unique.type):
        kept = values.read_column(values.TEXT, unique, null_texts=null_texts).values.is_valid()
    elif pa.types.is_floating(unique.type):
        kept = pc.is_finite(unique).fill_null(False)
    return _Distinct(unique.filter(kept), weights[kept.to_numpy(zero_copy_only=False)])


def _as_number(profile: Profile, there: _Distinct, null_texts: Sequence[str]) -> Profile:
    """A profile with what the values are as whole numbers and as lengths."""
    whole = values.read_column(values.ID, there.values, null_texts=null_texts)
    digits = pc.match_substring_regex(there.texts, _WHOLE).to_numpy(zero_copy_only=False)
    bad = np.zeros(len(digits), bool) if whole.bad is None else whole.bad
    profile = replace(
        profile,
        as_id=there.share(~bad),
        lossy=_first(there, bad & digits),
        no_number=_first(there, bad & ~digits),
        digits=there.share(digits),
    )
    if _nothing_of(values.LENGTH, there, null_texts):
        return profile
    number = values.read_column(values.LENGTH, there.values, null_texts=null_texts)
    if number.bad is not None or number.values.null_count:
        return replace(profile, as_length=there.share(number.values.is_valid().to_numpy(zero_copy_only=False)))
    bounds = pc.min_max(number.values if pa.types.is_string(there.values.type) else there.values).as_py()
    middle = np.sort(number.values.to_numpy())[len(digits) // 2]
    shown = {"least": str(bounds["min"]), "greatest": str(bounds["max"])}
    return replace(profile, as_length=1.0, middle=float(middle), **shown)


def _as_time(profile: Profile, there: _Distinct, until: int, null_texts: Sequence[str]) -> Profile:
    """A profile with what the values are as times."""
    if _nothing_of(values.TIME, there, null_texts):
        return profile
    seconds, unit = _times(there.values, null_texts)
    plausible = pc.and_(pc.greater_equal(seconds, FIRST_TIME), pc.less(seconds, until)).fill_null(False)
    share = there.share(plausible.to_numpy(zero_copy_only=False))
    profile = replace(profile, as_time=share, unit=unit)
    if share < 0.5:
        return profile
    bounds = pc.min_max(seconds).as_py()
    zoneless = "" if unit else _zoneless(there.texts.filter(plausible), profile.types)
    return replace(profile, zoneless=zoneless, least=moment(bounds["min"]), greatest=moment(bounds["max"]))


def _nothing_of(kind: str, there: _Distinct, null_texts: Sequence[str]) -> bool:
    """Whether none of many values can be read as a kind: texts are tried one by one, which takes its time."""
    if not pa.types.is_string(there.values.type):
        return False
    read = values.read_column(kind, there.first(_PROBE).values, null_texts=null_texts)
    return read.values.null_count == len(read.values)


def _kinds(kinds: set[type], formats: set[str]) -> tuple[str, ...]:
    """The types of values, in words."""
    if formats == {"csv"} or not kinds:
        return ("text",) if kinds else ("null",)
    names = {int: "integer", float: "number", str: "text", bool: "true/false", list: "list", dict: "object"}
    return tuple(sorted(names.get(kind, kind.__name__) for kind in kinds))


def _array(found: Sequence[Any]) -> pa.Array:
    """Values as a column of numbers if they all are, else of text."""
    kinds = {type(value) for value in found} - {type(None)}
    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    try:
        if len(kinds) == 1 and (kind := kinds.pop()) in types:
            return pa.array(found, types[kind])
    except (OverflowError, UnicodeEncodeError):
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
    digits = pc.all(pc.match_substring_regex(column, _DIGITS)).as_py() if is_text else True
    if not len(column) or not digits:
        return read, ""
    unit = values.unit_of(read.drop_null().to_pylist())
    return values.read_column(values.TIME, column, unit=unit, null_texts=null_texts).values, unit


def moment(second: int) -> str:
    """A Unix second as text in UTC, also where no calendar has it."""
    try:
        return str(np.datetime64(second, "s")).replace("T", " ")
    except (ValueError, OverflowError):
        return f"{second} s"


def _first(there: _Distinct, mask: np.ndarray) -> str:
    """The first value of which a mask is true; "" if there is none."""
    return str(there.texts[int(mask.argmax())].as_py()) if mask.any() else ""


def _zoneless(texts: pa.Array, types: Sequence[str]) -> str:
    """An example of times without a zone; "" if they have one."""
    if any(type_.startswith("timestamp") for type_ in types):
        return str(texts[0].as_py()) if any("tz=" not in type_ for type_ in types) else ""
    texts = texts.filter(pc.invert(pc.match_substring_regex(texts, _DIGITS)))
    return next((text for text in texts.slice(0, 1000).to_pylist() if not _ZONE.search(_time_of_day(text))), "")


def _time_of_day(text: str) -> str:
    """A written time without its date, whose last part would look like an offset."""
    return re.sub(r"^\s*\d{4}-\d\d-\d\d", "", text)
