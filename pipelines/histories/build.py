"""Plays into the sequence shards of one ds: the second half of sessionize, with a Spark task for a range of buckets.

A task reads its plays from the shuffle's runs (`pipelines.histories.shuffle`), sorts them, and writes one file for each
bucket: a new base if there is none, an increment over the parent's base, or a compacted base when it is the bucket's
turn. A bucket without new plays is carried over unchanged. Histories are never shuffled.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.histories.bucket_builder import BucketBuilder
from pipelines.histories.buckets import by_bucket
from pipelines.histories.histories import Histories
from pipelines.histories.merge import Plays, merge_plays
from pipelines.histories.publish import BuildSpec, BuiltShards
from pipelines.histories.shards import ShardFile, write_item_counts
from pipelines.histories.shuffle import (
    HEARD_MARK,
    Shuffle,
    ShuffleRange,
    ShuffleRows,
    ShuffleRun,
    ranges_of,
    read_in_passes,
)
from pipelines.schema import ITEM_ID, ITEM_INDEX, LISTENERS
from pipelines.spark import run_tasks

PARTITION_EVENTS = 4_000_000
"""Events of a partition of the usual size: some hundred megabytes while it is built."""
STORED_PER_PLAY = 16
"""Stored plays that a merge looks through in the time of one new play."""
MAX_PARTITIONS = 4096
MOST_SPREAD_IDS = 1 << 24
"""Integer song ids within a range of this size are looked up in a table (64 MB of int32), others by hash."""


@dataclass(frozen=True)
class BuildTask:
    """One partition: where its plays are, and what the parent has of its buckets."""

    partition: int
    buckets: range
    plays: tuple[ShuffleRange, ...]
    parents: dict[int, ShardFile]


@dataclass(frozen=True)
class SongIndex:
    """The index of each song. A worker keeps it, and its look-up table, from task to task."""

    item_id: pa.Array  # distinct
    item_index: np.ndarray  # int32

    def of(self, item_id: pa.Array) -> np.ndarray:
        """The index of each row's song, int32. All songs must be known."""
        if self._table is not None:
            return self._table[item_id.to_numpy(zero_copy_only=False) - self._first]
        place = pc.index_in(item_id, value_set=self.item_id)
        return self.item_index[place.to_numpy(zero_copy_only=False)].astype(np.int32, copy=False)

    @cached_property
    def _first(self) -> int:
        return int(self.item_id.to_numpy(zero_copy_only=False).min())

    @cached_property
    def _table(self) -> np.ndarray | None:
        """Indices by item_id, from the smallest; None if ids are texts or too far apart."""
        if not pa.types.is_integer(self.item_id.type) or not len(self.item_id):
            return None
        ids = self.item_id.to_numpy(zero_copy_only=False)
        span = int(ids.max()) - self._first + 1
        if span > MOST_SPREAD_IDS:
            return None
        table = np.zeros(span, np.int32)
        table[ids - self._first] = self.item_index
        return table


def plan_shuffle(buckets: int, plays: int, *, stored: int = 0, parallelism: int, max_history: int) -> Shuffle:
    """Partitions for so many plays: of the usual size, and enough for all cores. stored: events of the parent."""
    wanted = max((plays + stored / STORED_PER_PLAY) / PARTITION_EVENTS, 4 * parallelism, 1)
    partitions = 1 << (int(np.ceil(wanted)) - 1).bit_length()
    return Shuffle(min(partitions, buckets, MAX_PARTITIONS), buckets, max_history)


def build_shards(
    spark: Any,
    spec: BuildSpec,
    shuffle: Shuffle,
    runs: Sequence[ShuffleRun],
    songs: pa.Table,
    *,
    staging: str,
    finished: Any = None,
) -> BuiltShards:
    """Lay the plays of the runs over the parent's shards (without a parent: build) and write what changes.

    songs: (item_id, item_index) of every song of the plays. staging: folder for the tasks' counts, which is there.
    finished: a Spark accumulator that counts buckets, for progress.
    """
    context = spark.sparkContext
    parents = {file.bucket: file for file in spec.parent.files} if spec.parent else {}
    tasks = []
    for partition in range(shuffle.partitions):
        buckets = shuffle.buckets_of(partition)
        own = {bucket: parents[bucket] for bucket in buckets if bucket in parents}
        tasks.append(BuildTask(partition, buckets, ranges_of(runs, partition), own))
    # Tasks get the parent without its files: each has those of its buckets, and all would be sent with every task.
    slim = replace(spec, parent=replace(spec.parent, files=(), counts={}) if spec.parent else None)
    shared = context.broadcast(SongIndex(songs[ITEM_ID].combine_chunks(), songs[ITEM_INDEX].to_numpy()))
    work = functools.partial(_build_task, slim, shared, staging, finished)
    try:
        summaries = run_tasks(spark, work, tasks)
    finally:
        shared.destroy()
    built = spec.nothing_built()
    for summary in summaries:
        new = storage.read_table(summary["listeners"])
        built.listeners[new[ITEM_INDEX].to_numpy()] += new[LISTENERS].to_numpy()
        built.files += summary["files"]
        built.duplicates += summary["duplicates"]
        built.task_seconds += summary["task_seconds"]
        built.written_bytes += summary["written_bytes"]
    built.files.sort(key=lambda file: file.bucket)
    return built


def _build_task(spec: BuildSpec, shared: Any, staging: str, finished: Any, task: BuildTask) -> dict[str, Any]:
    """The body of a Spark task: the files of some buckets."""
    built = spec.nothing_built()
    build_buckets(spec, task, shared.value, built)
    listeners = storage.join(staging, f"listeners-{task.partition:05d}-{spec.attempt}.parquet")
    write_item_counts(listeners, built.listeners, new_folder=False)
    if finished is not None:
        finished.add(len(task.buckets))
    return {
        "listeners": listeners,
        "files": built.files,
        "duplicates": built.duplicates,
        "written_bytes": built.written_bytes,
    }


def build_buckets(spec: BuildSpec, task: BuildTask, songs: SongIndex, built: BuiltShards) -> None:
    """Write the files of a task's buckets and add them to `built`. songs: every song of the plays."""
    builders: dict[int, BucketBuilder] = {}
    for rows in read_in_passes(task.plays):
        for bucket, histories in _by_bucket(spec, task, _indexed(rows, songs), built):
            if bucket not in builders:
                builders[bucket] = BucketBuilder(spec, bucket, task.parents.get(bucket), built)
            builders[bucket].add(histories)
    for bucket, parent in task.parents.items():
        if bucket not in builders and spec.parent:
            built.files.append(spec.parent.carried(parent))
    built.files += [builder.close() for builder in builders.values()]
    built.files.sort(key=lambda file: file.bucket)


def _by_bucket(spec: BuildSpec, task: BuildTask, plays: Plays, built: BuiltShards) -> Iterable[tuple[int, Histories]]:
    if not len(plays.timestamp):
        return ()
    histories, duplicates = merge_plays(plays, max_history=spec.max_history)
    built.duplicates += duplicates
    return [(task.buckets[0], histories)] if len(task.buckets) == 1 else by_bucket(histories, spec.buckets)


def _indexed(rows: ShuffleRows, songs: SongIndex) -> Plays:
    """Plays with their songs' indices, apart from the marks of earlier plays."""
    item = songs.of(rows.item_id)
    marks = rows.play_code == HEARD_MARK
    if not marks.any():
        return Plays(rows.user_id, rows.timestamp, item, rows.play_code)
    plays, heard = rows.take(np.flatnonzero(~marks)), rows.take(np.flatnonzero(marks))
    return Plays(plays.user_id, plays.timestamp, item[~marks], plays.play_code, heard.user_id, item[marks])
