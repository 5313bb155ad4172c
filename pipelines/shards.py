"""Layout of the sequence shards of one ds: files by user bucket and the manifest that publishes them.

`sequences/ds=D/bucket=00017/part-<run>.parquet` hold one row a listener, sorted by user_id. The manifest
`sequences/ds=D/_manifest.json` is written last and lists every file; nobody globs a folder.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.schema import InputError

SHARD_FORMAT = 1
ROW_GROUP_EVENTS = 1_000_000
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
