"""The token mixer of equations 13 and 14 (with RAB and FRAB in it) as operators.

`dispatch.prepare_times` chooses for each batch what computes them: `reference.PaddedTimes` (plain torch),
`cpu.PackedTimes` (token_mixer.cpp), `triton.PackedTimes` (triton/token_mixer.py) or, for very long histories,
`linear.LongHistoryTimes`.

Shapes: `T` packed tokens, `D` width, `C` = 2 D channels.
"""

from typing import Protocol

from torch import Tensor

from fuxi_beta.data.stateless_random import Mask

Power = tuple[Tensor, ...]
"""a and b of FRAB's a (1 + x)^(-b), or a, b and c of a exp(-b log(1 + x)^c), each 0-d. c = 1 is the power, c > 0."""


class PreparedTimes(Protocol):
    """The times of a batch in the form that an implementation needs, prepared once and shared by all layers."""

    longest: int  # tokens of the longest history

    def token_mixer(self, projected: Tensor, by_lag: Tensor, power: Power | None, mask: Mask | None) -> Tensor:
        """See `fuxi_beta.ops.token_mixer`."""
        ...

    def apply_maps(self, value: Tensor, by_lag: Tensor, power: Power | None) -> Tensor:
        """See `fuxi_beta.ops.apply_maps`."""
        ...


def token_mixer(
    projected: Tensor, times: PreparedTimes, by_lag: Tensor, power: Power | None, mask: Mask | None = None
) -> Tensor:
    """U * RMSNorm([B V | B^t V]) with [U | V] = SiLU(projected), then dropout. [T, 3 D] -> [T, C].

    Both maps are causal within each listener's tokens. For a row i and a column j <= i:

        B[i, j]   = by_lag[i - j]                          RAB, equation 8
        B^t[i, j] = a (1 + max(t_{i+1} - t_j, 0))^(-b)     FRAB, equations 11 and 12

    by_lag: at least `times.longest` weights. power: (a, b), or (a, b, c) for a exp(-b log(1 + x)^c); None: B^t is zero.
    mask: of the dropout, if there is any.
    """
    return times.token_mixer(projected, by_lag, power, mask)


def apply_maps(value: Tensor, times: PreparedTimes, by_lag: Tensor, power: Power | None) -> Tensor:
    """[B V | B^t V] with the maps of `token_mixer` and nothing else. [T, D] -> [T, C]."""
    return times.apply_maps(value, by_lag, power)
