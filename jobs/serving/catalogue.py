"""Songs by index, and their titles and artists from the optional catalogue table."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.day import Day
from jobs.runtime.console import log
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories import vocabulary
from pipelines.histories.shards import Manifest
from pipelines.logs.formats import read_small
from pipelines.schema import ARTIST, ITEM_ID, ITEM_INDEX, TITLE, id_type

Titles = dict[Any, tuple[str, str]]
"""item_id -> (title, artist)"""


def read_vocabulary(day: Day, *, of: Manifest | None = None) -> pa.Table:
    """item_index, item_id of the songs of a manifest (all if None), in index order. InputError if one is damaged."""
    uri = day.workspace.vocabulary
    songs = vocabulary.read(uri, day.workspace.spec.item_id_type)
    if of and songs.table.num_rows >= of.vocabulary_size:
        songs.check(of.vocabulary_size, of.vocabulary_sha256, uri=uri)
    return songs.table.select([ITEM_INDEX, ITEM_ID])[: of.vocabulary_size if of else None]


def titles(day: Day, item_ids: Iterable[Any]) -> Titles:
    """Titles and artists of some songs; songs without a catalogue row are left out.

    Of several rows of a song the last file's wins. Titles are decoration: a file that cannot be read is logged and
    passed over.
    """
    item = id_type(day.workspace.spec.item_id_type)
    wanted = pa.array(sorted(set(item_ids)), item)
    found: Titles = {}
    for uri in catalogue_files(day):
        try:
            rows = _read(uri, item)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            log("catalogue file passed over", file=uri, error=" ".join(str(error).split()))
            continue
        rows = rows.filter(pc.is_in(rows[ITEM_ID], value_set=wanted))
        found |= {row[ITEM_ID]: (row[TITLE] or "", row[ARTIST] or "") for row in rows.to_pylist()}
    return found


def read_catalogue(day: Day, columns: Sequence[str], *, needed_by: str) -> pa.Table | None:
    """item_id and those of some columns that any catalogue file has, all rows; None without a file.

    needed_by: what "needs" the catalogue, for the InputError if a file cannot be read.
    """
    item = id_type(day.workspace.spec.item_id_type)
    parts = [_read_strictly(uri, item, columns, needed_by) for uri in catalogue_files(day)]
    return pa.concat_tables(parts, promote_options="permissive") if parts else None


def catalogue_files(day: Day) -> Sequence[str]:
    """URIs of the catalogue: the files of the run record; if there are none, or not any more, what is there now."""
    frozen = [file.uri for file in day.record.catalogue_files] if day.has_record else []
    still_there = bool(frozen) and all(storage.file_infos(frozen))
    if still_there or not day.config.logs.catalogue:
        return frozen
    return [file.uri for file in storage.list_files(storage.absolute(day.config.logs.catalogue))]


def _read_strictly(uri: str, item: pa.DataType, columns: Sequence[str], needed_by: str) -> pa.Table:
    try:
        rows = read_small(uri, list(dict.fromkeys((ITEM_ID, *columns))))
        return rows.set_column(rows.column_names.index(ITEM_ID), ITEM_ID, rows[ITEM_ID].cast(item))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"catalogue file {uri} cannot be read, and {needed_by} it ({reason}): repair it, or take it out of "
            "logs.catalogue"
        ) from None


def _read(uri: str, item: pa.DataType) -> pa.Table:
    """item_id, title, artist of one file; a missing title or artist column reads as null."""
    table = read_small(uri, (ITEM_ID, TITLE, ARTIST))
    for name in (TITLE, ARTIST):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    schema = pa.schema([(ITEM_ID, item), (TITLE, pa.string()), (ARTIST, pa.string())])
    return table.select(schema.names).cast(schema)
