"""Sampled softmax over L2-normalised vectors (section 5.5, equation 17, with sampled negatives).

Shapes: `P` positions that have a target, `K` negatives each, `U` unique songs of the batch, `D` width.
"""

import torch
from torch import Tensor


def sampled_softmax_reference(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """Sum over positions of -log(exp(s+/tau) / (exp(s+/tau) + sum over unmasked negatives of exp(s-/tau))).

    states: [P, D] and table: [U, D], both of unit rows; target: int64 [P] and negatives: int64 [P, K], rows of the
    table; masked: bool [P, K], negatives that do not count.
    """
    positive = (states * table[target]).sum(1, keepdim=True)  # [P, 1]
    negative = torch.einsum("pd,pkd->pk", states, table[negatives]).masked_fill(masked, -torch.inf)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).sum()


sampled_softmax = sampled_softmax_reference
