"""CSV with a header. Values are parsed here and not by Arrow, so that a bad one costs its row and not the file."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from pipelines.logs.formats.base import (
    BATCH_ROWS,
    CHUNK_BYTES,
    Format,
    LogSpec,
    RawBatch,
    Split,
    empty_as_null,
    iso_seconds,
    rows_as_json,
)
from pipelines.schema import DURATION_MS, PLAY_MS, REQUIRED_COLUMNS, TIMESTAMP

_INTEGER = r"^(?P<sign>[+-]?)0*(?P<digits>[0-9]{1,19})(?P<rest>)$"
_FRACTION = r"^(?P<sign>[+-]?)0*(?P<digits>[0-9]{1,19})(?P<rest>(?:\.[0-9]*)?)$"
_LARGEST = ("9223372036854775808", "9223372036854775807")  # digits of the least int64 and of the greatest


class Csv(Format):
    """CSV files, compressed or not. Rows that do not split into the header's columns come last, unparseable."""

    name, endings = "csv", (".csv",)

    def columns(self, source: Any) -> pa.Schema:
        """The header's columns."""
        return pa.schema([(name, pa.null()) for name in _header(source)])

    def read(self, spec: LogSpec, source: Any, split: Split) -> Iterator[RawBatch]:
        """All rows of a file."""
        with self.open(split.file.uri) as beginning:
            names = _header(beginning)
        unsplit: list[str] = []

        def keep(row: Any) -> str:
            unsplit.append(row.text)
            return "skip"

        convert = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        )
        batches = pa_csv.open_csv(
            source,
            read_options=pa_csv.ReadOptions(block_size=CHUNK_BYTES),
            parse_options=pa_csv.ParseOptions(invalid_row_handler=keep),
            convert_options=convert,
        )
        for batch in batches:
            yield _parsed(spec, batch)
        for start in range(0, len(unsplit), BATCH_ROWS):
            yield _unparsed(spec, unsplit[start : start + BATCH_ROWS])


def _header(stream: Any) -> list[str]:
    """The column names in the first line."""
    head = b""
    while b"\n" not in head and (chunk := stream.read(65_536)):
        head += chunk
    if not head.strip():
        raise pa.ArrowInvalid("the file is empty, not even a header")
    return pa_csv.read_csv(io.BytesIO(head.split(b"\n")[0] + b"\n")).column_names


def _parsed(spec: LogSpec, batch: pa.RecordBatch) -> RawBatch:
    columns, unparseable = {}, np.zeros(batch.num_rows, bool)
    for name, column in spec.mapped(batch.schema.names).items():
        values, bad = _text(batch[column])
        if not pa.types.is_string(spec.type_of(name)):
            values, bad_number = _numbers(values, times=name == TIMESTAMP, fractions=name in (PLAY_MS, DURATION_MS))
            bad = bad | bad_number
        columns[name], unparseable = values, unparseable | bad
    return RawBatch(columns, unparseable, rows_as_json(batch))


def _unparsed(spec: LogSpec, texts: list[str]) -> RawBatch:
    columns = {name: pa.nulls(len(texts), spec.type_of(name)) for name in REQUIRED_COLUMNS}
    return RawBatch(columns, np.ones(len(texts), bool), lambda positions: [texts[p] for p in positions])


def _text(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Binary as trimmed UTF-8, null where empty; and where it is not UTF-8, bool."""
    bad = np.zeros(len(column), bool)
    try:
        text = column.cast(pa.string())
    except pa.ArrowInvalid:
        values: list[str | None] = []
        for position, value in enumerate(column.to_pylist()):
            try:
                values.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                values.append(None)
                bad[position] = True
        text = pa.array(values, pa.string())
    return empty_as_null(pc.utf8_trim_whitespace(text)), bad


def _numbers(text: pa.Array, *, times: bool, fractions: bool) -> tuple[pa.Array, np.ndarray]:
    """int64 parsed from text, and where the text is not a number, bool.

    times: ISO times are read as well. fractions: they are allowed and rounded down, as in the other formats.
    """
    matched = pc.extract_regex(text, _FRACTION if fractions else _INTEGER)
    sign, digits, rest = (pc.struct_field(matched, group) for group in ("sign", "digits", "rest"))
    negative = pc.equal(sign, "-")
    largest = pc.if_else(negative, _LARGEST[0], _LARGEST[1])
    # Digits of equal length sort as the numbers do.
    fits = pc.or_(pc.less(pc.utf8_length(digits), len(_LARGEST[1])), pc.less_equal(digits, largest))
    whole = pc.binary_join_element_wise(pc.if_else(negative, "-", ""), digits, "")
    numbers = pc.if_else(fits, whole, pa.scalar(None, pa.string())).cast(pa.int64())
    if fractions:
        down = pc.and_(negative, pc.match_substring_regex(rest, "[1-9]"))
        numbers = pc.if_else(down.fill_null(False), pc.subtract(numbers, 1), numbers)
    bad = pc.and_(pc.is_valid(text), pc.is_null(numbers)).to_numpy(zero_copy_only=False)
    if times and bad.any():
        values = numbers.to_pylist()
        for position in np.flatnonzero(bad):
            values[position] = iso_seconds(text[int(position)].as_py())
            bad[position] = values[position] is None
        numbers = pa.array(values, pa.int64())
    return numbers, bad


FORMAT = Csv()
