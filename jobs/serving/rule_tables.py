"""Reads the tables that an operator gives to list rules: feedback, segments of listeners, blocked and allowed songs.

They are Delta tables, or files or folders in a format of the catalogue. A row that cannot be used is counted with its
reason; a table with too many of them is refused.
"""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.runtime.console import log
from pipelines import delta_tables, storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.logs.formats import read_small
from pipelines.logs.formats.values import time_seconds
from pipelines.schema import ARTIST_ID, ITEM_ID


@dataclass
class RuleTable:
    """The rows of a table that can be used so far, and how many could not."""

    setting: str  # for example rules.feedback
    uri: str
    rows: pa.Table
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    total: int = 0

    def __post_init__(self) -> None:
        self.total = self.rows.num_rows

    def reject(self, bad: pa.Array | np.ndarray, reason: str, column: str) -> None:
        """Drop the rows of a mask. reason: without values, which go into the example of the first row."""
        mask = np.asarray(bad, bool)
        if not mask.any():
            return
        self.rejected[reason] += int(mask.sum())
        value = self.rows[column][int(mask.argmax())].as_py()
        self.examples.setdefault(reason, f"{column} {value!r}")
        self.rows = self.rows.filter(pa.array(~mask))

    def finish(self, most: float) -> None:
        """Log what was rejected. InputError if that is more than a share `most` of the rows."""
        if not self.rejected:
            return
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.most_common())
        worst = self.rejected.most_common(1)[0][0]
        if sum(self.rejected.values()) > most * self.total:
            raise InputError(
                f"{self.setting}: {self.uri}: {sum(self.rejected.values()):,} of {self.total:,} rows cannot be used "
                f"({reasons}; for example {self.examples[worst]}): correct the table, or raise "
                f"rules.max_rejected_share ({most})"
            )
        log(f"{self.setting}: rows passed over", table=self.uri, reasons=reasons, of=self.total)

    def use_ids(self, column: str, type: pa.DataType) -> None:
        """Cast a column of ids; rows with an id of another kind are rejected, nulls stay."""
        self._replace(column, *_as_ids(self.rows[column].combine_chunks(), type), f"with a {column} that is no {type}")

    def use_times(self, column: str, calendar: Calendar) -> None:
        """Turn a column into Unix seconds; nulls stay. Dates are the first second of the day."""
        values, bad = as_seconds(self.rows[column].combine_chunks(), calendar)
        self._replace(column, values, bad, f"with {column} that is no time")

    def use_words(self, column: str, words: Sequence[str]) -> None:
        """Keep the rows whose value is one of some words."""
        texts = _texts(self.rows[column])
        self.rows = self.rows.set_column(self.rows.column_names.index(column), column, texts)
        known = pc.fill_null(pc.is_in(texts, pa.array(list(words))), False)
        self.reject(pc.invert(known), f"with a {column} other than {' or '.join(words)}", column)

    def need_one_of(self, *columns: str) -> None:
        """Reject rows in which all of some columns are null."""
        empty = np.logical_and.reduce([np.asarray(pc.is_null(self.rows[name])) for name in columns])
        self.reject(empty, f"with neither {' nor '.join(columns)}", columns[0])

    def _replace(self, column: str, values: pa.Array, bad: np.ndarray, reason: str) -> None:
        self.reject(bad, reason, column)
        place = self.rows.column_names.index(column)
        self.rows = self.rows.set_column(place, column, values.filter(pa.array(~bad)))


def read_rule_table(setting: str, uri: str, required: Sequence[str], optional: Sequence[str]) -> RuleTable:
    """Read some columns; optional ones that are missing are null. InputError if it cannot be read or lacks a column."""
    uri = storage.absolute(uri)
    try:
        rows = _read(uri, [*required, *optional])
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{setting}: {uri} cannot be read ({' '.join(str(error).split())}): correct it") from None
    if missing := [name for name in required if name not in rows.column_names]:
        has = ", ".join(rows.column_names) or "none of its columns"
        raise InputError(f"{setting}: {uri} lacks the column {', '.join(missing)}: it has {has}")
    for name in optional:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows))
    return RuleTable(setting, uri, rows)


def _read(uri: str, columns: list[str]) -> pa.Table:
    if storage.exists(storage.join(uri, "_delta_log")):
        table = delta_tables.open_table(uri)
        assert table is not None
        data = table.to_pyarrow_dataset()
        return data.to_table(columns=[name for name in columns if name in data.schema.names])
    infos = storage.file_infos([uri])
    files = [info for info in infos if info] or storage.list_files(uri)
    if not files:
        raise FileNotFoundError("there is no such file or folder")
    return pa.concat_tables([read_small(file.uri, columns) for file in files], promote_options="permissive")


def _texts(values: pa.ChunkedArray) -> pa.Array:
    """Values as text, null where they cannot be."""
    try:
        return values.combine_chunks().cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(len(values), pa.string())


@dataclass(frozen=True)
class Named:
    """Finds the songs and artists that rows name. Names of artists are compared as text: 7 is "7"."""

    item_ids: pa.Array  # of the songs 1..V
    artist_ids: Sequence[object]  # of the artists 1..

    def songs(self, rows: pa.Table) -> np.ndarray:
        """Item index of each row's item_id, 0 for null and for songs that nobody has played. int64."""
        return self._places(rows[ITEM_ID], self.item_ids)

    def artists(self, rows: pa.Table) -> np.ndarray:
        """Number of each row's artist_id, 0 for null and for artists of no song. int64."""
        names = pa.array([str(name) for name in self.artist_ids], pa.string())
        return self._places(_texts(rows[ARTIST_ID]), names)

    def _places(self, values: pa.Array | pa.ChunkedArray, among: pa.Array) -> np.ndarray:
        places = pc.index_in(values, value_set=among)
        return np.asarray(pc.fill_null(places, -1).to_numpy(), np.int64) + 1


def _as_ids(values: pa.Array, type: pa.DataType) -> tuple[pa.Array, np.ndarray]:
    """Values as ids, null where that is impossible, and where it is. Whole floats are numbers, as pandas has them."""
    if pa.types.is_null(values.type):
        return values.cast(type), np.zeros(len(values), bool)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(type) and (pa.types.is_integer(values.type) or pa.types.is_large_string(values.type)):
        values = values.cast(type)
    elif pa.types.is_integer(type) and pa.types.is_floating(values.type):
        values = pc.if_else(pc.equal(values, pc.floor(values)), values, None).cast(type, safe=False)
    elif pa.types.is_integer(type) and (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        number = pc.match_substring_regex(values, r"^\s*-?[0-9]{1,18}\s*$")
        bad = np.asarray(pc.fill_null(pc.invert(number), False))
        return pc.utf8_trim_whitespace(pc.if_else(number, values, None)).cast(type), bad
    there = np.asarray(pc.is_valid(values))
    try:
        return values.cast(type), there & False
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(len(values), type), there


def as_seconds(values: pa.Array, calendar: Calendar) -> tuple[pa.Array, np.ndarray]:
    """Dates (their 00:00), timestamps, Unix seconds or ISO texts as Unix seconds, and which cannot be read so."""
    there = np.asarray(pc.is_valid(values))
    if pa.types.is_null(values.type) or pa.types.is_integer(values.type):
        return values.cast(pa.int64()), there & False
    if pa.types.is_timestamp(values.type):
        return values.cast(pa.timestamp("s", values.type.tz), safe=False).cast(pa.int64()), there & False
    if pa.types.is_date(values.type) or pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        distinct = {value: _seconds(value, calendar) for value in pc.unique(values).to_pylist()}
        read = pa.array([distinct[value] for value in values.to_pylist()], pa.int64())
        return read, there & ~np.asarray(pc.is_valid(read))
    return pa.nulls(len(values), pa.int64()), there


def _seconds(value: Any, calendar: Calendar) -> int | None:
    if isinstance(value, str):
        try:
            value = dt.date.fromisoformat(value)
        except ValueError:
            return time_seconds(value)
    return None if value is None else calendar.day_start(value)
