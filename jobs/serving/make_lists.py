"""What a recommend task does: one shard file in, one unpublished part of the lists out. Pure but for that file.

Shapes: `B` listeners in a batch, `K` list length, `V` songs of the vocabulary.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fuxi_beta.config import Kernels
from jobs.tables.recommendations import MODEL, POPULAR, Part, write_part
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.histories.shards import Manifest, ShardFile
from pipelines.schema import (
    BUCKET,
    DS,
    ITEM_ID,
    ITEMS,
    MODEL_VERSION,
    SCORE,
    SOURCE,
    STALE_DAYS,
    USER_ID,
    recommendations_schema,
)

if TYPE_CHECKING:
    from fuxi_beta.data.batches import Batch, Histories
    from fuxi_beta.training.checkpoint import TrainedModel


@dataclass(frozen=True)
class ListJob:
    """Everything the tasks of one ds share."""

    ds: dt.date
    table_uri: str
    manifest: Manifest
    item_ids: pa.Array  # item_id of the songs 1..V, at index - 1
    popular_items: np.ndarray  # int64, songs by popularity, best first
    popular_scores: np.ndarray  # float32, theirs
    model: "TrainedModel | None"  # None: popular lists only
    model_version: str | None
    stale_days: int
    k: int
    active_days: int
    exclusive: bool  # whether heard songs are left out of popular lists, as the model leaves them out of its own
    batch_size: int  # listeners scored at once
    kernels: Kernels = "auto"
    device: str = "cpu"  # where the model makes its lists

    @property
    def cut(self) -> int:
        """Unix second before which an event may be known: ds 00:00."""
        return Calendar(self.manifest.timezone).day_start(self.ds)


def make_part(job: ListJob, file: ShardFile) -> Part:
    """Lists of the active listeners of one shard file, written as one part, in the order of the file."""
    from fuxi_beta.data.batches import read_histories

    tables = [_no_rows(job)]
    for group in range(len(file.row_groups)):
        histories = read_histories(job.manifest, file, group).before(job.cut)
        for batch in _active(job, histories):
            tables.append(_rows(job, file.bucket, batch))
    return write_part(job.table_uri, job.ds, pa.concat_tables(tables).combine_chunks())


def default_part(job: ListJob) -> Part:
    """The one list for listeners the table does not have: the most popular songs, user_id null."""
    items, scores = job.popular_items[None, : job.k], job.popular_scores[None, : job.k]
    rows = _table(job, pa.nulls(1, _schema(job).field(USER_ID).type), items, scores, np.array([False]), bucket=None)
    return write_part(job.table_uri, job.ds, rows)


def _active(job: ListJob, histories: "Histories") -> Iterator["Histories"]:
    """The listeners heard of in the last active_days, a batch at a time."""
    newest = np.zeros(len(histories), np.int64)
    some = np.diff(histories.offsets) > 0
    newest[some] = histories.timestamp[histories.offsets[1:][some] - 1]
    rows = np.flatnonzero(some & (newest >= job.cut - job.active_days * DAY_SECONDS))
    for start in range(0, len(rows), job.batch_size):
        yield histories.select(rows[start : start + job.batch_size])


def _rows(job: ListJob, bucket: int, histories: "Histories") -> pa.Table:
    items = np.zeros((len(histories), job.k), np.int64)
    scores = np.full((len(histories), job.k), -np.inf, np.float32)
    usable = np.zeros(len(histories), bool)
    if job.model is not None:
        batch = _inference_batch(job, job.model, histories)
        usable = batch.lengths.numpy() > 0
        found, values = job.model.recommend(batch, job.k)
        items[:], scores[:] = found.numpy(), values.numpy()
    for row in np.flatnonzero(~usable):
        items[row], scores[row] = _popular(job, histories.select(np.array([row])))
    return _table(job, histories.user_id, items, scores, usable, bucket=bucket)


def _inference_batch(job: ListJob, model: "TrainedModel", histories: "Histories") -> "Batch":
    from fuxi_beta.data.batches import inference_batch

    calendar = Calendar(job.manifest.timezone)
    return inference_batch(
        histories,
        request_time=calendar.request_time(job.ds),
        model=model.model_config,
        train=model.train_config,
        calendar=calendar,
        vocabulary_size=model.vocabulary_size,
    )


def _popular(job: ListJob, listener: "Histories") -> tuple[np.ndarray, np.ndarray]:
    """The k most popular songs one listener has not heard (any, where heard songs may be listed); 0 where fewer."""
    heard = np.union1d(listener.heard_items, listener.item_index) if job.exclusive else np.zeros(0, np.int64)
    first = job.popular_items[: job.k + len(heard)]  # at most len(heard) of these are taken out
    places = np.flatnonzero(~np.isin(first, heard))[: job.k]
    items, scores = np.zeros(job.k, np.int64), np.zeros(job.k, np.float32)
    items[: len(places)], scores[: len(places)] = job.popular_items[places], job.popular_scores[places]
    return items, scores


def _schema(job: ListJob) -> pa.Schema:
    schema = recommendations_schema(job.manifest.user_id_type, job.manifest.item_id_type)
    return schema.remove(schema.get_field_index(DS))  # the folder's name is the column


def _no_rows(job: ListJob) -> pa.Table:
    return _schema(job).empty_table()


def _table(
    job: ListJob, user_id: pa.Array, items: np.ndarray, scores: np.ndarray, by_model: np.ndarray, *, bucket: int | None
) -> pa.Table:
    """Rows of the table. items: int64 [B, K], 0 where there is no song; by_model: bool [B]."""
    there = items > 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    schema, count = _schema(job), len(user_id)
    songs: list[Any] = [job.item_ids.take(pa.array(items[there] - 1)), pa.array(scores[there], pa.float32())]
    element = pa.StructArray.from_arrays(songs, names=[ITEM_ID, SCORE])
    columns = {
        BUCKET: pa.array([bucket] * count, pa.int32()),
        USER_ID: user_id,
        ITEMS: pa.ListArray.from_arrays(pa.array(offsets), element),
        SOURCE: pa.array(np.where(by_model, MODEL, POPULAR).tolist(), pa.string()),
        MODEL_VERSION: pa.array([job.model_version if own else None for own in by_model], pa.string()),
        STALE_DAYS: pa.array([job.stale_days] * count, pa.int32()),
    }
    return pa.table(columns).cast(schema)
