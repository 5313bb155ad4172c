"""eSASRec (arXiv 2508.06450, RecSys 2025): attention in LiGR layers, under the loss of all systems here.

    h = x + sigmoid(W_g x + b_g) * dropout(Attention(LN(x)))
    y = h + sigmoid(W_f h + b_f) * dropout(SwiGLU(LN(h))),   SwiGLU(m) = W_2 dropout(SiLU(W_1 m) * W_3 m)

Attention is causal softmax attention with biases and an output projection; LN has gain and bias, eps 1e-5. The hidden
width is 4 D as published, whatever `ffn_multiply`. Attention weights are not dropped out (choice, as in SASRec here);
matrices Xavier-uniform, biases zero (choice).

Shapes: `T` packed tokens, `D` width.
"""

import torch
from torch import Tensor, nn

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.models.attention import softmax_attention
from fuxi_beta.models.base import ForwardContext
from fuxi_beta.models.registry import register
from fuxi_beta.models.stack import Stack

_HIDDEN = 4


class Block(nn.Module):
    """One LiGR layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, dim = config.heads, config.dim
        self.norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.gate, self.ffn_gate = nn.Linear(dim, dim), nn.Linear(dim, dim)  # W_g, W_f
        self.gate_and_up = nn.Linear(dim, 2 * _HIDDEN * dim, bias=False)  # W_1 | W_3
        self.down = nn.Linear(_HIDDEN * dim, dim, bias=False)  # W_2
        for weight in (*self.query_key_value.weight.data.chunk(3), *self.gate_and_up.weight.data.chunk(2)):
            nn.init.xavier_uniform_(weight)
        for layer in (self.out, self.gate, self.ffn_gate, self.down):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.query_key_value, self.out, self.gate, self.ffn_gate):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        packed = self.query_key_value(self.norm(x)).chunk(3, dim=1)
        attended = ctx.dropout(self.out(softmax_attention(packed, self.heads, ctx)))
        x = x + torch.sigmoid(self.gate(x)) * attended
        inner = ctx.dropout(ops.swiglu(self.gate_and_up(self.ffn_norm(x))))
        return x + torch.sigmoid(self.ffn_gate(x)) * ctx.dropout(self.down(inner))


class ESASRec(Stack):
    """A stack of LiGR layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, lambda: Block(config))


register("esasrec", ESASRec, takes_time=False)
