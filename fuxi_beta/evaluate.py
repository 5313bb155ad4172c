"""The two evaluation protocols, each for any number of recommenders on the same listeners in one pass.

Shapes: `B` listeners, `V` songs and the padding row, `K` list length. Times are Unix seconds, UTC.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fuxi_beta.batches import Batch, Histories, held_out, inference_batch, read_histories
from fuxi_beta.checkpoint import TrainedModel
from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.metrics import list_metrics, rank_metrics
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.schema import InputError
from pipelines.shards import Manifest

Progress = Callable[[int, int], None]
"""Called with (listeners done, listeners in all)."""

Metrics = dict[str, dict[str, dict[str, float]]]
"""Recommender -> slice -> metric -> mean over the slice's listeners."""

LEAVE_ONE_OUT_AT = (10, 50)


class Recommender(Protocol):
    """Makes lists."""

    @property
    def vocabulary_size(self) -> int:
        """Highest item index it knows."""
        ...

    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Items int64 [B, K], best first, 0 where fewer, and scores float32 [B, K]."""
        ...


class Scorer(Protocol):
    """Scores the whole catalogue."""

    @property
    def vocabulary_size(self) -> int:
        """Highest item index it knows."""
        ...

    def scores(self, batch: Batch) -> Tensor:
        """float32 [B, >= V]."""
        ...


@dataclass(frozen=True)
class NextDayResult:
    """What `evaluate_next_day` found."""

    metrics: Metrics
    listeners: int
    excluded: int  # listeners of the sample who played nothing that counts
    request_time: int
    slices: dict[str, int]  # listeners of each slice


@dataclass(frozen=True)
class LeaveOneOutResult:
    """What `evaluate_leave_one_out` found."""

    metrics: Metrics
    listeners: int
    excluded: int  # listeners without a play before their newest
    slices: dict[str, int]


@dataclass(frozen=True)
class NextDayCases:
    """The listeners of a manifest with what they were known by before a day and what they played on it.

    Context is before D-1 00:00, the request is at D-1 08:00, truth the distinct songs played (not skipped) from then
    to D 00:00; in mode `exclusive` only songs never heard before the request. Songs unknown before D-1 are no truth.
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
        """D-1 08:00."""
        return self.calendar.request_time(self.ds - dt.timedelta(days=1))

    @property
    def end(self) -> int:
        """D 00:00."""
        return self.calendar.day_start(self.ds)

    def row_groups(self) -> Iterator[tuple[Histories, np.ndarray]]:
        """Each row group's sampled listeners and their truth as sorted keys `listener * V + song`."""
        share = self.max_listeners / max(self.manifest.rows, 1)
        for file, group, _ in self.manifest.row_groups():
            histories = read_histories(self.manifest, file, group)
            if share < 1:
                histories = histories.select(np.flatnonzero(_hash_share(histories.user_id) < share))
            yield histories, self._truth(histories)

    def _truth(self, histories: Histories) -> np.ndarray:
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
    on_progress: Progress | None = None,
) -> NextDayResult:
    """Protocol `next_day` for the serving day `ds` on its own shards, which hold the events of D-1.

    known_items: songs known before D-1, as the highest index or bool [V]; default all of the manifest. fallback makes
    the list where a recommender has none, as serving does. `model` and `train` shape the contexts of recommenders that
    are no TrainedModel; a TrainedModel brings its own. Metrics for each k of config.at: hr, recall, ndcg, coverage
    (share of the known songs in any list) and repeats (share of listed songs heard before). Slices: `all`, and a
    partition of it into `new` (first event within new_days of the cut), `light` and `heavy`.
    """
    cases = NextDayCases(manifest, ds, calendar, train, _known(manifest, known_items), config.max_listeners)
    if manifest.data_end < cases.end:
        raise InputError(
            f"{manifest.folder}: sequences end before {ds} 00:00, so the day before cannot be evaluated: "
            f"run `fuxi sessionize --ds {ds}` first"
        )
    tally = _Tally(config.at, int(cases.known.sum()))
    excluded = done = 0
    for histories, truth in cases.row_groups():
        songs = len(cases.known)
        relevant = np.bincount(truth // songs, minlength=len(histories))
        rows = np.flatnonzero(relevant)
        excluded += len(histories) - len(rows)
        for start in range(0, len(rows), config.batch_size):
            chunk = rows[start : start + config.batch_size]
            context = histories.select(chunk).before(cases.cut)
            slices = _slices(context, cases.cut, config)
            contexts = _Contexts(context, cases.request_time, model, train, calendar)
            tally.count(slices)
            for name, recommender in recommenders.items():
                items = _lists(recommender, fallback, contexts, max(config.at))
                keys = np.where(items > 0, chunk[:, None] * songs + items, -1)
                repeats = np.isin(_local_keys(items, songs), contexts.seen_keys(songs)) & (items > 0)
                tally.add(name, slices, items, np.isin(keys, truth), repeats, relevant[chunk])
        done += len(histories)
        if on_progress:
            on_progress(done, min(manifest.rows, config.max_listeners))
    return NextDayResult(tally.means(), tally.listeners["all"], excluded, cases.request_time, dict(tally.listeners))


def evaluate_leave_one_out(
    manifest: Manifest,
    scorers: dict[str, Scorer],
    *,
    model: ModelConfig,
    train: TrainConfig,
    config: EvaluateConfig,
    on_progress: Progress | None = None,
) -> LeaveOneOutResult:
    """Protocol `leave_one_out`: rank each listener's newest play among the whole catalogue, 1..vocabulary_size.

    Its true time is t_{i+1}; songs of the visible history are removed; see `ranks`. Slices by the time since the
    previous play: `same_second`, `within_hour`, `later`.
    """
    calendar, sums = Calendar(manifest.timezone), _Means()
    excluded = done = 0
    for file, group, count in manifest.row_groups():
        histories = read_histories(manifest, file, group)
        visible, newest = held_out(histories, train, manifest.vocabulary_size)
        plays = (visible.completion >= train.min_completion) & (visible.item_index <= manifest.vocabulary_size)
        rows = np.flatnonzero(np.bincount(visible.listener[plays], minlength=count))
        excluded += count - len(rows)
        for start in range(0, len(rows), config.batch_size):
            chunk = rows[start : start + config.batch_size]
            time, target = histories.timestamp[newest[chunk]], histories.item_index[newest[chunk]]
            contexts = _Contexts(visible.select(chunk), time, model, train, calendar)
            batch = contexts.of(manifest.vocabulary_size, model, train)
            slices = _gap_slices(time - batch.timestamp[batch.offsets[1:] - 1].numpy())
            sums.count(slices)
            for name, scorer in scorers.items():
                batch = contexts.batch(scorer)
                rank = ranks(scorer.scores(batch), torch.from_numpy(target), batch, manifest.vocabulary_size)
                sums.add(name, slices, rank_metrics(rank.numpy(), LEAVE_ONE_OUT_AT))
        done += count
        if on_progress:
            on_progress(done, manifest.rows)
    return LeaveOneOutResult(sums.means(), sums.listeners["all"], excluded, dict(sums.listeners))


def ranks(scores: Tensor, target: Tensor, batch: Batch, vocabulary_size: int) -> Tensor:
    """Rank of each target among songs 1..vocabulary_size: 1 + #greater + half of the equal others. float64 [B].

    scores: [B, > vocabulary_size], compared in fp32. Songs the listener has seen do not compete; the target does.
    """
    rows = torch.arange(len(target))
    target = target.long()
    scores = scores[:, : vocabulary_size + 1].float().clone()
    of_target = scores[rows, target][:, None]
    inside = batch.seen_items <= vocabulary_size
    scores[batch.seen_listener[inside], batch.seen_items[inside]] = -torch.inf
    scores[:, 0] = -torch.inf
    scores[rows, target] = -torch.inf
    greater, equal = (scores > of_target).sum(1), (scores == of_target).sum(1)
    return 1 + greater.double() + equal.double() / 2


class _Contexts:
    """One chunk of listeners as the batch each recommender reads; recommenders with equal needs share it."""

    def __init__(
        self,
        histories: Histories,
        request_time: int | np.ndarray,
        model: ModelConfig,
        train: TrainConfig,
        calendar: Calendar,
    ) -> None:
        self.histories, self.request_time, self.calendar = histories, request_time, calendar
        self.model, self.train = model, train
        self.made: dict[tuple[int, int, int, str], Batch] = {}

    def batch(self, recommender: Recommender | Scorer) -> Batch:
        own = isinstance(recommender, TrainedModel)
        model = recommender.model_config if own else self.model
        train = recommender.train_config if own else self.train
        return self.of(recommender.vocabulary_size, model, train)

    def of(self, vocabulary_size: int, model: ModelConfig, train: TrainConfig) -> Batch:
        key = (vocabulary_size, model.max_history, train.min_completion, train.protocol)
        if key not in self.made:
            self.made[key] = inference_batch(
                self.histories,
                request_time=self.request_time,
                model=model,
                train=train,
                calendar=self.calendar,
                vocabulary_size=vocabulary_size,
            )
        return self.made[key]

    def seen_keys(self, songs: int) -> np.ndarray:
        batch = next(iter(self.made.values()))
        return (batch.seen_listener * songs + batch.seen_items).numpy()


class _Means:
    """Sums by recommender, slice and metric."""

    def __init__(self) -> None:
        self.listeners: dict[str, int] = {"all": 0}
        self.sums: Metrics = {}

    def count(self, slices: dict[str, np.ndarray]) -> None:
        for name, members in slices.items():
            self.listeners[name] = self.listeners.get(name, 0) + int(members.sum())

    def add(self, name: str, slices: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> None:
        for part, members in slices.items():
            sums = self.sums.setdefault(name, {}).setdefault(part, {})
            for metric, value in values.items():
                sums[metric] = sums.get(metric, 0.0) + float(value[members].sum())

    def means(self) -> Metrics:
        return {
            name: {
                part: {metric: total / max(self.listeners[part], 1) for metric, total in sums.items()}
                for part, sums in parts.items()
            }
            for name, parts in self.sums.items()
        }


class _Tally:
    """List metrics as means over listeners, and what only the whole set of lists has: coverage."""

    def __init__(self, at: tuple[int, ...], songs: int) -> None:
        self.at, self.songs, self.sums = at, songs, _Means()
        self.listed: dict[tuple[str, str, int], set[int]] = {}

    @property
    def listeners(self) -> dict[str, int]:
        return self.sums.listeners

    def count(self, slices: dict[str, np.ndarray]) -> None:
        self.sums.count(slices)

    def add(
        self,
        name: str,
        slices: dict[str, np.ndarray],
        items: np.ndarray,
        hits: np.ndarray,
        repeats: np.ndarray,
        relevant: np.ndarray,
    ) -> None:
        values = list_metrics(hits, relevant, self.at)
        for k in self.at:
            values[f"repeats_{k}"] = repeats[:, :k].sum(1) / np.maximum((items[:, :k] > 0).sum(1), 1)
            for part, members in slices.items():
                listed = self.listed.setdefault((name, part, k), set())
                listed.update(np.unique(items[members, :k]).tolist())
        self.sums.add(name, slices, values)

    def means(self) -> Metrics:
        means = self.sums.means()
        for (name, part, k), listed in self.listed.items():
            means[name][part][f"coverage_{k}"] = len(listed - {0}) / max(self.songs, 1)
        return means


def _lists(recommender: Recommender, fallback: Recommender | None, contexts: _Contexts, k: int) -> np.ndarray:
    items, _ = recommender.recommend(contexts.batch(recommender), k)
    empty = items[:, 0] == 0
    if fallback is not None and bool(empty.any()):
        items = torch.where(empty[:, None], fallback.recommend(contexts.batch(fallback), k)[0], items)
    return items.numpy()


def _local_keys(items: np.ndarray, songs: int) -> np.ndarray:
    return np.arange(len(items))[:, None] * songs + items


def _known(manifest: Manifest, known_items: int | np.ndarray | None) -> np.ndarray:
    songs = np.arange(manifest.vocabulary_size + 1)
    if known_items is None or isinstance(known_items, int):
        known = songs <= (manifest.vocabulary_size if known_items is None else known_items)
    else:
        known = np.zeros(len(songs), bool)
        known[: len(known_items)] = known_items[: len(songs)]
    known[0] = False
    return known


def _slices(context: Histories, cut: int, config: EvaluateConfig) -> dict[str, np.ndarray]:
    events, older = np.diff(context.offsets), np.diff(context.heard_offsets)
    first = np.full(len(context), cut)
    first[events > 0] = context.timestamp[context.offsets[:-1][events > 0]]
    new = (older == 0) & (first >= cut - config.new_days * DAY_SECONDS)
    light = ~new & (events + older <= config.light_events)
    return {"all": np.ones(len(context), bool), "new": new, "light": light, "heavy": ~new & ~light}


def _gap_slices(gap: np.ndarray) -> dict[str, np.ndarray]:
    everyone = np.ones(len(gap), bool)
    return {"all": everyone, "same_second": gap <= 0, "within_hour": (gap > 0) & (gap <= 3600), "later": gap > 3600}


def _hash_share(user_ids: pa.Array) -> np.ndarray:
    """A fixed number in [0, 1) for each user id, by its text: the same sample on every day and machine."""
    digests = (hashlib.blake2b(str(user).encode(), digest_size=8).digest() for user in user_ids.to_pylist())
    values = np.frombuffer(b"".join(digests), "<u8")
    return values / 2.0**64
