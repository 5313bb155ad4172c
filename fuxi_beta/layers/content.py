"""The content channel: retention (FuXi-Linear, arXiv 2602.23671), a query-key map in linear time.

    Y_n = sum over m <= n of exp(-g_h (n - m + 1)) (q_n . k_m) v_m,   for each head h

FuXi-alpha's SiLU(Q K^T) needs the square of a history; this needs one state a head (`fuxi_beta.ops.retention`).

Shapes: `T` packed tokens, `D` width in `H` heads of width `d`.
"""

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta import ops
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.layers.channel import Channel

MAX_HEADS = 4
_STEP = math.log(4)


class DecayRates(nn.Module):
    """g_h = exp(-sum over h' <= h of softplus(p_h')): each head forgets more slowly than the one before it. [H].

    p starts as N(0, 0.02) where softplus is `step`: at g = e^-step, e^-2 step, ..
    """

    def __init__(self, heads: int, step: float) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.empty(heads).normal_(mean=math.log(math.expm1(step)), std=0.02))  # p

    def forward(self) -> Tensor:
        """g. [H]."""
        return torch.exp(-nn.functional.softplus(self.raw).cumsum(0))


class ContentChannel(Channel):
    """Retention of up to four heads, as many as divide D.

    (choice) They start by forgetting e-fold after 4, 16, 64 and 256 plays; published are 2, 4, 8, .. for more heads.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)  # q, k, v
        self.heads = max(heads for heads in range(1, MAX_HEADS + 1) if dim % heads == 0)
        self.decay = DecayRates(self.heads, _STEP)

    @override
    def gated(self, projected: Tensor, packed: ops.Packed, mask: Mask | None) -> Tensor:
        return ops.retention(projected, self.decay(), packed, mask)

    @override
    def addends(self, inputs: Tensor, batch: Batch) -> Tensor:
        tokens, ends = torch.arange(len(inputs), device=inputs.device), batch.offsets[1:][batch.listener]
        query, key, value = inputs.unflatten(1, (3, self.heads, -1)).unbind(1)  # [T, H, d]
        kept = torch.exp(-self.decay() * (ends - tokens)[:, None])  # [T, H]
        weight = (query.index_select(0, ends - 1) * key).sum(2) * kept
        return (weight[..., None] * value).flatten(1)
