"""What every implementation of the token mixer offers.

Shapes: `T` packed tokens, `D` width, `C` = 2 D channels.
"""

from typing import Protocol

from torch import Tensor

from fuxi_beta.data.stateless_random import Mask


class Gaps(Protocol):
    """The times of a batch, prepared once and shared by all layers."""

    longest: int  # tokens of the longest history

    def mix(
        self, projected: Tensor, by_lag: Tensor, scale: Tensor | None, decay: Tensor | None, mask: Mask | None
    ) -> Tensor:
        """U * RMSNorm([B V | B^t V]) with [U | V] = SiLU(projected), then dropout. [T, 3 D] -> [T, C].

        Equations 13 and 14; both maps are causal within each listener's tokens. B[i, j] = by_lag[i - j], of which
        there are `longest` (equation 8); B^t[i, j] = scale (1 + max(t_{i+1} - t_j, 0))^(-decay) (equations 11, 12),
        zero where these are None.
        """
        ...

    def apply(self, value: Tensor, by_lag: Tensor, scale: Tensor | None, decay: Tensor | None) -> Tensor:
        """The maps of `mix` times values, and nothing else: [B V | B^t V]. [T, D] -> [T, 2 D]."""
        ...
