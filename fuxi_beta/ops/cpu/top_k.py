"""Exact top-k lists on the CPU: scoring, heard songs and selection tile by tile, so that no matrix of scores exists.

Songs are scored in bf16 where the processor multiplies it in hardware, else in fp32. The scan compares scores while
they are in registers and keeps the songs that may belong to a list: those whose score plus a bound of its error
reaches the k-th best of the scores minus theirs. They are scored again exactly, so that every list is proved.
Listeners with more than 16,384 such songs, mostly equal ones, and those whose scores may overflow get an exact score
for every candidate.

A score here is the inner product summed in fp32 in one order (`exact_scores` in `top_k.h`): a function of the two
vectors alone, whatever the batch, the tiles and the number of threads, so equal vectors tie exactly. It is within
`(D / 8 + 8) 2^-24 sum |q_d v_d|` of the exact product, if nothing underflows.

Shapes: `B` listeners, `V` rows of the item table, `C` of them candidates, `D` width, `W` words of 32 bits of a packed
vector, `K` list length.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fuxi_beta.ops.cpu import seen_pairs
from fuxi_beta.ops.top_k import candidate_columns

_HALF_WIDTH = 32  # bf16 numbers of a row of the matrix unit
_MOST_ROWS = 2**31 - 1


class Lists(NamedTuple):
    """The result of `search`."""

    items: Tensor  # int64 [B, K], 0 where there are too few candidates
    scores: Tensor  # fp32 [B, K], -inf there
    unproved: int  # listeners for whom every candidate was scored exactly


@dataclass(frozen=True)
class Catalogue:
    """An item table prepared for any number of searches."""

    table: Tensor  # fp32 [V, D]
    items: Tensor  # int32 [C], the candidates, ascending
    scan: str  # of `scans`
    words: Tensor  # int32 [C rounded up, W], fp32 numbers or pairs of bf16 as `scan.h` reads them, in the scan's order
    norm: Tensor  # upper bound of the norms of each tile of rows. fp32
    error: Tensor  # upper bound of the norms of their rounding errors. fp32
    order: Tensor  # int32 [C], item of each row
    place: Tensor  # int32 [V], row of each item, -1 for none


def takes(queries: Tensor, table: Tensor, k: int) -> bool:
    """Whether `search` supports these arguments."""
    same = queries.dtype == table.dtype == torch.float32 and queries.shape[1] == table.shape[1] > 0
    return same and k > 0 and len(table) <= _MOST_ROWS


def scans() -> list[str]:
    """The scans of this processor, the fastest first. All give the same lists.

    `amx_bf16` and `avx512_bf16` use instructions for bf16. `fp32`, `bf16` and `plain_tiles` run on every processor, the
    last two, slowly, as definitions of the first two.
    """
    return torch.ops.fuxi_beta.scans()


def prepare(table: Tensor, candidates: Tensor, *, scan: str | None = None) -> Catalogue:
    """Copy the candidates' vectors in the precision of the scan, and measure the rounding.

    table: fp32 [V, D]; candidates: bool [V]; scan: one of `scans`, by default the fastest.
    """
    table = table.detach().contiguous()
    scan = scan or scans()[0]
    items, _ = candidate_columns(candidates)
    order = items[_spread(len(items))].int()
    place = torch.full((len(table),), -1, dtype=torch.int32)
    place[order.long()] = torch.arange(len(order), dtype=torch.int32)
    dim = table.shape[1]
    width = dim if scan == "fp32" else math.ceil(dim / _HALF_WIDTH) * _HALF_WIDTH // 2
    words, norm, error = torch.ops.fuxi_beta.pack_rows(table, order, scan, width)
    return Catalogue(table, items.int(), scan, words, norm, error, order, place)


def _spread(count: int) -> Tensor:
    """The numbers below count in an order whose every beginning is a sample of all of them, so that thresholds are
    right early however a catalogue is sorted. int64 [count]."""
    step = max(round(count * (math.sqrt(5) - 1) / 2), 1)
    while math.gcd(step, count) > 1:
        step += 1
    return torch.arange(count) * step % max(count, 1)


def search(queries: Tensor, catalogue: Catalogue, *, k: int, seen: tuple[Tensor, Tensor] | None = None) -> Lists:
    """The k best candidates of each query. queries: fp32 [B, D]; seen: (listener, item) int64 pairs to leave out.

    Raises ValueError if a score is not a number, IndexError for a listener in `seen` who is not in `queries`.
    """
    c = catalogue
    if not len(c.items) or not len(queries):
        nothing = torch.zeros(len(queries), k, dtype=torch.int64)
        return Lists(nothing, torch.full((len(queries), k), -torch.inf), 0)
    rows = queries.detach().contiguous()
    return Lists(
        *torch.ops.fuxi_beta.search(
            rows, c.table, c.items, c.scan, c.words, c.norm, c.error, c.order, c.place, *seen_pairs(seen), k
        )
    )
