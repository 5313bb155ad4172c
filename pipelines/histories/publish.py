"""What the shards of a ds are made with, and the manifest that publishes them; whoever built them ends here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.histories.histories import Histories
from pipelines.histories.shards import (
    Manifest,
    ShardFile,
    ShardSettings,
    inputs_table,
    read_item_counts,
    read_listed,
    with_digests,
    write_item_counts,
    write_manifest,
)
from pipelines.histories.writer import IncrementWriter, ShardWriter
from pipelines.schema import BUCKET


@dataclass(frozen=True, kw_only=True)
class BuildSpec(ShardSettings):
    """How the shards of a ds are made."""

    folder: str  # sequences/ds=D
    attempt: str = "0"  # part of the file names, new for every attempt
    row_group_events: int = 1_000_000
    max_increments: int = 7  # over a base before it is compacted
    parent: Manifest | None = None  # of the ds whose shards these are laid over

    def base_writer(self, bucket: int) -> ShardWriter:
        """Writes a new base of a bucket."""
        return ShardWriter(
            self.folder,
            self._path(bucket, "part"),
            bucket=bucket,
            user_id_type=self.user_id_type,
            session_gap_s=self.session_gap_s,
            row_group_events=self.row_group_events,
        )

    def increment_writer(self, bucket: int) -> IncrementWriter:
        """Writes an increment over the parent's base of a bucket."""
        return IncrementWriter(self.folder, self._path(bucket, "increment"), user_id_type=self.user_id_type)

    def _path(self, bucket: int, kind: str) -> str:
        return f"{BUCKET}={bucket:05d}/{kind}-{self.attempt}.parquet"

    def compacts(self, file: ShardFile) -> bool:
        """Whether a bucket of the parent gets a new base: it is its turn, or it has as many increments as allowed.

        Buckets take turns by the day, so that every day about the same share of them is compacted.
        """
        if not file.increments:
            return self.max_increments == 0
        turn = (self.ds.toordinal() + file.bucket) % (self.max_increments + 1) == 0
        return turn or len(file.increments) >= self.max_increments

    def nothing_built(self) -> "BuiltShards":
        """What building starts from."""
        return BuiltShards(np.zeros(self.vocabulary_size + 1, np.int64))

    def listeners_before(self) -> np.ndarray:
        """Distinct listeners of every song in the parent, int64 [vocabulary_size + 1]; zeros without a parent."""
        listeners = np.zeros(self.vocabulary_size + 1, np.int64)
        if self.parent:
            before = read_item_counts(self.parent)
            listeners[: len(before)] = before
        return listeners


@dataclass
class BuiltShards:
    """Shards of a ds that are written and not yet published; tasks add to it."""

    listeners: np.ndarray  # int64 [vocabulary_size + 1], listeners of each song who are new to it
    files: list[ShardFile] = field(default_factory=list)
    duplicates: int = 0
    task_seconds: float = 0.0  # processor seconds of all tasks
    written_bytes: int = 0

    def add_listeners(self, songs: np.ndarray) -> None:
        """Count a new listener of each song; int32, with repetitions."""
        self.listeners += np.bincount(songs, minlength=len(self.listeners))


def write_bases(spec: BuildSpec, buckets: Iterable[tuple[int, Histories]]) -> BuiltShards:
    """Write whole histories as new bases, a (bucket, histories) at a time; buckets without listeners get no file."""
    built = spec.nothing_built()
    for bucket, histories in buckets:
        built.add_listeners(histories.lifetime_songs())
        writer = spec.base_writer(bucket)
        writer.write(histories)
        if file := writer.close():
            built.files.append(file)
            built.written_bytes += file.bytes
    return built


def publish_shards(
    spec: BuildSpec, built: BuiltShards, *, inputs: pa.Table | None = None, counts: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the tables beside the shards, then the manifest that publishes all.

    inputs: the log files consumed for this ds (`shards.inputs_table`); the parent's are added. counts: of
    Manifest.counts.
    """
    consumed = inputs if inputs is not None else inputs_table([])
    if spec.parent:
        consumed = pa.concat_tables([read_listed(spec.parent, spec.parent.inputs), consumed])
    manifest = Manifest(
        **{setting.name: getattr(spec, setting.name) for setting in fields(ShardSettings)},
        parent=spec.parent.ds if spec.parent else None,
        item_counts=f"item_counts-{spec.attempt}.parquet",
        inputs=f"inputs-{spec.attempt}.parquet",
        files=tuple(built.files),
        counts=dict(counts or {}),
    )
    write_item_counts(storage.join(spec.folder, manifest.item_counts), spec.listeners_before() + built.listeners)
    storage.write_table(storage.join(spec.folder, manifest.inputs), consumed)
    return write_manifest(spec.folder, with_digests(replace(manifest, folder=spec.folder)))
