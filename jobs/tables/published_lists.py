"""The published lists of a day, read a bucket at a time."""

import datetime as dt
import functools
import re
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import delta_tables, storage
from pipelines.histories.histories import offsets_of
from pipelines.schema import (
    BUCKET,
    DS,
    ITEM_ID,
    ITEMS,
    PROPENSITY,
    SEGMENT,
    SOURCE,
    USER_ID,
    TableSpec,
    recommendations_table,
)
from pipelines.workspace import Workspace

_BUCKET_PART = re.compile(r"/part-([0-9]+)-[^/]*$")


@dataclass(frozen=True)
class PublishedLists:
    """The lists of a day, to be read a bucket at a time. files: by bucket, None for the default list."""

    files: Mapping[int | None, tuple[str, ...]]
    spec: TableSpec

    def read(self, bucket: int | None) -> pa.Table:
        """user_id, source, segment and items of a bucket; of each song item_id and propensity. [lists]

        What a file of an earlier release lacks is null.
        """
        tables = [self._read(uri, bucket) for uri in self.files.get(bucket, ())]
        return pa.concat_tables(tables or [self._schema.empty_table()]).combine_chunks()

    @property
    def _schema(self) -> pa.Schema:
        columns = self.spec.schema
        item = columns.field(ITEMS).type.value_type
        songs = pa.list_(pa.struct([item.field(ITEM_ID), item.field(PROPENSITY)]))
        return pa.schema([*(columns.field(name) for name in (USER_ID, SOURCE, SEGMENT)), pa.field(ITEMS, songs)])

    def _read(self, uri: str, bucket: int | None) -> pa.Table:
        with open_part(uri) as file:
            paths = [file.metadata.schema.column(n).path for n in range(file.metadata.num_columns)]
            flat, of_songs = (BUCKET, USER_ID, SOURCE, SEGMENT), (ITEM_ID, PROPENSITY)
            wanted = [path for path in paths if path in flat or _leaf_of_items(path) in of_songs]
            rows = file.read(columns=wanted)
        rows = rows.filter(pc.is_null(rows[BUCKET]) if bucket is None else pc.equal(rows[BUCKET], bucket))
        lists = rows[ITEMS].combine_chunks()
        songs, kind = lists.flatten(), self._schema.field(ITEMS).type.value_type
        there = {field.name for field in songs.type}
        values = [pc.struct_field(songs, f.name) if f.name in there else pa.nulls(len(songs), f.type) for f in kind]
        ends = pa.array(offsets_of(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)), pa.int32())
        element = pa.StructArray.from_arrays(values, fields=list(kind))
        columns = {name: rows[name] for name in (USER_ID, SOURCE, SEGMENT) if name in rows.column_names}
        columns = {SEGMENT: pa.nulls(rows.num_rows, pa.string()), **columns}
        return pa.table({**columns, ITEMS: pa.ListArray.from_arrays(ends, element)}, self._schema)


open_part = functools.partial(storage.open_parquet, remedy="restore it, or delete the day's lists from the table")
"""A file of lists; an InputError names it if it is missing or broken."""


def _leaf_of_items(path: str) -> str:
    """The name of a column inside the songs of a list, not deeper: items.list.element.NAME."""
    parts = path.split(".")
    return parts[-1] if parts[0] == ITEMS and len(parts) == 4 else ""


def published_lists(workspace: Workspace, days: Sequence[dt.date]) -> list[PublishedLists]:
    """Where the lists of some days are, bucket by bucket; nothing for a day without lists."""
    table = delta_tables.open_table(workspace.recommendations)
    spec = recommendations_table(workspace.spec.user_id_type, workspace.spec.item_id_type)
    found = []
    with ThreadPoolExecutor(8) as pool:
        for ds in days:
            uris = [] if table is None else sorted(table.file_uris([(DS, "=", str(ds))]))
            files: dict[int | None, tuple[str, ...]] = {}
            for uri, buckets in zip(uris, pool.map(_buckets_in, uris), strict=True):
                for bucket in buckets:
                    files[bucket] = (*files.get(bucket, ()), uri)
            found.append(PublishedLists(files, spec))
    return found


def part_name(buckets: Sequence[int | None]) -> str:
    """A new name for a part that holds these buckets; that of one bucket has its number, so readers need not look."""
    bucket = f"{buckets[0]}-" if len(buckets) == 1 and buckets[0] is not None else ""
    return f"part-{bucket}{uuid.uuid4().hex}.parquet"


def bucket_named(path: str) -> int | None:
    """The bucket of a part whose name has it; None for parts of earlier releases, of several buckets and of none."""
    found = _BUCKET_PART.search(path)
    return int(found[1]) if found else None


def _buckets_in(uri: str) -> list[int | None]:
    named = bucket_named(uri)
    if named is not None:
        return [named]
    with open_part(uri) as file:
        return file.read(columns=[BUCKET])[BUCKET].unique().to_pylist()
