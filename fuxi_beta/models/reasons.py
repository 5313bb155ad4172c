"""Which plays pulled a song into a list: a score as a sum over the plays of a listener.

Shapes: `B` listeners, `R` some of them, `T` packed tokens, `n` plays of the longest of the R, `D` width, `K` songs of
each listener.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.recommender import Reasons

_CELLS = 1 << 18
"""Contributions (plays times songs) computed at once, but for at least one listener: they stay in the CPU cache."""


@dataclass(frozen=True)
class Contributions:
    """Scores of K songs for each of R listeners as sums: weight over the n plays, plus remainder, is the score."""

    tokens: Tensor  # int64 [R, n], packed tokens, each listener's in a row, oldest first; -1 behind the newest
    weight: Tensor  # [R, n, K], zeros there
    remainder: Tensor  # [R, K], what is no play's


class Trace(ABC):
    """How a model came to the vector of each listener of a batch."""

    vectors: Tensor  # [B, D], as of `SequenceModel.encode_last`

    @abstractmethod
    def contributions(self, songs: Tensor, rows: Tensor) -> Contributions:
        """The parts of the scores <vector, song>. songs: [R, K, D]; rows: int64 [R], listeners with plays."""


def strongest_plays(trace: Trace, batch: Batch, table: Tensor, items: Tensor, n: int) -> Reasons:
    """The n plays with the largest positive contribution to each song; arguments as of `Queries.reasons`.

    table: [V, D], the songs' vectors as they are scored. Memory is bounded whatever the lengths of histories.
    """
    count, k = items.shape
    found = Reasons.none(count, k, n, device=items.device, dtype=table.dtype)
    newest = newest_of_song(batch)
    lengths, by_length = batch.lengths.sort(descending=True, stable=True)
    longest, start = lengths.tolist(), 0
    while k and start < count and longest[start]:
        rows = by_length[start : start + max(1, _CELLS // (longest[start] * k))]
        rows = rows[lengths[start : start + len(rows)] > 0]
        parts = trace.contributions(gathered(table, items[rows]), rows)
        tokens, weight = _strongest(parts, newest, n)
        listed = items[rows] > 0
        found.token[rows] = tokens.masked_fill_(~listed[..., None], -1)
        found.weight[rows] = weight.masked_fill_(~listed[..., None], 0)
        found.remainder[rows] = parts.remainder * listed
        start += len(rows)
    return found


def gathered(packed: Tensor, index: Tensor) -> Tensor:
    """packed[index], several times as fast. [T, ...], int64 of any shape -> [*shape, ...]."""
    return packed.index_select(0, index.flatten()).view(*index.shape, *packed.shape[1:])


def newest_of_song(batch: Batch) -> Tensor:
    """For each token its listener's newest token of the same song. int64 [T]."""
    if len(batch.item_index) == 0:
        return batch.item_index
    key = batch.listener * (batch.item_index.max() + 1) + batch.item_index
    sorted_key, order = key.sort(stable=True)
    _, run, sizes = sorted_key.unique_consecutive(return_inverse=True, return_counts=True)
    newest = order[sizes.cumsum(0) - 1]  # of each run of equal keys the last, as the sort is stable
    return torch.empty_like(order).index_copy_(0, order, newest[run])


def _strongest(parts: Contributions, newest: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Tokens int64 [R, K, n], -1 where no contribution is positive, and the contributions, zero there."""
    weight = _by_song(parts.tokens, parts.weight, newest)
    tokens = weight.new_full((*parts.remainder.shape, n), -1, dtype=torch.int64)
    weights = weight.new_zeros(tokens.shape)
    for place in range(min(n, weight.shape[1])):
        most, play = weight.max(dim=1)  # [R, K], the first of equal ones
        positive = most > 0
        tokens[..., place] = parts.tokens.gather(1, play).masked_fill_(~positive, -1)
        weights[..., place] = most * positive
        weight.scatter_(1, play[:, None], 0)
    return tokens, weights


def _by_song(tokens: Tensor, weight: Tensor, newest: Tensor) -> Tensor:
    """Move the contributions of all plays of a song to its newest play, in place. Returns weight [R, n, K]."""
    later = (gathered(newest, tokens.clamp(min=0)) - tokens).flatten()  # how many plays later the song was played last
    earlier = ((later > 0) & (tokens.flatten() >= 0)).nonzero().squeeze(1)
    flat = weight.flatten(0, 1)
    flat.index_add_(0, earlier + later[earlier], flat.index_select(0, earlier))
    flat.index_fill_(0, earlier, 0)
    return weight
