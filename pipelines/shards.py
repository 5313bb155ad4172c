"""Layout of the sequence shards of one ds: files by user bucket and the manifest that publishes them.

`sequences/ds=D/bucket=00017/part-<run>.parquet` hold one row a listener, sorted by user_id. The manifest
`sequences/ds=D/_manifest.json` is written last and lists every file; nobody globs a folder.
"""

import datetime as dt
import hashlib
import io
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.schema import ITEM_INDEX, LISTENERS, NUM_EVENTS, InputError, item_counts_schema, sequence_schema

SHARD_FORMAT = 1
_INPUTS_SCHEMA = pa.schema(
    [("uri", pa.string()), ("size", pa.int64()), ("etag", pa.string()), ("landing_day", pa.string())]
)
_XXHASH_SEED = 42  # Spark's xxhash64


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file of a bucket; `path` is relative to the manifest's folder."""

    path: str
    bucket: int
    rows: int
    events: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]  # rows of each row group, so that readers can plan without opening files


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

    def uri(self, relative: str) -> str:
        """Where a file named by this manifest is."""
        return storage.join(self.folder, relative)

    def open(self, file: ShardFile) -> pq.ParquetFile:
        """Open a shard; a missing or broken one is an InputError that names it."""
        return open_parquet(self.uri(file.path))

    def row_groups(self) -> Iterator[tuple[ShardFile, int, int]]:
        """Every (file, row group, rows), in a fixed order."""
        for file in self.files:
            for group, rows in enumerate(file.row_groups):
                yield file, group, rows


def open_parquet(uri: str) -> pq.ParquetFile:
    """Open a Parquet file; a missing or broken one is an InputError that names it."""
    fs, path = storage.filesystem(uri)
    try:
        return pq.ParquetFile(fs.open_input_file(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri} cannot be read as Parquet ({error}): re-run `fuxi sessionize` for its ds") from None


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
    if content.pop("format", None) != SHARD_FORMAT:
        raise InputError(f"{uri} is not of shard format {SHARD_FORMAT}: re-run `fuxi sessionize` with this release")
    return Manifest(**{**_parse(content), "folder": folder})


def _parse(content: dict[str, Any]) -> dict[str, Any]:
    def date(value: Any) -> dt.date | None:
        return value if value is None or isinstance(value, dt.date) else dt.date.fromisoformat(value)

    files = tuple(ShardFile(**{**file, "row_groups": tuple(file["row_groups"])}) for file in content["files"])
    return {**content, "ds": date(content["ds"]), "parent": date(content["parent"]), "files": files}


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


class ShardWriter:
    """Writes one file of a bucket. Row groups are cut by events alone, so equal rows give equal files.

    A group ends with the row that brings it to `row_group_events` events. The file is invisible until `close`.
    """

    def __init__(self, folder: str, path: str, *, bucket: int, user_id_type: str, row_group_events: int):
        self.uri, self.path, self.bucket = storage.join(folder, path), path, bucket
        self._schema = sequence_schema(user_id_type)
        self._row_group_events = row_group_events
        self._pending: list[pa.Table] = []
        self._pending_events = self._events = 0
        self._row_groups: list[int] = []
        self._sink: _HashingSink | None = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows (`schema.sequence_schema`, ascending user_id)."""
        if not table.num_rows:
            return
        self._pending.append(table)
        self._pending_events += _events(table)
        if self._pending_events >= self._row_group_events:
            self._cut()

    def close(self) -> ShardFile | None:
        """Finish the file and describe it; None if no row was written (then there is no file)."""
        if self._pending:
            self._write_group(pa.concat_tables(self._pending))
        if self._writer is None or self._sink is None:
            return None
        self._writer.close()
        self._sink.commit()
        return ShardFile(
            path=self.path,
            bucket=self.bucket,
            rows=sum(self._row_groups),
            events=self._events,
            bytes=self._sink.size,
            sha256=self._sink.sha256.hexdigest(),
            row_groups=tuple(self._row_groups),
        )

    def _cut(self) -> None:
        table = pa.concat_tables(self._pending)
        ends = np.cumsum(table[NUM_EVENTS].to_numpy(), dtype=np.int64)
        start, done = 0, 0
        while True:
            stop = int(np.searchsorted(ends, done + self._row_group_events)) + 1
            if stop > len(ends):
                break
            self._write_group(table.slice(start, stop - start))
            start, done = stop, int(ends[stop - 1])
        rest = table.slice(start)
        self._pending = [rest] if rest.num_rows else []
        self._pending_events = int(ends[-1]) - done

    def _write_group(self, table: pa.Table) -> None:
        if self._writer is None:
            self._sink = _HashingSink(self.uri)
            self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), self._schema, compression="zstd")
        self._writer.write_table(table.combine_chunks(), row_group_size=table.num_rows)
        self._row_groups.append(table.num_rows)
        self._events += _events(table)


def copy_shard(parent: Manifest, file: ShardFile, folder: str, path: str) -> ShardFile:
    """Copy a file of another ds byte for byte, for a bucket in which nothing is new."""
    fs, source = storage.filesystem(parent.uri(file.path))
    sink = _HashingSink(storage.join(folder, path))
    try:
        with fs.open_input_stream(source) as stream:
            while chunk := stream.read(8 << 20):
                sink.write(chunk)
    except FileNotFoundError:
        raise InputError(f"{parent.uri(file.path)} is not there: re-run `fuxi sessionize` for ds {parent.ds}") from None
    if sink.sha256.hexdigest() != file.sha256:
        raise InputError(
            f"{parent.uri(file.path)} is not what its manifest lists: re-run `fuxi sessionize` for ds {parent.ds}"
        )
    sink.commit()
    return replace(file, path=path)


def inputs_table(files: Iterable[dict[str, Any]]) -> pa.Table:
    """Consumed log files as a manifest's `inputs` lists them: uri, size, etag, landing_day."""
    return pa.Table.from_pylist(list(files), schema=_INPUTS_SCHEMA)


def remove_unlisted(manifest: Manifest) -> None:
    """Delete files of earlier runs below a published ds folder."""
    listed = {manifest.uri(p) for p in (manifest.item_counts, manifest.inputs, *(f.path for f in manifest.files))}
    storage.delete_files(file.uri for file in storage.list_files(manifest.folder) if file.uri not in listed)


def _events(table: pa.Table) -> int:
    return int(np.sum(table[NUM_EVENTS].to_numpy(), dtype=np.int64))


class _HashingSink(io.RawIOBase):
    """A file that hashes what is written and appears under its name when committed."""

    def __init__(self, uri: str):
        self.sha256, self.size = hashlib.sha256(), 0
        storage.make_parent(uri)
        self._fs, self._path = storage.filesystem(uri)
        # An object appears when its upload completes; a local file needs a name of its own until then.
        self._written = self._path if storage.is_s3(uri) else f"{self._path}.{uuid.uuid4().hex}.tmp"
        self._stream = self._fs.open_output_stream(self._written)

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self.sha256.update(content)
        self.size += len(content)
        self._stream.write(content)
        return len(content)

    def commit(self) -> None:
        """Let the file appear. Not `close`, which a garbage collector also calls on a half-written file."""
        self._stream.close()
        if self._written != self._path:
            self._fs.move(self._written, self._path)


def user_bucket(user_ids: pa.Array | pa.ChunkedArray, buckets: int) -> np.ndarray:
    """pmod(xxhash64(user_id), buckets) exactly as Spark computes it, int32 per row.

    user_ids: int64 or string without nulls (int32 is widened first, as Spark jobs here do).
    """
    import xxhash

    if pa.types.is_integer(user_ids.type):
        hashes = _xxhash64_int64(user_ids.cast(pa.int64()).to_numpy(zero_copy_only=False))
    else:
        digests = (xxhash.xxh64_intdigest(text.encode(), seed=_XXHASH_SEED) for text in user_ids.to_pylist())
        hashes = np.fromiter(digests, np.uint64, len(user_ids)).view(np.int64)
    return np.mod(hashes, buckets).astype(np.int32)


def _xxhash64_int64(values: np.ndarray) -> np.ndarray:
    """xxhash64 of each value's eight little-endian bytes with seed 42, as int64."""
    primes = (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
    p1, p2, p3, p4, p5 = (np.uint64(p) for p in primes)

    def rotate(x: np.ndarray, bits: int) -> np.ndarray:
        return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))

    with np.errstate(over="ignore"):
        h = np.full(values.shape, np.uint64(_XXHASH_SEED) + p5 + np.uint64(8))
        h ^= rotate(values.astype(np.int64).view(np.uint64) * p2, 31) * p1
        h = rotate(h, 27) * p1 + p4
        h = (h ^ (h >> np.uint64(33))) * p2
        h = (h ^ (h >> np.uint64(29))) * p3
        return (h ^ (h >> np.uint64(32))).view(np.int64)
