"""The plays that contribute most to songs, as an operator: plain torch (`contributions`), `cpu/attribution.cpp` in C++.

Shapes: `T` packed tokens, `B` listeners, `R` some of them, `K` songs of each listener, `N` plays named for a song.
"""

from collections.abc import Sequence

from torch import Tensor

from fuxi_beta.ops import contributions, cpu
from fuxi_beta.ops.contributions import Term
from fuxi_beta.ops.dispatch import kernels_for


def strongest_plays(
    terms: Sequence[Term], offsets: Tensor, item_index: Tensor, rows: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The `count` plays with the largest positive sum of the terms (at least one) for each song, largest first.

    The plays of one song count as one, named by the newest; of equal ones the older comes first. offsets: int64
    [B + 1]; item_index: int64 [T]; rows: int64 [R], listeners with plays. Returns packed tokens int64 [R, K, N], -1
    where no further sum is positive, and the sums [R, K, N], zero there. Without gradients.
    """
    tensors = [tensor for term in terms for tensor in (term.vector, term.towards)]
    run = cpu.strongest_plays if kernels_for(*tensors) is cpu else contributions.strongest_plays
    return run(terms, offsets, item_index, rows, count)
