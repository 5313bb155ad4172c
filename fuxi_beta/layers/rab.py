"""RAB, the relative attention bias of positions (section 4.2, equation 8).

    B[i, j] = w[j - i],  j <= i

Row i is the event that predicts, column j the event that it looks back at. This class holds w;
`fuxi_beta.ops.token_mixer` computes the map where it is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAG_GROUP = 8
"""Neighbouring distances that are left out or kept together."""


class RAB(nn.Module):
    """One learned weight a distance.

    All 2 * reach - 1 weights are kept, as published, though a causal map reads the distances <= 0 only.
    """

    def __init__(self, reach: int, *, sparse: float = 0.0) -> None:
        """sparse: share of the groups of distances that `by_lag` can leave out."""
        super().__init__()
        self.reach, self.sparse = reach, sparse
        self.weight = nn.Parameter(torch.empty(2 * reach - 1).normal_(std=0.02))

    def by_lag(self, count: int, *, sparse: bool = False) -> Tensor:
        """w[0], w[-1], ... : the weight of each number of events looked back. [count].

        sparse: with zeros for the share of groups of `LAG_GROUP` distances whose weights have the least absolute sum,
        after FuXi-gamma's diagonal-sparse positions (arXiv 2512.12740). (choice) There diagonals of square blocks of
        the map are left out; groups of distances leave the map Toeplitz.
        """
        weights = self.weight[self.reach - count : self.reach].flip(0)
        return weights * self._kept()[:count] if sparse and self.sparse else weights

    def _kept(self) -> Tensor:
        """1 for each distance that is kept, else 0. [at least reach]."""
        sizes = F.pad(self.weight[: self.reach].detach().flip(0).abs(), (0, -self.reach % LAG_GROUP))
        groups = sizes.view(-1, LAG_GROUP).sum(1)
        left_out = groups.argsort(stable=True)[: int(self.sparse * len(groups))]
        return torch.ones_like(groups).index_fill(0, left_out, 0).repeat_interleave(LAG_GROUP)
