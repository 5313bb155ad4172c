"""The protocol `leave_one_out`: rank each listener's newest play among the whole catalogue (the paper's evaluation).

It lets a model learn from plays that came after those it is tested on, if other listeners made them. With `split` the
same ranking asks instead for the first play after one point in time, and nothing after that point is learned from.

Shapes: `B` listeners, `V` songs and the padding row. Times are Unix seconds, UTC.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch, held_out, is_play, without_newest
from fuxi_beta.evaluation.metrics import rank_metrics
from fuxi_beta.evaluation.protocol import Contexts, Known, Means, Progress, Result
from pipelines.calendar import Calendar
from pipelines.histories.histories import Histories
from pipelines.histories.shards import Manifest

SLICES = ("same_second", "within_hour", "later")
"""By the time since the previous play; with `all` these are the slices of every result."""


class Scorer(Known, Protocol):
    """Scores the whole catalogue from what a listener played."""

    def scores(self, batch: Batch) -> Tensor:
        """float32 [B, >= V]."""
        ...


@runtime_checkable
class ListenerScorer(Known, Protocol):
    """Scores the whole catalogue for listeners it was fitted on, by who they are."""

    def scores_of_listeners(self, user_id: pa.Array) -> Tensor:
        """float32 [B, >= V]."""
        ...


@dataclass(frozen=True)
class LeaveOneOutResult(Result):
    """What `evaluate_leave_one_out` found. `user_id` and `ranks` are in the order of the shards."""

    user_id: pa.Array
    ranks: dict[str, np.ndarray]  # recommender -> float64 [listeners], 1 is the best


@dataclass(frozen=True)
class Cases:
    """Each listener's newest play as something to predict from the plays before.

    newest_removed: 1 strips that play first and predicts the one before it, to validate on. permute_gaps: the time
    from the last visible play to the request is another listener's, drawn without replacement by this seed. split:
    Unix second; the case is the first play from then on, known by the plays before, and others have none.
    """

    manifest: Manifest
    train: TrainConfig
    newest_removed: int = 0
    permute_gaps: int | None = None
    split: int | None = None

    def row_groups(self) -> Iterator[tuple[Histories, Histories, np.ndarray, np.ndarray]]:
        """Histories, what is visible of them, rows of listeners with a case, and event numbers of all their targets."""
        size = self.manifest.vocabulary_size
        for file, group, _ in self.manifest.row_groups():
            histories = self.manifest.histories(file, group)
            histories = without_newest(histories, self.newest_removed, self.train, size)
            if self.split is None:
                visible, newest = held_out(histories, self.train, size)
            else:
                visible, newest = self._first_after(histories, self.split)
            plays = visible.listener[is_play(visible, self.train, size)]
            rows = np.flatnonzero((np.bincount(plays, minlength=len(visible)) > 0) & (newest >= 0))
            yield histories, visible, rows, newest

    def _first_after(self, histories: Histories, split: int) -> tuple[Histories, np.ndarray]:
        """What is before the split, and the event number of each listener's first play from then on, -1 for none."""
        plays = (histories.completion >= self.train.min_completion) & (histories.timestamp >= split)
        numbers = np.flatnonzero(plays)[::-1]
        first = np.full(len(histories), -1, np.int64)
        first[histories.listener[numbers]] = numbers  # the last write is the oldest of them
        return histories.before(split), first

    def gaps(self) -> np.ndarray:
        """Seconds from each case's last visible play to its target, permuted if asked for. int64, in order."""
        gaps = [
            histories.timestamp[newest[rows]] - _last_play(visible.take(rows), self.train)
            for histories, visible, rows, newest in self.row_groups()
        ]
        in_order = np.concatenate(gaps) if gaps else np.zeros(0, np.int64)
        if self.permute_gaps is None:
            return in_order
        return np.random.default_rng(self.permute_gaps).permutation(in_order)


def evaluate_leave_one_out(
    manifest: Manifest,
    scorers: Mapping[str, Scorer | ListenerScorer],
    *,
    model: ModelConfig,
    train: TrainConfig,
    config: EvaluateConfig,
    newest_removed: int = 0,
    permute_gaps: int | None = None,
    split: int | None = None,
    on_progress: Progress | None = None,
) -> LeaveOneOutResult:
    """Rank each listener's newest play among the whole catalogue, 1..vocabulary_size.

    Its true time is t_{i+1}, unless a model was trained under another `request_time`; songs of the visible history
    are removed; see `ranks`, and `Cases` for newest_removed, permute_gaps and split. `model` and `train` shape the
    contexts of scorers that are no TrainedModel. Slices are `all` and `SLICES`, by the true time since the last play.
    """
    calendar, sums = Calendar(manifest.timezone), Means()
    cases = Cases(manifest, train, newest_removed, permute_gaps, split)
    gaps = cases.gaps() if permute_gaps is not None else None
    users, found = [], {name: [] for name in scorers}
    excluded = done = measured = 0
    for histories, visible, rows, newest in cases.row_groups():
        excluded += len(histories) - len(rows)
        for start in range(0, len(rows), config.batch_size):
            chunk = rows[start : start + config.batch_size]
            context = visible.take(chunk)
            time, target = histories.timestamp[newest[chunk]], histories.item_index[newest[chunk]]
            last = _last_play(context, train)
            asked = time if gaps is None else last + gaps[measured : measured + len(chunk)]
            contexts = Contexts(context, asked, model, train, calendar)
            slices = gap_slices(time - last)
            sums.count(slices)
            for name, scorer in scorers.items():
                batch = contexts.batch(scorer)
                by_id = isinstance(scorer, ListenerScorer)
                scores = scorer.scores_of_listeners(context.user_id) if by_id else scorer.scores(batch)
                rank = ranks(scores, torch.from_numpy(target), batch, manifest.vocabulary_size).numpy()
                sums.add(name, slices, rank_metrics(rank))
                found[name].append(rank)
            users.append(context.user_id)
            measured += len(chunk)
        done += len(histories)
        if on_progress:
            on_progress(done, manifest.rows)
    return LeaveOneOutResult(
        metrics=sums.means(),
        excluded=excluded,
        slices=sums.listeners,
        user_id=pa.concat_arrays(users) if users else pa.array([], pa.int64()),
        ranks={name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in found.items()},
    )


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


def split_time(manifest: Manifest, share: float = 0.9) -> int:
    """The Unix second before which `share` of all events are."""
    times = [manifest.histories(file, group).timestamp for file, group, _ in manifest.row_groups()]
    return int(np.quantile(np.concatenate(times), share)) if times else 0


def gap_slices(gap: np.ndarray) -> dict[str, np.ndarray]:
    """Members of each slice by the seconds since the previous play. bool [B]."""
    members = (gap <= 0, (gap > 0) & (gap <= 3600), gap > 3600)
    return {"all": np.ones(len(gap), bool), **dict(zip(SLICES, members, strict=True))}


def _last_play(visible: Histories, train: TrainConfig) -> np.ndarray:
    """Time of each listener's newest play; every listener has one. int64 [B]."""
    plays = visible.keep(visible.completion >= train.min_completion)
    return plays.timestamp[plays.offsets[1:] - 1]
