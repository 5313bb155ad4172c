"""What a recommend task does: one shard file in, one unpublished part of the lists out. Pure but for that file.

Shapes: `B` listeners in a batch, `K` list length, `V` songs of the vocabulary.
"""

import datetime as dt
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxi_beta.config import Kernels, ModelConfig
from fuxi_beta.data.batches import cuts_by_tokens
from fuxi_beta.data.reader import ahead
from fuxi_beta.training.checkpoint import TrainedModel
from jobs.serving.count_quality import QualityCount
from jobs.serving.reasons import reasons_column
from jobs.serving.rules import ListenerFacts, ListRules, MadeLists
from jobs.serving.rules.facts import NO_SEGMENT
from jobs.tables.list_quality import QualitySums, add_up
from jobs.tables.recommendations import ListPart, write_part
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.histories.histories import Histories
from pipelines.histories.shards import Manifest, ShardFile
from pipelines.schema import (
    BUCKET,
    DS,
    ITEMS,
    MODEL_VERSION,
    REASONS,
    SEGMENT,
    SHORT,
    SOURCE,
    SOURCE_POPULAR,
    STALE_DAYS,
    USER_ID,
    TableSpec,
    recommendations_table,
)

if TYPE_CHECKING:
    from fuxi_beta.baselines.popularity import Popularity
    from fuxi_beta.evaluation.protocol import Contexts
    from fuxi_beta.recommender import Recommender


BATCH_TOKENS = 1 << 16
"""Tokens of the listeners whose lists are made at once, on a CPU."""
LEAST_TOKENS = 64
"""What a listener counts at least: `BATCH_TOKENS` are no more than 1,024 listeners."""
BATCH_SCORES = 1 << 24
"""Scores of a baseline that are held at once: 64 MB."""

CUT_SAMPLE, CUT_SHARE = 512, 0.02
"""Of about so many listeners a day, and of no larger share, it is counted which rules cut how much: it is dear."""


@dataclass(frozen=True)
class ListJob:
    """Everything the tasks of one ds share."""

    ds: dt.date
    calendar: Calendar
    table_uri: str
    manifest: Manifest
    item_ids: pa.Array  # item_id of the songs 1..V, at index - 1
    popularity: "Popularity"  # makes the lists of listeners for whom the recommender has none
    recommender: "Recommender | None"  # a model, or the baseline that serves in its place; None: popular lists only
    source: str  # of the recommender's lists
    model_config: ModelConfig  # what a baseline reads of a history; a model reads by its own
    rules: ListRules
    model_version: str | None  # None unless a model serves
    stale_days: int
    k: int
    active_days: int
    batch_tokens: int = BATCH_TOKENS  # of the listeners whose lists are made at once
    kernels: Kernels = "auto"
    device: str = "cpu"  # where the model makes its lists
    reasons: int = 0  # plays named for each song

    @property
    def cut(self) -> int:
        """Unix second before which an event may be known: ds 00:00."""
        return self.calendar.day_start(self.ds)

    @property
    def spec(self) -> TableSpec:
        """The table of lists with the ids of this workspace."""
        return recommendations_table(self.manifest.user_id_type, self.manifest.item_id_type)

    @property
    def quality_count(self) -> QualityCount:
        """Counts the lists that are made."""
        sample = min(CUT_SHARE, CUT_SAMPLE / max(self.manifest.rows, 1))
        return QualityCount(self.rules, self.recommender, self.popularity, sample)

    @property
    def bounds(self) -> tuple[int, int]:
        """What a listener counts at least and at most in a batch of `batch_tokens`."""
        if isinstance(self.recommender, TrainedModel):
            return LEAST_TOKENS, max(self.recommender.model_config.max_history, LEAST_TOKENS)
        if self.recommender is None:
            return LEAST_TOKENS, LEAST_TOKENS
        scored = self.batch_tokens * (self.manifest.vocabulary_size + 1) // BATCH_SCORES  # every song of each listener
        least = min(max(LEAST_TOKENS, scored), self.batch_tokens)
        return least, max(self.model_config.max_history, least)

    @property
    def schema(self) -> pa.Schema:
        """The columns of a part; ds is the name of its folder."""
        schema = self.spec.schema
        return schema.remove(schema.get_field_index(DS))


def make_part(job: ListJob, file: ShardFile) -> ListPart:
    """Lists of the active listeners of one shard file, written as one part, in the order of the file.

    The next row group is read while lists are made. In memory are three row groups at most (`row_group_events`, by
    default a million events of 13 bytes each), a batch of `batch_tokens`, the lists of the file (about 2 KB a
    listener), those of the days before that rules look at, and the job itself: the model with its item table,
    catalogue and feedback.
    """
    tables, counted = [job.schema.empty_table()], []
    with closing(ahead(partial(_active, job, file), range(len(file.row_groups)), threads=1)) as groups:
        for histories in groups:
            tables += [_rows(job, file.bucket, batch, counted=counted) for batch in _batches(job, histories)]
    part = write_part(job.table_uri, job.ds, pa.concat_tables(tables).combine_chunks())
    return replace(part, quality=add_up(counted))


def default_part(job: ListJob) -> ListPart:
    """The lists for listeners the table does not have: the most popular songs under the rules, user_id null.

    One for everybody, and one for each segment.
    """
    segments = [NO_SEGMENT, *job.rules.config.segments]
    nobody = Histories.without_plays(pa.nulls(len(segments), job.schema.field(USER_ID).type))
    facts = ListenerFacts(np.array(segments, object))
    return write_part(job.table_uri, job.ds, _rows(replace(job, recommender=None), None, nobody, facts))


def _active(job: ListJob, file: ShardFile, group: int) -> Histories:
    """The listeners of a row group who were heard of in the last active_days."""
    histories = job.manifest.histories(file, group).before(job.cut)
    newest = np.zeros(len(histories), np.int64)
    some = histories.lengths > 0
    newest[some] = histories.timestamp[histories.offsets[1:][some] - 1]
    active = some & (newest >= job.cut - job.active_days * DAY_SECONDS)
    return histories if active.all() else histories.take(np.flatnonzero(active))


def _batches(job: ListJob, histories: Histories) -> Iterator[Histories]:
    tokens = histories.lengths.clip(*job.bounds)
    for start, stop in cuts_by_tokens(tokens, job.batch_tokens):
        yield histories.slice(start, stop)


def _rows(
    job: ListJob,
    bucket: int | None,
    histories: Histories,
    facts: ListenerFacts | None = None,
    *,
    counted: list[dict[str, QualitySums]] | None = None,
) -> pa.Table:
    """Rows of the table for some listeners.

    facts: what is known of them, if not what the rules know. counted: takes what is counted of their lists.
    """
    contexts = contexts_of(job, histories)
    facts = facts or job.rules.listeners.facts(histories.user_id)
    own = np.zeros(len(histories), bool)
    if job.recommender is not None:
        made = job.rules.lists(job.recommender, contexts, job.k, facts=facts)
        own = contexts.batch(job.recommender).lengths.numpy() > 0
    else:
        made = MadeLists.empty_of(facts, job.k)
    rest = np.flatnonzero(~own)
    if len(rest):
        popular = job.rules.lists(job.popularity, contexts_of(job, histories.take(rest)), job.k, facts=facts.of(rest))
        made.put(rest, popular)
    reasons = _reasons(job, contexts, made)
    if counted is not None:  # last: of the recommenders that it asks `contexts` keeps only the latest encoded
        counted.append(job.quality_count.count(contexts, made, own))
    return list_table(job, histories.user_id, made, own, bucket=bucket, reasons=reasons)


def _reasons(job: ListJob, contexts: "Contexts", made: MadeLists) -> pa.Array | None:
    """The reasons of every listed song; None where there is no recommender, or one that explains nothing."""
    if job.recommender is None or not job.reasons:
        return None
    found = contexts.queries(job.recommender).reasons(made.items, job.reasons)
    if found is None:
        return None
    type = job.schema.field(ITEMS).type.value_type.field(REASONS).type
    batch, listed = contexts.batch(job.recommender), made.items.numpy() > 0
    return reasons_column(found, batch, listed, job.item_ids, calendar=job.calendar, type=type)


def contexts_of(job: ListJob, histories: Histories) -> "Contexts":
    """Listeners who request their lists at the request hour of ds."""
    from fuxi_beta.evaluation.protocol import Contexts

    calendar = job.calendar
    return Contexts(histories, calendar.request_time(job.ds), job.model_config, job.popularity.train, calendar)


def list_table(
    job: ListJob,
    user_id: pa.Array,
    made: MadeLists,
    own: np.ndarray,
    *,
    bucket: int | None,
    reasons: pa.Array | None = None,
) -> pa.Table:
    """Lists as rows of a part. own: bool [B], whether the recommender made them; popularity made the others.

    reasons: of every listed song.
    """
    items, number = made.items.numpy(), len(user_id)
    there = items > 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    type = job.schema.field(ITEMS).type.value_type
    propensity = made.propensity.numpy()[there]
    songs: list[Any] = [
        job.item_ids.take(pa.array(items[there] - 1)),
        pa.array(made.scores.numpy()[there], pa.float32()),
        pa.array(propensity, pa.float32(), mask=np.isnan(propensity)),
        pa.nulls(int(there.sum()), type.field(REASONS).type) if reasons is None else reasons,
    ]
    element = pa.StructArray.from_arrays(songs, fields=list(type))
    origin = pa.array(own)
    version = pa.scalar(job.model_version, pa.string())
    columns = {
        BUCKET: pa.repeat(pa.scalar(bucket, pa.int32()), number),
        USER_ID: user_id,
        ITEMS: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), element),
        SOURCE: pc.if_else(origin, job.source, SOURCE_POPULAR),
        MODEL_VERSION: pc.if_else(origin, version, pa.scalar(None, pa.string())),
        STALE_DAYS: pa.repeat(pa.scalar(job.stale_days, pa.int32()), number),
        SEGMENT: pa.array(made.segment, pa.string(), mask=made.segment == NO_SEGMENT),
        SHORT: pa.array(there.sum(axis=1) < job.k),
    }
    return pa.table(columns, job.schema)
