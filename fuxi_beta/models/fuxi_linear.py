"""FuXi-Linear (arXiv 2602.23671, KDD 2026) as its authors' code has it: three channels, each linear in the length.

    n = LN(x);  [U | Q | K | V] = SiLU(n W)                                          U of 3 D
    retention   Y[n] = sum_{m <= n} exp(-g_h (n - m + 1)) (q_n . k_m) v_m             each of H heads
    time        Y[n] = sum_{m <= n} gamma_k^(w_k x) sin(w_k x) (n W_t)_m, or cos      x = t_{n+1} - t_m, w_k = 2 pi/P_k
    position    Y[n] = sum_{m <= n} (E_n . E_m) / 16 (n W_p)_m                        E: 32 learned numbers a position
    o = W_0 dropout(U * [LN(Y_ret) | LN(Y_time) | LN(Y_position)]) + x
    y = W_2 (SiLU(W_1 r) * W_3 r) + o,  r = dropout(RMSNorm(o))

Catches of the code, kept: LN is LayerNorm without gain and bias where the paper writes RMSNorm, and each channel is
normalised by itself; there are no biases; every matrix starts at N(0, 0.02). Phases are taken modulo the period in
integers. gamma is learned, and one set for all layers: the code hands layer 0's maps to the others. The channels of
time and position also pass their own token on: Y <- alpha Y + beta (n W)_n, with alpha N(0, 0.02) and beta 1 at the
start, one pair for each sine and cosine, one for positions. E starts as sinusoids.

Settings are those for KuaiRand, in seconds: eight periods of 8^k s (one second to 24 days), learned gamma, the own
token passed on, heads of 32 channels. (choice) The number of heads is the largest divisor of D up to D / 32.

Shapes: `T` packed tokens, `D` width in `H` heads, `n` padded length of a group of `G` listeners, `P` = 32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.layers.content import DecayRates
from fuxi_beta.layers.periodic import Damping
from fuxi_beta.models.base import ForwardContext, SequenceModel
from fuxi_beta.models.hstu import layer_norm
from fuxi_beta.models.registry import register
from fuxi_beta.ops.reference import apply_map

PERIODS = tuple(8**k for k in range(8))
HEAD_WIDTH = 32
POSITION_WIDTH = 32  # P


class LinearPosition(nn.Module):
    """sum over m <= n of (E_n . E_m) / (P / 2) v_m, a map that all listeners share."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        speed = 10_000.0 ** (-2 * torch.arange(POSITION_WIDTH // 2) / POSITION_WIDTH)
        angle = torch.arange(reach)[:, None] * speed
        self.weight = nn.Parameter(torch.cat([angle.sin(), angle.cos()], dim=1))  # E

    def forward(self, value: Tensor, packed: ops.Packed) -> Tensor:
        """[T, D] -> [T, D], in linear time for long histories."""
        chunk = ops.CHUNK if ops.in_linear_time(packed.batch) else max(packed.batch.longest, 1)
        return packed.padding.each(value, lambda padded, _: self.mix(padded, chunk))

    def mix(self, padded: Tensor, chunk: int) -> Tensor:
        """The map times the values of a padded group; between chunks a state [P, G, D] stands for it."""
        rows, state = [], None
        for start in range(0, len(padded), chunk):
            value = padded[start : start + chunk]
            place = self.weight[start : start + len(value)]
            mixed = apply_map((place @ place.t()).tril(), value)
            rows.append(mixed if state is None else mixed + torch.tensordot(place, state, 1))
            added = torch.tensordot(place.t(), value, 1)
            state = added if state is None else state + added
        return torch.cat(rows) / (POSITION_WIDTH / 2) if rows else padded * self.weight.sum()


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.ffn_multiply * config.dim
        self.dim = dim
        heads = max(h for h in range(1, max(dim // HEAD_WIDTH, 1) + 1) if dim % h == 0)
        self.project = _normal(dim, 6 * dim)  # W: 3 D of U, then Q, K, V
        self.of_time, self.of_position = _normal(dim, dim), _normal(dim, dim)  # W_t, W_p
        self.decay = DecayRates(heads, math.log(2))
        self.positional = LinearPosition(config.max_history + config.position_margin)
        groups = 2 * len(PERIODS)
        self.time_alpha, self.time_beta = _normal(groups), nn.Parameter(torch.ones(groups))
        self.position_alpha, self.position_beta = _normal(1), nn.Parameter(torch.ones(1))
        self.out = _normal(3 * dim, dim)  # W_0
        self.gate_and_up, self.down = _normal(dim, 2 * hidden), _normal(hidden, dim)  # W_1 | W_3, W_2

    def forward(self, x: Tensor, rate: Tensor, ctx: ForwardContext) -> Tensor:
        """rate: of the damped waves, [K]. [T, D] -> [T, D]."""
        normed = layer_norm(x)
        gate, query_key_value = F.silu(normed @ self.project).chunk(2, dim=1)
        channels = [
            ops.retained(query_key_value, self.decay(), ctx),
            self._by_time(normed @ self.of_time, rate, ctx),
            self._by_position(normed @ self.of_position, ctx),
        ]
        mixed = gate * torch.cat([layer_norm(channel) for channel in channels], dim=1)
        joined = ctx.dropout(mixed) @ self.out + x
        inner = ops.swiglu(ops.rms_norm(joined, ctx.dropout.mask()) @ self.gate_and_up)
        return inner @ self.down + joined

    def _by_time(self, value: Tensor, rate: Tensor, ctx: ForwardContext) -> Tensor:
        sizes = torch.tensor(ops.channel_bounds(self.dim, len(PERIODS)), device=value.device).diff()
        alpha, beta = (pair.repeat_interleave(sizes) for pair in (self.time_alpha, self.time_beta))
        return alpha * ops.waves(value, rate, PERIODS, ctx) + beta * value

    def _by_position(self, value: Tensor, ctx: ForwardContext) -> Tensor:
        return self.position_alpha * self.positional(value, ctx) + self.position_beta * value


class FuXiLinear(SequenceModel):
    """A stack of blocks that share the damping of their waves."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.damping = Damping(PERIODS, 0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    @override
    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        rate = self.damping()
        for block in self.blocks:
            x = block(x, rate, ctx)
        return x


def _normal(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(std=0.02))


register("fuxi-linear", FuXiLinear, takes_time=True)
