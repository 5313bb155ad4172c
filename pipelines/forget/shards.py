"""Removes listeners from the files of a workspace: the shards of every ds, the quarantine, what killed runs left.

A bucket's files are few and small beside everything, so the work goes bucket by bucket and row group by row group.
Nothing is changed in place: files without the listeners get new names, then each manifest that named an old file is
replaced at once, and only when no manifest names a file any more is it deleted. So readers always find whole
histories, and a run that was killed anywhere is simply run again.

A base row group is bounded by the user ids it holds, and a delta has a slice for each of them. When the last listener
of a row group goes, the bound moves; a row group that loses everybody goes too. The deltas are then cut anew, so that
what is read and what a later day lays over it agree. A base that loses everybody is replaced by its first delta.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import contextlib
import datetime as dt
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import InputError
from pipelines.forget.blocklist import possible_users
from pipelines.histories.buckets import user_bucket
from pipelines.histories.merge import Block, no_histories, user_array
from pipelines.histories.shards import (
    DeltaFile,
    Manifest,
    ShardFile,
    listed_uris,
    read_item_counts,
    read_manifest,
    write_item_counts,
    write_manifest,
)
from pipelines.histories.writer import DeltaWriter, ParquetSink, ShardWriter
from pipelines.schema import (
    COMPLETION,
    HEARD_BEFORE,
    ITEM_INDEX,
    NUM_EVENTS,
    TIMESTAMP,
    USER_ID,
    id_type,
    sequence_schema,
)
from pipelines.workspace import Workspace

MARK = "forget"
"""Part of the names of files that are written here."""
_THREADS = 4
_READ = [USER_ID, ITEM_INDEX, TIMESTAMP, COMPLETION, HEARD_BEFORE, NUM_EVENTS]

Hold = Callable[[dt.date], contextlib.AbstractContextManager[None]]
"""Keeps every other run away from a ds while something of it is replaced."""


@dataclass(frozen=True)
class Held:
    """What holds the listeners: files, and rows in them (None where the rows are not told apart)."""

    files: int = 0
    rows: int | None = 0

    def __add__(self, other: "Held") -> "Held":
        rows = None if self.rows is None or other.rows is None else self.rows + other.rows
        return Held(self.files + other.files, rows)


class Listeners:
    """The listeners to be removed, and which of them were found anywhere so far."""

    def __init__(self, ids: pa.Array, buckets: int):
        self.ids = ids.unique()
        self.user_id_type = "int64" if pa.types.is_integer(self.ids.type) else "string"
        self.found = np.zeros(len(self.ids), bool)
        self._buckets = buckets
        self._bucket = user_bucket(self.ids, buckets) if len(self.ids) else np.zeros(0, np.int32)
        self._place = {user: place for place, user in enumerate(self.ids.to_pylist())}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, user: int | str) -> bool:
        return user in self._place

    def in_buckets(self) -> "dict[int, Listeners]":
        """The listeners of each bucket that has any; what is found of them is found of these."""
        order = np.argsort(self._bucket, kind="stable")
        numbers, starts = np.unique(self._bucket[order], return_index=True)
        parts = np.split(order, starts[1:]) if len(order) else []
        return {int(n): _Part(self, rows) for n, rows in zip(numbers, parts, strict=True)}

    def mask(self, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Which rows are theirs, bool; these listeners count as found."""
        place = pc.index_in(column, value_set=self.ids)
        place = place.combine_chunks() if isinstance(place, pa.ChunkedArray) else place
        there = place.is_valid().to_numpy(zero_copy_only=False)
        if there.any():
            self._saw(place.drop_null().to_numpy())
        return there

    def any_of(self, users: Iterable[int | str]) -> bool:
        """Whether one of them is among some ids; those that are count as found."""
        places = [self._place[user] for user in users if user in self._place]
        self._saw(np.array(places, np.int64))
        return bool(places)

    def _saw(self, places: np.ndarray) -> None:
        self.found[places] = True


class _Part(Listeners):
    """Some of the listeners."""

    def __init__(self, whole: Listeners, rows: np.ndarray):
        self.ids, self.user_id_type = whole.ids.take(pa.array(rows)), whole.user_id_type
        self._whole, self._rows = whole, rows

    def _saw(self, places: np.ndarray) -> None:
        self._whole.found[self._rows[places]] = True


def published(workspace: Workspace) -> list[Manifest]:
    """The manifest of every ds, oldest first."""
    return [read_manifest(workspace.sequences(ds)) for ds in workspace.days_with_sequences()]


# ---- shards ----------------------------------------------------------------------------------------------------------


def survey_shards(workspace: Workspace, listeners: Listeners) -> Held:
    """What the published shards hold of the listeners."""
    manifests, held = published(workspace), Held()
    for bucket, own in listeners.in_buckets().items():
        eraser = _Eraser(own, row_group_events=1)
        for manifest, file in _entries(manifests, bucket):
            eraser.touches(manifest, file)
        held += eraser.held
    return held


def erase_from_shards(
    workspace: Workspace,
    listeners: Listeners,
    *,
    hold: Hold,
    row_group_events: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Held:
    """Publish every ds again without the listeners; the files that held them stay, named by no manifest.

    row_group_events: where a new base is cut. advance: called with the number of buckets done. A ds that another run
    published meanwhile is left as that run published it: look again.
    """
    manifests, held = published(workspace), Held()
    changes = {manifest.ds: _Changes() for manifest in manifests}

    def erase(part: tuple[int, Listeners]) -> tuple[int, _Eraser, list[tuple[dt.date, "_Entry"]]]:
        bucket, own = part
        eraser = _Eraser(own, row_group_events=row_group_events)
        found = [(m.ds, entry) for m, file in _entries(manifests, bucket) if (entry := eraser.entry(m, file))]
        return bucket, eraser, found

    with ThreadPoolExecutor(_THREADS) as pool:
        for bucket, eraser, entries in pool.map(erase, listeners.in_buckets().items()):
            held += eraser.held
            for ds, entry in entries:
                changes[ds].take(bucket, entry)
            advance(1)
    for manifest in manifests:
        if changes[manifest.ds].files:
            with hold(manifest.ds):
                _replace(manifest, changes[manifest.ds])
    return held


def _entries(manifests: Iterable[Manifest], bucket: int) -> Iterator[tuple[Manifest, ShardFile]]:
    return ((m, file) for m in manifests for file in m.files if file.bucket == bucket)


@dataclass(frozen=True)
class _Entry:
    """A bucket as a manifest is to name it, and the songs of those who go from it, one for each (listener, song)."""

    file: ShardFile | None
    songs: np.ndarray


@dataclass
class _Changes:
    """What changes in one manifest."""

    files: dict[int, ShardFile | None] = field(default_factory=dict)
    songs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    listeners: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # who leave each of these songs

    def take(self, bucket: int, entry: _Entry) -> None:
        self.files[bucket] = entry.file
        songs, counts = np.unique(entry.songs, return_counts=True)
        self.songs, place = np.unique(np.concatenate([self.songs, songs]), return_inverse=True)
        weights = np.concatenate([self.listeners, counts])
        self.listeners = np.bincount(place, weights, minlength=len(self.songs)).astype(np.int32)


def _replace(manifest: Manifest, changes: _Changes) -> None:
    """Publish a manifest with what changes, unless the ds was published anew since it was read."""
    if read_manifest(manifest.folder) != manifest:
        return
    counts = read_item_counts(manifest)
    counts[changes.songs] = np.maximum(counts[changes.songs] - changes.listeners, 0)
    item_counts = f"item_counts-{MARK}-{uuid.uuid4().hex[:20]}.parquet"
    write_item_counts(storage.join(manifest.folder, item_counts), counts)
    files = (changes.files.get(file.bucket, file) for file in manifest.files)
    kept = tuple(file for file in files if file is not None)
    write_manifest(manifest.folder, replace(manifest, files=kept, item_counts=item_counts))


@dataclass(frozen=True)
class _Layer:
    """A base after the listeners went, without deltas; None: nobody is left. `ends`: last user id of each row group."""

    file: ShardFile | None
    ends: np.ndarray
    pairs: np.ndarray


class _Eraser:
    """Rewrites the files of one bucket, each once, whichever manifests name it."""

    def __init__(self, listeners: Listeners, *, row_group_events: int):
        self.held = Held()
        self._listeners, self._row_group_events = listeners, row_group_events
        self._hits: dict[str, int] = {}
        self._bases: dict[str, _Layer] = {}
        self._deltas: dict[tuple[str, str], tuple[DeltaFile | None, np.ndarray]] = {}

    def touches(self, manifest: Manifest, file: ShardFile) -> bool:
        """Whether a bucket of a manifest holds any of the listeners."""
        return sum(self._count(manifest.uri_of(layer)) for layer in file.layers) > 0

    def entry(self, manifest: Manifest, file: ShardFile) -> _Entry | None:
        """The bucket without them; None if it holds none of them."""
        if not self.touches(manifest, file):
            return None
        base = self._base(manifest, file)
        deltas, pairs = list(file.deltas), [base.pairs]
        while base.file is None and deltas:
            base = self._promoted(manifest, deltas.pop(0), file.bucket)
            pairs.append(base.pairs)
        kept = []
        for delta in deltas:
            new, gone = self._delta(manifest, delta, base)
            kept += [new] if new else []
            pairs.append(gone)
        songs = (np.unique(np.concatenate(pairs)) & 0xFFFFFFFF).astype(np.int32)
        return _Entry(base.file and _measured(manifest, replace(base.file, deltas=tuple(kept)), len(base.ends)), songs)

    def _count(self, uri: str) -> int:
        """Rows of the listeners in a file."""
        if uri not in self._hits:
            with _parquet(uri) as file:
                users = (file.read_row_group(group, [USER_ID])[USER_ID] for group in range(file.num_row_groups))
                self._hits[uri] = sum(int(self._listeners.mask(column).sum()) for column in users)
            if self._hits[uri]:
                self.held += Held(1, self._hits[uri])
        return self._hits[uri]

    def _base(self, manifest: Manifest, file: ShardFile) -> _Layer:
        """A base's row groups without the listeners; those that become empty are left out."""
        uri = manifest.uri_of(file)
        if uri not in self._bases:
            self._bases[uri] = self._rewritten(uri, file, manifest.user_id_type)
        found = self._bases[uri]
        return replace(found, file=found.file and replace(found.file, home=file.home))

    def _rewritten(self, uri: str, file: ShardFile, user_id_type: str) -> _Layer:
        path = _new_name(file.path, "part")
        sink = ParquetSink(uri.removesuffix(file.path) + path, sequence_schema(user_id_type))
        ends, pairs = [], [_no_pairs()]
        changed = self._count(uri) > 0
        with _parquet(uri) as source:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group, None if changed else [USER_ID])
                kept = self._without(table, pairs) if changed else table
                if kept.num_rows:
                    ends.append(kept[USER_ID][-1].as_py())
                    if changed:
                        sink.write(kept)
        bounds = _users(ends, user_id_type)
        if not changed:
            return _Layer(replace(file, deltas=()), bounds, _no_pairs())
        left = sink.close()
        new = ShardFile(path, file.bucket, 0, 0, sink.size, sink.sha256, ()) if left else None
        return _Layer(new, bounds, np.concatenate(pairs))

    def _promoted(self, manifest: Manifest, delta: DeltaFile, bucket: int) -> _Layer:
        """A delta over nobody, made a base: whole histories, with their sessions."""
        uri = manifest.uri_of(delta)
        if uri not in self._bases:
            path, pairs = _new_name(delta.path, "part"), [_no_pairs()]
            kind = manifest.user_id_type
            writer = ShardWriter(
                uri.removesuffix(f"/{delta.path}"),
                path,
                bucket=bucket,
                user_id_type=kind,
                row_group_events=self._row_group_events,
            )
            with _parquet(uri) as source:
                for group in range(source.num_row_groups):
                    block = Block.from_table(self._without(source.read_row_group(group, _READ), pairs))
                    writer.write(block.to_table(user_id_type=kind, session_gap_s=manifest.session_gap_s))
            new = writer.close()
            ends = _users(_ends(uri.removesuffix(delta.path) + path) if new else [], kind)
            self._bases[uri] = _Layer(new, ends, np.concatenate(pairs))
        found = self._bases[uri]
        return replace(found, file=found.file and replace(found.file, home=delta.home))

    def _delta(self, manifest: Manifest, delta: DeltaFile, base: _Layer) -> tuple[DeltaFile | None, np.ndarray]:
        """A delta without the listeners, cut at the ends of the base's row groups; None if nothing is left of it."""
        uri, over = manifest.uri_of(delta), base.file
        assert over is not None
        key = (uri, manifest.uri_of(over))
        if key not in self._deltas:
            unchanged = not self._count(uri) and _groups(uri, base.ends) == delta.groups
            self._deltas[key] = (delta, _no_pairs()) if unchanged else self._cut_anew(uri, delta, base, manifest)
        new, pairs = self._deltas[key]
        return new and replace(new, home=delta.home), pairs

    def _cut_anew(
        self, uri: str, delta: DeltaFile, base: _Layer, manifest: Manifest
    ) -> tuple[DeltaFile | None, np.ndarray]:
        path, pairs = _new_name(delta.path, "delta"), [_no_pairs()]
        writer = DeltaWriter(uri.removesuffix(f"/{delta.path}"), path, user_id_type=manifest.user_id_type)
        pending: list[pa.Table] = []
        group = 0

        def flush(until: int) -> None:
            nonlocal group, pending
            while group < until:
                table = pa.concat_tables(pending) if pending else None
                block = Block.from_table(table) if table else no_histories()
                writer.write(block, table[NUM_EVENTS].to_numpy() if table else np.zeros(0, np.int32))
                pending, group = [], group + 1

        with _parquet(uri) as source:
            for place in range(source.num_row_groups):
                kept = self._without(source.read_row_group(place, _READ), pairs)
                groups = _group_of(user_array(kept[USER_ID]), base.ends)
                for number in np.unique(groups).tolist():
                    flush(number)
                    start, stop = np.searchsorted(groups, [number, number + 1]).tolist()
                    pending.append(kept.slice(start, stop - start))
        flush(len(base.ends))
        return writer.close(), np.concatenate(pairs)

    def _without(self, table: pa.Table, pairs: list[np.ndarray]) -> pa.Table:
        """The rows of everybody else; the (listener, song) pairs of those that go are added to `pairs`."""
        theirs = self._listeners.mask(table[USER_ID])
        if not theirs.any():
            return table
        gone = Block.from_table(table.filter(pa.array(theirs)))
        rank = pc.index_in(pa.array(gone.user_id, self._listeners.ids.type), value_set=self._listeners.ids).to_numpy()
        for items, offsets in ((gone.item_index, gone.offsets), (gone.heard_items, gone.heard_offsets)):
            pairs.append(np.repeat(rank.astype(np.int64), np.diff(offsets)) << 32 | items.astype(np.int64))
        return table.filter(pa.array(~theirs))


def _measured(manifest: Manifest, file: ShardFile, groups: int) -> ShardFile:
    """A bucket with the rows and events that are read from it."""
    file = replace(file, row_groups=(0,) * groups)
    rows, events = [], 0
    for group in range(groups):
        table = manifest.read(file, group, [USER_ID, NUM_EVENTS])
        rows.append(table.num_rows)
        events += int(np.sum(table[NUM_EVENTS].to_numpy(), dtype=np.int64))
    return replace(file, rows=sum(rows), events=events, row_groups=tuple(rows))


def _group_of(users: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The row group each listener belongs to; those after the last one's end belong to the last one."""
    return np.searchsorted(ends[:-1], users, side="left")


def _groups(uri: str, ends: np.ndarray) -> tuple[int, ...]:
    """Rows of a delta that belong to each row group of a base."""
    counts = np.zeros(len(ends), np.int64)
    with _parquet(uri) as source:
        for group in range(source.num_row_groups):
            users = user_array(source.read_row_group(group, [USER_ID])[USER_ID])
            counts += np.bincount(_group_of(users, ends), minlength=len(ends))
    return tuple(counts.tolist())


def _ends(uri: str) -> list[Any]:
    with _parquet(uri) as source:
        return [source.read_row_group(n, [USER_ID])[USER_ID][-1].as_py() for n in range(source.num_row_groups)]


def _users(values: list[Any], user_id_type: str) -> np.ndarray:
    return user_array(pa.array(values, id_type(user_id_type)))


def _no_pairs() -> np.ndarray:
    return np.zeros(0, np.int64)


def _new_name(path: str, kind: str) -> str:
    return f"{storage.parent(path)}/{kind}-{MARK}-{uuid.uuid4().hex[:20]}.parquet"


@contextlib.contextmanager
def _parquet(uri: str) -> Iterator[pq.ParquetFile]:
    fs, path = storage.filesystem(uri)
    try:
        with fs.open_input_file(path) as source:
            yield pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri} cannot be read as Parquet ({error}): re-run `fuxi sessionize` for its ds") from None


# ---- what nothing names ----------------------------------------------------------------------------------------------


def files_below(workspace: Workspace, *folders: str) -> list[str]:
    """Every file below some folders of a workspace."""
    return [file.uri for folder in folders for file in storage.list_files(storage.join(workspace.uri, folder))]


def unnamed_shards(workspace: Workspace, there: Iterable[str]) -> list[str]:
    """Those of some files below sequences/ that no manifest names: of killed runs, and those replaced here.

    List the files first, make sure that no day is running, then ask this: what a day that starts later writes is not
    among them.
    """
    named = {uri for manifest in published(workspace) for uri in listed_uris(manifest)}
    return [uri for uri in there if uri not in named]


def survey_unnamed(uris: Iterable[str], listeners: Listeners) -> Held:
    """What files that nothing names hold of the listeners. A file that cannot be read counts: it goes, too."""
    held = Held()
    for uri in uris:
        try:
            with _parquet(uri) as file:
                if USER_ID not in file.schema_arrow.names:
                    continue
                users = (file.read_row_group(group, [USER_ID])[USER_ID] for group in range(file.num_row_groups))
                rows = sum(int(listeners.mask(column).sum()) for column in users)
        except InputError:
            held += Held(1, 0)
            continue
        held += Held(int(rows > 0), rows)
    return held


# ---- quarantine ------------------------------------------------------------------------------------------------------


def erase_from_quarantine(uris: Iterable[str], listeners: Listeners, *, column: str, dry_run: bool = False) -> Held:
    """Rewrite the quarantine files that hold rows of the listeners, each at once. column: the logs' name of user_id."""
    held = Held()
    for uri in uris:
        rows = _quarantined_rows(uri, listeners, column)
        if rows.any():
            held += Held(1, int(rows.sum()))
            if not dry_run:
                _rewrite(uri, rows)
    return held


def _quarantined_rows(uri: str, listeners: Listeners, column: str) -> np.ndarray:
    """Which rows of a quarantine file are theirs, or may be."""
    masks = [np.zeros(0, bool)]
    with _parquet(uri) as file:
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, ["row"])["row"].to_pylist()
            theirs = (listeners.any_of(possible_users(text, column, listeners.user_id_type)) for text in texts)
            masks.append(np.fromiter(theirs, bool, len(texts)))
    return np.concatenate(masks)


def _rewrite(uri: str, without: np.ndarray) -> None:
    """A Parquet file without some of its rows, under the same name; no rows, no file."""
    start = 0
    with _parquet(uri) as source:
        sink = ParquetSink(uri, source.schema_arrow)
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            kept = table.filter(pa.array(~without[start : start + table.num_rows]))
            start += table.num_rows
            if kept.num_rows:
                sink.write(kept)
    if not sink.close():
        storage.delete_files([uri])
