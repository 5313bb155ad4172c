"""Songs by index, and their titles and artists from the optional catalogue table."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.day import Day, log_spec
from jobs.runtime.console import log
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories import vocabulary
from pipelines.histories.shards import Manifest
from pipelines.logs.formats import read_small
from pipelines.logs.formats.base import UNREADABLE
from pipelines.logs.formats.values import read_column
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
            rows = _read(day, uri, (TITLE, ARTIST))
        except (*UNREADABLE, KeyError) as error:
            log("catalogue file passed over", file=uri, error=" ".join(str(error).split()))
            continue
        rows = rows.filter(pc.is_in(rows[ITEM_ID], value_set=wanted))
        nothing = [None] * rows.num_rows
        texts = [rows[name].to_pylist() if name in rows.column_names else nothing for name in (TITLE, ARTIST)]
        pairs = [(str(title or ""), str(artist or "")) for title, artist in zip(*texts, strict=True)]
        found |= dict(zip(rows[ITEM_ID].to_pylist(), pairs, strict=True))
    return found


def read_catalogue(day: Day, columns: Sequence[str], *, needed_by: str) -> pa.Table | None:
    """item_id and those of some columns that any catalogue file has, all rows; None without a file.

    needed_by: what "needs" the catalogue, for the InputError if a file cannot be read.
    """
    parts = [_read_strictly(day, uri, columns, needed_by) for uri in catalogue_files(day)]
    types: dict[str, set[pa.DataType]] = {}
    for part in parts:
        for field in part.schema:
            if not pa.types.is_null(field.type):
                types.setdefault(field.name, set()).add(field.type)
    for name in [name for name, found in types.items() if {pa.string()} < found]:  # 12 in one file, N/A in another
        parts = [_as_text(part, name) for part in parts]
    return pa.concat_tables(parts, promote_options="permissive") if parts else None


def _as_text(rows: pa.Table, name: str) -> pa.Table:
    if name not in rows.column_names:
        return rows
    return rows.set_column(rows.column_names.index(name), name, rows[name].cast(pa.string()))


def catalogue_files(day: Day) -> Sequence[str]:
    """URIs of the catalogue: the files of the run record; if there are none, or not any more, what is there now."""
    frozen = [file.uri for file in day.record.catalogue_files] if day.has_record else []
    still_there = bool(frozen) and all(storage.file_infos(frozen))
    if still_there or not day.config.logs.catalogue:
        return frozen
    return [file.uri for file in storage.list_files(storage.absolute(day.config.logs.catalogue))]


def _read_strictly(day: Day, uri: str, columns: Sequence[str], needed_by: str) -> pa.Table:
    try:
        return _read(day, uri, columns)
    except (*UNREADABLE, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"catalogue file {uri} cannot be read, and {needed_by} it ({reason}): repair it, or take it out of "
            "logs.catalogue"
        ) from None


def _read(day: Day, uri: str, columns: Sequence[str]) -> pa.Table:
    """item_id and some columns of one file, under our names; rows whose item_id cannot be read are left out.

    Ids are read like those of logs: 007 is a song of its own where ids are text, and no whole number.
    """
    spec, named = log_spec(day), day.config.logs.catalogue_columns
    theirs = {name: named.get(name, name) for name in dict.fromkeys((ITEM_ID, *columns))}
    other_id = spec.column(ITEM_ID) if ITEM_ID not in named else theirs[ITEM_ID]
    wanted = [*dict.fromkeys((*theirs.values(), other_id))]
    texts = {other_id, *(column for name, column in theirs.items() if name in (ITEM_ID, TITLE, ARTIST))}
    rows = read_small(uri, wanted, spec=spec, texts=texts)
    if theirs[ITEM_ID] not in rows.column_names:
        theirs[ITEM_ID] = other_id
    if theirs[ITEM_ID] not in rows.column_names:
        raise KeyError(f"column {theirs[ITEM_ID]} (item_id) is missing, see logs.catalogue_columns")
    rows = pa.table({name: rows[column] for name, column in theirs.items() if column in rows.column_names})
    ids = read_column(spec.kind(ITEM_ID), rows[ITEM_ID].combine_chunks(), null_texts=spec.csv.null_values)
    if ids.bad is not None:
        example = repr(rows[ITEM_ID][int(ids.bad.argmax())].as_py())
        log("catalogue rows passed over", file=uri, rows=int(ids.bad.sum()), reason="item_id", example=example)
    rows = rows.set_column(rows.column_names.index(ITEM_ID), ITEM_ID, ids.values)
    return rows.filter(rows[ITEM_ID].is_valid())
