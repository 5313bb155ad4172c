"""FLASH: attention of one head inside a gated linear unit (Hua, Dai, Liu and Le, 2022, arXiv 2202.10447).

A gated attention unit, with n = LayerNorm(x) and e = 2 D:

    U, V = SiLU(W_u n), SiLU(W_v n)                          e channels each
    z    = SiLU(W_z n)                                       s = 128 channels
    q, k = z * gamma_q + beta_q, z * gamma_k + beta_k        gamma, beta: s weights each
    A_ij = relu(q_i . k_j / N + w[j - i])^2,  j <= i
    y    = W_o dropout(U * (A V)) + x

Within a chunk of 256 events FLASH is this quadratic unit; its linear attention to earlier chunks is left out, so
histories are of one chunk at most.
(choice) Two units a layer, as the paper counts them against a Transformer's layer; N is `max_history`, so that a score
does not depend on the length of the history; learned weights of the distance (`RAB`) for the paper's bias; LayerNorm
without weights, eps 1e-6; no biases; the dropout.
Initial values (choice): every matrix Xavier-uniform, w N(0, 0.02), beta 0, and gamma 1. With N(0, 0.02) for gamma, as
in other implementations, a score would depend on w alone, and the unit would start with a fifth of that output.

Shapes: `T` packed tokens, `D` width, `n` padded length of a group of `G` listeners.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta.config import ModelConfig
from fuxi_beta.layers.rab import RAB
from fuxi_beta.models.base import ForwardContext, SequenceModel
from fuxi_beta.models.registry import register
from fuxi_beta.ops.reference import toeplitz

CHUNK = 256
UNITS = 2  # a layer
EXPANSION = 2  # e / D
SHARED = 128  # s
_LAYER_NORM_EPS = 1e-6


class GatedAttentionUnit(nn.Module):
    """One unit with its residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_history, self.width = config.max_history, EXPANSION * config.dim
        self.project = nn.Linear(config.dim, 2 * self.width + SHARED, bias=False)  # W_u | W_v | W_z
        self.scale = nn.Parameter(torch.ones(2, SHARED))  # gamma of q and k
        self.offset = nn.Parameter(torch.zeros(2, SHARED))  # beta
        self.positional = RAB(config.max_history + config.position_margin)
        self.output = nn.Linear(self.width, config.dim, bias=False)  # W_o
        for weight in (*self.project.weight.data.split([self.width, self.width, SHARED]), self.output.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        normed = F.layer_norm(x, x.shape[1:], eps=_LAYER_NORM_EPS)
        gate, value_and_base = F.silu(self.project(normed)).split([self.width, self.width + SHARED], dim=1)
        by_lag = self.positional.by_lag(ctx.batch.longest)

        def attend(padded: Tensor, _: int) -> Tensor:  # [n, G, e + s] -> [n, G, e]
            value, base = padded.transpose(0, 1).split([self.width, SHARED], dim=2)
            query, key = (base * scale + offset for scale, offset in zip(self.scale, self.offset, strict=True))
            bias = toeplitz(by_lag[: len(padded)])
            scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=1 / self.max_history)  # [G, n, n]
            return (scores.tril().relu().square() @ value).transpose(0, 1)

        attended = ctx.padding.each(value_and_base, attend)
        return x + self.output(ctx.dropout(gate * attended))


class FLASH(SequenceModel):
    """A stack of gated attention units, two a layer. Raises ValueError for histories of more than one chunk."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.max_history > CHUNK:
            raise ValueError(f"model.max_history is {config.max_history}: flash has one chunk, so at most {CHUNK}")
        self.units = nn.ModuleList(GatedAttentionUnit(config) for _ in range(UNITS * config.layers))

    @override
    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        for unit in self.units:
            x = unit(x, ctx)
        return x


register("flash", FLASH, takes_time=False)
