"""The sampled softmax loss as an operator.

Shapes: `P` positions with a target, `K` negatives each, `U` unique songs of the batch, `D` width.
"""

from torch import Tensor

from fuxi_beta.ops import reference
from fuxi_beta.ops.dispatch import kernels_for


def sampled_softmax(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """Sum over positions of -log(exp(s+/tau) / (exp(s+/tau) + sum over unmasked negatives of exp(s-/tau))).

    Section 5.5, equation 17, with sampled negatives. states: [P, D] and table: [U, D], both of unit rows; target:
    int64 [P] and negatives: int64 [P, K], rows of the table; masked: bool [P, K], negatives that do not count.
    """
    kernels = kernels_for(states, table) or reference
    return kernels.sampled_softmax(states, table, target, negatives, masked, temperature)
