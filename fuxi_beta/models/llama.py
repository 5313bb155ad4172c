"""LLaMa (Dubey et al. 2024) as a recommender, and LLaMa-beta, the same block with FuXi-beta's token mixing.

    LLaMa:       h = x + W_o softmax(R(q) R(k)^T / sqrt(d)) v          R: rotary positions
    LLaMa-beta:  h = x + W_o ((B + B^t) v)                             one summed map, no softmax (section 6.4.4)
    both:        y = h + W_2 (SiLU(W_1 m) * W_3 m),  m = RMSNorm(h)

Norms are weightless, as in FuXi-beta; one head if the head size would be odd, because rotary positions rotate pairs.
Dropout is applied as in FuXi-beta: to the mixed values, and before the feed-forward part (choice). Xavier-uniform
weights, no biases.

Shapes: `T` packed tokens, `D` width, `H` heads of size `d`.
"""

import torch
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.layers.frab import FRAB
from fuxi_beta.layers.rab import RAB
from fuxi_beta.models.attention import softmax_attention
from fuxi_beta.models.base import ForwardContext
from fuxi_beta.models.registry import register
from fuxi_beta.models.stack import Stack

_ROTARY_BASE = 10_000.0


def rotate(x: Tensor, position: Tensor, heads: int) -> Tensor:
    """Rotary positions: pair k of each head rotated by position * base^(-2k / d). [T, H d] -> [T, H d]."""
    size = x.shape[1] // heads
    frequency = _ROTARY_BASE ** (-torch.arange(0, size, 2, dtype=torch.float64, device=x.device) / size)
    angle = position.double()[:, None, None] * frequency  # [T, 1, d / 2]
    sine, cosine = angle.sin().to(x.dtype), angle.cos().to(x.dtype)
    left, right = x.unflatten(1, (heads, size)).chunk(2, dim=-1)
    return torch.cat([left * cosine - right * sine, left * sine + right * cosine], dim=-1).flatten(1)


class SwiGLU(nn.Module):
    """W_2 (SiLU(W_1 m) * W_3 m) with m = dropout(RMSNorm(h))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(dim, 2 * hidden, bias=False)  # W_1 | W_3
        self.down = nn.Linear(hidden, dim, bias=False)
        for weight in (*self.gate_and_up.weight.split(hidden), self.down.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down(ops.swiglu(self.gate_and_up(ops.rms_norm(x, ctx.dropout.mask()))))


class Attention(nn.Module):
    """Softmax attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads if dim // config.heads % 2 == 0 else 1
        if dim % 2:
            raise ValueError(f"model.dim is {dim}: rotary positions need an even width")
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        for weight in self.query_key_value.weight.split(dim):
            nn.init.xavier_uniform_(weight)

    def forward(self, normed: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        query, key, value = self.query_key_value(normed).chunk(3, dim=1)
        query, key = (rotate(x, ctx.batch.position, self.heads) for x in (query, key))
        return softmax_attention((query, key, value), self.heads, ctx)


class SummedMaps(nn.Module):
    """(B + B^t) v: the maps of position and elapsed time in place of attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.value = nn.Linear(config.dim, config.dim, bias=False)
        nn.init.xavier_uniform_(self.value.weight)
        self.positional, self.temporal = RAB(config.max_history + config.position_margin), FRAB()

    def forward(self, normed: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        by_lag = self.positional.by_lag(ctx.times.longest)
        maps = ops.apply_maps(self.value(normed), ctx.times, by_lag, self.temporal.power)
        by_position, by_time = maps.chunk(2, dim=1)
        return by_position + by_time


class Block(nn.Module):
    """One layer around either mixer."""

    def __init__(self, config: ModelConfig, mixer: type[Attention] | type[SummedMaps]) -> None:
        super().__init__()
        self.mixer, self.out = mixer(config), nn.Linear(config.dim, config.dim, bias=False)
        self.ffn = SwiGLU(config.dim, config.ffn_multiply * config.dim)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        joined = x + self.out(ctx.dropout(self.mixer(ops.rms_norm(x), ctx)))
        return joined + self.ffn(joined, ctx)


class LLaMa(Stack):
    """A stack of blocks of either mixer; `gap` adds the time until the event to predict to its token."""

    def __init__(
        self, config: ModelConfig, mixer: type[Attention] | type[SummedMaps] = Attention, *, gap: bool = False
    ) -> None:
        super().__init__(config, lambda: Block(config, mixer), gap=gap)


register("llama", LLaMa, takes_time=False)
register("llama-beta", lambda config: LLaMa(config, SummedMaps), takes_time=True)
register("llama-gap", lambda config: LLaMa(config, gap=True), takes_time=True)
