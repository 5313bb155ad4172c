"""HSTU (Zhai et al. 2024) as the paper compares it, and HSTU-beta, the same block without queries and keys.

    HSTU:       [u, v, q, k] = SiLU(LN(x) W);  A = SiLU(q k^T + B + B^t) / (N + 11), causal (equation 9)
                y = x + W_o dropout(u * LN(A v))
    HSTU-beta:  [u, v] = SiLU(LN(x) W);  y = x + W_o dropout(u * LN((B + B^t) v))            (section 6.4.4)

HSTU's B^t is bucketed, HSTU-beta's is FRAB. LN has neither gain nor bias, eps 1e-6. There is no feed-forward part. W
starts at N(0, 0.02), W_o Xavier-uniform with a zero bias.

Shapes: `T` packed tokens, `D` width, `H` heads, `n` padded length of a group of `G` listeners.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.layers.elapsed_functions import Bucket
from fuxi_beta.layers.frab import FRAB
from fuxi_beta.layers.rab import RAB
from fuxi_beta.models.attention import causal_maps, silu_scores
from fuxi_beta.models.base import ForwardContext
from fuxi_beta.models.registry import register
from fuxi_beta.models.stack import Stack
from fuxi_beta.ops.reference import toeplitz

_EPS = 1e-6


def layer_norm(x: Tensor) -> Tensor:
    """LN without gain and bias. [T, C] -> [T, C]."""
    return F.layer_norm(x, x.shape[-1:], eps=_EPS)


class Block(nn.Module):
    """The projection, gate and output that both blocks share."""

    def __init__(self, config: ModelConfig, projections: int) -> None:
        super().__init__()
        self.heads, self.reach = config.heads, config.max_history + config.position_margin
        self.project = nn.Parameter(torch.empty(config.dim, projections * config.dim).normal_(std=0.02))
        self.positional = RAB(self.reach)
        self.out = nn.Linear(config.dim, config.dim)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        gate, *rest = F.silu(layer_norm(x) @ self.project).split(x.shape[1], dim=1)
        return x + self.out(ctx.dropout(gate * layer_norm(self.mix(rest, ctx))))

    def mix(self, projected: list[Tensor], ctx: ForwardContext) -> Tensor:
        """The block's maps times v. [T, D] each -> [T, D]."""
        raise NotImplementedError


class AttentionBlock(Block):
    """HSTU's block: one map of queries, keys, positions and buckets of time."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, projections=4)
        self.temporal = Bucket()

    @override
    def mix(self, projected: list[Tensor], ctx: ForwardContext) -> Tensor:
        value, query, key = projected
        bias = [
            toeplitz(self.positional.by_lag(group.length)) + self.temporal(elapsed)
            for group, elapsed in zip(ctx.padding.groups, ctx.elapsed, strict=True)
        ]
        return causal_maps((query, key, value), self.heads, ctx, silu_scores(bias, self.reach))


class SummedBlock(Block):
    """HSTU-beta's block: the summed maps of position and elapsed time."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, projections=2)
        self.temporal = FRAB()

    @override
    def mix(self, projected: list[Tensor], ctx: ForwardContext) -> Tensor:
        (value,) = projected
        by_lag = self.positional.by_lag(ctx.times.longest)
        by_position, by_time = ops.apply_maps(value, ctx.times, by_lag, self.temporal.power).chunk(2, dim=1)
        return by_position + by_time


class HSTU(Stack):
    """A stack of either block."""

    def __init__(self, config: ModelConfig, block: Callable[[ModelConfig], Block] = AttentionBlock) -> None:
        super().__init__(config, lambda: block(config))


register("hstu", HSTU, takes_time=True)
register("hstu-beta", lambda config: HSTU(config, SummedBlock), takes_time=True)
