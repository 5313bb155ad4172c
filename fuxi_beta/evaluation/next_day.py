"""The protocol `next_day`, for any number of recommenders on the same listeners in one pass.

Shapes: `B` listeners, `V` songs and the padding row, `K` list length. Times are Unix seconds, UTC.
"""

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.evaluation.metrics import SERVED, RankedLists, list_metrics
from fuxi_beta.evaluation.protocol import (
    Contexts,
    ListMaker,
    Means,
    Metrics,
    Progress,
    Result,
    on_every_core,
    raw_lists,
)
from fuxi_beta.recommender import Recommender
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.errors import InputError
from pipelines.histories.buckets import hash_share
from pipelines.histories.histories import Histories, places_in
from pipelines.histories.shards import Manifest


@dataclass(frozen=True)
class NextDayResult(Result):
    """What `evaluate_next_day` found on its sample of listeners.

    values: recommender -> the kept metric of each listener measured, float64 [U], the same listeners in the same order.
    members: slice -> which of these listeners are in it, bool [U].
    """

    request_time: int
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    members: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class NextDayCases:
    """The listeners of a manifest with what they were known by before a day and what they played on it.

    Context is before D-1 00:00, the request is at the request hour of D-1, truth the distinct songs played (not
    skipped) from then to D 00:00; in mode `exclusive` only songs never heard before the request. Songs unknown before
    D-1 are no truth.
    """

    manifest: Manifest
    ds: dt.date
    calendar: Calendar
    train: TrainConfig
    known: np.ndarray  # bool [V], songs known before D-1
    max_listeners: int

    @property
    def cut(self) -> int:
        """D-1 00:00."""
        return self.calendar.day_start(self.ds - dt.timedelta(days=1))

    @property
    def request_time(self) -> int:
        """When the lists of D-1 are requested."""
        return self.calendar.request_time(self.ds - dt.timedelta(days=1))

    @property
    def end(self) -> int:
        """D 00:00."""
        return self.calendar.day_start(self.ds)

    def row_groups(self) -> Iterator[tuple[Histories, np.ndarray]]:
        """Each row group's sampled listeners and their truth as sorted keys `listener * V + song`."""
        for histories in sampled_histories(self.manifest, self.max_listeners):
            yield histories, self.truth(histories)

    def chunks(self, histories: Histories, size: int) -> "Iterator[Chunk]":
        """The listeners of a row group who have something to predict, `size` at a time."""
        truth, songs = self.truth(histories), len(self.known)
        rows = np.unique(truth // songs)
        others = len(histories) - len(rows)
        for start in range(0, max(len(rows), 1), size):
            chunk = rows[start : start + size]
            yield Chunk(self, histories.take(chunk), _truth_of(truth, chunk, songs), len(chunk) + others)
            others = 0

    def refuse_missing_events(self) -> None:
        """InputError if the sequences end before the day does."""
        if self.manifest.data_end < self.end:
            raise InputError(
                f"{self.manifest.folder}: sequences end before {self.ds} 00:00, so the day before cannot be "
                f"evaluated: run `fuxi sessionize --ds {self.ds}` first"
            )

    def truth(self, histories: Histories) -> np.ndarray:
        """What these listeners played on the day, as sorted keys `listener * V + song`. int64."""
        songs = len(self.known)
        keys = histories.listener * songs + histories.item_index
        on_the_day = (histories.timestamp >= self.request_time) & (histories.timestamp < self.end)
        played = on_the_day & (histories.completion >= self.train.min_completion)
        truth = np.unique(keys[played])
        truth = truth[self.known[truth % songs]]
        if self.train.mode == "exclusive":
            older = np.repeat(np.arange(len(histories)), np.diff(histories.heard_offsets)) * songs
            heard = np.concatenate([keys[histories.timestamp < self.request_time], older + histories.heard_items])
            truth = truth[~np.isin(truth, heard)]
        return truth


def sampled_histories(manifest: Manifest, max_listeners: int) -> Iterator[Histories]:
    """Each row group's listeners; above `max_listeners` a hash sample of about so many."""
    share = max_listeners / max(manifest.rows, 1)
    for file, group, _ in manifest.row_groups():
        histories = manifest.histories(file, group)
        yield histories.take(np.flatnonzero(hash_share(histories.user_id) < share)) if share < 1 else histories


@dataclass(frozen=True)
class Chunk:
    """Some listeners with something to predict on a day."""

    cases: NextDayCases
    histories: Histories  # whole ones
    truth: np.ndarray  # int64, ascending keys `row * V + song`
    counted: int  # listeners done with this chunk: its own, and those of the row group with nothing to predict

    @cached_property
    def context(self) -> Histories:
        """What is known of them."""
        return self.histories.before(self.cases.cut)

    def marked(self, items: np.ndarray, heard: np.ndarray) -> RankedLists:
        """Lists (int [B, K], 0 where shorter) with what was played and heard of them. heard: keys as of the truth."""
        songs = len(self.cases.known)
        keys = np.where(items > 0, np.arange(len(items))[:, None] * songs + items, -1)
        relevant = np.bincount(self.truth // songs, minlength=len(items))
        return RankedLists(items, places_in(self.truth, keys) >= 0, relevant, places_in(heard, keys) >= 0)


@dataclass(frozen=True)
class ListMakers:
    """Several recommenders, and how their lists of k songs are made: raw, and as served if `served` is given.

    `model` and `train` shape the contexts of recommenders that are no TrainedModel; `fallback` makes the list where a
    recommender has none.
    """

    recommenders: Mapping[str, Recommender]
    model: ModelConfig
    train: TrainConfig
    k: int
    fallback: Recommender | None = None
    served: ListMaker | None = None

    def lists(self, chunk: Chunk) -> Iterator[tuple[str, str, RankedLists]]:
        """(recommender, "" or SERVED, its lists) of a chunk of listeners."""
        if not len(chunk.histories):
            return
        cases, songs = chunk.cases, len(chunk.cases.known)
        contexts = Contexts(chunk.context, cases.request_time, self.model, self.train, cases.calendar)
        makers = {"": raw_lists} if self.served is None else {"": raw_lists, SERVED: self.served}

        def of(recommender: Recommender) -> dict[str, Tensor]:
            return {prefix: lists(recommender, contexts, self.k)[0] for prefix, lists in makers.items()}

        # All lists of one recommender in a row, since `contexts` keeps but the latest one's queries.
        made = {recommender: of(recommender) for recommender in self.recommenders.values()}
        empty = any(bool((items[:, 0] == 0).any()) for lists in made.values() for items in lists.values())
        rest = made.get(self.fallback) or of(self.fallback) if self.fallback is not None and empty else None
        for name, recommender in self.recommenders.items():
            batch = contexts.batch(recommender)
            heard = batch.seen_listener.numpy() * songs + batch.seen_items.numpy()
            for prefix, items in made[recommender].items():
                own = items if rest is None else torch.where(items[:, :1] == 0, rest[prefix], items)
                yield name, prefix, chunk.marked(own.numpy(), heard)


def evaluate_next_day(
    manifest: Manifest,
    recommenders: dict[str, Recommender],
    *,
    ds: dt.date,
    calendar: Calendar,
    model: ModelConfig,
    train: TrainConfig,
    config: EvaluateConfig,
    known_items: int | np.ndarray | None = None,
    fallback: Recommender | None = None,
    served: ListMaker | None = None,
    keep: str = "",
    on_progress: Progress | None = None,
) -> NextDayResult:
    """Protocol `next_day` for the serving day `ds` on its own shards, which hold the events of D-1.

    known_items: songs known before D-1, as the highest index or bool [V]; default all of the manifest. fallback makes
    the list where a recommender has none, as serving does. `model` and `train` shape the contexts of recommenders that
    are no TrainedModel. Metrics are those of `metrics.METRICS` at the cut-offs `config.at`, and coverage (share of the
    known songs in any list), of raw lists. served: makes lists as listeners get them; their metrics have the prefix
    `served_`. keep: a metric whose value of each listener is returned, too. Slices: `all`, and a partition of it into
    `new` (first event within new_days of the cut), `light` and `heavy`.
    """
    cases = NextDayCases(manifest, ds, calendar, train, _known(manifest, known_items), config.max_listeners)
    cases.refuse_missing_events()
    makers = ListMakers(recommenders, model, train, max(config.at), fallback, served)
    sums, done = ListMeans(config.at, cases.known), 0
    kept: dict[str, list[np.ndarray]] = {}
    members: dict[str, list[np.ndarray]] = {}
    groups = sampled_histories(manifest, config.max_listeners)
    chunks = (chunk for histories in groups for chunk in cases.chunks(histories, config.batch_size))
    for chunk, found in on_every_core(lambda chunk: (chunk, list(makers.lists(chunk))), chunks):
        slices = kind_slices(chunk.context, cases.cut, config)
        sums.count(slices)
        for name, of_chunk in slices.items():
            members.setdefault(name, []).append(of_chunk)
        for name, prefix, lists in found:
            values = sums.add_lists(name, slices, lists, prefix=prefix)
            if keep in values:
                kept.setdefault(name, []).append(values[keep])
        done += chunk.counted
        if on_progress:
            on_progress(done, min(manifest.rows, config.max_listeners))
    by_listener, by_slice = (
        {name: np.concatenate(parts) for name, parts in found.items()} for found in (kept, members)
    )
    excluded = done - sums.listeners["all"]
    return NextDayResult(sums.means(), excluded, sums.listeners, cases.request_time, by_listener, by_slice)


class ListMeans(Means):
    """Means over listeners of the list metrics, and coverage, which is of all lists together.

    known: bool [V], the songs that coverage is a share of.
    """

    def __init__(self, at: tuple[int, ...], known: np.ndarray) -> None:
        super().__init__()
        self.at, self.songs, self.known = at, len(known), int(known.sum())
        self.listed: dict[tuple[str, str, str], np.ndarray] = {}  # bool [V] each

    def add_lists(
        self, name: str, slices: dict[str, np.ndarray], lists: RankedLists, *, prefix: str
    ) -> dict[str, np.ndarray]:
        """Add one recommender's lists. Returns the metrics of each listener."""
        for k in self.at:
            for slice_name, members in slices.items():
                key = (name, slice_name, f"{prefix}coverage_{k}")
                self.listed.setdefault(key, np.zeros(self.songs, bool))[lists.items[members, :k]] = True
        values = {f"{prefix}{metric}": values for metric, values in list_metrics(lists, self.at).items()}
        self.add(name, slices, values)
        return values

    def means(self) -> Metrics:
        """Means over the listeners of each slice, with coverage."""
        means = super().means()
        for (name, slice_name, metric), listed in self.listed.items():
            means[name][slice_name][metric] = listed[1:].sum() / max(self.known, 1)
        return means


def _known(manifest: Manifest, known_items: int | np.ndarray | None) -> np.ndarray:
    songs = np.arange(manifest.vocabulary_size + 1)
    if known_items is None or isinstance(known_items, int):
        return (songs > 0) & (songs <= (len(songs) if known_items is None else known_items))
    known = np.zeros(len(songs), bool)
    known[: len(known_items)] = known_items[: len(songs)]
    known[0] = False
    return known


def kind_slices(context: Histories, cut: int, config: EvaluateConfig) -> dict[str, np.ndarray]:
    """Members (bool [B]) of `all` and of its partition into `new`, `light` and `heavy` listeners."""
    events, older = np.diff(context.offsets), np.diff(context.heard_offsets)
    first = np.full(len(context), cut)
    first[events > 0] = context.timestamp[context.offsets[:-1][events > 0]]
    new = (older == 0) & (first >= cut - config.new_days * DAY_SECONDS)
    light = ~new & (events + older <= config.light_events)
    return {"all": np.ones(len(context), bool), "new": new, "light": light, "heavy": ~new & ~light}


def _truth_of(truth: np.ndarray, rows: np.ndarray, songs: int) -> np.ndarray:
    """The keys `row * V + song` of some rows, both ascending, with each row's place among them. int64."""
    if not len(rows):
        return truth[:0]
    first, last = np.searchsorted(truth, [rows[0] * songs, (rows[-1] + 1) * songs])
    own = truth[first:last]  # rows between are without truth
    return np.searchsorted(rows, own // songs) * songs + own % songs
