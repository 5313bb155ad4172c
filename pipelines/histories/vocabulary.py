"""The vocabulary: an append-only Delta table that gives every song its row of the item table, for ever.

Indices start at 1 (0 is padding) and are given in item_id order to the songs first seen on a day, after that
day's quality gate. A song that has an index keeps it, so writing a day twice changes nothing.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import delta_tables
from pipelines.errors import BusyError, InputError
from pipelines.schema import DS, FIRST_DS, ITEM_ID, ITEM_INDEX, vocabulary_rows, vocabulary_table

_APPLICATION = "fuxi-vocabulary"
_ATTEMPTS = 5


@dataclass(frozen=True)
class Vocabulary:
    """The songs known so far, by ascending item_index."""

    table: pa.Table  # schema.vocabulary_table
    version: int | None  # Delta version; None before the first day

    def size(self, ds: dt.date | None = None) -> int:
        """Highest index given up to and including a ds (None: ever); 0 if none was."""
        table = self.table if ds is None else self.table.filter(pc.less_equal(self.table[FIRST_DS], ds))
        return int(pc.max(table[ITEM_INDEX]).as_py() or 0)

    def digest(self, size: int) -> str:
        """SHA-256 of the songs 1..size: ids and days, which never change, however the table's files are arranged."""
        songs, found = self.table.slice(0, size), hashlib.sha256()
        found.update(songs[FIRST_DS].cast(pa.int32()).to_numpy().astype("<i4").tobytes())
        if pa.types.is_integer(songs[ITEM_ID].type):
            found.update(songs[ITEM_ID].to_numpy().astype("<i8").tobytes())
        else:
            found.update(pc.binary_length(songs[ITEM_ID]).to_numpy().astype("<i8").tobytes())
            found.update("".join(songs[ITEM_ID].to_pylist()).encode())
        return found.hexdigest()

    def check(self, size: int, sha256: str, *, uri: str) -> None:
        """InputError if the songs 1..size are not those that had this digest; without one nothing is compared."""
        if sha256 and self.digest(size) != sha256:
            raise InputError(
                f"{uri} is damaged: its songs 1..{size} are not those that the sequences were built with: restore it "
                "from a backup"
            )

    def size_for(self, ds: dt.date, songs: pa.Table, *, at_least: int = 0) -> int:
        """Highest index that shards of a ds may hold: of the songs given one by then, and of the day's own.

        On a day older than the workspace's newest, its own songs may have been given theirs on a later day. songs: of
        `lookup`. at_least: of the shards that are built on.
        """
        return max(self.size(ds), at_least, int(pc.max(songs[ITEM_INDEX]).as_py() or 0))

    def new_on(self, ds: dt.date) -> int:
        """Songs that got their index on a ds."""
        return int(pc.sum(pc.equal(self.table[FIRST_DS], ds)).as_py() or 0)

    def lookup(self, item_ids: pa.Array) -> pa.Table:
        """(item_id, item_index) of the given distinct songs that are known."""
        position = pc.index_in(item_ids, value_set=self.table[ITEM_ID].combine_chunks())
        known = pc.is_valid(position)
        index = self.table[ITEM_INDEX].take(position.filter(known))
        return pa.table({ITEM_ID: item_ids.filter(known), ITEM_INDEX: index})


def read(uri: str, item_id_type: str, *, version: int | None = None) -> Vocabulary:
    """The vocabulary as it is; an empty one before the first day. version: of `delta_tables.open_listed`."""
    schema = vocabulary_table(item_id_type).schema
    delta = delta_tables.open_listed(uri, version)
    if delta is None:
        return Vocabulary(schema.empty_table(), None)
    table = delta_tables.rows_of(uri, delta, schema.names).cast(schema).sort_by(ITEM_INDEX)
    index = table[ITEM_INDEX].to_numpy()
    if not np.array_equal(index, np.arange(1, len(index) + 1)):
        raise InputError(f"{uri} is broken: item_index is not 1..{len(index)} without gaps; restore an earlier version")
    return Vocabulary(_repaired(table), delta.version())


def _repaired(table: pa.Table) -> pa.Table:
    """The songs with ids that can be read: bytes that are not UTF-8, which earlier releases let in, are escaped.

    No row of the logs has such an id any more, so a song keeps its index and is never played again.
    """
    if not pa.types.is_string(table.schema.field(ITEM_ID).type):
        return table
    ids = table[ITEM_ID].combine_chunks().cast(pa.binary())
    try:
        ids.cast(pa.string())
    except pa.ArrowInvalid:
        shown = [value.decode(errors="backslashreplace") for value in ids.to_pylist()]
        place = table.column_names.index(ITEM_ID)
        return table.set_column(place, table.schema.field(ITEM_ID), pa.array(shown, pa.string()))
    return table


def append(
    uri: str,
    item_ids: pa.Array,
    *,
    ds: dt.date,
    item_id_type: str,
    run_id: str,
    before: tuple[int, str] = (0, ""),
    version: int | None = None,
) -> Vocabulary:
    """Give an index to the songs that have none, in item_id order; returns the vocabulary afterwards.

    item_ids: distinct songs of a day, no nulls. before: size and digest of an earlier day's, with which this one must
    begin. version: the table's when that day was published. Raises BusyError if other runs keep extending the
    vocabulary meanwhile.
    """
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            known = read(uri, item_id_type, version=version)
            known.check(*before, uri=uri)
            return _append(uri, known, item_ids, ds=ds, item_id_type=item_id_type, run_id=run_id)
        except BusyError:
            if not attempts_left:
                raise
    raise AssertionError("unreachable")


def _append(
    uri: str, known: Vocabulary, item_ids: pa.Array, *, ds: dt.date, item_id_type: str, run_id: str
) -> Vocabulary:
    fresh = item_ids.filter(pc.invert(pc.is_in(item_ids, value_set=known.table[ITEM_ID].combine_chunks())))
    if not len(fresh):
        return known
    fresh = fresh.take(pc.array_sort_indices(fresh))
    size, metadata = known.size(), {DS: str(ds), "run_id": run_id}
    # Without the transaction two concurrent appends would both succeed, and give the same indices to different songs.
    transaction = (_APPLICATION, size + len(fresh))
    rows = vocabulary_rows(fresh, ds, after=size)
    delta_tables.append(uri, rows, base=known.version, transaction=transaction, metadata=metadata)
    return read(uri, item_id_type, version=0 if known.version is None else known.version + 1)
