"""NARM: a GRU that attends to its own states (Li, Ren, Chen, Ren, Lian and Ma, 2017, arXiv 1711.04725).

    h_t      = GRU(x_t, h_{t-1})                          global encoder: the listener's behaviour
    alpha_tj = softmax over j <= t of v^T sigmoid(A_1 h_t + A_2 h_j)
    c_t      = sum_{j <= t} alpha_tj h_j                  local encoder: the listener's purpose
    y_t      = B dropout([h_t | c_t])                     bilinear decoder: a song's score is its vector times y_t

Both encoders share one GRU and alpha is a softmax, as in the authors' code; in the paper's equations alpha is not
normalised, so that c_t grows with the length of the history. Dropout .25 on the embedded tokens and .5 before the
decoder, as published; `config.dropout` = 0 switches both off.
(choice) Every prefix of a history is a training sample, so every position has an output; `torch.nn.GRU` resets after
the recurrent product, the paper before it.
Initial values: the recurrent matrix of each gate orthogonal and biases zero, as in the authors' code; every other
matrix Xavier-uniform (choice).

Shapes: `T` packed tokens, `D` width, `H` hidden width, `n` padded length of a group of `G` listeners.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta.config import ModelConfig
from fuxi_beta.models.base import ForwardContext, SequenceModel
from fuxi_beta.models.gru4rec import gru_states, initial_gru
from fuxi_beta.models.registry import register

EMBEDDING_DROPOUT, STATE_DROPOUT = 0.25, 0.5


class LocalEncoder(nn.Module):
    """c_t, a sum of the states up to t, weighted by their attention scores with the state at t."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden, bias=False)  # A_1
        self.key = nn.Linear(hidden, hidden, bias=False)  # A_2
        self.score = nn.Linear(hidden, 1, bias=False)  # v^T
        for linear in (self.query, self.key, self.score):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, states: Tensor, ctx: ForwardContext) -> Tensor:
        """h [T, H] -> c [T, H]."""
        hidden = states.shape[1]
        # Projected before padding, and padded together.
        projected = torch.cat([states, self.query(states), self.key(states)], dim=1)

        def attend(padded: Tensor, _: int) -> Tensor:  # [n, G, 3 H] -> [n, G, H]
            state, query, key = padded.split(hidden, dim=2)
            scores = additive_scores(query, key, self.score.weight[0])
            above = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
            weights = scores.masked_fill(above, -torch.inf).softmax(-1)
            return torch.bmm(weights, state.transpose(0, 1)).transpose(0, 1)

        return ctx.padding.each(projected, attend)


class NARM(SequenceModel):
    """A GRU, its attention to itself, and a bilinear decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gru = initial_gru(config.dim, config.hidden)
        for gate in self.gru.get_parameter("weight_hh_l0").data.chunk(3):
            nn.init.orthogonal_(gate)
        self.local = LocalEncoder(config.hidden)
        self.decoder = nn.Linear(2 * config.hidden, config.dim, bias=False)  # B
        nn.init.xavier_uniform_(self.decoder.weight)

    @property
    @override
    def embedding_dropout(self) -> float:
        return EMBEDDING_DROPOUT

    @override
    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """B [h_t | c_t]. [T, D] -> [T, D]."""
        states = gru_states(self.gru, x, ctx)
        both = torch.cat([states, self.local(states, ctx)], dim=1)
        return self.decoder(ctx.dropout(both, STATE_DROPOUT))


def additive_scores(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
    """weight^T sigmoid(query_t + key_j) on and below the diagonal, 0 above. [n, G, H] twice, [H] -> [G, n, n].

    The sigmoids of all pairs would take gigabytes, so they are computed row by row, small enough for a cache, and again
    for the gradient.
    """
    scores: Tensor = _AdditiveScores.apply(query.contiguous(), key.contiguous(), weight)  # type: ignore[assignment]
    return scores.permute(2, 0, 1)


class _AdditiveScores(torch.autograd.Function):
    """Scores by row, column and listener, [n, n, G]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, weight)
        n, listeners, _ = query.shape
        scores = query.new_zeros(n, n, listeners)
        for row, activation in _rows(query, key):
            torch.mv(activation.flatten(0, 1), weight, out=scores[row, : row + 1].view(-1))
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, weight = ctx.saved_tensors
        of_scores = gradients[0].contiguous()  # [n, n, G]
        of_query, of_key, of_weight = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(weight)
        for row, activation in _rows(query, key):
            of_row = of_scores[row, : row + 1]
            of_weight.addmv_(activation.flatten(0, 1).t(), of_row.view(-1))
            # Times s (1 - s), in place of s. The factor v is the same for every pair, so it is applied last.
            torch.ops.aten.sigmoid_backward.grad_input(of_row[..., None], activation, grad_input=activation)
            torch.sum(activation, 0, out=of_query[row])
            of_key[: row + 1] += activation
        return of_query.mul_(weight), of_key.mul_(weight), of_weight


def _rows(query: Tensor, key: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(t, sigmoid(query_t + key_j) for j <= t [t + 1, G, H]) for each row t, all in the same memory."""
    memory = torch.empty_like(key)
    for row in range(len(query)):
        yield row, torch.add(key[: row + 1], query[row], out=memory[: row + 1]).sigmoid_()


register("narm", NARM, takes_time=False)
