"""The interface of everything that makes lists, models and baselines alike.

Shapes: `B` listeners, `V` songs and the padding row, `K` list length.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fuxi_beta.config import Mode
from fuxi_beta.data.batches import Batch

Pairs = tuple[Tensor, Tensor]
"""Songs of single listeners: rows of the batch and item indices, int64, of one length."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """A choice of songs to rank, compared by identity: what a recommender prepares for one it keeps."""

    songs: Tensor  # bool [V]; songs behind its end are none
    penalty: Tensor | None = None  # float32 [V], taken off the scores of a model; baselines have other units

    def among(self, own: Tensor) -> Tensor:
        """Those that are a recommender's own candidates, too. own: bool [V'] -> bool [V']."""
        both = torch.zeros_like(own)
        size = min(len(own), len(self.songs))
        both[:size] = own[:size] & self.songs[:size].to(own.device)
        return both


@dataclass(frozen=True, eq=False)
class Reasons:
    """The plays that pulled songs into the lists of B listeners most, strongest first."""

    token: Tensor  # int64 [B, K, n], packed tokens of the batch; -1 where no further play contributes positively
    weight: Tensor  # float32 [B, K, n], contributions in units of the score, zero there
    remainder: Tensor  # float32 [B, K], the part of the score that is no play's

    @staticmethod
    def none(count: int, k: int, n: int, *, device: torch.device, dtype: torch.dtype) -> "Reasons":
        """No reasons for anything."""
        token = torch.full((count, k, n), -1, dtype=torch.int64, device=device)
        weight = torch.zeros(token.shape, dtype=dtype, device=device)
        return Reasons(token, weight, torch.zeros(count, k, dtype=dtype, device=device))

    def put(self, rows: Tensor, items: Tensor, token: Tensor, weight: Tensor, remainder: Tensor) -> None:
        """Reasons of some listeners, int64 [R], in place: of their songs [R, K], but not where one is 0."""
        unlisted = items == 0
        self.token[rows] = token.masked_fill_(unlisted[..., None], -1)
        self.weight[rows] = weight.masked_fill_(unlisted[..., None], 0)
        self.remainder[rows] = remainder.masked_fill(unlisted, 0)


class Queries(ABC):
    """The listeners of a batch as a recommender encoded them, to be ranked any number of times."""

    @abstractmethod
    def rank(
        self, k: int, *, excluded: Pairs | None = None, candidates: Candidates | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k best candidates of each listener, without the excluded pairs.

        candidates: the choice among the recommender's own, by default all. rows: int64 [R], some rows of the batch;
        pairs of others are passed over. Returns items int64 [R, K], best first and ties by lower index, 0 where there
        are fewer, and their scores float32 [R, K], -inf there; in host memory.
        """

    def reasons(self, items: Tensor, n: int) -> Reasons | None:
        """The n plays of each listener that pulled each song most; None if the recommender cannot say.

        items: int64 [B, K], 0: no song. The plays of one song count as one, named by the newest. In host memory.
        """
        return None


class Recommender(ABC):
    """Ranks its candidates for each listener."""

    vocabulary_size: int  # highest item index it knows
    candidates: Tensor  # bool [V], the songs it ranks
    mode: Mode  # whether it recommends first listens only (`exclusive`) or any play

    def as_of(self, time: int) -> "Recommender":
        """The same recommender with the candidates of a time (Unix seconds), where they change with it."""
        return self

    @abstractmethod
    def queries(self, batch: Batch) -> Queries:
        """Encode the listeners of a batch."""

    def rank(self, batch: Batch, k: int, *, excluded: Pairs | None = None) -> tuple[Tensor, Tensor]:
        """The k best candidates of each listener: `queries` and `Queries.rank` at once."""
        return self.queries(batch).rank(k, excluded=excluded)

    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """The raw list: `rank` without list rules, and in mode `exclusive` without songs the listener has heard."""
        return self.rank(batch, k, excluded=heard_songs(batch) if self.mode == "exclusive" else None)


def heard_songs(batch: Batch) -> Pairs:
    """Every song that a listener of the batch heard before its cut, skips included."""
    return batch.seen_listener, batch.seen_items


def pairs_of_rows(pairs: Pairs | None, rows: Tensor | None) -> Pairs | None:
    """The pairs of some rows, numbered by their place in `rows`; all of them if that is None."""
    if pairs is None or rows is None or not len(pairs[0]):
        return pairs
    if not len(rows):
        return rows, rows
    place = rows.new_full((int(max(rows.max(), pairs[0].max())) + 1,), -1)
    place[rows] = torch.arange(len(rows), device=rows.device)
    kept = place[pairs[0]] >= 0
    return place[pairs[0][kept]], pairs[1][kept]
