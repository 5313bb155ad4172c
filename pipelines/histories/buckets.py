"""Which bucket a listener is in: pmod(xxhash64(user_id), buckets), exactly as Spark computes it."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.histories.histories import Histories

_XXHASH_SEED = 42  # Spark's xxhash64


def user_bucket(user_ids: pa.Array | pa.ChunkedArray, buckets: int) -> np.ndarray:
    """The bucket of each listener, int32 per row.

    user_ids: int64 or string without nulls (int32 is widened first, as Spark jobs do). buckets: a power of two.
    """
    return (user_hash(user_ids) & (buckets - 1)).astype(np.int32)


def hash_share(user_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A fixed number in [0, 1) for each listener, float64: the same sample on every day and machine.

    It is of the highest bits of the hash, and buckets of the lowest, so a sample takes from every bucket alike.
    """
    return (user_hash(user_ids).view(np.uint64) >> np.uint64(11)) / 2.0**53


def by_bucket(histories: Histories, buckets: int) -> Iterator[tuple[int, Histories]]:
    """The listeners of each bucket that has any, in the order they were in."""
    bucket = user_bucket(histories.user_id, buckets)
    histories, counts = histories.take(np.argsort(bucket, kind="stable")), np.bincount(bucket)
    ends = np.cumsum(counts)
    for number in np.flatnonzero(counts).tolist():
        yield number, histories.slice(int(ends[number] - counts[number]), int(ends[number]))


def user_hash(user_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """xxhash64 of each id, int64 per row."""
    import xxhash

    if pa.types.is_integer(user_ids.type):
        return _xxhash64_int64(user_ids.cast(pa.int64()).to_numpy(zero_copy_only=False))
    digests = (xxhash.xxh64_intdigest(text.encode(), seed=_XXHASH_SEED) for text in user_ids.to_pylist())
    return np.fromiter(digests, np.uint64, len(user_ids)).view(np.int64)


def _xxhash64_int64(values: np.ndarray) -> np.ndarray:
    """xxhash64 of each value's eight little-endian bytes with seed 42, as int64."""
    primes = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
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
