"""Which songs stand against a target: draws by counter, how often each song is drawn, and who must not be a negative.

Shapes: `P` targets, `K` negatives each, `C` candidates, `U` unique songs of the batch.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.config import TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import NEGATIVES
from pipelines.errors import InputError

FULL_SOFTMAX_SONGS = 50_000
"""Candidates up to which `negatives_from: full` is allowed: the time of a step grows with their number."""
_MOST = (1 << 31) - 1
_FEWEST = 1e-9
"""Expected draws of a song that is never drawn, so that its logarithm is finite."""


@dataclass(frozen=True)
class Frequencies:
    """How often songs are played, for negatives that are not drawn uniformly. All int64 [C], of each candidate."""

    drawn: Tensor  # plays that negatives are drawn by: of the training, or targets of the batch
    plays: Tensor  # of the training


class NegativeSampler:
    """The songs that negatives are drawn from, on one rank.

    candidates: int64 [C], ascending. plays: int64 [C], of each candidate in what is trained on; needed by `popularity`
    and `in_batch`. rows: of the item table. Raises InputError if `full` has too many candidates.
    """

    def __init__(self, candidates: Tensor, *, train: TrainConfig, rows: int, plays: Tensor | None = None) -> None:
        self.candidates, self.train, self.rows, self.plays = candidates, train, rows, plays
        if train.negatives_from == "full" and len(candidates) > FULL_SOFTMAX_SONGS:
            raise InputError(
                f"train.negatives_from is full, but the model has {len(candidates):,} candidates, more than "
                f"{FULL_SOFTMAX_SONGS:,}: set it to popularity or uniform, or raise train.min_listeners"
            )
        if train.negatives_from in ("popularity", "in_batch") and plays is None:
            raise ValueError(f"negatives from {train.negatives_from} need the plays of each candidate")

    def frequencies(self, batch: Batch) -> Frequencies | None:
        """What the negatives of a global batch are drawn by; None for all candidates alike. Collective for `in_batch`.

        The counts of a batch are summed over ranks, so that negatives do not depend on their number.
        """
        if self.plays is None or self.train.negatives_from not in ("popularity", "in_batch"):
            return None
        if self.train.negatives_from == "popularity":
            return Frequencies(self.plays, self.plays)
        target = batch.target[batch.positions]
        counts = torch.zeros(self.rows, dtype=torch.int64, device=target.device)
        counts = counts.scatter_add_(0, target, torch.ones_like(target))[self.candidates]
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(counts)
        return Frequencies(counts, self.plays)


def uniform_draws(train: TrainConfig, frequencies: Frequencies | None) -> int:
    """How many of the K negatives are drawn from all candidates alike."""
    return train.negatives if frequencies is None else round(train.uniform_share * train.negatives)


def draw(batch: Batch, *, train: TrainConfig, epoch: int, count: int, frequencies: Frequencies | None) -> Tensor:
    """The negatives of each target as places among `count` candidates, by counter, with replacement. int64 [P, K].

    The first `uniform_draws` are drawn uniformly, the others in proportion to `frequencies.drawn`; uniformly if it is
    zero everywhere.
    """
    positions = batch.positions
    keys = ops.combine(train.seed, epoch, batch.sample)[batch.listener[positions]]
    keys = ops.combine(keys, batch.position[positions], NEGATIVES)
    if frequencies is None:
        return ops.integers(keys, train.negatives, count)
    bits = ops.integers(keys, train.negatives, _MOST)
    uniform, ends = bits * count // _MOST, frequencies.drawn.cumsum(0)
    chosen = slice(uniform_draws(train, frequencies), None)
    place = (bits[:, chosen].double() * (ends[-1] / _MOST)).long()
    drawn = torch.searchsorted(ends, place, right=True).clamp_(max=count - 1)
    uniform[:, chosen] = torch.where(ends[-1] > 0, drawn, uniform[:, chosen])
    return uniform


def log_expected_draws(train: TrainConfig, frequencies: Frequencies | None, candidates: Tensor) -> Tensor:
    """The logarithm of how often each candidate is drawn for a target, on average: log(K Q). float64 [C].

    Subtracted from the logit of a negative it makes the sum over negatives an unbiased estimate of the sum over all
    candidates that are not masked. The target's own logit stays as it is, since the target is not drawn but always
    there, which is the point of "Correcting the LogQ Correction" (arXiv 2507.09331): the gradient is then that of a
    softmax over negatives by their corrected logits, times the probability of everything but the target, as in its
    loss. `in_batch` negatives are drawn by the plays of the training on average, which are known here; Yi et al. 2019
    (doi 10.1145/3298689.3346996) estimate that frequency from a stream.
    """
    uniform = uniform_draws(train, frequencies)
    expected = torch.full(candidates.shape, uniform / len(candidates), dtype=torch.float64, device=candidates.device)
    if frequencies is not None:
        plays = frequencies.plays.double()
        expected += (train.negatives - uniform) * plays / plays.sum().clamp(min=1)
    return expected.clamp(min=_FEWEST).log()


class Masks:
    """Which songs are no negatives of a target: itself, other targets of its state, songs its listener has heard.

    Those heard count where `first_listens` are learned from, since none of them is ever a target. target_row: int64
    [P], rows of the batch's unique songs; row: int64 [V], of every song, -1 for none; width: U.
    """

    def __init__(self, batch: Batch, *, train: TrainConfig, target_row: Tensor, row: Tensor, width: int) -> None:
        self.target_row, self.width = target_row, width
        self.listener = batch.listener[batch.positions]
        self._heard = _heard_cells(batch, row, width) if train.learn_from == "first_listens" else None
        self._state = self._pairs = None
        if batch.back is not None:
            self._state = batch.states
            self._pairs = (self._state * width + target_row).sort().values

    def __call__(self, rows: Tensor, chosen: slice = slice(None)) -> Tensor:
        """rows: int64 [P, K], of the negatives of each (chosen) target. bool [P, K]."""
        masked = rows == self.target_row[chosen, None]
        if self._state is not None and self._pairs is not None:
            pair = self._state[chosen, None] * self.width + rows
            place = torch.searchsorted(self._pairs, pair).clamp_(max=len(self._pairs) - 1)
            masked |= self._pairs[place] == pair
        if self._heard is not None:
            masked |= self._heard.take(self.listener[chosen, None] * self.width + rows)
        return masked


def _heard_cells(batch: Batch, row: Tensor, width: int) -> Tensor:
    """Which songs of the batch each listener has heard, listener by listener, and a spare one. bool [B U + 1]."""
    known = batch.seen_items < len(row)
    rows = row[batch.seen_items.clamp(max=len(row) - 1)]
    cells = batch.num_listeners * width
    cell = torch.where(known & (rows >= 0), batch.seen_listener * width + rows, cells)  # one spare cell for other songs
    return torch.zeros(cells + 1, dtype=torch.bool, device=row.device).index_fill_(0, cell, True)
