"""Layout of the sequence shards of one ds: files by user bucket and the manifest that publishes them.

`sequences/ds=D/bucket=00017/part-<run>.parquet` is a bucket's base: one row a listener, sorted by user_id. A day's
new plays do not rewrite it: `increment-<run>.parquet` beside it holds what the day adds, and reading lays the
increments over the base, so that every reader of a row group gets whole histories. Every few days a bucket is compacted
into a new base.

The manifest `sequences/ds=D/_manifest.json` is written last and lists every file, those of earlier days too. Shards are
read through `Manifest` alone and never found by listing folders.
"""

import datetime as dt
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import leases, progress, storage
from pipelines.digests import FileDigest, digest_of
from pipelines.errors import InputError
from pipelines.histories.histories import HISTORY_COLUMNS, Histories, jagged, user_array
from pipelines.histories.increments import Layer
from pipelines.histories.merge import overlay
from pipelines.schema import (
    HEARD_BEFORE,
    ITEM_INDEX,
    LISTENERS,
    NUM_EVENTS,
    USER_ID,
    item_counts_schema,
    sequence_schema,
)

SHARD_FORMAT = 3
_READABLE = (1, 2, 3)
"""Format 1 had no increments, format 2 called them deltas. A ds that an earlier release published is the parent of the
next day, so both stay readable."""
_INPUTS_SCHEMA = pa.schema(
    [("uri", pa.string()), ("size", pa.int64()), ("etag", pa.string()), ("landing_day", pa.string())]
)


@dataclass(frozen=True)
class IncrementFile:
    """What one day added to a bucket; `groups` are its rows for each row group of the base."""

    path: str
    rows: int
    events: int
    bytes: int
    sha256: str
    groups: tuple[int, ...]
    home: str = ""  # as of ShardFile

    def place(self, group: int) -> int:
        """Which of this file's row groups belongs to a row group of the base; the base's without rows have none."""
        return sum(rows > 0 for rows in self.groups[:group])


@dataclass(frozen=True)
class ShardFile:
    """A bucket: its base file and the increments over it, oldest first. Rows and events are those of whole histories.

    `path` is relative to the folder of the manifest, or of the earlier ds `home` where that is not empty.
    """

    path: str
    bucket: int
    rows: int
    events: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]  # rows of each row group as it is read, so that readers can plan without opening files
    home: str = ""
    increments: tuple[IncrementFile, ...] = ()

    @property
    def layers(self) -> "tuple[ShardFile | IncrementFile, ...]":
        """Every Parquet file of the bucket, the base first."""
        return (self, *self.increments)


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What the shards of one ds are made with: of a build (`publish.BuildSpec`) and of the manifest it publishes."""

    ds: dt.date
    run_id: str = ""
    buckets: int = 1
    max_history: int = 2000
    session_gap_s: int = 1800
    user_id_type: str = "int64"
    item_id_type: str = "int64"
    timezone: str = "UTC"
    vocabulary_version: int = 0  # Delta version of the vocabulary
    vocabulary_size: int  # highest item_index known on this ds; indices are 1..vocabulary_size
    data_end: int  # every event is before this Unix second (ds 00:00)
    vocabulary_sha256: str = ""  # `Vocabulary.digest` of the songs 1..vocabulary_size; earlier releases: ""


@dataclass(frozen=True, kw_only=True)
class Manifest(ShardSettings):
    """What was published for one ds. `folder` and `check_digests` are of whoever reads it and not stored."""

    parent: dt.date | None  # the ds whose shards this one was merged into
    item_counts: str  # relative path: item_index, distinct listeners
    inputs: str  # relative path: every log file consumed so far (uri, size, etag)
    files: tuple[ShardFile, ...]
    counts: dict[str, Any] = field(default_factory=dict)  # rows read, accepted, duplicates, rejected by reason
    digests: dict[str, FileDigest] = field(default_factory=dict)  # of item_counts and inputs; earlier releases: none
    folder: str = ""
    check_digests: bool = False  # compare a shard with its SHA-256 before it is read, not just its pages and size

    @property
    def rows(self) -> int:
        """Listeners in all shards."""
        return sum(file.rows for file in self.files)

    @property
    def events(self) -> int:
        """Events in all shards."""
        return sum(file.events for file in self.files)

    def uri(self, relative: str) -> str:
        """Where a file in the folder of this manifest is."""
        return storage.join(self.folder, relative)

    def uri_of(self, file: ShardFile | IncrementFile) -> str:
        """Where a base or an increment is."""
        folder = storage.join(storage.parent(self.folder), f"ds={file.home}") if file.home else self.folder
        return storage.join(folder, file.path)

    def carried(self, file: ShardFile) -> ShardFile:
        """The entry of an unchanged bucket in the manifest of a later ds."""
        here = str(self.ds)
        increments = tuple(replace(increment, home=increment.home or here) for increment in file.increments)
        return replace(file, home=file.home or here, increments=increments)

    def histories(self, file: ShardFile, group: int | None = None) -> Histories:
        """Whole histories of a row group of a bucket, or of all of it, by ascending user_id.

        A missing or broken file is an InputError that names it.
        """
        if group is None:
            return Histories.from_table(self.read(file, None, HISTORY_COLUMNS))
        return overlay(self.layers(file, group), max_history=self.max_history)

    def read(self, file: ShardFile, group: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """`histories` as rows of `schema.sequence_schema`. columns: only those, in that order."""
        if group is None:
            return pa.concat_tables([self.read(file, n, columns) for n in range(len(file.row_groups))])
        names = list(columns) if columns is not None else sequence_schema(self.user_id_type).names
        if len(self._places(file, group)) == 1:
            return self._row_group(file, group, names)
        if set(names) <= {USER_ID, NUM_EVENTS}:
            return self._sizes(file, group).select(names)
        return self.histories(file, group).to_table(session_gap_s=self.session_gap_s, columns=names)

    def added_after(self, file: ShardFile, group: int, ds: dt.date) -> Histories | None:
        """What the days after `ds` wrote of a row group, None if nothing: all plays from ds 00:00 on are in it.

        Plays before are in it, too, where such a day wrote a new base or took in late plays.
        """
        places = [(layer, place) for layer, place in self._places(file, group) if self._written_on(layer) > ds]
        layers = [Histories.from_table(self._row_group(layer, place, HISTORY_COLUMNS)) for layer, place in places]
        return overlay(layers, max_history=self.max_history) if layers else None

    def _written_on(self, layer: ShardFile | IncrementFile) -> dt.date:
        return dt.date.fromisoformat(layer.home) if layer.home else self.ds

    def layers(self, file: ShardFile, group: int) -> list[Histories]:
        """The base's row group, and what each increment adds to it, oldest first."""
        return [Histories.from_table(table) for table in self._tables(file, group, HISTORY_COLUMNS)]

    def lazy_layers(self, file: ShardFile, group: int) -> list[Layer]:
        """The same layers for `increments.increment_over`, which needs few of their columns."""
        return [self._lazy(layer, place) for layer, place in self._places(file, group)]

    def _lazy(self, file: ShardFile | IncrementFile, place: int) -> Layer:
        table = self._row_group(file, place, [USER_ID, ITEM_INDEX, HEARD_BEFORE, NUM_EVENTS])
        items, offsets = jagged(table[ITEM_INDEX])
        heard, heard_offsets = jagged(table[HEARD_BEFORE])

        def read(column: str) -> np.ndarray:
            return jagged(self._row_group(file, place, [column])[column])[0]

        users, num_events = user_array(table[USER_ID]), table[NUM_EVENTS].to_numpy()
        return Layer(users, offsets, items, heard_offsets, heard, num_events, read)

    def base_users(self, file: ShardFile, group: int) -> np.ndarray:
        """user_id of the base's row group, ascending."""
        return user_array(self._row_group(file, group, [USER_ID])[USER_ID])

    def sizes(self, file: ShardFile, group: int) -> tuple[np.ndarray, np.ndarray]:
        """user_id, ascending, and stored events (int64) of the listeners of a row group as it is read."""
        table = self._sizes(file, group)
        return user_array(table[USER_ID]), table[NUM_EVENTS].to_numpy().astype(np.int64)

    def _sizes(self, file: ShardFile, group: int) -> pa.Table:
        tables = self._tables(file, group, [USER_ID, NUM_EVENTS])
        if len(tables) == 1:
            return tables[0]
        total = pa.concat_tables(tables).group_by(USER_ID).aggregate([(NUM_EVENTS, "sum")]).sort_by(USER_ID)
        events = np.minimum(total[f"{NUM_EVENTS}_sum"].to_numpy(), self.max_history).astype(np.int32)
        return pa.table({USER_ID: total[USER_ID], NUM_EVENTS: events})

    def _tables(self, file: ShardFile, group: int, columns: Sequence[str]) -> list[pa.Table]:
        return [self._row_group(layer, place, columns) for layer, place in self._places(file, group)]

    def _places(self, file: ShardFile, group: int) -> list[tuple[ShardFile | IncrementFile, int]]:
        """The files of a bucket that have rows of a row group, oldest first, and which of their row groups that is."""
        return [(file, group), *((layer, layer.place(group)) for layer in file.increments if layer.groups[group])]

    def _row_group(self, file: ShardFile | IncrementFile, place: int, columns: Sequence[str]) -> pa.Table:
        names = list(columns)
        digest = file.sha256 if self.check_digests else ""
        with open_parquet(self.uri_of(file), size=file.bytes, sha256=digest) as source:
            table = source.read_row_group(place, columns=names, use_threads=False)
            if missing := set(names) - set(table.column_names):  # a damaged name
                raise pa.ArrowInvalid(f"no column {', '.join(sorted(missing))}")
            progress.note()
            return table.select(names)

    def row_groups(self) -> Iterator[tuple[ShardFile, int, int]]:
        """Every (file, row group, rows), in a fixed order."""
        for file in self.files:
            for group, rows in enumerate(file.row_groups):
                yield file, group, rows


open_parquet = functools.partial(storage.open_parquet, remedy="re-run `fuxi sessionize` for its ds")
"""A shard file; an InputError names it if it is missing or broken."""


def write_manifest(folder: str, manifest: Manifest) -> Manifest:
    """Publish the shards of a ds: the last write of the sessionize stage."""
    content = {key: value for key, value in asdict(manifest).items() if key not in ("folder", "check_digests")}
    leases.publish_json(storage.join(folder, "_manifest.json"), {"format": SHARD_FORMAT, **content})
    return replace(manifest, folder=folder)


def read_manifest(folder: str, *, check_digests: bool = False) -> Manifest:
    """The manifest of a ds folder. InputError if it is not published, damaged or of another format."""
    uri = storage.join(folder, "_manifest.json")
    if not storage.exists(uri):
        raise InputError(f"{uri} is not there: run `fuxi sessionize` for this ds first")
    content = storage.read_json(uri)
    if content.pop("format", None) not in _READABLE:
        raise InputError(f"{uri} is not of shard format {SHARD_FORMAT}: re-run `fuxi sessionize` with this release")
    with storage.reading(uri):
        ds, parent = (day and dt.date.fromisoformat(day) for day in (content["ds"], content["parent"]))
        digests = {name: FileDigest(**digest) for name, digest in content.get("digests", {}).items()}
        read = {"ds": ds, "parent": parent, "digests": digests, "folder": folder, "check_digests": check_digests}
        return Manifest(**{**content, **read, "files": tuple(_shard_file(file) for file in content["files"])})


def _shard_file(content: dict[str, Any]) -> ShardFile:
    """A ShardFile from its JSON, of any readable format."""
    values = {key: value for key, value in content.items() if key not in ("increments", "deltas")}
    increments = tuple(
        IncrementFile(**{**increment, "groups": tuple(increment["groups"])})
        for increment in content.get("increments", content.get("deltas", ()))
    )
    return ShardFile(**{**values, "row_groups": tuple(content["row_groups"]), "increments": increments})


def read_item_counts(manifest: Manifest) -> np.ndarray:
    """Distinct listeners of every song on this ds, int64 [vocabulary_size + 1] by item_index; entry 0 is 0."""
    table = read_listed(manifest, manifest.item_counts)
    counts = np.zeros(manifest.vocabulary_size + 1, np.int64)
    counts[table[ITEM_INDEX].to_numpy()] = table[LISTENERS].to_numpy()
    return counts


def read_listed(manifest: Manifest, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A table beside the shards (`item_counts`, `inputs`), compared with its digest. InputError if it is damaged."""
    digest = manifest.digests.get(name)
    with open_parquet(manifest.uri(name), sha256=digest.sha256 if digest else "") as file:
        return file.read(columns=columns)


def with_digests(manifest: Manifest) -> Manifest:
    """The manifest with the digests of the tables beside the shards, which are written."""
    names = (manifest.item_counts, manifest.inputs)
    return replace(manifest, digests={name: digest_of(manifest.uri(name)) for name in names})


def write_item_counts(uri: str, counts: np.ndarray, *, new_folder: bool = True) -> None:
    """Write `read_item_counts`' array; songs without a listener are left out. new_folder: of `storage.write_bytes`."""
    heard = np.flatnonzero(counts)
    table = pa.table({ITEM_INDEX: heard.astype(np.int32), LISTENERS: counts[heard]}, schema=item_counts_schema())
    storage.write_table(uri, table, new_folder=new_folder)


def inputs_table(files: Iterable[dict[str, Any]]) -> pa.Table:
    """Consumed log files as a manifest's `inputs` lists them: uri, size, etag, landing_day."""
    return pa.Table.from_pylist(list(files), schema=_INPUTS_SCHEMA)


def listed_uris(manifest: Manifest) -> set[str]:
    """Every file a manifest names."""
    shards = {manifest.uri_of(layer) for file in manifest.files for layer in file.layers}
    return shards | {manifest.uri(manifest.item_counts), manifest.uri(manifest.inputs)}


def content_digest(manifest: Manifest) -> str:
    """A number that tells histories apart: equal if a ds was built again to the same files."""
    layers = [[file.bucket, *(layer.sha256 for layer in file.layers)] for file in manifest.files]
    content = json.dumps([manifest.vocabulary_size, manifest.max_history, layers])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def unlisted(manifest: Manifest) -> set[str]:
    """Files of earlier runs below a published ds folder that no later day's manifest names either."""
    listed = listed_uris(manifest)
    found = {file.uri for file in storage.list_files(manifest.folder)} - listed
    root, own = storage.parent(manifest.folder), storage.name(manifest.folder)
    for name in storage.list_folders(root) if found else ():
        if name > own and name.startswith("ds=") and storage.exists(storage.join(root, name, "_manifest.json")):
            found -= listed_uris(read_manifest(storage.join(root, name)))
    return found
