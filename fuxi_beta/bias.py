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

    def forward(self, n: int) -> Tensor:
        """The causal map, zero above the diagonal. [n, n]."""
        looking_back = self.weight[self.reach - n : self.reach]  # lags n - 1 .. 0
        padded = torch.cat([looking_back, looking_back.new_zeros(n)])
        # Row i starts n - 1 - i weights in: a Toeplitz matrix is a window sliding over its first column.
        return padded.unfold(0, n, 1)[:n].flip(0)


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


def log_gap(next_timestamp: Tensor, timestamp: Tensor, dtype: torch.dtype) -> Tensor:
    """log(1 + max(t_{i+1} - t_j, 0)) of integer Unix seconds that broadcast.

    The difference is taken in integers: Unix seconds in fp32 are 64 s apart.
    """
    return (next_timestamp - timestamp).clamp_(min=0).to(dtype).log1p_()
