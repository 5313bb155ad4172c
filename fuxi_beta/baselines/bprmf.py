"""Matrix factorisation by Bayesian personalised ranking, BPR-MF (Rendle et al. 2009).

    x_uj = p_u q_j + b_j
    maximise sum over (u, i, j) of ln sigmoid(x_ui - x_uj) - lambda/2 (|p_u|^2 + |q_i|^2 + |q_j|^2 + b_i^2 + b_j^2)

u listened to i and not to j. An epoch visits every pair (u, i) once, in a random order, with a j drawn uniformly
from the songs u did not play. A step is the paper's update for each triple, a batch of triples at a time: those of a
batch do not see each other's steps.

Shapes: `B` listeners or triples of a batch, `U` listeners of the shards, `D` factors, `V` songs and the padding row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.baselines.base import ScoredBaseline, heard_songs, or_all_songs
from fuxi_beta.config import TrainConfig
from fuxi_beta.data import stateless_random
from fuxi_beta.data.batches import Batch
from pipelines.histories.shards import Manifest

if TYPE_CHECKING:
    from scipy import sparse

OnEpoch = Callable[[int, float], None]
"""Called with (epoch from 1, mean of -ln sigmoid over its triples)."""

_INITIAL_STD = 0.1
_DIVERGED = 10 * math.log(2)  # ten times the loss of knowing nothing


@dataclass(frozen=True)
class BPRMFConfig:
    """How the factors are fitted."""

    factors: int = 50  # D
    epochs: int = 50
    lr: float = 0.05
    regularisation: float = 0.01  # lambda
    batch_size: int = 1024  # triples a step
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("factors", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}: it must be above 0")
        if not self.regularisation >= 0:
            raise ValueError(f"regularisation is {self.regularisation}: it must be 0 or more")


@dataclass(frozen=True)
class Factors:
    """What is fitted; `step` changes it in place."""

    users: Tensor  # float32 [U, D]
    items: Tensor  # float32 [V, D]
    bias: Tensor  # float32 [V]


class BPRMF(ScoredBaseline):
    """A recommender that knows listeners by id, not by what they played: ask `scores_of_listeners`."""

    def __init__(self, factors: Factors, user_ids: list[Any], *, train: TrainConfig, candidates: Tensor) -> None:
        super().__init__(train=train, candidates=candidates)
        self.factors = factors
        self.row = {user: row for row, user in enumerate(user_ids)}

    def scores_of_listeners(self, user_id: pa.Array) -> Tensor:
        """x_uj of every song; where the id is unknown, b_j alone, much like popularity. [B] -> float32 [B, V]."""
        rows = torch.tensor([self.row.get(user, -1) for user in user_id.to_pylist()], dtype=torch.int64)
        users = self.factors.users[rows] * (rows >= 0)[:, None]
        return users @ self.factors.items.t() + self.factors.bias

    def scores(self, batch: Batch) -> Tensor:
        """NotImplementedError: a batch does not say whose histories it holds."""
        raise NotImplementedError(
            "BPRMF has factors of listeners, and a batch has no user ids: use scores_of_listeners"
        )


def fit_bprmf(
    manifest: Manifest,
    *,
    end: int,
    train: TrainConfig,
    candidates: Tensor | None = None,
    config: BPRMFConfig | None = None,
    on_epoch: OnEpoch | None = None,
) -> BPRMF:
    """Fit factors to the distinct songs each listener played before `end` (Unix seconds).

    candidates: bool [V], by default every song; negatives are drawn from the whole catalogue either way. The result
    is a function of the plays and `config`. Raises ValueError when the loss diverges.
    """
    config = config or BPRMFConfig()
    heard, user_ids = heard_songs(manifest, end=end, train=train)
    factors = initial_factors(len(user_ids), manifest.vocabulary_size + 1, config)
    triples = Triples(heard, manifest.vocabulary_size)
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        user, liked, other = triples.epoch(config.seed, epoch)
        for part in zip(*(side.split(config.batch_size) for side in (user, liked, other)), strict=True):
            total += step(factors, *part, lr=config.lr, regularisation=config.regularisation)
        loss = total / max(len(user), 1)
        if not loss < _DIVERGED:
            raise ValueError(
                f"BPR-MF diverged: the loss is {loss:.3g} in epoch {epoch} (ln 2 = 0.69 is knowing nothing): "
                f"lower lr ({config.lr}) or batch_size ({config.batch_size})"
            )
        if on_epoch:
            on_epoch(epoch, loss)
    return BPRMF(factors, user_ids, train=train, candidates=or_all_songs(candidates, manifest))


def initial_factors(users: int, width: int, config: BPRMFConfig) -> Factors:
    """Factors N(0, 0.1^2) and no bias. width: V."""
    generator = torch.Generator().manual_seed(config.seed)
    drawn = (torch.randn(count, config.factors, generator=generator) * _INITIAL_STD for count in (users, width))
    return Factors(*drawn, bias=torch.zeros(width))


def step(factors: Factors, user: Tensor, liked: Tensor, other: Tensor, *, lr: float, regularisation: float) -> float:
    """One gradient step for triples (u, i, j), int64 [B] each, in place. Returns the sum of -ln sigmoid before it."""
    p, q_liked, q_other = factors.users[user], factors.items[liked], factors.items[other]
    bias_liked, bias_other = factors.bias[liked], factors.bias[other]
    difference = q_liked - q_other
    margin = (p * difference).sum(1) + bias_liked - bias_other
    slope = torch.sigmoid(-margin)
    pull = slope[:, None]
    factors.users.index_add_(0, user, lr * (pull * difference - regularisation * p))
    factors.items.index_add_(0, liked, lr * (pull * p - regularisation * q_liked))
    factors.items.index_add_(0, other, lr * (-pull * p - regularisation * q_other))
    factors.bias.index_add_(0, liked, lr * (slope - regularisation * bias_liked))
    factors.bias.index_add_(0, other, lr * (-slope - regularisation * bias_other))
    return float(-F.logsigmoid(margin).sum())


class Triples:
    """Draws (listener, song played, song not played). Listeners who played every song have no triples.

    heard: 1 or nothing, [U, V]; songs: V - 1, without the padding row.
    """

    def __init__(self, heard: "sparse.csr_array", songs: int) -> None:
        self.count = torch.from_numpy(np.diff(heard.indptr)).long()
        self.starts = torch.from_numpy(heard.indptr).long()
        self.unheard = songs - self.count  # int64 [U]
        self.user = torch.repeat_interleave(torch.arange(len(self.count)), self.count)
        self.song = torch.from_numpy(heard.indices).long()  # ascending within a listener
        place = torch.arange(len(self.song)) - self.starts[self.user]
        self.stride = songs + 1
        # Of a listener's songs not played, song - 1 - place are below a played one.
        self.below = self.user * self.stride + self.song - 1 - place
        self.pairs = (self.unheard[self.user] > 0).nonzero().squeeze(1)

    def epoch(self, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Every pair (u, i) once, in the epoch's order, with its j. int64 each."""
        order = self.pairs[stateless_random.permutation(len(self.pairs), seed, epoch, stateless_random.SHUFFLE_ROWS)]
        user = self.user[order]
        keys = stateless_random.combine(seed, epoch, order, stateless_random.NEGATIVES)
        bits = stateless_random.words(keys, 1)[:, 0].bitwise_and(0x7FFFFFFF)
        return user, self.song[order], self.not_played(user, (bits * self.unheard[user]) >> 31)

    def not_played(self, user: Tensor, number: Tensor) -> Tensor:
        """The song that is `number` (from 0) among those the listener did not play, ascending. int64 each."""
        passed = torch.searchsorted(self.below, user * self.stride + number, right=True) - self.starts[user]
        return number + 1 + passed
