"""RAB, the relative attention bias of positions (section 4.2, equation 8).

    B[i, j] = w[j - i],  j <= i

Row i is the event that predicts, column j the event that it looks back at. This class holds w;
`fuxi_beta.ops.token_mixer` computes the map where it is used.
"""

import torch
from torch import Tensor, nn


class RAB(nn.Module):
    """One learned weight a distance.

    All 2 * reach - 1 weights are kept, as published, though a causal map reads the distances <= 0 only.
    """

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.empty(2 * reach - 1).normal_(std=0.02))

    def by_lag(self, count: int) -> Tensor:
        """w[0], w[-1], ... : the weight of each number of events looked back. [count]."""
        return self.weight[self.reach - count : self.reach].flip(0)
