"""Every operator in plain torch, for any device and dtype: the definition that kernels are tested against.

Only the two maps need the square of a history's length: listeners of like length are padded together, the maps are
applied to the padded values, and the result is packed again.

Shapes: `B` listeners, `T` packed tokens, `D` width, `C` = 2 D channels, `n` padded length of a group of `G`
listeners, `P` positions with a target, `K` negatives each, `U` unique songs of the batch.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.data import stateless_random
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.padding import Padding
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.elapsed import Elapsed
from fuxi_beta.ops.token_mixer import Power

RMS_EPS = 1e-6


def toeplitz(by_lag: Tensor) -> Tensor:
    """The causal map with by_lag[i - j] at row i, column j, and zeros above the diagonal. [n] -> [n, n]."""
    n = len(by_lag)
    padded = torch.cat([by_lag.flip(0), by_lag.new_zeros(n)])
    # Row i starts n - 1 - i weights in: a Toeplitz matrix is a window sliding over its first column.
    return padded.unfold(0, n, 1)[:n].flip(0)


def apply_map(weights: Tensor, padded: Tensor) -> Tensor:
    """A map that heads share times values. weights: [G, n, n], or [n, n] for all listeners. [n, G, C] -> [n, G, C]."""
    if weights.ndim == 2:
        return (weights @ padded.flatten(1)).view_as(padded)
    return torch.bmm(weights, padded.transpose(0, 1)).transpose(0, 1)


def stretched(log_elapsed: Tensor, exponent: Tensor | None = None) -> Tensor:
    """log(1 + x)^c; without c as it is. Same shape."""
    return log_elapsed if exponent is None else log_elapsed**exponent


class PaddedTimes:
    """The elapsed times of a batch as padded maps of log(1 + x), computed once and shared by all layers."""

    def __init__(self, batch: Batch, dtype: torch.dtype) -> None:
        self.longest = batch.longest
        self.padding = Padding(batch)
        self.log_elapsed = [Elapsed(batch, group, dtype).log for group in self.padding.groups]

    def token_mixer(self, projected: Tensor, by_lag: Tensor, power: Power | None, mask: Mask | None) -> Tensor:
        """See `fuxi_beta.ops.token_mixer`."""
        gate, value = gate_and_value(projected)
        return gated(gate, self.apply_maps(value, by_lag, power), mask)

    def apply_maps(self, value: Tensor, by_lag: Tensor, power: Power | None) -> Tensor:
        """See `fuxi_beta.ops.apply_maps`."""

        def maps_times_value(padded: Tensor, number: int) -> Tensor:  # [n, G, D] -> [n, G, C]
            by_position = apply_map(toeplitz(by_lag[: len(padded)]), padded)
            if power is None:
                by_time = torch.zeros_like(padded)
            else:
                scale, decay, *exponent = power
                decayed = torch.exp(stretched(self.log_elapsed[number], *exponent) * -decay).tril()
                by_time = scale * apply_map(decayed, padded)
            return torch.cat([by_position, by_time], dim=-1)

        return self.padding.each(value, maps_times_value)


def retained(decay: Tensor, n: int) -> Tensor:
    """What a row retains of each past token: exp(-g (i - j + 1)) for j <= i, else 0. [H] -> [H, n, n]."""
    lag = torch.arange(1, n + 1, dtype=decay.dtype, device=decay.device)
    return torch.stack([toeplitz(torch.exp(-g * lag)) for g in decay])


def retention(padded: Tensor, decay: Tensor) -> Tensor:
    """The definition of Y of `fuxi_beta.ops.retention` on a padded group. [q | k | v] [n, G, 3 D] -> [n, G, D]."""
    n, listeners, width = padded.shape
    heads = padded.view(n, listeners, 3, len(decay), width // (3 * len(decay)))
    query, key, value = heads.permute(2, 1, 3, 0, 4).unbind()  # [G, H, n, d]
    out = (query @ key.mT * retained(decay, n)) @ value
    return out.permute(2, 0, 1, 3).reshape(n, listeners, width // 3)


def gate_and_value(projected: Tensor) -> tuple[Tensor, Tensor]:
    """[U | V] = SiLU(projected). [T, 3 D] -> [T, 2 D], [T, D]."""
    dim = projected.shape[1] // 3
    gate, value = F.silu(projected).split([2 * dim, dim], dim=1)
    return gate, value


def gated(gate: Tensor, mixed: Tensor, mask: Mask | None) -> Tensor:
    """U * RMSNorm(mixed), then dropout. [T, C] twice -> [T, C]."""
    out = gate * rms_norm(mixed, None)
    return out if mask is None else stateless_random.dropout(out, mask)


def rms_norm(x: Tensor, mask: Mask | None, dtype: torch.dtype | None = None) -> Tensor:
    """See `fuxi_beta.ops.rms_norm`."""
    normed = F.rms_norm(x, (x.shape[-1],), eps=RMS_EPS)
    return (normed if mask is None else stateless_random.dropout(normed, mask)).to(dtype or x.dtype)


def swiglu(x: Tensor) -> Tensor:
    """See `fuxi_beta.ops.swiglu`."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def sampled_softmax_gathered(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """The definition of `fuxi_beta.ops.sampled_softmax`, which needs a [P, K, D] tensor."""
    positive = (states * table[target]).sum(1, keepdim=True)  # [P, 1]
    negative = torch.einsum("pd,pkd->pk", states, table[negatives]).masked_fill(masked, -torch.inf)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).sum()


def sampled_softmax(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """The same without a [P, K, D] tensor.

    Dot products are a sampled dense-dense product and gradients are weighted sums of rows, so the cost does not depend
    on the size of the catalogue.
    """
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
        weights = logits.sub_(log_norm).exp_()  # d loss / d logits, except for the target's - 1
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
        sampled = torch.sparse_csr_tensor(
            starts, rows.flatten(), states.new_zeros(rows.numel()), (len(states), len(table)), check_invariants=False
        )
        return torch.sparse.sampled_addmm(sampled, states, table.t(), beta=0.0).values().view_as(rows)


def _sum_by_row(states: Tensor, rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """For each row of the table, the weighted sum of the states paired with it: the transposed product. [U, D].

    Sorting the pairs by row turns a scatter of wide vectors into sums over contiguous segments.
    """
    flat = rows.flatten()
    order = flat.to(torch.int32).sort(stable=True).indices
    starts = torch.bincount(flat, minlength=count).cumsum(0).roll(1)
    starts[0] = 0
    state = torch.div(order, rows.shape[1], rounding_mode="floor")
    sorted_weights = weights.flatten().index_select(0, order)  # several times as fast as indexing
    return F.embedding_bag(state, states, starts, per_sample_weights=sorted_weights, mode="sum")


def rowwise_adagrad(
    weight: Tensor,
    accumulator: Tensor,
    rows: Tensor,
    gradient: Tensor,
    *,
    lr: float,
    eps: float,
    skip: Tensor | None = None,
) -> None:
    """See `fuxi_beta.ops.rowwise_adagrad`."""
    unchanged = rows == 0
    if skip is not None:
        unchanged |= skip != 0
    updated = accumulator.index_select(0, rows) + gradient.square().mean(dim=1).masked_fill_(unchanged, 0)
    steps = (gradient / (updated.sqrt() + eps)[:, None]).masked_fill_(unchanged[:, None], 0)
    accumulator.index_copy_(0, rows, updated)
    weight.index_add_(0, rows, steps, alpha=-lr)
