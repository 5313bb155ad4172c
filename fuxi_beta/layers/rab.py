"""RAB: the attention map of relative positions. The map of elapsed time, FRAB, is in `temporal`.

Row i is the event that predicts, column j the event it looks back at.
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
