"""Query-key attention on padded groups, shared by the attention models.

Shapes: `T` packed tokens, `D` width, `n` padded length of a group of `G` listeners, `H` heads of size `d`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.models.base import ForwardContext

Scores = Callable[[Tensor, int], Tensor]
"""Called with raw products [G, H, n, n] and the number of the group; returns the causal map."""


def causal_maps(packed: Sequence[Tensor], heads: int, ctx: ForwardContext, scores: Scores) -> Tensor:
    """A V with A = scores(Q K^T). packed: Q, K, V, each [T, H d] -> [T, H d]."""
    return _attention(packed, heads, ctx, lambda q, k, v, number: scores(q @ k.transpose(-1, -2), number) @ v)


def softmax_attention(packed: Sequence[Tensor], heads: int, ctx: ForwardContext) -> Tensor:
    """Causal softmax(Q K^T / sqrt(d)) V without a stored map. packed: Q, K, V, each [T, H d] -> [T, H d]."""
    return _attention(packed, heads, ctx, lambda q, k, v, _: F.scaled_dot_product_attention(q, k, v, is_causal=True))


def _attention(packed: Sequence[Tensor], heads: int, ctx: ForwardContext, attend: Callable[..., Tensor]) -> Tensor:
    """attend(Q, K, V, number of the group) -> [G, H, n, d], each argument [G, H, n, d], on every padded group."""
    widths = [tensor.shape[1] for tensor in packed]

    def attend_group(padded: Tensor, number: int) -> Tensor:
        q, k, v = (split_heads(tensor, heads) for tensor in padded.split(widths, dim=-1))
        return join_heads(attend(q, k, v, number))

    return ctx.padding.each(torch.cat(list(packed), dim=1), attend_group)


def split_heads(padded: Tensor, heads: int) -> Tensor:
    """[n, G, H d] -> [G, H, n, d]."""
    return padded.unflatten(-1, (heads, padded.shape[-1] // heads)).permute(1, 2, 0, 3)


def join_heads(by_head: Tensor) -> Tensor:
    """[G, H, n, d] -> [n, G, H d]."""
    return by_head.permute(2, 0, 1, 3).flatten(2)


def silu_scores(bias: Sequence[Tensor] | None, length: int) -> Scores:
    """SiLU(Q K^T + bias) / length, causal (equations 4 and 9). bias: the map of each group, [G, n, n] or [n, n]."""

    def scores(products: Tensor, number: int) -> Tensor:
        if bias is not None:
            products = products + bias[number].unsqueeze(-3)
        return F.silu(products).tril() / length

    return scores
