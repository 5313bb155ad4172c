"""FRAB, the functional relative attention bias of elapsed time (section 5.2, equations 11 and 12).

    B^t[i, j] = a (1 + max(t_{i+1} - t_j, 0))^(-b),  j <= i

In FuXi-beta this class holds a and b, and `fuxi_beta.ops.token_mixer` computes the map where it is used; `forward` here
is the map itself, for models without that operator. The functions that Table 6 compares are in `elapsed_functions`.

Shapes: `n` padded length of a group of `G` listeners.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta.ops.elapsed import Elapsed
from fuxi_beta.ops.token_mixer import Power


class TemporalFunction(nn.Module):
    """A function f of elapsed seconds x. Subclasses define `curve`; parameters are scalars, one set a layer."""

    def curve(self, x: Tensor) -> Tensor:
        """f(x), any shape."""
        raise NotImplementedError

    def forward(self, elapsed: Elapsed) -> Tensor:
        """The causal map of a group. [G, n, n]."""
        return self.curve(elapsed.seconds).tril()


class FRAB(TemporalFunction):
    """f(x) = a (1 + x)^(-b), computed as a exp(-b log(1 + x)), because all layers share the logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.decay = uniform(-0.2, 0.2), uniform(0.4, 0.8)  # a, b

    @property
    def power(self) -> Power:
        """(a, b), as operators take them."""
        return self.scale, self.decay

    def decayed(self, log_elapsed: Tensor) -> Tensor:
        """(1 + x)^(-b) from log(1 + x), without the factor a. Same shape."""
        return torch.exp(log_elapsed * -self.decay)

    @override
    def curve(self, x: Tensor) -> Tensor:
        return self.scale * self.decayed(x.log1p())

    @override
    def forward(self, elapsed: Elapsed) -> Tensor:
        return (self.scale * self.decayed(elapsed.log)).tril()


def uniform(low: float, high: float) -> nn.Parameter:
    """A scalar parameter that starts uniformly distributed between two bounds."""
    return nn.Parameter(torch.empty(()).uniform_(low, high))
