"""One reading of values for every format: what a number, a text, a time or a null of a log becomes.

A format hands over columns as its files have them (bytes in CSV, Python values in JSON, typed columns in Parquet).
docs/own-logs.md has the table of what each value becomes, which a test compares with `read_column`.
"""

import datetime as dt
import email.utils
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NULL_TEXTS = ("", "\\N", "NULL", "null", "nan", "NaN")
"""Texts that stand for no value unless `logs.csv.null_values` says otherwise."""

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Ticks a second, by the value of `logs.timestamp_unit`."""
_LARGEST_OF_UNIT = ((10**11, "s"), (10**14, "ms"), (10**17, "us"))  # 10**11 s is the year 5138

ID, TEXT, LABEL, TIME, LENGTH = "id", "text", "label", "time", "length"
"""What a column holds: whole numbers, texts, texts or truth values, moments (Unix seconds), or milliseconds."""

EXPECTED = {
    ID: "whole numbers",
    TEXT: "texts",
    LABEL: "texts, whole numbers, or true and false",
    TIME: "times: numbers since 1970, timestamps or ISO 8601 texts",
    LENGTH: "numbers",
}
"""What a kind of column is to hold, in messages."""

_NUMBER = r"^(?P<sign>[+-]?)(?P<zeros>0*)(?P<digits>[0-9]{1,19})(?P<rest>(?:\.[0-9]*)?)$"
_FRACTION = r"^[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"
_LARGEST = ("9223372036854775808", "9223372036854775807")  # digits of the least int64 and of the greatest
_PLAIN_TIME = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z| UTC)?$"
_EXACT_FLOAT = 2.0**53


@dataclass(frozen=True)
class Column:
    """A column in our type. Nulls where a row has no value, and where `bad` says that it cannot be read."""

    values: pa.Array  # string for TEXT and LABEL, else int64
    bad: np.ndarray | None  # bool, a row each; None: every value could be read


def accepts(kind: str, type_: pa.DataType) -> bool:
    """Whether values of an Arrow type can be read as a kind of column at all."""
    type_ = _plain(type_)
    if pa.types.is_null(type_) or pa.types.is_integer(type_) or _is_text(type_) or pa.types.is_decimal(type_):
        return True
    if pa.types.is_floating(type_):
        return True
    if pa.types.is_boolean(type_):
        return kind == LABEL
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return kind == TIME
    return pa.types.is_duration(type_) and kind == LENGTH


def read_column(kind: str, column: pa.Array, *, unit: str = "s", null_texts: Sequence[str] = NULL_TEXTS) -> Column:
    """A column of an accepted type as one of the kinds. unit: what one tick of a TIME that is a number is.

    A value counts only where nothing is lost: 12.0 and "12" are the whole number 12, "007" and 12.5 are none. Fractions
    of times and lengths are rounded down; NaN and infinity are no values. A LABEL is a TEXT that may be true or false.
    """
    if pa.types.is_dictionary(column.type):
        return _of_dictionary(kind, column, unit, null_texts)
    if kind == LABEL:
        kind, column = TEXT, column.cast(pa.string()) if pa.types.is_boolean(column.type) else column
    if isinstance(column.type, pa.BaseExtensionType):
        column = _uuid_texts(column) if column.type.extension_name == "arrow.uuid" else column.storage
    if pa.types.is_null(column.type):
        return Column(pa.nulls(len(column), pa.string() if kind == TEXT else pa.int64()), None)
    if _is_text(column.type):
        text, bad = _texts(column, null_texts)
        return Column(text, bad) if kind == TEXT else _both(bad, _parsed(kind, text, unit))
    return _of_numbers(kind, column, unit)


def _of_numbers(kind: str, column: pa.Array, unit: str) -> Column:
    """`read_column` of numbers, times and durations."""
    if pa.types.is_timestamp(column.type):
        return Column(_seconds(column), None)
    if pa.types.is_date(column.type):
        return Column(_seconds(column.cast(pa.timestamp("s"))), None)
    if pa.types.is_duration(column.type):
        column = pc.multiply(column.cast(pa.int64()).cast(pa.float64(), safe=False), 1000 / UNITS[column.type.unit])
    if kind == TEXT and pa.types.is_integer(column.type):
        return Column(column.cast(pa.string()), None)
    whole = _whole(column, exact=kind in (ID, TEXT))
    if kind == TEXT:
        return Column(whole.values.cast(pa.string()), whole.bad)
    return Column(_floor_divide(whole.values, UNITS[unit]), whole.bad) if kind == TIME else whole


def unit_of(numbers: Sequence[int]) -> str:
    """The unit of most of these times, by their size: from seconds (below 10^11) to nanoseconds.

    >>> unit_of([1_772_452_800_000, 1_772_452_800_001, 5]), unit_of([])
    ('ms', 's')
    """
    if not len(numbers):
        return "s"
    middle = sorted(abs(int(number)) for number in numbers)[len(numbers) // 2]
    return next((unit for bound, unit in _LARGEST_OF_UNIT if middle < bound), "ns")


def time_seconds(text: str) -> int | None:
    """Unix seconds, rounded down, of a written time; UTC unless it says otherwise; None if it is not one.

    ISO 8601 with a blank or a T, fractions after a point or a comma, offsets, Z, UTC or GMT in any case, a zone's name
    in brackets; the same with slashes; RFC 2822 and "1 Mar 2026, 10:00". A date alone is its midnight.
    """
    text = re.sub(r"\[[\w/+-]+\]$", "", text.strip())
    text = re.sub(r"\s*(?:utc|gmt|z)$", "Z", text, flags=re.IGNORECASE)
    text = re.sub(r"^(\d{4})/(\d\d)/(\d\d)", r"\1-\2-\3", text)
    try:
        moment = _written_time(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() // 1)
    except (ValueError, OverflowError):
        return None


def _written_time(text: str) -> dt.datetime:
    """A time in one of the forms of `time_seconds`. Raises ValueError."""
    if "," in text[:4] or " " in text[:3]:  # Sun, 1 Mar 2026 10:00:00 +0000; 1 Mar 2026, 10:00
        text = text.replace("Z", " +0000")
        if re.fullmatch(r"(?:\w{3}, )?\d\d? \w{3} \d{4} \d\d:\d\d(?::\d\d)?(?: [+-]\d{4})?", text):
            return email.utils.parsedate_to_datetime(text)
        return dt.datetime.strptime(text, "%d %b %Y, %H:%M")
    return dt.datetime.fromisoformat(text)


def escaped(value: bytes | str) -> str:
    """Text that can be stored and shown: bytes that are not UTF-8, and unpaired surrogates, are escaped.

    >>> escaped(b"Caf\\xe9"), escaped("\\ud83d")
    ('Caf\\\\xe9', '\\\\ud83d')
    """
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value.encode(errors="backslashreplace").decode()


def utf8(column: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """Text of any Arrow type as string, null where it is not UTF-8; and where that is, None if nowhere."""
    raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
    try:
        return raw.cast(pa.string()), None
    except pa.ArrowInvalid:
        bad = np.zeros(len(column), bool)
        values: list[str | None] = []
        for position, value in enumerate(raw.to_pylist()):
            try:
                values.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                values.append(None)
                bad[position] = True
        return pa.array(values, pa.string()), bad


def shown_text(column: pa.Array) -> pa.Array:
    """Text of any Arrow type for people to read: trimmed, what is not UTF-8 escaped, null where it is empty or \\N."""
    text, bad = utf8(column)
    if bad is not None:
        raw = column.cast(pa.binary()).to_pylist()
        text = pa.array([None if value is None else escaped(value) for value in raw], pa.string())
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.is_in(text, value_set=pa.array(["", "\\N"])), pa.scalar(None, pa.string()), text)


def typed(text: pa.Array) -> pa.Array:
    """Text as whole numbers, fractions or true and false if every value is exactly one, else as it is."""
    if text.null_count == len(text):
        return text
    whole = read_column(ID, text, null_texts=())
    if whole.bad is None:
        return whole.values
    for pattern, kind in ((_FRACTION, pa.float64()), (r"(?i)^(?:true|false)$", pa.bool_())):
        if pc.all(pc.match_substring_regex(text, pattern)).as_py():
            return pc.utf8_lower(text).cast(kind)
    return text


def _plain(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return pa.string() if isinstance(type_, pa.BaseExtensionType) else type_


def _is_text(type_: pa.DataType) -> bool:
    is_kind = pa.types
    return (
        is_kind.is_string(type_)
        or is_kind.is_large_string(type_)
        or is_kind.is_string_view(type_)
        or is_kind.is_binary(type_)
        or is_kind.is_large_binary(type_)
        or is_kind.is_binary_view(type_)
        or is_kind.is_fixed_size_binary(type_)
    )


def _of_dictionary(kind: str, column: pa.DictionaryArray, unit: str, null_texts: Sequence[str]) -> Column:
    """The distinct values are read once."""
    read = read_column(kind, column.dictionary, unit=unit, null_texts=null_texts)
    bad = None
    if read.bad is not None:
        bad = pa.array(read.bad).take(column.indices).fill_null(False).to_numpy(zero_copy_only=False)
    return Column(read.values.take(column.indices), bad)


def _uuid_texts(column: pa.ExtensionArray) -> pa.Array:
    raw = [None if value is None else value.hex() for value in column.storage.to_pylist()]
    parts = [value and "-".join((value[:8], value[8:12], value[12:16], value[16:20], value[20:])) for value in raw]
    return pa.array(parts, pa.string())


def _texts(column: pa.Array, null_texts: Sequence[str]) -> tuple[pa.Array, np.ndarray | None]:
    """Text without surrounding blanks, null where it stands for no value; and where it is not UTF-8."""
    text, bad = utf8(column)
    text = pc.utf8_trim_whitespace(text)
    if null_texts:
        no_value = pc.is_in(text, value_set=pa.array(sorted({*null_texts, ""}), pa.string()))
        text = pc.if_else(no_value, pa.scalar(None, pa.string()), text)
    return text, bad


def _parsed(kind: str, text: pa.Array, unit: str) -> Column:
    """int64 parsed from text that is not bad."""
    matched = pc.extract_regex(text, _NUMBER)
    sign, zeros, digits, rest = (pc.struct_field(matched, name) for name in ("sign", "zeros", "digits", "rest"))
    negative = pc.equal(sign, "-")
    largest = pc.if_else(negative, _LARGEST[0], _LARGEST[1])
    # Digits of equal length sort as the numbers do.
    good = pc.or_(pc.less(pc.utf8_length(digits), len(_LARGEST[1])), pc.less_equal(digits, largest))
    fraction = pc.match_substring_regex(rest, "[1-9]")
    if kind == ID:
        good = pc.and_(good, pc.and_(pc.equal(zeros, ""), pc.invert(fraction)))
    whole = pc.binary_join_element_wise(pc.if_else(negative, "-", ""), digits, "")
    numbers = pc.if_else(good, whole, pa.scalar(None, pa.string())).cast(pa.int64())
    if kind != ID:
        down = pc.and_(negative, fraction).fill_null(False)
        if pc.any(down).as_py():
            numbers = pc.if_else(down, pc.subtract(numbers, 1), numbers)
    if kind == TIME:
        numbers = _floor_divide(numbers, UNITS[unit])
    left = pc.and_(pc.is_valid(text), pc.is_null(numbers))
    if not pc.any(left).as_py():
        return Column(numbers, None)
    if kind == ID:
        return Column(numbers, left.to_numpy(zero_copy_only=False))
    return _parsed_one_by_one(kind, text, numbers, left.to_numpy(zero_copy_only=False), unit)


def _parsed_one_by_one(kind: str, text: pa.Array, numbers: pa.Array, left: np.ndarray, unit: str) -> Column:
    """The rest of `_parsed`: written times, exponents and infinity, the values `left`."""
    places = pa.array(np.flatnonzero(left))
    values = text.take(places)
    if kind == TIME and pc.all(pc.match_substring_regex(values, _PLAIN_TIME)).as_py():
        try:
            bare = pc.replace_substring_regex(values, r"(?:Z| UTC)$", "")
            found = _seconds(bare.cast(pa.timestamp("us")))
            return Column(pc.replace_with_mask(numbers, pa.array(left), found), None)
        except pa.ArrowInvalid:
            pass  # a 30th of February among them
    read = [_other_number(value, UNITS[unit] if kind == TIME else 1) for value in values.to_pylist()]
    if kind == TIME:
        times = zip(read, values.to_pylist(), strict=True)
        read = [time_seconds(value) if number is None else number for number, value in times]
    found = pa.array([None if number is _NOTHING else number for number in read], pa.int64())
    bad = np.zeros(len(text), bool)
    bad[np.flatnonzero(left)] = [number is None for number in read]
    return Column(pc.replace_with_mask(numbers, pa.array(left), found), bad if bad.any() else None)


_NOTHING = object()


def _other_number(text: str, divisor: int) -> "int | object | None":
    """A number with an exponent, divided and rounded down; `_NOTHING` for infinity, None if it is no number."""
    if re.fullmatch(r"[+-]?(?:inf|infinity|nan)", text, re.IGNORECASE):
        return _NOTHING
    if not re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", text):
        return None
    try:
        value = Decimal(text)
        if abs(value) >= 2**63 * divisor:
            return None
        number = int((value / divisor).to_integral_value(rounding="ROUND_FLOOR"))
    except (InvalidOperation, ValueError):
        return None
    return number if -(2**63) <= number < 2**63 else None


def _whole(column: pa.Array, *, exact: bool) -> Column:
    """A column of numbers as int64. exact: a fraction, or a float too large to be exact, is bad; else rounded down."""
    if pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
        numbers = column.to_numpy(zero_copy_only=False)
        there = np.isfinite(numbers) & column.is_valid().to_numpy(zero_copy_only=False)
        down = np.floor(np.where(there, numbers, 0.0))
        largest = _EXACT_FLOAT if exact else 2.0**63
        bad = there & (np.abs(down) >= largest)
        if exact:
            bad |= there & (down != numbers)
        filled = np.where(there & ~bad, down, 0.0).astype(np.int64)
        return Column(pa.array(filled, mask=~(there & ~bad)), bad if bad.any() else None)
    if pa.types.is_decimal(column.type):
        down = pc.floor(column)
        bad = _true(pc.not_equal(down, column)) if exact else np.zeros(len(column), bool)
        return _in_range(down, bad)
    if column.type == pa.uint64():
        return _in_range(column, np.zeros(len(column), bool))
    return Column(column.cast(pa.int64()), None)


def _in_range(column: pa.Array, bad: np.ndarray) -> Column:
    """Whole numbers as int64, null where they are bad or do not fit."""
    try:
        values = column.cast(pa.int64())
    except pa.ArrowInvalid:
        numbers = [None if value is None else int(value) for value in column.to_pylist()]
        outside = np.array([value is not None and not -(2**63) <= value < 2**63 for value in numbers], bool)
        bad = bad | outside
        kept = [None if out else value for value, out in zip(numbers, outside, strict=True)]
        values = pa.array(kept, pa.int64())
    if not bad.any():
        return Column(values, None)
    return Column(pc.if_else(pa.array(bad), pa.scalar(None, pa.int64()), values), bad)


def _seconds(column: pa.Array) -> pa.Array:
    """Unix seconds of a timestamp column, rounded down."""
    return _floor_divide(column.cast(pa.int64()), UNITS[column.type.unit])


def _floor_divide(numbers: pa.Array, divisor: int) -> pa.Array:
    if divisor == 1:
        return numbers
    quotient = pc.divide(numbers, divisor)  # towards zero
    below = pc.less(pc.subtract(numbers, pc.multiply(quotient, divisor)), 0)
    if not pc.any(below).as_py():
        return quotient
    return pc.if_else(below, pc.subtract(quotient, 1), quotient)


def _true(mask: pa.Array) -> np.ndarray:
    return mask.fill_null(False).to_numpy(zero_copy_only=False)


def _both(bad: np.ndarray | None, column: Column) -> Column:
    """A column with more rows that are bad."""
    if bad is None:
        return column
    return Column(column.values, bad if column.bad is None else bad | column.bad)
