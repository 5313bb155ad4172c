"""SASRec (Kang and McAuley 2018): self-attention over a listener's history, as the paper's baselines use it.

Each layer, with LN of eps 1e-8 and learned gain and bias:

    q = LN(x);  h = Attention(q W_q, x W_k, x W_v) + q
    f = LN(h);  y = dropout(W_2 dropout(ReLU(W_1 f))) + f

Only the query is normalised, and residuals start from the normalised side, which makes deep stacks hard to train.
Attention weights are not dropped out (choice).

`SASRec` with `gap` also reads the time until the event to predict, as one vector a bucket of log(t_{i+1} - t_i) added
to the token: it reads the time without a map of elapsed time.

Shapes: `T` packed tokens, `D` width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta.config import ModelConfig
from fuxi_beta.models.attention import softmax_attention
from fuxi_beta.models.base import ForwardContext
from fuxi_beta.models.registry import register
from fuxi_beta.models.stack import Stack

_EPS = 1e-8


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, dim = config.heads, config.dim
        self.query_norm, self.norm = nn.LayerNorm(dim, eps=_EPS), nn.LayerNorm(dim, eps=_EPS)
        self.query, self.key_and_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.first, self.second = nn.Linear(dim, config.ffn_multiply * dim), nn.Linear(config.ffn_multiply * dim, dim)
        for weight in (self.query.weight, *self.key_and_value.weight.split(dim), self.out.weight):
            nn.init.xavier_normal_(weight)
        for layer in (self.first, self.second):
            nn.init.xavier_normal_(layer.weight)
        for layer in (self.query, self.key_and_value, self.out, self.first, self.second):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, D] -> [T, D]."""
        query = self.query_norm(x)
        packed = (self.query(query), *self.key_and_value(x).chunk(2, dim=1))
        normed = self.norm(self.out(softmax_attention(packed, self.heads, ctx)) + query)
        inner = ctx.dropout(F.relu(self.first(normed)))
        return ctx.dropout(self.second(inner)) + normed


class SASRec(Stack):
    """A stack of blocks; `gap` adds the time until the event to predict to its token."""

    def __init__(self, config: ModelConfig, *, gap: bool = False) -> None:
        super().__init__(config, lambda: Block(config), gap=gap)


register("sasrec", SASRec, takes_time=False)
register("sasrec-gap", lambda config: SASRec(config, gap=True), takes_time=True)
