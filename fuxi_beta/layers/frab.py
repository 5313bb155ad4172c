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
from fuxi_beta.ops.reference import stretched
from fuxi_beta.ops.token_mixer import Power

_LOWEST_EXPONENT = 0.01


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


class ExpPow(FRAB):
    """f(x) = a exp(-b log(1 + x)^c), FuXi-gamma's exponential of a power (arXiv 2512.12740) of log(1 + x).

    On raw seconds a exp(-b x^c) underflows; nested so, FRAB is c = 1, where c starts (choice): below it distant plays
    weigh more than under a power law, above it less. c is at least 0.01.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.ones(()))  # c

    @property
    @override
    def power(self) -> Power:
        """(a, b, c), as operators take them."""
        return self.scale, self.decay, self.exponent.clamp(min=_LOWEST_EXPONENT)

    @override
    def decayed(self, log_elapsed: Tensor) -> Tensor:
        return super().decayed(stretched(log_elapsed, self.power[2]))


def uniform(low: float, high: float) -> nn.Parameter:
    """A scalar parameter that starts uniformly distributed between two bounds."""
    return nn.Parameter(torch.empty(()).uniform_(low, high))
