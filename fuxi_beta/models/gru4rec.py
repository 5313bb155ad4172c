"""GRU4Rec: a gated recurrent unit over the history (Hidasi, Karatzoglou, Baltrunas and Tikk, 2016, arXiv 1511.06939).

    r_t = sigmoid(W_r x_t + U_r h_{t-1} + b_r)
    z_t = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
    c_t = tanh(W_c x_t + b_c + r_t * (U_c h_{t-1} + b_u))
    h_t = (1 - z_t) * c_t + z_t * h_{t-1},  h_0 = 0
    y_t = W_o dropout(h_t) + b_o

This is `torch.nn.GRU`: the paper resets h_{t-1} itself, before U_c, and its z_t is 1 - z_t here. One layer, the
paper's best, whatever `config.layers` is; `config.hidden` is the hyperparameter that is tuned.
(choice) Learned positions, input scale, loss and negatives are those of the other models, in place of session-parallel
batches and the losses of the paper; a linear layer brings the state to the width of the item vectors.
Initial values are Xavier-uniform for the matrix of each gate and zero for biases, as in the authors' code.

Shapes: `T` packed tokens, `D` width, `H` hidden width, `n` padded length of a group of `G` listeners.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta.config import ModelConfig
from fuxi_beta.data.padding import Padding
from fuxi_beta.models.base import ForwardContext, SequenceModel
from fuxi_beta.models.registry import register

_GROUPS = 2  # a step costs about the same for 60 listeners as for 16, so few large groups are faster


class GRU4Rec(SequenceModel):
    """One GRU layer and a linear layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gru = initial_gru(config.dim, config.hidden)
        self.output = nn.Linear(config.hidden, config.dim)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    @override
    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """The linear layer of the state after each token. [T, D] -> [T, D]."""
        return self.output(ctx.dropout(gru_states(self.gru, x, ctx)))


def initial_gru(dim: int, hidden: int) -> nn.GRU:
    """A GRU with Xavier-uniform matrices, one draw a gate, and biases of zero."""
    gru = nn.GRU(dim, hidden)
    for name, parameter in gru.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
        else:
            for gate in parameter.data.chunk(3):
                nn.init.xavier_uniform_(gate)
    return gru


def gru_states(gru: nn.GRU, x: Tensor, ctx: ForwardContext) -> Tensor:
    """The state after each token, from zeros at each listener's oldest. [T, D] -> [T, H]."""

    def states(padded: Tensor, _: int) -> Tensor:  # [n, G, D] -> [n, G, H]
        # torch.nn.GRU refuses a sequence of no steps, but its weights need a gradient then too.
        steps = padded if len(padded) else F.pad(padded, (0, 0, 0, 0, 0, 1))
        return gru(steps)[0]

    return Padding(ctx.batch, _GROUPS).each(x, states)


register("gru4rec", GRU4Rec, takes_time=False)
