"""Sampled softmax over L2-normalised vectors (section 5.5, equation 17, with sampled negatives).

Two implementations of one function: a plain reference, and the one in use, which never gathers a [P, K, D] tensor.
Its dot products are a sampled dense-dense product and its gradients weighted sums of rows, so the cost does not depend
on the size of the catalogue.

Shapes: `P` positions with a target, `K` negatives each, `U` unique songs of the batch, `D` width.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
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


def sampled_softmax(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """`sampled_softmax_reference` at a fraction of its time and memory."""
    rows = torch.cat([target[:, None], negatives], dim=1)
    return _SampledSoftmax.apply(states, table, rows, masked, temperature)  # type: ignore[return-value]


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, rows: Tensor, masked: Tensor, temperature: float) -> Tensor:
        """rows: int64 [P, 1 + K], the target first."""
        logits = _dots(states, table, rows).div_(temperature)
        logits[:, 1:].masked_fill_(masked, -torch.inf)
        log_norm = logits.logsumexp(1, keepdim=True)
        loss = (log_norm.squeeze(1) - logits[:, 0]).sum()
        weights = logits.sub_(log_norm).exp_()  # d loss / d logits, but for the target's - 1
        weights[:, 0] -= 1
        ctx.save_for_backward(states, table, rows, weights.div_(temperature))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, table, rows, weights = ctx.saved_tensors
        of_states = F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
        of_table = _sum_by_row(states, rows, weights, len(table))
        return of_states * gradients[0], of_table * gradients[0], None, None, None


def _dots(states: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Inner products of each state with its rows of the table. [P, D], [U, D], int64 [P, M] -> [P, M]."""
    if len(table) < rows.shape[1]:  # sampled_addmm refuses more entries than the matrix has
        return (states @ table.t()).gather(1, rows)
    starts = torch.arange(0, rows.numel() + 1, rows.shape[1], device=rows.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        wanted = torch.sparse_csr_tensor(
            starts, rows.flatten(), states.new_zeros(rows.numel()), (len(states), len(table)), check_invariants=False
        )
        return torch.sparse.sampled_addmm(wanted, states, table.t(), beta=0.0).values().view_as(rows)


def _sum_by_row(states: Tensor, rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """For each row of the table, the weighted sum of the states that met it: the transposed product. [U, D].

    Sorting the pairs by row turns a scatter of wide vectors into sums over contiguous segments.
    """
    flat = rows.flatten()
    order = flat.to(torch.int32).sort(stable=True).indices
    starts = torch.bincount(flat, minlength=count).cumsum(0).roll(1)
    starts[0] = 0
    state = torch.div(order, rows.shape[1], rounding_mode="floor")
    sorted_weights = weights.flatten().index_select(0, order)  # several times as fast as indexing
    return F.embedding_bag(state, states, starts, per_sample_weights=sorted_weights, mode="sum")
