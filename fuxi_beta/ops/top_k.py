"""Exact top-k over the catalogue, with heard songs removed and ties broken by the lower item index.

Shapes: `B` listeners, `V` rows of the item table, `D` width, `K` list length.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fuxi_beta import ops

_BLOCK = 8192
NO_SONG = torch.iinfo(torch.int64).min


class Searcher:
    """A catalogue to be searched any number of times: what searches need of it is made at the first one.

    table: [V, D]; candidates: bool [V]. Neither may change from then on.
    """

    def __init__(self, table: Tensor, candidates: Tensor) -> None:
        self.table, self.candidates = table, candidates
        self._prepared: Any = None

    def top_k(
        self, queries: Tensor, *, k: int, seen: tuple[Tensor, Tensor] | None = None, block: int = _BLOCK
    ) -> tuple[Tensor, Tensor]:
        """The k candidates with the largest inner product for each query, best first.

        queries: [B, D]; seen: (listener, item) int64 pairs to leave out. Returns items int64 [B, K], 0 where there are
        fewer candidates than k, and their scores [B, K] in fp32, -inf there. float32 on a GPU goes to
        `fuxi_beta.ops.triton.top_k`, everything else to `blocked_top_k`.
        """
        if ops.takes_triton(queries.device):
            from fuxi_beta.ops.triton import top_k as fused

            if fused.takes(queries, self.table, k):
                if self._prepared is None:
                    self._prepared = fused.prepare(self.table, self.candidates)
                found = fused.search(queries, self._prepared, k=k, seen=seen)
                return found.items, found.scores
        return blocked_top_k(queries, self.table, candidates=self.candidates, k=k, seen=seen, block=block)


def blocked_top_k(
    queries: Tensor,
    table: Tensor,
    *,
    candidates: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor] | None = None,
    block: int = _BLOCK,
) -> tuple[Tensor, Tensor]:
    """`Searcher.top_k` in plain torch, in the dtype of the queries; a float64 score becomes fp32 before it is ranked.

    The catalogue is scored `block` candidates at a time, so memory does not grow with it.
    """

    def score(items: Tensor) -> Tensor:
        return queries @ table.index_select(0, items).to(queries.dtype).t()

    return _blocked(score, len(queries), candidates=candidates, k=k, seen=seen, block=block)


def top_k_of_scores(
    scores: Tensor, *, candidates: Tensor, k: int, seen: tuple[Tensor, Tensor] | None = None, block: int = _BLOCK
) -> tuple[Tensor, Tensor]:
    """`Searcher.top_k` for scores that are there already. scores: [B, V]."""
    return _blocked(
        lambda items: scores.index_select(1, items), len(scores), candidates=candidates, k=k, seen=seen, block=block
    )


def _blocked(
    score: Callable[[Tensor], Tensor],
    listeners: int,
    *,
    candidates: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor] | None,
    block: int,
) -> tuple[Tensor, Tensor]:
    items = candidates.nonzero().squeeze(1)
    column = torch.full((len(candidates),), -1, device=items.device)
    column[items] = torch.arange(len(items), device=items.device)
    best = torch.full((listeners, k), NO_SONG, device=items.device)
    seen_listener, seen_column = _columns(column, seen)
    for start in range(0, len(items), block):
        part = items[start : start + block]
        scores = score(part).float()
        if bool(scores.isnan().any()):
            raise ValueError("a score is not a number: the model or its item table is broken")
        keys = pack(scores, part)
        inside = (seen_column >= start) & (seen_column < start + block)
        keys[seen_listener[inside], seen_column[inside] - start] = NO_SONG
        best = torch.cat([best, keys.topk(min(k, len(part)), dim=1).values], dim=1).topk(k, dim=1).values
    return unpack(best)


def _columns(column: Tensor, seen: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Seen pairs as (listener, place among the candidates); pairs that are no candidates are left out."""
    if seen is None:
        nothing = column.new_zeros(0)
        return nothing, nothing
    listener, item = seen
    places = column[item.clamp(max=len(column) - 1)]
    known = (item < len(column)) & (places >= 0)
    return listener[known], places[known]


def pack(scores: Tensor, items: Tensor) -> Tensor:
    """int64 keys that sort by score, then by lower item index: the float's ordered bits above the negated index."""
    bits = (scores + 0.0).contiguous().view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return ordered * (1 << 32) + (0x7FFFFFFF - items)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Items and scores of such keys; 0 and -inf for `NO_SONG`."""
    ordered = (keys >> 32).to(torch.int32)
    scores = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    items = 0x7FFFFFFF - keys.bitwise_and(0xFFFFFFFF)
    empty = keys == NO_SONG
    return items.masked_fill(empty, 0), scores.masked_fill(empty, -torch.inf)
