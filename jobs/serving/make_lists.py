"""What a recommend task does: one shard file in, one unpublished part of the lists out. Pure but for that file.

Shapes: `B` listeners in a batch, `K` list length, `V` songs of the vocabulary.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fuxi_beta.config import Kernels, ModelConfig
from jobs.serving.rules import served_lists
from jobs.tables.recommendations import ListPart, write_part
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.histories.histories import Histories
from pipelines.histories.shards import Manifest, ShardFile
from pipelines.schema import (
    BUCKET,
    DS,
    ITEMS,
    MODEL_VERSION,
    PROPENSITY,
    REASONS,
    SEGMENT,
    SHORT,
    SOURCE,
    SOURCE_MODEL,
    SOURCE_POPULAR,
    STALE_DAYS,
    USER_ID,
    TableSpec,
    recommendations_table,
)

if TYPE_CHECKING:
    from fuxi_beta.baselines.popularity import Popularity
    from fuxi_beta.data.batches import Batch
    from fuxi_beta.training.checkpoint import TrainedModel


@dataclass(frozen=True)
class ListJob:
    """Everything the tasks of one ds share."""

    ds: dt.date
    calendar: Calendar
    table_uri: str
    manifest: Manifest
    item_ids: pa.Array  # item_id of the songs 1..V, at index - 1
    popularity: "Popularity"  # makes the lists of listeners for whom the model has none
    model: "TrainedModel | None"  # None: popular lists only
    model_version: str | None
    stale_days: int
    k: int
    active_days: int
    batch_size: int  # listeners scored at once
    kernels: Kernels = "auto"
    device: str = "cpu"  # where the model makes its lists

    @property
    def cut(self) -> int:
        """Unix second before which an event may be known: ds 00:00."""
        return self.calendar.day_start(self.ds)

    @property
    def spec(self) -> TableSpec:
        """The table of lists with the ids of this workspace."""
        return recommendations_table(self.manifest.user_id_type, self.manifest.item_id_type)

    @property
    def schema(self) -> pa.Schema:
        """The columns of a part; ds is the name of its folder."""
        schema = self.spec.schema
        return schema.remove(schema.get_field_index(DS))


def make_part(job: ListJob, file: ShardFile) -> ListPart:
    """Lists of the active listeners of one shard file, written as one part, in the order of the file."""
    tables = [job.schema.empty_table()]
    for group in range(len(file.row_groups)):
        histories = job.manifest.histories(file, group).before(job.cut)
        tables += [_rows(job, file.bucket, batch) for batch in _active(job, histories)]
    return write_part(job.table_uri, job.ds, pa.concat_tables(tables).combine_chunks())


def default_part(job: ListJob) -> ListPart:
    """The one list for listeners the table does not have: the most popular songs, user_id null."""
    nobody = Histories.without_plays(pa.nulls(1, job.schema.field(USER_ID).type))
    return write_part(job.table_uri, job.ds, _rows(replace(job, model=None), None, nobody))


def _active(job: ListJob, histories: Histories) -> Iterator[Histories]:
    """The listeners heard of in the last active_days, a batch at a time."""
    newest = np.zeros(len(histories), np.int64)
    some = histories.lengths > 0
    newest[some] = histories.timestamp[histories.offsets[1:][some] - 1]
    rows = np.flatnonzero(some & (newest >= job.cut - job.active_days * DAY_SECONDS))
    for start in range(0, len(rows), job.batch_size):
        yield histories.take(rows[start : start + job.batch_size])


def _rows(job: ListJob, bucket: int | None, histories: Histories) -> pa.Table:
    items = np.zeros((len(histories), job.k), np.int64)
    scores = np.full((len(histories), job.k), -np.inf, np.float32)
    by_model = np.zeros(len(histories), bool)
    if job.model is not None:
        batch = _batch(job, job.model, histories)
        items[:], scores[:] = served_lists(job.model, batch, job.k)
        by_model = batch.lengths.numpy() > 0
    rest = np.flatnonzero(~by_model)
    if len(rest):
        batch = _batch(job, job.popularity, histories.take(rest))
        items[rest], scores[rest] = served_lists(job.popularity, batch, job.k)
    return _table(job, histories.user_id, items, scores, by_model, bucket=bucket)


def _batch(job: ListJob, recommender: "TrainedModel | Popularity", histories: Histories) -> "Batch":
    """What a recommender reads of listeners, requested at the request hour of ds."""
    from fuxi_beta.evaluation.protocol import Contexts

    calendar, train = job.calendar, job.popularity.train
    return Contexts(histories, calendar.request_time(job.ds), ModelConfig(), train, calendar).batch(recommender)


def _table(
    job: ListJob, user_id: pa.Array, items: np.ndarray, scores: np.ndarray, by_model: np.ndarray, *, bucket: int | None
) -> pa.Table:
    """Rows of the table. items: int64 [B, K], 0 where there is no song; by_model: bool [B]."""
    there = items > 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    type = job.schema.field(ITEMS).type.value_type
    songs: list[Any] = [job.item_ids.take(pa.array(items[there] - 1)), pa.array(scores[there], pa.float32())]
    songs += [pa.nulls(len(songs[0]), type.field(name).type) for name in (PROPENSITY, REASONS)]
    element = pa.StructArray.from_arrays(songs, fields=list(type))
    columns = {
        BUCKET: [bucket] * len(user_id),
        USER_ID: user_id,
        ITEMS: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), element),
        SOURCE: [SOURCE_MODEL if own else SOURCE_POPULAR for own in by_model],
        MODEL_VERSION: [job.model_version if own else None for own in by_model],
        STALE_DAYS: [job.stale_days] * len(user_id),
        SEGMENT: pa.nulls(len(user_id), pa.string()),
        SHORT: there.sum(axis=1) < job.k,
    }
    return pa.table(columns, job.schema)
