"""The two attention maps of FuXi-beta: relative positions (RAB) and elapsed time (FRAB).

Shapes: `B` listeners, `n` padded length. Row i is the event that predicts, column j the event it looks back at.
"""

import torch
from torch import Tensor, nn


class PositionalBias(nn.Module):
    """RAB: B[i, j] = w[j - i], one learned weight a distance (section 4.2, equation 8).

    All 2 * reach - 1 weights are kept, as published, though a causal map reads the distances <= 0 only.
    """

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.empty(2 * reach - 1).normal_(std=0.02))

    def by_lag(self, count: int) -> Tensor:
        """w[0], w[-1], ... : the weight of each number of events looked back. [count]."""
        return self.weight[self.reach - count : self.reach].flip(0)


class PowerBias(nn.Module):
    """FRAB: B^t[i, j] = a (1 + max(t_{i+1} - t_j, 0))^(-b) (equations 11 and 12), times in seconds.

    Written as a exp(-b log(1 + x)), because the logarithm is the same for every layer. The time of row i is that of
    the event being predicted, as in the authors' code; the paper writes t_i.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(()).uniform_(-0.2, 0.2))  # a
        self.decay = nn.Parameter(torch.empty(()).uniform_(0.4, 0.8))  # b

    def decayed(self, log_gap: Tensor) -> Tensor:
        """(1 + x)^(-b) from log(1 + x), without the factor a. Same shape."""
        return torch.exp(log_gap * -self.decay)
