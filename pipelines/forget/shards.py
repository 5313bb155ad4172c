"""Removes listeners from the shards of every ds, and finds what killed runs left.

A bucket's files are few and small beside all shards, so the work goes bucket by bucket and row group by row group.
Nothing is changed in place: files without the listeners are written under new names, then every manifest that listed
an old file is replaced atomically, and a file is deleted only when no manifest lists it any more. So readers always
find whole histories, and a killed run is repaired by running it again.

A base row group is bounded by the user ids it holds, and an increment has a slice for each base row group. If the last
listener of a row group is removed, its bound moves; a row group that becomes empty is dropped. The increments are then
cut at the new bounds, so that reading and the next day's merge agree on them. A base that becomes empty is replaced by
its first increment.
"""

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.errors import InputError
from pipelines.forget.listeners import DayLock, ListenersToForget, Matches
from pipelines.histories.histories import HISTORY_COLUMNS, Histories, songs_of_pairs, user_array
from pipelines.histories.shards import (
    IncrementFile,
    Manifest,
    ShardFile,
    listed_uris,
    open_parquet,
    read_item_counts,
    read_manifest,
    with_digests,
    write_item_counts,
    write_manifest,
)
from pipelines.histories.writer import IncrementWriter, ParquetSink, ShardWriter
from pipelines.schema import NUM_EVENTS, USER_ID, sequence_schema
from pipelines.workspace import Workspace

_NAME_MARK = "forget"
"""Part of the names of files that are written here."""
_THREADS = 4
_READ = [*HISTORY_COLUMNS, NUM_EVENTS]


def published_manifests(workspace: Workspace) -> list[Manifest]:
    """The manifest of every ds, oldest first."""
    return [read_manifest(workspace.sequences(ds)) for ds in workspace.days_with_sequences()]


def find_in_shards(workspace: Workspace, listeners: ListenersToForget) -> Matches:
    """What the published shards hold of the listeners."""
    manifests, matches = published_manifests(workspace), Matches()
    for bucket, members in listeners.by_bucket(workspace.spec.buckets).items():
        files = _files_of_bucket(manifests, bucket)
        for uri in {manifest.uri_of(layer) for manifest, file in files for layer in file.layers}:
            matches += _matches_in(uri, members)
    return matches


def erase_from_shards(
    workspace: Workspace,
    listeners: ListenersToForget,
    *,
    lock_day: DayLock,
    row_group_events: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Matches:
    """Publish every ds again without the listeners; files that held them stay, but no manifest lists them.

    row_group_events: size of the row groups of a new base. advance: called with the number of buckets done. A ds that
    another run publishes meanwhile is left as that run published it: look again.
    """
    manifests, matches = published_manifests(workspace), Matches()
    changes = {manifest.ds: _ManifestChange(np.zeros(manifest.vocabulary_size + 1, np.int32)) for manifest in manifests}

    def rewrite(item: tuple[int, ListenersToForget]) -> tuple[int, Matches, dict[dt.date, _BucketChange]]:
        bucket, members = item
        rewriter = _BucketRewriter(members, row_group_events)
        files = _files_of_bucket(manifests, bucket)
        changed = {m.ds: change for m, file in files if (change := rewriter.rewrite(m, file))}
        return bucket, sum(rewriter.matches.values(), Matches()), changed

    with ThreadPoolExecutor(_THREADS) as pool:
        by_bucket = listeners.by_bucket(workspace.spec.buckets)
        for bucket, found, changed in pool.map(rewrite, by_bucket.items()):
            matches += found
            for ds, change in changed.items():
                changes[ds].files[bucket] = change.file
                np.add.at(changes[ds].removed, change.songs, 1)
            advance(1)
    for manifest in manifests:
        if changes[manifest.ds].files:
            with lock_day(manifest.ds):
                _publish(manifest, changes[manifest.ds])
    return matches


def _files_of_bucket(manifests: Iterable[Manifest], bucket: int) -> Iterator[tuple[Manifest, ShardFile]]:
    return ((m, file) for m in manifests for file in m.files if file.bucket == bucket)


def _matches_in(uri: str, listeners: ListenersToForget) -> Matches:
    with open_parquet(uri) as file:
        rows = listeners.rows_in(file)
    return Matches(int(rows > 0), rows)


@dataclass(frozen=True)
class _BucketChange:
    """A bucket as a manifest is to list it (None: it became empty), and what was removed from it."""

    file: ShardFile | None
    songs: np.ndarray  # int32, the songs of the removed listeners, each once a listener


@dataclass
class _ManifestChange:
    """What changes in one manifest."""

    removed: np.ndarray  # int32 [vocabulary_size + 1], listeners removed from each song
    files: dict[int, ShardFile | None] = field(default_factory=dict)  # by bucket; None: it became empty


def _publish(manifest: Manifest, change: _ManifestChange) -> None:
    """Replace a manifest by the changed one, unless another run has replaced it since it was read."""
    if read_manifest(manifest.folder) != manifest:
        return
    counts = np.maximum(read_item_counts(manifest) - change.removed, 0)
    item_counts = f"item_counts-{_NAME_MARK}-{uuid.uuid4().hex[:20]}.parquet"
    write_item_counts(storage.join(manifest.folder, item_counts), counts)
    files = (change.files.get(file.bucket, file) for file in manifest.files)
    changed = replace(manifest, files=tuple(filter(None, files)), item_counts=item_counts)
    write_manifest(manifest.folder, with_digests(changed))


@dataclass(frozen=True)
class _Base:
    """A base without the listeners and without increments; file None: it became empty."""

    file: ShardFile | None
    ends: np.ndarray  # last user id of each row group


class _BucketRewriter:
    """Rewrites the files of one bucket, each once, whichever manifests list it."""

    def __init__(self, listeners: ListenersToForget, row_group_events: int):
        self.matches: dict[str, Matches] = {}  # by URI
        self._listeners, self._row_group_events = listeners, row_group_events
        self._bases: dict[str, _Base] = {}  # by URI of the layer that becomes it
        self._increments: dict[tuple[str, str], IncrementFile | None] = {}  # by URIs of the old increment and its base
        self._removed: dict[str, list[np.ndarray]] = defaultdict(list)  # by URI: pairs of listener and song

    def rewrite(self, manifest: Manifest, file: ShardFile) -> _BucketChange | None:
        """The bucket without the listeners; None if it holds none of them."""
        if not sum(self._has_matches(manifest.uri_of(layer)) for layer in file.layers):
            return None
        base, increments = self._base(manifest, file, file.bucket), list(file.increments)
        while base.file is None and increments:
            base = self._base(manifest, increments.pop(0), file.bucket)
        kept = [self._increment(manifest, increment, base) for increment in increments]
        removed = [pairs for layer in file.layers for pairs in self._removed[manifest.uri_of(layer)]]
        songs = songs_of_pairs(np.unique(np.concatenate(removed)))
        layered = base.file and replace(base.file, increments=tuple(filter(None, kept)))
        return _BucketChange(layered and _with_counts(manifest, layered, len(base.ends)), songs)

    def _has_matches(self, uri: str) -> bool:
        """Whether a file holds any of the listeners."""
        if uri not in self.matches:
            self.matches[uri] = _matches_in(uri, self._listeners)
        return self.matches[uri].files > 0

    def _base(self, manifest: Manifest, layer: ShardFile | IncrementFile, bucket: int) -> _Base:
        """The base that a layer becomes: the old base without the listeners, or the increment over an empty base."""
        uri = manifest.uri_of(layer)
        if uri not in self._bases:
            folder = uri.removesuffix(f"/{layer.path}")
            if isinstance(layer, IncrementFile):
                file = self._promoted_increment(folder, layer, manifest, bucket)
            elif self._has_matches(uri):
                file = self._rewritten_base(folder, layer, manifest)
            else:
                file = replace(layer, increments=())
            self._bases[uri] = _Base(file, _last_users(storage.join(folder, file.path)) if file else np.zeros(0))
        base = self._bases[uri]
        return replace(base, file=base.file and replace(base.file, home=layer.home))

    def _rewritten_base(self, folder: str, base: ShardFile, manifest: Manifest) -> ShardFile | None:
        """A base's row groups without the listeners; those that become empty are dropped."""
        path, uri = _new_path(base.path, "part"), storage.join(folder, base.path)
        sink = ParquetSink(storage.join(folder, path), sequence_schema(manifest.user_id_type))
        with open_parquet(uri) as source:
            for group in range(source.num_row_groups):
                kept = self._without_listeners(uri, source.read_row_group(group))
                if kept.num_rows:
                    sink.write(kept)
        return ShardFile(path, base.bucket, 0, 0, sink.size, sink.sha256, ()) if sink.close() else None

    def _promoted_increment(
        self, folder: str, increment: IncrementFile, manifest: Manifest, bucket: int
    ) -> ShardFile | None:
        """An increment over an empty base as a base: whole histories, with their sessions."""
        writer = ShardWriter(
            folder,
            _new_path(increment.path, "part"),
            bucket=bucket,
            user_id_type=manifest.user_id_type,
            session_gap_s=manifest.session_gap_s,
            row_group_events=self._row_group_events,
        )
        uri = storage.join(folder, increment.path)
        with open_parquet(uri) as source:
            writer.write(Histories.from_table(self._without_listeners(uri, source.read(_READ))))
        return writer.close()

    def _increment(self, manifest: Manifest, increment: IncrementFile, base: _Base) -> IncrementFile | None:
        """An increment without the listeners, cut at the ends of the base's row groups; None if it becomes empty."""
        assert base.file is not None
        uri = manifest.uri_of(increment)
        key = uri, manifest.uri_of(base.file)
        if key not in self._increments:
            users = storage.read_table(uri, [USER_ID])[USER_ID]
            unchanged = not self._has_matches(uri) and _rows_by_group(users, base.ends) == increment.groups
            self._increments[key] = increment if unchanged else self._recut(uri, increment, base, manifest)
        new = self._increments[key]
        return new and replace(new, home=increment.home)

    def _recut(self, uri: str, increment: IncrementFile, base: _Base, manifest: Manifest) -> IncrementFile | None:
        folder, path = uri.removesuffix(f"/{increment.path}"), _new_path(increment.path, "increment")
        writer = IncrementWriter(folder, path, user_id_type=manifest.user_id_type)
        with open_parquet(uri) as source:
            kept = self._without_listeners(uri, source.read(_READ))
        start = 0
        for count in _rows_by_group(kept[USER_ID], base.ends):
            rows = kept.slice(start, count)
            writer.write(Histories.from_table(rows), rows[NUM_EVENTS].to_numpy())
            start += count
        return writer.close()

    def _without_listeners(self, uri: str, table: pa.Table) -> pa.Table:
        """The rows of all other listeners in a part of a file.

        The removed rows' (listener, song) pairs are noted, with the listener's place among those to forget.
        """
        theirs = self._listeners.mask(table[USER_ID])
        if not theirs.any():
            return table
        removed = Histories.from_table(table.filter(pa.array(theirs)))
        place = pc.index_in(removed.user_id, value_set=self._listeners.ids).to_numpy()
        self._removed[uri].append(removed.pairs(place))
        return table.filter(pa.array(~theirs))


def _with_counts(manifest: Manifest, file: ShardFile, groups: int) -> ShardFile:
    """A bucket with its rows and events counted as they are read, all layers merged."""
    file = replace(file, row_groups=(0,) * groups)
    rows, events = [], 0
    for group in range(groups):
        table = manifest.read(file, group, [USER_ID, NUM_EVENTS])
        rows.append(table.num_rows)
        events += int(np.sum(table[NUM_EVENTS].to_numpy(), dtype=np.int64))
    return replace(file, rows=sum(rows), events=events, row_groups=tuple(rows))


def _rows_by_group(users: pa.ChunkedArray, ends: np.ndarray) -> tuple[int, ...]:
    """How many of an increment's rows belong to each row group of a base; those beyond the last end to the last."""
    groups = np.searchsorted(ends[:-1], user_array(users), side="left")
    return tuple(np.bincount(groups, minlength=len(ends)).tolist())


def _last_users(uri: str) -> np.ndarray:
    """The last user id of each row group."""
    with open_parquet(uri) as source:
        users = user_array(source.read([USER_ID])[USER_ID])
        rows = [source.metadata.row_group(group).num_rows for group in range(source.num_row_groups)]
    return users[np.cumsum(rows) - 1]


def _new_path(path: str, kind: str) -> str:
    return f"{storage.parent(path)}/{kind}-{_NAME_MARK}-{uuid.uuid4().hex[:20]}.parquet"


def files_below(workspace: Workspace, *folders: str) -> list[str]:
    """Every file below some folders of a workspace."""
    return [file.uri for folder in folders for file in storage.list_files(storage.join(workspace.uri, folder))]


def unlisted_shards(workspace: Workspace, uris: Iterable[str]) -> list[str]:
    """The files below sequences/ that no manifest lists: leftovers of killed runs, and files replaced here.

    To delete them safely: list the files, make sure that no day is running, then call this. Files of a day that
    starts later are not among them.
    """
    listed = {uri for manifest in published_manifests(workspace) for uri in listed_uris(manifest)}
    return [uri for uri in uris if uri not in listed]


def find_in_unlisted(uris: Iterable[str], listeners: ListenersToForget) -> Matches:
    """What unlisted files hold of the listeners. A file that cannot be read counts, since it is deleted as well."""
    matches = Matches()
    for uri in uris:
        try:
            matches += _matches_in(uri, listeners)
        except InputError:
            matches += Matches(1, 0)
    return matches
