"""The vocabulary: an append-only Delta table that gives every song its row of the item table, for ever.

Indices start at 1 (0 is padding) and are given in item_id order to the songs first seen on a day, after that
day's quality gate. A song that has an index keeps it, so writing a day twice changes nothing.
"""
# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipelines import storage
from pipelines.errors import BusyError, InputError
from pipelines.schema import FIRST_DS, ITEM_ID, ITEM_INDEX, vocabulary_schema

_APPLICATION = "fuxi-vocabulary"


@dataclass(frozen=True)
class Vocabulary:
    """The songs known so far, by ascending item_index."""

    table: pa.Table  # schema.vocabulary_schema
    version: int | None  # Delta version; None before the first day

    def size(self, ds: dt.date | None = None) -> int:
        """Highest index given up to and including a ds (None: ever); 0 if none was."""
        table = self.table if ds is None else self.table.filter(pc.less_equal(self.table[FIRST_DS], ds))
        return int(pc.max(table[ITEM_INDEX]).as_py() or 0)

    def new_on(self, ds: dt.date) -> int:
        """Songs that got their index on a ds."""
        return int(pc.sum(pc.equal(self.table[FIRST_DS], ds)).as_py() or 0)

    def lookup(self, item_ids: pa.Array) -> pa.Table:
        """(item_id, item_index) of the given distinct songs that are known."""
        position = pc.index_in(item_ids, value_set=self.table[ITEM_ID].combine_chunks())
        known = pc.is_valid(position)
        index = self.table[ITEM_INDEX].take(position.filter(known))
        return pa.table({ITEM_ID: item_ids.filter(known), ITEM_INDEX: index})


def version(uri: str) -> int | None:
    """The Delta version of the vocabulary, None before the first day."""
    table = _open(uri)
    return None if table is None else table.version()


def read(uri: str, item_id_type: str) -> Vocabulary:
    """The vocabulary as it is; an empty one before the first day."""
    target = vocabulary_schema(item_id_type)
    delta = _open(uri)
    if delta is None:
        return Vocabulary(target.empty_table(), None)
    table = delta.to_pyarrow_table(columns=target.names).cast(target).sort_by(ITEM_INDEX)
    index = table[ITEM_INDEX].to_numpy()
    if not np.array_equal(index, np.arange(1, len(index) + 1)):
        raise InputError(f"{uri} is broken: item_index is not 1..{len(index)} without gaps; restore an earlier version")
    return Vocabulary(table, delta.version())


def append(uri: str, item_ids: pa.Array, *, ds: dt.date, item_id_type: str, run_id: str) -> Vocabulary:
    """Give an index to the songs that have none, in item_id order; returns the vocabulary afterwards.

    item_ids: distinct songs of a day, no nulls. Raises BusyError if another run extends the vocabulary meanwhile.
    """
    known = read(uri, item_id_type)
    fresh = item_ids.filter(pc.invert(pc.is_in(item_ids, value_set=known.table[ITEM_ID].combine_chunks())))
    if not len(fresh):
        return known
    fresh = fresh.take(pc.array_sort_indices(fresh))
    size = known.size()
    rows = pa.table(
        {
            ITEM_INDEX: np.arange(size + 1, size + 1 + len(fresh), dtype=np.int32),
            ITEM_ID: fresh,
            FIRST_DS: pa.repeat(pa.scalar(ds, pa.date32()), len(fresh)),
        },
        schema=vocabulary_schema(item_id_type),
    )
    # Two appends never conflict in Delta, and these two would give the same indices to different songs. An
    # application transaction with one id for all makes the second of two concurrent commits fail.
    commit = CommitProperties(
        custom_metadata={"ds": str(ds), "run_id": run_id},
        app_transactions=[Transaction(_APPLICATION, size + len(fresh))],
        max_commit_retries=0,
    )
    try:
        if known.version is None:
            write_deltalake(
                uri, rows, mode="error", storage_options=storage.delta_options(uri), commit_properties=commit
            )
        else:
            delta = DeltaTable(uri, version=known.version, storage_options=storage.delta_options(uri))
            write_deltalake(delta, rows, mode="append", commit_properties=commit)
    except (CommitFailedError, DeltaError) as error:
        if version(uri) == known.version:
            raise
        raise BusyError(f"{uri} was extended by another run at the same time ({error}): run again") from None
    return read(uri, item_id_type)


def _open(uri: str) -> DeltaTable | None:
    try:
        return DeltaTable(uri, storage_options=storage.delta_options(uri))
    except TableNotFoundError:
        return None
