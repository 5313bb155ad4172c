"""The listeners to be forgotten: which rows are theirs, and which of them were found anywhere."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.forget.redact import as_ids
from pipelines.histories.buckets import user_bucket
from pipelines.schema import USER_ID

DayLock = Callable[[dt.date], contextlib.AbstractContextManager[object]]
"""Locks a ds against every other run while something of it is replaced."""


@dataclass(frozen=True)
class Matches:
    """What was found to hold the listeners: files, and rows in them (None where rows are not counted)."""

    files: int = 0
    rows: int | None = 0

    def __add__(self, other: "Matches") -> "Matches":
        rows = None if self.rows is None or other.rows is None else self.rows + other.rows
        return Matches(self.files + other.files, rows)


class ListenersToForget:
    """Some user ids, and for each whether it was found by any of the methods below."""

    def __init__(self, ids: pa.Array):
        self.ids = ids.unique()
        self.found = np.zeros(len(self.ids), bool)
        self._place_in_found = np.arange(len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def user_id_type(self) -> str:
        """ "int64" or "string"."""
        return "int64" if pa.types.is_integer(self.ids.type) else "string"

    def by_bucket(self, buckets: int) -> "dict[int, ListenersToForget]":
        """The listeners of each bucket that has any; they share `found` with these."""
        bucket = user_bucket(self.ids, buckets) if len(self) else np.zeros(0, np.int32)
        order = np.argsort(bucket, kind="stable")
        numbers, starts = np.unique(bucket[order], return_index=True)
        parts = {}
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=False):
            parts[number] = part = ListenersToForget(self.ids.take(pa.array(places)))
            part.found, part._place_in_found = self.found, self._place_in_found[places]
        return parts

    def mask(self, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Which rows are theirs, bool."""
        place = pc.index_in(column, value_set=self.ids)
        place = place.combine_chunks() if isinstance(place, pa.ChunkedArray) else place
        theirs = place.is_valid().to_numpy(zero_copy_only=False)
        if theirs.any():
            self._mark_found(place.drop_null().to_numpy())
        return theirs

    def rows_in(self, file: pq.ParquetFile, groups: Iterable[int] | None = None) -> int:
        """How many rows of a file are theirs, 0 without a user_id. groups: the row groups to read, default all."""
        if USER_ID not in file.schema_arrow.names:
            return 0
        groups = range(file.num_row_groups) if groups is None else groups
        return sum(int(self.mask(file.read_row_group(group, [USER_ID])[USER_ID]).sum()) for group in groups)

    def any_of(self, users: Iterable[int | str]) -> bool:
        """Whether one of some ids is theirs."""
        places = [self._place[user] for user in users if user in self._place]
        self._mark_found(np.array(places, np.int64))
        return bool(places)

    def named_by(self, token: str) -> bool:
        """Whether a token of a text is one of their ids."""
        return self.any_of(as_ids(token, self.user_id_type))

    @cached_property
    def _place(self) -> dict[int | str, int]:
        return {user: place for place, user in enumerate(self.ids.to_pylist())}

    def _mark_found(self, places: np.ndarray) -> None:
        self.found[self._place_in_found[places]] = True
