"""Layout of the sequence shards of one ds: files by user bucket and the manifest that publishes them.

`sequences/ds=D/bucket=00017/part-<run>.parquet` is a bucket's base: one row a listener, sorted by user_id. A day's
new plays do not rewrite it: `delta-<run>.parquet` beside it holds what the day adds, and reading lays the deltas over
the base, so that whoever reads a row group sees whole histories. Every few days a bucket is compacted into a new base.

The manifest `sequences/ds=D/_manifest.json` is written last and lists every file, those of earlier days too; nobody
globs a folder, and nobody opens a shard but through `Manifest.read`.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.merge import Block, Layer, jagged, overlay, user_array
from pipelines.schema import (
    COMPLETION,
    HEARD_BEFORE,
    ITEM_INDEX,
    LISTENERS,
    NUM_EVENTS,
    TIMESTAMP,
    USER_ID,
    item_counts_schema,
    sequence_schema,
)

SHARD_FORMAT = 2
_READABLE = (1, 2)  # format 1 had no deltas
_INPUTS_SCHEMA = pa.schema(
    [("uri", pa.string()), ("size", pa.int64()), ("etag", pa.string()), ("landing_day", pa.string())]
)
_LAYER_COLUMNS = [USER_ID, ITEM_INDEX, TIMESTAMP, COMPLETION, HEARD_BEFORE]


@dataclass(frozen=True)
class DeltaFile:
    """What one day added to a bucket; `groups` are its rows for each row group of the base."""

    path: str
    rows: int
    events: int
    bytes: int
    sha256: str
    groups: tuple[int, ...]
    home: str = ""  # as of ShardFile


@dataclass(frozen=True)
class ShardFile:
    """A bucket: its base file and the deltas over it, oldest first. Rows and events are those of whole histories.

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
    deltas: tuple[DeltaFile, ...] = ()

    @property
    def layers(self) -> "tuple[ShardFile | DeltaFile, ...]":
        """Every Parquet file of the bucket, the base first."""
        return (self, *self.deltas)


@dataclass(frozen=True)
class Manifest:
    """What was published for one ds. `folder` is the URI it was read from and is not stored."""

    ds: dt.date
    run_id: str
    parent: dt.date | None  # the ds whose shards this one was merged into
    buckets: int
    max_history: int
    session_gap_s: int
    user_id_type: str
    item_id_type: str
    timezone: str
    vocabulary_version: int  # Delta version of the vocabulary
    vocabulary_size: int  # highest item_index known on this ds; indices are 1..vocabulary_size
    data_end: int  # every event is before this Unix second (ds 00:00)
    item_counts: str  # relative path: item_index, distinct listeners
    inputs: str  # relative path: every log file consumed so far (uri, size, etag)
    files: tuple[ShardFile, ...]
    counts: dict[str, Any] = field(default_factory=dict)  # rows read, accepted, duplicates, rejected by reason
    folder: str = ""

    @property
    def rows(self) -> int:
        """Listeners in all shards."""
        return sum(file.rows for file in self.files)

    @property
    def events(self) -> int:
        """Events in all shards."""
        return sum(file.events for file in self.files)

    def uri(self, relative: str, home: str = "") -> str:
        """Where a file named by this manifest is; `home` as of ShardFile."""
        if home:
            return storage.join(storage.parent(self.folder), f"ds={home}", relative)
        return storage.join(self.folder, relative)

    def uri_of(self, file: ShardFile | DeltaFile) -> str:
        """Where a base or a delta is."""
        return self.uri(file.path, file.home)

    def carried(self, file: ShardFile) -> ShardFile:
        """The same bucket as a later manifest names it, which has it unchanged."""
        here = str(self.ds)
        deltas = tuple(replace(delta, home=delta.home or here) for delta in file.deltas)
        return replace(file, home=file.home or here, deltas=deltas)

    def read(self, file: ShardFile, group: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """A row group of a bucket, or all of it: whole histories, rows of `schema.sequence_schema` by user_id.

        columns: only those, in that order. A missing or broken file is an InputError that names it.
        """
        if group is None and not file.deltas:
            return self._parquet(file).read(columns)
        if group is None:
            return pa.concat_tables([self.read(file, n, columns) for n in range(len(file.row_groups))])
        names = list(columns) if columns is not None else sequence_schema(self.user_id_type).names
        if not any(delta.groups[group] for delta in file.deltas):
            return self._parquet(file).read_row_group(group, names)
        if set(names) <= {USER_ID, NUM_EVENTS}:
            return self._sizes(file, group).select(names)
        block = overlay(self.layers(file, group), max_history=self.max_history)
        return block.to_table(user_id_type=self.user_id_type, session_gap_s=self.session_gap_s).select(names)

    def layers(self, file: ShardFile, group: int) -> list[Block]:
        """The base's row group, and what each delta adds to it, oldest first."""
        tables = [self._parquet(file).read_row_group(group, _LAYER_COLUMNS)]
        tables += [table for delta in file.deltas if (table := self._delta(delta, group, _LAYER_COLUMNS)) is not None]
        return [Block.from_table(table) for table in tables]

    def stored(self, file: ShardFile, group: int) -> list[Layer]:
        """The same layers for `sequences.additions`, which needs few of their columns."""
        return [self._lazy(file, group)] + [
            self._lazy(delta, _place(delta, group)) for delta in file.deltas if delta.groups[group]
        ]

    def _lazy(self, file: ShardFile | DeltaFile, group: int) -> Layer:
        parquet = self._parquet(file)
        table = parquet.read_row_group(group, [USER_ID, ITEM_INDEX, HEARD_BEFORE, NUM_EVENTS])
        items, offsets = jagged(table[ITEM_INDEX])
        heard, heard_offsets = jagged(table[HEARD_BEFORE])

        def column(name: str) -> Callable[[], np.ndarray]:
            return lambda: jagged(parquet.read_row_group(group, [name])[name])[0]

        return Layer(
            user_array(table[USER_ID]),
            offsets,
            items,
            heard_offsets,
            heard,
            table[NUM_EVENTS].to_numpy(),
            column(TIMESTAMP),
            column(COMPLETION),
        )

    def base_users(self, file: ShardFile, group: int) -> np.ndarray:
        """user_id of the base's row group, ascending."""
        return user_array(self._parquet(file).read_row_group(group, [USER_ID])[USER_ID])

    def sizes(self, file: ShardFile, group: int) -> tuple[np.ndarray, np.ndarray]:
        """user_id, ascending, and stored events (int64) of the listeners of a row group as it is read."""
        table = self._sizes(file, group)
        return user_array(table[USER_ID]), table[NUM_EVENTS].to_numpy().astype(np.int64)

    def _sizes(self, file: ShardFile, group: int) -> pa.Table:
        names = [USER_ID, NUM_EVENTS]
        tables = [self._parquet(file).read_row_group(group, names)]
        tables += [table for delta in file.deltas if (table := self._delta(delta, group, names)) is not None]
        if len(tables) == 1:
            return tables[0]
        total = pa.concat_tables(tables).group_by(USER_ID).aggregate([(NUM_EVENTS, "sum")]).sort_by(USER_ID)
        events = np.minimum(total[f"{NUM_EVENTS}_sum"].to_numpy(), self.max_history).astype(np.int32)
        return pa.table({USER_ID: total[USER_ID], NUM_EVENTS: events})

    def _delta(self, delta: DeltaFile, group: int, columns: list[str]) -> pa.Table | None:
        return self._parquet(delta).read_row_group(_place(delta, group), columns) if delta.groups[group] else None

    def _parquet(self, file: ShardFile | DeltaFile) -> "_Parquet":
        return _Parquet(self.uri_of(file))

    def row_groups(self) -> Iterator[tuple[ShardFile, int, int]]:
        """Every (file, row group, rows), in a fixed order."""
        for file in self.files:
            for group, rows in enumerate(file.row_groups):
                yield file, group, rows


def _place(delta: DeltaFile, group: int) -> int:
    """Which row group of a delta belongs to one of the base."""
    return sum(rows > 0 for rows in delta.groups[:group])


@dataclass(frozen=True)
class _Parquet:
    """A Parquet file that is opened for one read; a missing or broken one is an InputError that names it."""

    uri: str

    def read(self, columns: Sequence[str] | None) -> pa.Table:
        return self._read(lambda file: file.read(columns=None if columns is None else list(columns)), columns)

    def read_row_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        return self._read(lambda file: file.read_row_group(group, columns=list(columns), use_threads=False), columns)

    def _read(self, what: Any, columns: Sequence[str] | None) -> pa.Table:
        fs, path = storage.filesystem(self.uri)
        try:
            with fs.open_input_file(path) as source:
                table = what(pq.ParquetFile(source))
        except (pa.ArrowInvalid, OSError) as error:
            problem = f"{self.uri} cannot be read as Parquet ({error})"
            raise InputError(f"{problem}: re-run `fuxi sessionize` for its ds") from None
        return table if columns is None else table.select(list(columns))


def write_manifest(folder: str, manifest: Manifest) -> Manifest:
    """Publish the shards of a ds: the last write of the sessionize stage."""
    content = {key: value for key, value in asdict(manifest).items() if key != "folder"}
    storage.write_json(storage.join(folder, "_manifest.json"), {"format": SHARD_FORMAT, **content})
    return Manifest(**{**_parse(content), "folder": folder})


def read_manifest(folder: str) -> Manifest:
    """The manifest of a ds folder. InputError if it is not published or of another format."""
    uri = storage.join(folder, "_manifest.json")
    if not storage.exists(uri):
        raise InputError(f"{uri} is not there: run `fuxi sessionize` for this ds first")
    content = storage.read_json(uri)
    if content.pop("format", None) not in _READABLE:
        raise InputError(f"{uri} is not of shard format {SHARD_FORMAT}: re-run `fuxi sessionize` with this release")
    return Manifest(**{**_parse(content), "folder": folder})


def _parse(content: dict[str, Any]) -> dict[str, Any]:
    def date(value: Any) -> dt.date | None:
        return value if value is None or isinstance(value, dt.date) else dt.date.fromisoformat(value)

    files = tuple(_shard_file(file) for file in content["files"])
    return {**content, "ds": date(content["ds"]), "parent": date(content["parent"]), "files": files}


def _shard_file(content: dict[str, Any]) -> ShardFile:
    """A ShardFile from its JSON."""
    deltas = tuple(DeltaFile(**{**delta, "groups": tuple(delta["groups"])}) for delta in content.get("deltas", ()))
    return ShardFile(**{**content, "row_groups": tuple(content["row_groups"]), "deltas": deltas})


def read_item_counts(manifest: Manifest) -> np.ndarray:
    """Distinct listeners of every song on this ds, int64 [vocabulary_size + 1] by item_index; entry 0 is 0."""
    table = storage.read_table(manifest.uri(manifest.item_counts))
    counts = np.zeros(manifest.vocabulary_size + 1, np.int64)
    counts[table[ITEM_INDEX].to_numpy()] = table[LISTENERS].to_numpy()
    return counts


def write_item_counts(uri: str, counts: np.ndarray) -> None:
    """Write `read_item_counts`' array; songs without a listener are left out."""
    heard = np.flatnonzero(counts)
    table = pa.table({ITEM_INDEX: heard.astype(np.int32), LISTENERS: counts[heard]}, schema=item_counts_schema())
    storage.write_table(uri, table)


def inputs_table(files: Iterable[dict[str, Any]]) -> pa.Table:
    """Consumed log files as a manifest's `inputs` lists them: uri, size, etag, landing_day."""
    return pa.Table.from_pylist(list(files), schema=_INPUTS_SCHEMA)


def listed_uris(manifest: Manifest) -> set[str]:
    """Every file a manifest names."""
    shards = {manifest.uri_of(layer) for file in manifest.files for layer in file.layers}
    return shards | {manifest.uri(manifest.item_counts), manifest.uri(manifest.inputs)}


def remove_unlisted(manifest: Manifest) -> None:
    """Delete files of earlier runs below a published ds folder, unless a later day still reads them."""
    listed = listed_uris(manifest)
    unlisted = [file.uri for file in storage.list_files(manifest.folder) if file.uri not in listed]
    if unlisted:
        kept = {uri for later in later_manifests(manifest) for uri in listed_uris(later)}
        storage.delete_files(uri for uri in unlisted if uri not in kept)


def later_manifests(manifest: Manifest) -> Iterator[Manifest]:
    """The published manifests of later days, which may name files of this one."""
    root, own = storage.parent(manifest.folder), storage.name(manifest.folder)
    for name in storage.list_folders(root):
        if name > own and name.startswith("ds=") and storage.exists(storage.join(root, name, "_manifest.json")):
            yield read_manifest(storage.join(root, name))
