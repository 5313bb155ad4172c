"""What plays contribute to songs, and the strongest plays of each song: plain torch, the definition.

Shapes: `T` packed tokens, `B` listeners, `R` some of them, `n` plays of the longest of the R, `K` songs of each
listener, `D` width of a term, `N` plays named for a song.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CELLS = 1 << 18
"""Contributions (plays times songs) computed at once, but for at least one listener: they stay in the CPU cache."""


@dataclass(frozen=True)
class Term:
    """A part of what plays contribute: play j adds factor[j] <towards[k], vector[j]> to song k."""

    vector: Tensor  # [T, D]
    towards: Tensor  # [R, K, D]
    factor: Tensor | None = None  # [T]; None: 1


def contributed(terms: Sequence[Term], offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the terms for every play of the R listeners and each of their songs.

    offsets: int64 [B + 1]; rows: int64 [R], listeners with plays. Returns the packed tokens, int64 [R, n], each
    listener's in a row, oldest first, -1 behind the newest; and the sums [R, n, K], zeros there.
    """
    packed = packed_tokens(offsets, rows)
    tokens, there = packed.clamp(min=0), packed >= 0
    total = terms[0].towards.new_zeros(*tokens.shape, terms[0].towards.shape[1])
    for term in terms:
        part = gathered(term.vector, tokens) @ term.towards.mT
        total += part if term.factor is None else part.mul_(gathered(term.factor, tokens)[..., None])
    return packed, total.mul_(there[..., None])


def packed_tokens(offsets: Tensor, rows: Tensor) -> Tensor:
    """The tokens of some listeners, each one's in a row, oldest first, -1 behind the newest. int64 [R, n]."""
    lengths = offsets.diff()[rows, None]
    step = torch.arange(int(lengths.max()), device=rows.device)
    return (offsets[rows, None] + step).masked_fill(step >= lengths, -1)


def strongest_plays(
    terms: Sequence[Term], offsets: Tensor, item_index: Tensor, rows: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """See `fuxi_beta.ops.strongest_plays`. Memory is bounded whatever the lengths of histories."""
    songs = terms[0].towards.shape[1]
    tokens = torch.full((len(rows), songs, count), -1, dtype=torch.int64, device=rows.device)
    weight = terms[0].towards.new_zeros(tokens.shape)
    if not tokens.numel():
        return tokens, weight
    newest = newest_of_song(offsets, item_index)
    lengths, by_length = offsets.diff()[rows].sort(descending=True, stable=True)
    longest, start = lengths.tolist(), 0
    while start < len(rows):
        some = by_length[start : start + max(1, CELLS // (longest[start] * songs))]
        own = [Term(term.vector, term.towards[some], term.factor) for term in terms]
        tokens[some], weight[some] = largest(*contributed(own, offsets, rows[some]), newest, count)
        start += len(some)
    return tokens, weight


def gathered(packed: Tensor, index: Tensor) -> Tensor:
    """packed[index], several times as fast. [T, ...], int64 of any shape -> [*shape, ...]."""
    return packed.index_select(0, index.flatten()).view(*index.shape, *packed.shape[1:])


def newest_of_song(offsets: Tensor, item_index: Tensor) -> Tensor:
    """For each token its listener's newest token of the same song. int64 [T]."""
    if len(item_index) == 0:
        return item_index
    listeners = torch.arange(len(offsets) - 1, device=offsets.device)
    listener = torch.repeat_interleave(listeners, offsets.diff(), output_size=len(item_index))
    sorted_key, order = (listener * (item_index.max() + 1) + item_index).sort(stable=True)
    _, run, sizes = sorted_key.unique_consecutive(return_inverse=True, return_counts=True)
    newest = order[sizes.cumsum(0) - 1]  # of each run of equal keys the last, as the sort is stable
    return torch.empty_like(order).index_copy_(0, order, newest[run])


def largest(tokens: Tensor, weight: Tensor, newest: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest contributions of each song, those of all plays of a song as one, by the newest.

    tokens: int64 [R, n], -1 for none; weight: [R, n, K], changed in place; newest: of `newest_of_song`. Returns tokens
    int64 [R, K, N], -1 where no contribution is positive, and the contributions, zero there.
    """
    weight = _by_song(tokens, weight, newest)
    found = weight.new_full((weight.shape[0], weight.shape[2], count), -1, dtype=torch.int64)
    weights = weight.new_zeros(found.shape)
    for place in range(min(count, weight.shape[1])):
        most, play = weight.max(dim=1)  # [R, K], the first of equal ones
        positive = most > 0
        found[..., place] = tokens.gather(1, play).masked_fill_(~positive, -1)
        weights[..., place] = most * positive
        weight.scatter_(1, play[:, None], 0)
    return found, weights


def _by_song(tokens: Tensor, weight: Tensor, newest: Tensor) -> Tensor:
    """Move the contributions of all plays of a song to its newest play, in place. Returns weight [R, n, K]."""
    later = (gathered(newest, tokens.clamp(min=0)) - tokens).flatten()  # how many plays later the song was played last
    earlier = ((later > 0) & (tokens.flatten() >= 0)).nonzero().squeeze(1)
    flat = weight.flatten(0, 1)
    flat.index_add_(0, earlier + later[earlier], flat.index_select(0, earlier))
    flat.index_fill_(0, earlier, 0)
    return weight
