"""Plays into the sequence shards of one ds: the second half of sessionize, a Spark task for some buckets.

A task reads its plays from the runs of the exchange (`pipelines.histories.shuffle`), sorts them, and gives every bucket
a file: a new base where there was none, a delta over the parent's base, or a compacted base when the deltas have become
many. A bucket in which nobody played is carried over as it is. Histories are never shuffled.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.histories.buckets import user_bucket
from pipelines.histories.merge import Block, Layer, Plays, additions, histories, no_histories, overlay
from pipelines.histories.shards import Manifest, ShardFile
from pipelines.histories.shuffle import HEARD_MARK, Exchange, Part, Rows, Run, parts_of, read_in_passes
from pipelines.histories.writer import DeltaWriter, ShardWriter
from pipelines.schema import BUCKET, ITEM_ID, ITEM_INDEX, id_type
from pipelines.spark import run_tasks

PARTITION_EVENTS = 4_000_000
"""Events of a partition that is of the usual size: some hundred megabytes while it is built."""
MAX_PARTITIONS = 4096
MOST_SPREAD_IDS = 1 << 24
"""Song numbers in a range of this size are looked up in a table of it (64 MB), others by hash."""


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
    max_deltas: int = 7
    day_number: int = 0  # buckets are compacted in turn, a share of them a day
    parent: Manifest | None = None

    def writer(self, bucket: int) -> ShardWriter:
        """Writes the base of a bucket."""
        return ShardWriter(
            self.folder,
            self.path(bucket),
            bucket=bucket,
            user_id_type=self.user_id_type,
            row_group_events=self.row_group_events,
        )

    def path(self, bucket: int, kind: str = "part") -> str:
        """Name of a bucket's file within the folder."""
        return f"{BUCKET}={bucket:05d}/{kind}-{self.run}.parquet"

    def compacts(self, file: ShardFile) -> bool:
        """Whether a bucket gets a new base today: its turn has come, or it has as many deltas as it may."""
        if not file.deltas:
            return self.max_deltas == 0
        turn = (self.day_number + file.bucket) % (self.max_deltas + 1) == 0
        return turn or len(file.deltas) >= self.max_deltas


@dataclass(frozen=True)
class Task:
    """One partition: its plays and what its buckets hold so far."""

    partition: int
    buckets: range
    plays: tuple[Part, ...]
    parents: dict[int, ShardFile]


@dataclass
class Built:
    """The shards of a ds, not yet published."""

    files: tuple[ShardFile, ...]
    listeners: np.ndarray  # int64 [vocabulary_size + 1], listeners who heard a song for the first time
    duplicates: int
    task_seconds: float = 0.0  # of processors, over all tasks
    written_bytes: int = 0


@dataclass(frozen=True)
class SongIndex:
    """Which index each song has. A worker keeps it from task to task, and with it the table it looks numbers up in."""

    item_id: pa.Array  # distinct
    item_index: np.ndarray  # int32

    def of(self, item_id: pa.Array) -> np.ndarray:
        """The index of each row's song, int32. All songs must be known."""
        if self._table is not None:
            return self._table[item_id.to_numpy(zero_copy_only=False) - self._first]
        place = pc.index_in(item_id, value_set=self.item_id)  # type: ignore[attr-defined]
        return self.item_index[place.to_numpy(zero_copy_only=False)].astype(np.int32, copy=False)

    @cached_property
    def _first(self) -> int:
        return int(self.item_id.to_numpy(zero_copy_only=False).min())

    @cached_property
    def _table(self) -> np.ndarray | None:
        """Indices by item_id, from the least; None where ids are texts, or too far apart."""
        if not pa.types.is_integer(self.item_id.type) or not len(self.item_id):
            return None
        ids = self.item_id.to_numpy(zero_copy_only=False)
        span = int(ids.max()) - self._first + 1
        if span > MOST_SPREAD_IDS:
            return None
        table = np.zeros(span, np.int32)
        table[ids - self._first] = self.item_index
        return table


@dataclass
class Tally:
    """What a task counted."""

    listeners: np.ndarray  # int64 [vocabulary_size + 1]
    duplicates: int = 0
    files: list[ShardFile] = field(default_factory=list)
    written_bytes: int = 0

    def heard(self, songs: np.ndarray) -> None:
        """Count listeners new to a song, one for each entry."""
        self.listeners += np.bincount(songs, minlength=len(self.listeners))


def plan_exchange(spec_buckets: int, events: int, *, parallelism: int, max_history: int) -> Exchange:
    """Partitions for so many events, those of the parent included: of the usual size, and enough for all cores."""
    wanted = max(events / PARTITION_EVENTS, 4 * parallelism, 1)
    partitions = 1 << (int(np.ceil(wanted)) - 1).bit_length()
    return Exchange(min(partitions, spec_buckets, MAX_PARTITIONS), spec_buckets, max_history)


def build_shards(
    spark: Any,
    spec: BuildSpec,
    exchange: Exchange,
    runs: Sequence[Run],
    songs: pa.Table,
    *,
    staging: str,
    finished: Any = None,
) -> Built:
    """Lay the plays of the runs over the parent's shards (without a parent: build) and write what changes.

    songs: (item_id, item_index) of every song of the plays. staging: folder for the tasks' counts. finished: a Spark
    accumulator that counts buckets, for progress.
    """
    context = spark.sparkContext
    parents = {file.bucket: file for file in spec.parent.files} if spec.parent else {}
    tasks = []
    for partition in range(exchange.partitions):
        buckets = exchange.buckets_of(partition)
        own = {bucket: parents[bucket] for bucket in buckets if bucket in parents}
        tasks.append(Task(partition, buckets, parts_of(runs, partition), own))
    slim = replace(spec, parent=replace(spec.parent, files=(), counts={}) if spec.parent else None)
    shared = context.broadcast(SongIndex(songs[ITEM_ID].combine_chunks(), songs[ITEM_INDEX].to_numpy()))
    work = functools.partial(_build_task, slim, shared, staging, finished)
    try:
        summaries = run_tasks(spark, work, tasks)
    finally:
        shared.destroy()
    return _gathered(summaries, spec)


def _gathered(summaries: list[dict[str, Any]], spec: BuildSpec) -> Built:
    listeners = np.zeros(spec.vocabulary_size + 1, np.int64)
    for summary in summaries:
        counts = storage.read_table(summary["counts"])
        listeners[counts[ITEM_INDEX].to_numpy()] += counts["listeners"].to_numpy()
    files = [file for summary in summaries for file in summary["files"]]
    return Built(
        tuple(sorted(files, key=lambda file: file.bucket)),
        listeners,
        sum(summary["duplicates"] for summary in summaries),
        sum(summary["task_seconds"] for summary in summaries),
        sum(summary["written_bytes"] for summary in summaries),
    )


def _build_task(spec: BuildSpec, shared: Any, staging: str, finished: Any, task: Task) -> dict[str, Any]:
    """The body of a Spark task: the files of some buckets."""
    tally = Tally(np.zeros(spec.vocabulary_size + 1, np.int64))
    build_buckets(spec, task, shared.value, tally)
    heard = np.flatnonzero(tally.listeners)
    counts = storage.join(staging, f"listeners-{task.partition:05d}-{spec.run}.parquet")
    table = pa.table({ITEM_INDEX: heard.astype(np.int32), "listeners": tally.listeners[heard]})
    storage.write_table(counts, table)
    if finished is not None:
        finished.add(len(task.buckets))
    return {
        "counts": counts,
        "files": tally.files,
        "duplicates": tally.duplicates,
        "written_bytes": tally.written_bytes,
    }


def build_buckets(spec: BuildSpec, task: Task, songs: SongIndex, tally: Tally) -> None:
    """Write the files of a task's buckets. songs: every song of the plays."""
    open_buckets: dict[int, _Bucket] = {}
    for rows in read_in_passes(task.plays):
        for bucket, block in _by_bucket(spec, task, _indexed(rows, songs), tally):
            if bucket not in open_buckets:
                open_buckets[bucket] = _Bucket(spec, bucket, task.parents.get(bucket), tally)
            open_buckets[bucket].add(block)
    for bucket, parent in task.parents.items():
        if bucket not in open_buckets and spec.parent:
            tally.files.append(spec.parent.carried(parent))
    for bucket in open_buckets.values():
        tally.files.append(bucket.close())
    tally.files.sort(key=lambda file: file.bucket)


def _indexed(rows: Rows, songs: SongIndex) -> Plays:
    """Plays with their songs' indices; marks of earlier plays apart."""
    item = songs.of(rows.item_id)
    marks = rows.completion == HEARD_MARK
    if not marks.any():
        return Plays(rows.user_id, rows.timestamp, item, rows.completion)
    mask = pa.array(marks)
    plays = ~marks
    return Plays(
        rows.user_id.filter(pc.invert(mask)),  # type: ignore[attr-defined]
        rows.timestamp[plays],
        item[plays],
        rows.completion[plays],
        rows.user_id.filter(mask),
        item[marks],
    )


def _by_bucket(spec: BuildSpec, task: Task, plays: Plays, tally: Tally) -> Iterator[tuple[int, Block]]:
    """The histories of the plays, bucket by bucket."""
    if not len(plays.timestamp):
        return
    block, duplicates = histories(plays, max_history=spec.max_history)
    tally.duplicates += duplicates
    if len(task.buckets) == 1:
        yield task.buckets[0], block
        return
    bucket = user_bucket(pa.array(block.user_id, id_type(spec.user_id_type)), spec.buckets)
    order = np.argsort(bucket, kind="stable")
    block, ends = block.take(order), np.cumsum(np.bincount(bucket - task.buckets[0], minlength=len(task.buckets)))
    start = 0
    for number, stop in zip(task.buckets, ends.tolist(), strict=True):
        if stop > start:
            yield number, block.part(start, stop)
        start = stop


class _Bucket:
    """The files of one bucket while its new histories arrive, ascending by user_id."""

    def __init__(self, spec: BuildSpec, bucket: int, parent: ShardFile | None, tally: Tally):
        self._spec, self._parent, self._tally = spec, parent, tally
        self._rewrites = parent is None or spec.compacts(parent)
        path = spec.path(bucket, "delta")
        self._base = spec.writer(bucket) if self._rewrites else None
        self._delta = None if self._rewrites else DeltaWriter(spec.folder, path, user_id_type=spec.user_id_type)
        self._pending: list[Block] = []
        self._group = 0  # the next row group of the parent
        self._rows: list[int] = []  # of each row group as it will be read
        self._events = parent.events if parent else 0

    def add(self, block: Block) -> None:
        """Histories of the next listeners."""
        if self._parent is None:
            self._tally.heard(block.first_heard())
            self._write(block)
            return
        self._pending.append(block)
        while self._group < len(self._parent.row_groups) - 1:
            last = self._manifest.base_users(self._parent, self._group)[-1]
            if self._pending[-1].user_id[-1] <= last:
                return  # more listeners of this row group may follow
            self._flush(last)

    def close(self) -> ShardFile:
        """Finish the bucket and describe it."""
        if self._parent:
            for group in range(self._group, len(self._parent.row_groups)):
                at_end = group == len(self._parent.row_groups) - 1
                self._flush(None if at_end else self._manifest.base_users(self._parent, group)[-1])
        if self._base:
            base = self._base.close()
            assert base is not None
            self._tally.written_bytes += base.bytes
            return base
        assert self._parent and self._delta
        delta = self._delta.close()
        carried = self._manifest.carried(self._parent)
        if delta is None:
            return carried
        self._tally.written_bytes += delta.bytes
        return replace(
            carried,
            rows=sum(self._rows),
            events=self._events,
            row_groups=tuple(self._rows),
            deltas=(*carried.deltas, delta),
        )

    @property
    def _manifest(self) -> Manifest:
        assert self._spec.parent
        return self._spec.parent

    def _flush(self, last: Any) -> None:
        """Lay the pending listeners up to user id `last` (None: all) over the next row group of the parent."""
        group, self._group = self._group, self._group + 1
        new = self._take_pending(last)
        if new is None:
            self._pass_through(group)
            return
        assert self._parent
        blocks = self._manifest.layers(self._parent, group) if self._base else []
        layers = [Layer.of(block) for block in blocks] or self._manifest.stored(self._parent, group)
        found = additions(layers, new, since=self._manifest.data_end)
        self._tally.heard(found.first_heard)
        self._tally.duplicates += found.duplicates
        if self._base:
            self._write(overlay([*blocks, new], max_history=self._spec.max_history))
            return
        assert self._delta
        some = np.flatnonzero((found.block.lengths > 0) | (np.diff(found.block.heard_offsets) > 0))
        everybody = len(some) == len(new)
        self._delta.write(found.block if everybody else found.block.take(some), found.num_new[some])
        most = self._spec.max_history
        before = np.clip(found.num_before, 0, most)
        self._rows.append(self._parent.row_groups[group] + int((found.num_before[some] < 0).sum()))
        self._events += int((np.minimum(before + found.num_new, most) - before).sum())

    def _take_pending(self, last: Any) -> Block | None:
        taken, rest = [], []
        for block in self._pending:
            stop = len(block) if last is None else int(np.searchsorted(block.user_id, last, side="right"))
            taken += [block.part(0, stop)] if stop else []
            rest += [block.part(stop, len(block))] if stop < len(block) else []
        self._pending = rest
        if not taken:
            return None
        return taken[0] if len(taken) == 1 else overlay(taken, max_history=self._spec.max_history)

    def _pass_through(self, group: int) -> None:
        assert self._parent
        if self._base:
            layers = self._manifest.layers(self._parent, group)
            self._write(overlay(layers, max_history=self._spec.max_history))
        elif self._delta:
            self._delta.write(no_histories(), np.zeros(0, np.int32))
            self._rows.append(self._parent.row_groups[group])

    def _write(self, block: Block) -> None:
        assert self._base
        table = block.to_table(user_id_type=self._spec.user_id_type, session_gap_s=self._spec.session_gap_s)
        self._base.write(table)
