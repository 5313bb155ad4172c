"""Plays into the sequence shards of one ds, with Spark: only new plays are shuffled, never the histories.

Plays get their item_index by a join, go to the task of their listener's bucket, and are sorted there; that task
lays them over the parent's shard of the bucket, which it streams with pyarrow (`pipelines.sequences`).
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.interactions import Staged, read_staged, run_spark
from pipelines.schema import BUCKET, COMPLETION, ITEM_ID, ITEM_INDEX, LISTENERS, TIMESTAMP, USER_ID
from pipelines.sequences import Block, Tally, build, merge
from pipelines.shards import Manifest, ShardFile, ShardWriter, copy_shard

BROADCAST_SONGS = 5_000_000
"""Up to this many songs of a day travel to every task; more are joined by shuffling."""


@dataclass(frozen=True)
class BuildSpec:
    """How the shards of a ds are made."""

    folder: str  # sequences/ds=D
    run: str  # part of the file names, new for every attempt
    buckets: int
    max_history: int
    session_gap_s: int
    row_group_events: int
    user_id_type: str
    item_id_type: str
    vocabulary_size: int
    parent: Manifest | None = None

    def writer(self, bucket: int) -> ShardWriter:
        """Writes the file of a bucket."""
        return ShardWriter(
            self.folder,
            self.path(bucket),
            bucket=bucket,
            user_id_type=self.user_id_type,
            row_group_events=self.row_group_events,
        )

    def path(self, bucket: int) -> str:
        """Name of a bucket's file within the folder."""
        return f"{BUCKET}={bucket:05d}/part-{self.run}.parquet"


@dataclass(frozen=True)
class Built:
    """The shards of a ds, not yet published."""

    files: tuple[ShardFile, ...]
    listeners: np.ndarray  # int64 [vocabulary_size + 1], listeners who heard a song for the first time
    duplicates: int


def build_shards(spark: Any, spec: BuildSpec, staged: list[Staged], songs: pa.Table, *, finished: Any = None) -> Built:
    """Merge staged plays into the parent's shards (without a parent: build) and write all buckets of this ds.

    songs: (item_id, item_index) of every song of the staged plays. finished: a Spark accumulator that counts
    buckets, for progress.
    """
    from pyspark.sql import functions as F

    index = spark.createDataFrame(
        songs.cast(pa.schema([(ITEM_ID, songs.schema.field(0).type), (ITEM_INDEX, pa.int32())]))
    )
    if songs.num_rows <= BROADCAST_SONGS:
        index = F.broadcast(index)
    sorted_plays = (
        _plays(spark, spec, staged)
        .join(index, ITEM_ID)
        .select(
            F.pmod(F.xxhash64(USER_ID), F.lit(spec.buckets)).cast("int").alias(BUCKET),
            USER_ID,
            TIMESTAMP,
            ITEM_INDEX,
            COMPLETION,
        )
        .repartitionById(spec.buckets, BUCKET)
        .sortWithinPartitions(USER_ID, TIMESTAMP, ITEM_INDEX)
    )
    work = functools.partial(_build_bucket, spec, finished)
    result = (
        sorted_plays.mapInArrow(work, f"summary string, {ITEM_INDEX} int, {LISTENERS} bigint")
        .groupBy("summary", ITEM_INDEX)
        .agg(F.sum(LISTENERS).alias(LISTENERS))
    )
    return _collect(run_spark(result.toArrow), spec.vocabulary_size)


def _plays(spark: Any, spec: BuildSpec, staged: list[Staged]) -> Any:
    """A data frame of the staged plays; a task reads some row groups."""
    groups = [(file.uri, group) for file in staged for group in range(file.row_groups)]
    kinds = {"int64": "bigint", "string": "string"}
    columns = (
        f"{USER_ID} {kinds[spec.user_id_type]}, {ITEM_ID} {kinds[spec.item_id_type]}, "
        f"{TIMESTAMP} bigint, {COMPLETION} short"
    )
    tasks = min(max(len(groups), 1), 4 * spark.sparkContext.defaultParallelism)

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from read_staged(*groups[number])

    return spark.range(0, len(groups), 1, tasks).mapInArrow(read, columns)


def _build_bucket(spec: BuildSpec, finished: Any, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The body of a Spark task: one bucket, also where it has no new plays."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    bucket = context.partitionId()
    filled = (batch for batch in batches if batch.num_rows)
    first = next(filled, None)
    parents = [file for file in spec.parent.files if file.bucket == bucket] if spec.parent else []
    tally = Tally.empty(spec.vocabulary_size)
    if first is None and len(parents) == 1 and spec.parent:
        file = copy_shard(spec.parent, parents[0], spec.folder, spec.path(bucket))
    else:
        plays = () if first is None else chain([first], filled)
        file = write_bucket(spec, bucket, parents, plays, tally)
    if file is not None:
        summary = json.dumps({**asdict(file), "duplicates": tally.duplicates})
        yield _result([summary], [None], [0])
    heard = np.flatnonzero(tally.listeners)
    for start in range(0, len(heard), 65_536):
        part = heard[start : start + 65_536]
        yield _result([None] * len(part), part, tally.listeners[part])
    if finished is not None:
        finished.add(1)


def write_bucket(spec: BuildSpec, bucket: int, parents: list[ShardFile], plays: Any, tally: Tally) -> ShardFile | None:
    """Lay plays over the parent's files of a bucket and write the result; None if nobody is in it.

    plays: record batches of `user_id, timestamp, item_index, completion`, sorted by the first three.
    """
    writer = spec.writer(bucket)
    old = (block for file in parents for block in _stored(spec.parent, file))
    new = build(plays, max_history=spec.max_history, tally=tally)
    for block in merge(old, new, max_history=spec.max_history, tally=tally):
        writer.write(block.to_table(user_id_type=spec.user_id_type, session_gap_s=spec.session_gap_s))
    return writer.close()


def _stored(parent: Manifest | None, file: ShardFile) -> Iterator[Block]:
    """The histories of a shard, a row group at a time."""
    if parent is None:
        return
    source = parent.open(file)
    for group in range(source.num_row_groups):
        yield Block.from_table(source.read_row_group(group))


def _result(summaries: list[str | None], items: Any, listeners: Any) -> pa.RecordBatch:
    columns = [pa.array(summaries, pa.string()), pa.array(items, pa.int32()), pa.array(listeners, pa.int64())]
    return pa.record_batch(columns, names=["summary", ITEM_INDEX, LISTENERS])


def _collect(table: pa.Table, vocabulary_size: int) -> Built:
    listeners = np.zeros(vocabulary_size + 1, np.int64)
    songs = table.filter(table[ITEM_INDEX].is_valid())
    listeners[songs[ITEM_INDEX].to_numpy()] = songs[LISTENERS].to_numpy()
    summaries = [json.loads(text) for text in table["summary"].drop_null().to_pylist()]
    duplicates = sum(summary.pop("duplicates") for summary in summaries)
    files = [ShardFile(**{**summary, "row_groups": tuple(summary["row_groups"])}) for summary in summaries]
    return Built(tuple(sorted(files, key=lambda file: file.bucket)), listeners, duplicates)
