"""RetNet: attention without softmax that forgets at a fixed rate (Sun et al., 2023, arXiv 2307.08621).

A layer, with n = RMSNorm(x):

    q, k, v, g = W_q n, W_k n, W_v n, W_g n                  split into heads
    S_h[i, j]  = rot_i(q_i) . rot_j(k_j) gamma_h^(i - j),  j <= i      gamma_h = 1 - 2^(-5 - h), h = 0, 1, ..
    R_h        = RMSNorm(S_h v)                              each head separately
    o          = W_o dropout(SiLU(g) * R) + x
    y          = W_2 dropout(SiLU(W_1 m) * W_3 m) + o,       m = RMSNorm(o)

rot_i rotates channels 2 c and 2 c + 1 of a head by i theta_c, theta from 1 to 1/10000 in equal ratios. All norms are
without weights, eps 1e-6. As in the authors' code there are no biases and heads are normalised by RMSNorm, in the paper
by GroupNorm; the code's scaling of S, which such a norm cancels, is left out.
(choice) Five heads, or the largest divisor of D below five; no rotation if a head's width is odd; values as wide as
keys and W_1 as wide as `ffn_multiply` D, for a block about as large as the other models'; both dropouts.
Initial values: Xavier-uniform, with gain 2^(-5/2) for W_q, W_k, W_v and W_g, as in the authors' code.

Shapes: `T` packed tokens, `D` width in `h` heads of width `d`, `n` padded length of a group of `G` listeners.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.models.base import ForwardContext, SequenceModel
from fuxi_beta.models.registry import register
from fuxi_beta.ops.reference import toeplitz

MAX_HEADS = 5
_PROJECTION_GAIN = 2**-2.5


@dataclass(frozen=True)
class Relative:
    """The rotations and decays by distance, which all layers share."""

    cos: Tensor  # [T, 1, d / 2], of the angle by which a token is rotated; [T, 1, 0] without rotation
    sin: Tensor
    decay: Tensor  # [h, n, n], gamma^(i - j) on and below the diagonal, 0 above; n of the longest listener

    @classmethod
    def of(cls, ctx: ForwardContext, heads: int, width: int, like: Tensor) -> "Relative":
        """For the positions of a batch. width: of a head."""
        pairs = 0 if width % 2 else width // 2
        exponent = torch.linspace(0, 1, pairs, dtype=like.dtype, device=like.device)
        angle = (ctx.batch.position[:, None] * 10000.0**-exponent)[:, None]
        lag = torch.arange(ctx.batch.longest, dtype=like.dtype, device=like.device)
        decay = [toeplitz((1 - 2.0 ** (-5 - head)) ** lag) for head in range(heads)]
        return cls(angle.cos(), angle.sin(), torch.stack(decay))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate each pair of channels of each head by the angle of its token. [T, heads, d] -> [T, heads, d]."""
        if not self.cos.shape[2]:
            return x
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * self.cos - odd * self.sin, even * self.sin + odd * self.cos], dim=-1).flatten(2)


class Retention(nn.Module):
    """Multi-scale retention with its gate: [T, D] -> [T, D], before the residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(dim, 4 * dim, bias=False)  # W_q | W_k | W_v | W_g
        self.output = nn.Linear(dim, dim, bias=False)  # W_o
        for weight in self.project.weight.data.chunk(4):
            nn.init.xavier_uniform_(weight, gain=_PROJECTION_GAIN)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, x: Tensor, relative: Relative, ctx: ForwardContext) -> Tensor:
        """x: normed."""
        tokens, dim = x.shape
        query_and_key, value, gate = self.project(x).split([2 * dim, dim, dim], dim=1)
        rotated = relative.rotate(query_and_key.reshape(tokens, 2 * self.heads, dim // self.heads))

        def retain(padded: Tensor, _: int) -> Tensor:  # [n, G, 3 D] -> [n, G, D]
            n, listeners, _ = padded.shape
            by_head = padded.view(n, listeners, 3, self.heads, dim // self.heads).permute(2, 1, 3, 0, 4)
            query, key, value = by_head.unbind()  # [G, h, n, d]
            scores = (query @ key.transpose(2, 3)) * relative.decay[:, :n, :n]
            return (scores @ value).permute(2, 0, 1, 3).reshape(n, listeners, dim)

        retained = ctx.padding.each(torch.cat([rotated.flatten(1), value], dim=1), retain)
        normed = ops.rms_norm(retained.view(tokens * self.heads, dim // self.heads)).view(tokens, dim)
        return self.output(ctx.dropout(F.silu(gate) * normed))


class Block(nn.Module):
    """A layer: retention, then a SwiGLU network."""

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        dim, hidden = config.dim, config.ffn_multiply * config.dim
        self.retention = Retention(dim, heads)
        self.gate_and_up = nn.Linear(dim, 2 * hidden, bias=False)  # W_1 | W_3
        self.down = nn.Linear(hidden, dim, bias=False)  # W_2
        for weight in (*self.gate_and_up.weight.data.chunk(2), self.down.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, relative: Relative, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        x = x + self.retention(ops.rms_norm(x), relative, ctx)
        return x + self.down(ctx.dropout(ops.swiglu(self.gate_and_up(ops.rms_norm(x)))))


class RetNet(SequenceModel):
    """A stack of retention layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.heads = max(heads for heads in range(1, MAX_HEADS + 1) if config.dim % heads == 0)
        self.blocks = nn.ModuleList(Block(config, self.heads) for _ in range(config.layers))

    @override
    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        relative = Relative.of(ctx, self.heads, self.config.dim // self.heads, like=x)
        for block in self.blocks:
            x = block(x, relative, ctx)
        return x


register("retnet", RetNet, takes_time=False)
