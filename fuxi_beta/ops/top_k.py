"""Exact top-k over the catalogue in plain torch, without heard songs and with ties broken by the lower item index.

Shapes: `B` listeners, `V` rows of the item table, `C` of them candidates, `D` width, `K` list length.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 8192  # candidates scored at once
NO_SONG = torch.iinfo(torch.int64).min


def blocked_top_k(
    queries: Tensor,
    table: Tensor,
    *,
    candidates: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor] | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """`fuxi_beta.ops.TopKSearch.top_k` in the dtype of the queries; float64 scores become fp32 before ranking.

    The catalogue is scored `block` candidates at a time, so memory does not grow with it.
    """

    def score(items: Tensor) -> Tensor:
        return queries @ table.index_select(0, items).to(queries.dtype).t()

    return _blocked(score, len(queries), candidates=candidates, k=k, seen=seen, block=block)


def blocked_top_k_of_scores(
    scores: Tensor, *, candidates: Tensor, k: int, seen: tuple[Tensor, Tensor] | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """`blocked_top_k` of scores that are computed already. scores: [B, V]."""
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
    items, column = candidate_columns(candidates)
    best = torch.full((listeners, k), NO_SONG, device=items.device)
    seen_listener, seen_column = _seen_columns(column, seen)
    for start in range(0, len(items), block):
        block_items = items[start : start + block]
        scores = score(block_items).float()
        if bool(scores.isnan().any()):
            raise ValueError("a score is not a number: the model or its item table is broken")
        keys = pack(scores, block_items)
        inside = (seen_column >= start) & (seen_column < start + block)
        keys[seen_listener[inside], seen_column[inside] - start] = NO_SONG
        best_of_block = keys.topk(min(k, len(block_items)), dim=1).values
        best = torch.cat([best, best_of_block], dim=1).topk(k, dim=1).values
    return unpack(best)


def candidate_columns(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Items of the candidates, int64 [C], and each item's column among them, -1 for none, int64 [V]."""
    items = candidates.nonzero().squeeze(1)
    column = torch.full((len(candidates),), -1, device=items.device)
    column[items] = torch.arange(len(items), device=items.device)
    return items, column


def _seen_columns(column: Tensor, seen: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Seen pairs as (listener, column of the candidate); pairs with other items are left out."""
    if seen is None:
        nothing = column.new_zeros(0)
        return nothing, nothing
    listener, item = seen
    columns = column[item.clamp(max=len(column) - 1)]
    known = (item < len(column)) & (columns >= 0)
    return listener[known], columns[known]


def pack(scores: Tensor, items: Tensor) -> Tensor:
    """int64 keys that sort by score, then by lower item index: the float's ordered bits above the negated index."""
    bits = (scores + 0.0).contiguous().view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return ordered * (1 << 32) + (0x7FFFFFFF - items)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Items and scores of packed keys; 0 and -inf for `NO_SONG`."""
    ordered = (keys >> 32).to(torch.int32)
    scores = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
    items = 0x7FFFFFFF - keys.bitwise_and(0xFFFFFFFF)
    empty = keys == NO_SONG
    return items.masked_fill(empty, 0), scores.masked_fill(empty, -torch.inf)
