"""The Delta table of the daily lists: part files written by many tasks, published by one commit a day.

Columns, partition and constraint are `schema.recommendations_table`; docs/output.md has queries.

Tasks write `ds=D/part-<uuid>.parquet` below the table. Readers see none of them until the driver commits all parts of
a day in one transaction that replaces exactly that day. Parts of a run that was killed are in no commit:
`jobs.tables.maintenance` removes them.
"""

import datetime as dt
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.tables.audit import ListCounts, count_lists
from jobs.tables.list_quality import QualitySums
from jobs.tables.published_lists import bucket_named, part_name
from pipelines import delta_tables, digests, storage
from pipelines.delta_tables import Row
from pipelines.errors import InputError
from pipelines.histories.buckets import user_bucket
from pipelines.schema import BUCKET, DS, ITEM_ID, ITEMS, SEGMENT, USER_ID, id_type, id_type_name, recommendations_table
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable, Schema
    from deltalake.transaction import AddAction, RemoveAction

_ROW_GROUP_ROWS = 65_536


@dataclass(frozen=True)
class ListPart:
    """A file of lists below the table. `path` is relative to the table."""

    path: str
    size: int  # bytes
    rows: int
    counts: ListCounts
    quality: dict[str, QualitySums] = field(default_factory=dict)  # by segment
    sha256: str = ""


def open_lists(workspace: Workspace) -> "DeltaTable":
    """The table, created empty if there is none. A day is committed on top of the version read here."""
    spec = recommendations_table(workspace.spec.user_id_type, workspace.spec.item_id_type)
    return delta_tables.open_or_create(workspace.recommendations, spec)


def write_part(table_uri: str, ds: dt.date, rows: pa.Table) -> ListPart:
    """Write one part and count its lists for the audit; this publishes nothing.

    rows: columns of `recommendations_table` without ds, sorted by user_id within a bucket. The name of a part of one
    bucket has its number.
    """
    path = f"{DS}={ds}/{part_name(pc.unique(rows[BUCKET]).to_pylist())}"
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"compression": "zstd", "row_group_size": _ROW_GROUP_ROWS, "write_page_checksum": True}
    options["write_statistics"] = [name for name in rows.column_names if name not in (USER_ID, ITEMS)]
    pq.write_table(rows, sink, **options)
    content = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(table_uri, path), content)
    digest = hashlib.sha256(content).hexdigest()
    return ListPart(path, len(content), rows.num_rows, count_lists(rows), sha256=digest)


def check_parts(table_uri: str, parts: Sequence[ListPart]) -> None:
    """InputError unless every part is stored in full: a commit that lists a missing file succeeds, but readers fail."""
    uris = [storage.join(table_uri, part.path) for part in parts]
    for uri, part, file in zip(uris, parts, storage.file_infos(uris), strict=True):
        if file is None or file.size != part.size:
            raise InputError(f"{uri} is missing or incomplete: run `fuxi recommend` again")


def discard(table_uri: str, parts: Sequence[ListPart]) -> None:
    """Remove parts that will not be published."""
    files = storage.file_infos([storage.join(table_uri, part.path) for part in parts])
    storage.delete_files(file.uri for file in files if file)


def commit_key(*inputs: str | None) -> int:
    """A number that identifies what a commit was made from; stored as the commit's application transaction."""
    return int(hashlib.sha256("|".join(text or "" for text in inputs).encode()).hexdigest()[:15], 16)


def commit(
    table: "DeltaTable",
    ds: dt.date,
    parts: Sequence[ListPart],
    *,
    key: int,
    metadata: Mapping[str, str],
) -> int:
    """Replace the lists of `ds` by these parts in one transaction; returns the table's version.

    table: of `open_lists`, opened before the work began. Columns that an earlier release's table lacks are added by
    the same transaction; they are null in the days before. InputError if another run committed the same day
    since then; nothing is published in that case.
    """
    noted = {**metadata, "generated_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}
    properties = {"metadata": noted, "transaction": (_application(ds), key)}
    conflict = f"the lists of {ds} were published by another run meanwhile", "run `fuxi recommend` again"
    actions: list[AddAction | RemoveAction] = [_add_action(ds, part) for part in parts]
    version = _commit(table, actions, properties, replaced=ds, conflict=conflict)
    _note_digests(table, parts)
    return version


def replace_parts(
    table: "DeltaTable", ds: dt.date, removed: Sequence[tuple[str, int]], added: Sequence[ListPart]
) -> int:
    """Remove parts (path, bytes) of a published day and add others, in one transaction; returns the version.

    The log then says which files were replaced, and nothing about the rows in which they differ. `published_result`
    still finds the commit that published the day.
    """
    from deltalake.transaction import RemoveAction

    now = int(time.time() * 1000)
    actions = [
        *(RemoveAction(path, True, now, size, {DS: str(ds)}) for path, size in removed),
        *(_add_action(ds, part) for part in added),
    ]
    conflict = f"the lists of {ds} were changed by another run meanwhile", "run again"
    properties = {"retry": False}
    version = _commit(table, actions, properties, replaced=None, conflict=conflict)
    _note_digests(table, added)
    return version


def _note_digests(table: "DeltaTable", parts: Sequence[ListPart]) -> None:
    known = {part.path: digests.FileDigest(part.size, part.sha256) for part in parts if part.sha256}
    digests.note_digests(storage.absolute(table.table_uri), known)


def _commit(
    table: "DeltaTable",
    actions: "list[AddAction | RemoveAction]",
    properties: Mapping[str, Any],
    *,
    replaced: dt.date | None,
    conflict: tuple[str, str],
) -> int:
    """Commit file actions; returns the version.

    properties: of `delta_tables.commit`. replaced: a day. conflict: what happened on failure, and the remedy.
    """
    from deltalake.exceptions import CommitFailedError

    mode, day, schema = "append", None, table.schema()
    if replaced:
        mode, day, schema = "overwrite", [(DS, "=", str(replaced))], _present_schema(table)

    def write(named: "CommitProperties") -> None:
        table.create_write_transaction(actions, mode, schema, [DS], day, commit_properties=named)

    try:
        delta_tables.commit(table.table_uri, write, **properties)
    except CommitFailedError as error:
        what, remedy = conflict
        raise InputError(f"{what} ({' '.join(str(error).split())}): {remedy}") from None
    table.update_incremental()
    return table.version()


def _present_schema(table: "DeltaTable") -> "Schema":
    """The columns of this release, with the ids of the table."""
    from deltalake import Schema

    stored = pa.schema(table.schema())
    ids = stored.field(USER_ID).type, stored.field(ITEMS).type.value_type.field(ITEM_ID).type
    return Schema.from_arrow(recommendations_table(*map(id_type_name, ids)).schema)


def _application(ds: dt.date) -> str:
    return f"recommendations:{ds}"


def _add_action(ds: dt.date, part: ListPart) -> "AddAction":
    from deltalake.transaction import AddAction

    # No minima and maxima in the log: ids of listeners do not belong there, and delta-rs's PyArrow reader takes the
    # missing minimum of one column as null as soon as another has one, and then finds no row by user_id. Readers
    # skip by bucket from the Parquet footers.
    stats = {"numRecords": part.rows}
    return AddAction(part.path, part.size, {DS: str(ds)}, int(time.time() * 1000), True, json.dumps(stats))


def published_result(table: "DeltaTable", ds: dt.date, key: int) -> dict[str, Any] | None:
    """The stage result stored in the commit of `ds` made from the same `key`, if that commit is the day's latest."""
    if table.transaction_version(_application(ds)) != key:
        return None
    for entry in table.history():
        if entry.get(DS) == str(ds):
            return {**json.loads(entry["result"]), "delta_version": entry["version"]} if "result" in entry else None
    return None


def published_days(workspace: Workspace) -> list[dt.date]:
    """Every day that has lists, oldest first."""
    table = delta_tables.open_table(workspace.recommendations)
    partitions = [] if table is None else table.partitions()
    return sorted({dt.date.fromisoformat(str(partition[DS])) for partition in partitions})


def listeners_before(table: "DeltaTable", ds: dt.date) -> tuple[dt.date, int] | None:
    """The latest earlier day with lists and its number of listeners; default lists, which have no bucket, are none."""
    files = pa.table(table.get_add_actions(flatten=True))
    if files.num_rows == 0:
        return None
    days, rows = files[f"partition.{DS}"], files["num_records"]
    latest = pc.max(days.filter(pc.less(days, pa.scalar(ds, pa.date32()))))
    if not latest.is_valid:
        return None
    fragments = table.to_pyarrow_dataset().get_fragments(filter=pc.field(DS) == latest)
    unnamed = [fragment for fragment in fragments if bucket_named(fragment.path) is None]
    defaults = sum(fragment.count_rows(filter=pc.field(BUCKET).is_null()) for fragment in unnamed)
    return latest.as_py(), pc.sum(rows.filter(pc.equal(days, latest))).as_py() - defaults


def read_list(workspace: Workspace, ds: dt.date, user_id: int | str | None) -> Row | None:
    """One listener's row of a day; the list for unknown listeners if user_id is None. None if there is no such row."""
    where = pc.field(DS) == pa.scalar(ds, pa.date32())
    if user_id is None:
        where &= pc.field(USER_ID).is_null()
    else:
        ids = pa.array([user_id], id_type(workspace.spec.user_id_type))
        bucket = int(user_bucket(ids, workspace.spec.buckets)[0])
        where &= (pc.field(BUCKET) == bucket) & (pc.field(USER_ID) == user_id)
    rows = delta_tables.read(workspace.recommendations, where)
    found = [] if rows is None else [row for row in rows.to_pylist() if user_id is not None or not row.get(SEGMENT)]
    return found[0] if found else None
