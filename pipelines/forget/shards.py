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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.errors import InputError
from pipelines.forget.listeners import DayLock, ListenersToForget, Matches
from pipelines.histories.histories import HISTORY_COLUMNS, Histories, no_histories, songs_of_pairs, user_array
from pipelines.histories.shards import (
    IncrementFile,
    Manifest,
    ShardFile,
    listed_uris,
    open_parquet,
    read_item_counts,
    read_manifest,
    write_item_counts,
    write_manifest,
)
from pipelines.histories.writer import IncrementWriter, ParquetSink, ShardWriter
from pipelines.schema import (
    NUM_EVENTS,
    USER_ID,
    id_type,
    sequence_schema,
)
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
    changes = {manifest.ds: _ManifestChange() for manifest in manifests}

    def rewrite(item: tuple[int, ListenersToForget]) -> tuple[int, Matches, list[tuple[dt.date, _BucketChange]]]:
        bucket, members = item
        rewriter = _BucketRewriter(members, row_group_events)
        files = _files_of_bucket(manifests, bucket)
        changed = [(m.ds, change) for m, file in files if (change := rewriter.rewrite(m, file))]
        return bucket, sum(rewriter.matches.values(), Matches()), changed

    with ThreadPoolExecutor(_THREADS) as pool:
        by_bucket = listeners.by_bucket(workspace.spec.buckets)
        for bucket, found, changed in pool.map(rewrite, by_bucket.items()):
            matches += found
            for ds, change in changed:
                changes[ds].add(bucket, change)
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

    files: dict[int, ShardFile | None] = field(default_factory=dict)
    songs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    listeners: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # removed from each of these songs

    def add(self, bucket: int, change: _BucketChange) -> None:
        self.files[bucket] = change.file
        songs, counts = np.unique(change.songs, return_counts=True)
        self.songs, place = np.unique(np.concatenate([self.songs, songs]), return_inverse=True)
        weights = np.concatenate([self.listeners, counts])
        self.listeners = np.bincount(place, weights, minlength=len(self.songs)).astype(np.int32)


def _publish(manifest: Manifest, change: _ManifestChange) -> None:
    """Replace a manifest by the changed one, unless another run has replaced it since it was read."""
    if read_manifest(manifest.folder) != manifest:
        return
    counts = read_item_counts(manifest)
    counts[change.songs] = np.maximum(counts[change.songs] - change.listeners, 0)
    item_counts = f"item_counts-{_NAME_MARK}-{uuid.uuid4().hex[:20]}.parquet"
    write_item_counts(storage.join(manifest.folder, item_counts), counts)
    files = (change.files.get(file.bucket, file) for file in manifest.files)
    kept = tuple(file for file in files if file is not None)
    write_manifest(manifest.folder, replace(manifest, files=kept, item_counts=item_counts))


@dataclass(frozen=True)
class _Base:
    """A base without the listeners and without increments; file None: it became empty."""

    file: ShardFile | None
    ends: np.ndarray  # last user id of each row group
    pairs: np.ndarray  # what was removed, see `_without_listeners`


class _BucketRewriter:
    """Rewrites the files of one bucket, each once, whichever manifests list it."""

    def __init__(self, listeners: ListenersToForget, row_group_events: int):
        self.matches: dict[str, Matches] = {}  # by URI
        self._listeners, self._row_group_events = listeners, row_group_events
        self._bases: dict[str, _Base] = {}
        self._increments: dict[tuple[str, str], tuple[IncrementFile | None, np.ndarray]] = {}

    def rewrite(self, manifest: Manifest, file: ShardFile) -> _BucketChange | None:
        """The bucket without the listeners; None if it holds none of them."""
        if not sum(self._has_matches(manifest.uri_of(layer)) for layer in file.layers):
            return None
        base = self._base(manifest, file, file.bucket)
        increments, pairs = list(file.increments), [base.pairs]
        while base.file is None and increments:
            base = self._base(manifest, increments.pop(0), file.bucket)
            pairs.append(base.pairs)
        kept = []
        for increment in increments:
            new, removed = self._increment(manifest, increment, base)
            kept += [new] if new else []
            pairs.append(removed)
        songs = songs_of_pairs(np.unique(np.concatenate(pairs)))
        layered = base.file and replace(base.file, increments=tuple(kept))
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
            if isinstance(layer, ShardFile):
                self._bases[uri] = self._rewritten_base(uri, layer, manifest)
            else:
                self._bases[uri] = self._promoted_increment(uri, layer, manifest, bucket)
        base = self._bases[uri]
        return replace(base, file=base.file and replace(base.file, home=layer.home))

    def _rewritten_base(self, uri: str, file: ShardFile, manifest: Manifest) -> _Base:
        """A base's row groups without the listeners; those that become empty are dropped."""
        path = _new_path(file.path, "part")
        sink = ParquetSink(uri.removesuffix(file.path) + path, sequence_schema(manifest.user_id_type))
        ends, pairs = [], [_no_pairs()]
        changed = self._has_matches(uri)
        with open_parquet(uri) as source:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group, None if changed else [USER_ID])
                kept = self._without_listeners(table, pairs) if changed else table
                if kept.num_rows:
                    ends.append(kept[USER_ID][-1].as_py())
                    if changed:
                        sink.write(kept)
        bounds = _user_ids(ends, manifest.user_id_type)
        if not changed:
            return _Base(replace(file, increments=()), bounds, _no_pairs())
        written = sink.close()
        new = ShardFile(path, file.bucket, 0, 0, sink.size, sink.sha256, ()) if written else None
        return _Base(new, bounds, np.concatenate(pairs))

    def _promoted_increment(self, uri: str, increment: IncrementFile, manifest: Manifest, bucket: int) -> _Base:
        """An increment over an empty base as a base: whole histories, with their sessions."""
        path, pairs, kind = _new_path(increment.path, "part"), [_no_pairs()], manifest.user_id_type
        writer = ShardWriter(
            uri.removesuffix(f"/{increment.path}"),
            path,
            bucket=bucket,
            user_id_type=kind,
            session_gap_s=manifest.session_gap_s,
            row_group_events=self._row_group_events,
        )
        with open_parquet(uri) as source:
            for group in range(source.num_row_groups):
                table = self._without_listeners(source.read_row_group(group, _READ), pairs)
                writer.write(Histories.from_table(table))
        new = writer.close()
        ends = _last_users(uri.removesuffix(increment.path) + path) if new else []
        return _Base(new, _user_ids(ends, kind), np.concatenate(pairs))

    def _increment(
        self, manifest: Manifest, increment: IncrementFile, base: _Base
    ) -> tuple[IncrementFile | None, np.ndarray]:
        """An increment without the listeners, cut at the ends of the base's row groups; None if it becomes empty.

        The array: what was removed from it, see `_without_listeners`.
        """
        assert base.file is not None
        uri = manifest.uri_of(increment)
        key = (uri, manifest.uri_of(base.file))
        if key not in self._increments:
            if self._has_matches(uri) or _rows_by_group(uri, base.ends) != increment.groups:
                self._increments[key] = self._recut(uri, increment, base, manifest)
            else:
                self._increments[key] = increment, _no_pairs()
        new, pairs = self._increments[key]
        return new and replace(new, home=increment.home), pairs

    def _recut(
        self, uri: str, increment: IncrementFile, base: _Base, manifest: Manifest
    ) -> tuple[IncrementFile | None, np.ndarray]:
        path, pairs = _new_path(increment.path, "increment"), [_no_pairs()]
        writer = IncrementWriter(uri.removesuffix(f"/{increment.path}"), path, user_id_type=manifest.user_id_type)
        pending: list[pa.Table] = []
        group = 0

        def flush(until: int) -> None:
            nonlocal group, pending
            while group < until:
                table = pa.concat_tables(pending) if pending else None
                histories = Histories.from_table(table) if table else no_histories()
                writer.write(histories, table[NUM_EVENTS].to_numpy() if table else np.zeros(0, np.int32))
                pending, group = [], group + 1

        with open_parquet(uri) as source:
            for place in range(source.num_row_groups):
                kept = self._without_listeners(source.read_row_group(place, _READ), pairs)
                groups = _row_group_of(user_array(kept[USER_ID]), base.ends)
                for number in np.unique(groups).tolist():
                    flush(number)
                    start, stop = np.searchsorted(groups, [number, number + 1]).tolist()
                    pending.append(kept.slice(start, stop - start))
        flush(len(base.ends))
        return writer.close(), np.concatenate(pairs)

    def _without_listeners(self, table: pa.Table, pairs: list[np.ndarray]) -> pa.Table:
        """The rows of all other listeners. Appends the removed rows' (listener, song) pairs to `pairs`.

        A pair is as of `histories.pair`, with the listener's place among those to forget.
        """
        theirs = self._listeners.mask(table[USER_ID])
        if not theirs.any():
            return table
        removed = Histories.from_table(table.filter(pa.array(theirs)))
        pairs.append(removed.pairs(pc.index_in(removed.user_id, value_set=self._listeners.ids).to_numpy()))
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


def _row_group_of(users: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The base row group of each listener; listeners beyond the last end belong to the last row group."""
    return np.searchsorted(ends[:-1], users, side="left")


def _rows_by_group(uri: str, ends: np.ndarray) -> tuple[int, ...]:
    """Rows of an increment that belong to each row group of a base."""
    counts = np.zeros(len(ends), np.int64)
    with open_parquet(uri) as source:
        for group in range(source.num_row_groups):
            users = user_array(source.read_row_group(group, [USER_ID])[USER_ID])
            counts += np.bincount(_row_group_of(users, ends), minlength=len(ends))
    return tuple(counts.tolist())


def _last_users(uri: str) -> list[Any]:
    """The last user id of each row group."""
    with open_parquet(uri) as source:
        return [source.read_row_group(n, [USER_ID])[USER_ID][-1].as_py() for n in range(source.num_row_groups)]


def _user_ids(values: list[Any], user_id_type: str) -> np.ndarray:
    return user_array(pa.array(values, id_type(user_id_type)))


def _no_pairs() -> np.ndarray:
    return np.zeros(0, np.int64)


def _new_path(path: str, kind: str) -> str:
    return f"{storage.parent(path)}/{kind}-{_NAME_MARK}-{uuid.uuid4().hex[:20]}.parquet"


# ---- files that no manifest lists ------------------------------------------------------------------------------------


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
