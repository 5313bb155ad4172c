"""Lines of text files in blocks of Arrow columns: every line is accounted for, the ones that do not fit one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from pipelines.imports.dataset import Rejected
from pipelines.logs.formats.values import escaped, utf8

BLOCK_BYTES = 32 << 20
MALFORMED, NOT_UTF8 = "malformed_line", "not_utf8"
_NOT_IN_TEXT = "\x01"


@dataclass(frozen=True)
class Lines:
    """Some lines of a file. number: of the first, from 1."""

    number: int
    text: pa.Array  # string, which may not be valid UTF-8


def read_lines(stream: Any) -> Iterator[Lines]:
    """The lines of a stream of bytes, in blocks that are the same each time. Empty lines count. No line may be longer
    than a block: that is an error of Arrow, as is a file that is cut off.
    """
    whole_line = pa_csv.ParseOptions(delimiter=_NOT_IN_TEXT, quote_char=False, ignore_empty_lines=False)
    as_text = pa_csv.ConvertOptions(column_types={"line": pa.string()}, strings_can_be_null=False, check_utf8=False)
    reading = pa_csv.ReadOptions(column_names=["line"], block_size=BLOCK_BYTES, use_threads=False)
    number = 1
    try:
        reader = pa_csv.open_csv(stream, reading, whole_line, as_text)
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return
        raise
    for batch in reader:
        if len(batch):
            yield Lines(number, batch.column(0))
        number += len(batch)


def columns_of(lines: Lines, names: Sequence[str], separator: str = "\t") -> tuple[pa.Table, list[Rejected]]:
    """Lines as columns of text, and `line`, the number of each; lines of another number of cells apart.

    A table has the columns of `names` and `line` (int64). Nothing is quoted. Lines that are empty are left out.
    """
    valid, rejected = _valid_utf8(lines)
    text = pc.utf8_rtrim(lines.text.filter(pa.array(valid)), characters="\r")
    numbers = lines.number + np.flatnonzero(valid)
    cells = pc.split_pattern(text, separator)
    fits = pc.equal(pc.list_value_length(cells), len(names)).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(~fits).tolist():
        if len(text[row].as_py()):
            rejected.append(Rejected(MALFORMED, f"line {numbers[row]}", text[row].as_py()))
    cells = cells.filter(pa.array(fits))
    columns = {name: pc.list_element(cells, place) for place, name in enumerate(names)}
    return pa.table({**columns, "line": pa.array(numbers[fits], pa.int64())}), rejected


def _valid_utf8(lines: Lines) -> tuple[np.ndarray, list[Rejected]]:
    """bool: which lines are UTF-8; and those that are not."""
    _, bad = utf8(lines.text)
    if bad is None:
        return np.ones(len(lines.text), bool), []
    content = lines.text.cast(pa.binary())
    rows = np.flatnonzero(bad).tolist()
    return ~bad, [Rejected(NOT_UTF8, f"line {lines.number + row}", escaped(content[row].as_py())) for row in rows]


def whole_numbers(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Text as int64, null where it is no whole number."""
    text = pc.ascii_trim_whitespace(column)
    fits = pc.match_substring_regex(text, "^-?[0-9]{1,18}$")
    return pc.cast(pc.if_else(fits, text, pa.scalar(None, pa.string())), pa.int64())


def or_null(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Text without blanks around it, null where it is empty."""
    text = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def unix_seconds(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """ISO 8601 texts (T or a blank between, Z or no zone) as Unix seconds, UTC; null where a text is none."""
    text = pc.utf8_slice_codeunits(pc.replace_substring(pc.ascii_trim_whitespace(column), "T", " "), 0, 19)
    text = pc.if_else(pc.equal(pc.utf8_length(text), 16), pc.binary_join_element_wise(text, ":00", ""), text)
    return pc.cast(pc.strptime(text, format="%Y-%m-%d %H:%M:%S", unit="s", error_is_null=True), pa.int64())
