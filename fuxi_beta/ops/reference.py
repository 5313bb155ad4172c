"""Every operator in plain torch: any device, any dtype, always there.

Only the two maps need the square of a listener's history: listeners of like length are padded together, mixed, and
packed again.

Shapes: `B` listeners, `T` packed tokens, `D` width, `C` = 2 D channels, `n` padded length of a group of `G`
listeners, `P` positions with a target, `K` negatives each, `U` unique songs of the batch.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta import keyed
from fuxi_beta.batches import Batch
from fuxi_beta.keyed import Mask

RMS_EPS = 1e-6

_GROUPS = 8
_MIN_GROUP = 8  # smaller groups of listeners cost more in calls than they save in padding


def log_gap(next_timestamp: Tensor, timestamp: Tensor, dtype: torch.dtype) -> Tensor:
    """log(1 + max(t_{i+1} - t_j, 0)) of integer Unix seconds that broadcast.

    The difference is taken in integers: Unix seconds in fp32 are 64 s apart.
    """
    return (next_timestamp - timestamp).clamp_(min=0).to(dtype).log1p_()


def toeplitz(by_lag: Tensor) -> Tensor:
    """The causal map with by_lag[i - j] at row i, column j, and zeros above the diagonal. [n] -> [n, n]."""
    n = len(by_lag)
    padded = torch.cat([by_lag.flip(0), by_lag.new_zeros(n)])
    # Row i starts n - 1 - i weights in: a Toeplitz matrix is a window sliding over its first column.
    return padded.unfold(0, n, 1)[:n].flip(0)


@dataclass(frozen=True)
class Group:
    """Listeners padded to one length. Cells are laid out position first, [n, G], so that B V is one matrix product."""

    length: int  # n
    listeners: int  # G
    tokens: Tensor  # int64, packed tokens of the group
    cells: Tensor  # int64, the cell of each of them
    log_gap: Tensor  # [G, n, n], log(1 + max(t_{i+1} - t_j, 0)) on and below the diagonal, 0 above

    def pad(self, packed: Tensor) -> Tensor:
        """[T, D] -> [n, G, D], zeros in padding."""
        cells = packed.new_zeros(self.length * self.listeners, packed.shape[1])
        cells = cells.index_copy(0, self.cells, packed.index_select(0, self.tokens))
        return cells.view(self.length, self.listeners, packed.shape[1])

    def mix(self, value: Tensor, by_lag: Tensor, scale: Tensor | None, decay: Tensor | None) -> Tensor:
        """[B V | B^t V] of the group's tokens. value [T, D] -> [., C]."""
        padded = self.pad(value)
        by_position = (toeplitz(by_lag[: self.length]) @ padded.flatten(1)).view_as(padded)
        if scale is None or decay is None:
            by_time = torch.zeros_like(padded)
        else:
            decayed = torch.exp(self.log_gap * -decay).tril()
            by_time = scale * torch.bmm(decayed, padded.transpose(0, 1)).transpose(0, 1)
        mixed = torch.cat([by_position, by_time], dim=-1)
        return mixed.flatten(0, 1).index_select(0, self.cells)


class PaddedGaps:
    """The gaps of a batch as padded maps of logarithms, computed once and shared by all layers."""

    def __init__(self, batch: Batch, dtype: torch.dtype) -> None:
        self.groups: tuple[Group, ...]
        self.packed_order: Tensor | None = None  # int64 [T]: places of the packed tokens in the groups laid end to end
        lengths, position, listener = batch.lengths, batch.position, batch.listener
        self.longest = batch.longest
        count = max(1, min(_GROUPS, batch.num_listeners // _MIN_GROUP))
        if count == 1:
            self.groups = (_group(batch, lengths, position, listener, None, dtype),)
            return
        members = lengths.argsort(stable=True).tensor_split(count)
        self.groups = tuple(_group(batch, lengths, position, listener, part, dtype) for part in members)
        order = torch.cat([group.tokens for group in self.groups])
        places = torch.arange(len(order), device=order.device)
        self.packed_order = torch.empty_like(order).index_copy_(0, order, places)

    def mix(
        self, projected: Tensor, by_lag: Tensor, scale: Tensor | None, decay: Tensor | None, mask: Mask | None
    ) -> Tensor:
        """See `fuxi_beta.ops.Gaps.mix`."""
        gate, value = gate_and_value(projected)
        rows = [group.mix(value, by_lag, scale, decay) for group in self.groups]
        mixed = rows[0] if self.packed_order is None else torch.cat(rows).index_select(0, self.packed_order)
        return gated(gate, mixed, mask)


def _group(
    batch: Batch, lengths: Tensor, position: Tensor, listener: Tensor, members: Tensor | None, dtype: torch.dtype
) -> Group:
    if members is None:
        members = torch.arange(batch.num_listeners, device=lengths.device)
    column = torch.full_like(lengths, -1).index_copy_(0, members, torch.arange(len(members), device=lengths.device))
    tokens = (column[listener] >= 0).nonzero().squeeze(1)
    n = int(lengths[members].max()) if len(members) else 0
    cells = position[tokens] * len(members) + column[listener[tokens]]

    def padded(values: Tensor) -> Tensor:  # [G, n]
        flat = values.new_zeros(n * len(members)).index_copy_(0, cells, values[tokens])
        return flat.view(n, len(members)).t()

    gaps = log_gap(padded(batch.next_timestamp)[:, :, None], padded(batch.timestamp)[:, None, :], dtype)
    # Zero above the diagonal and in padding rows, so that no power of the gap overflows where the map is cut off.
    return Group(n, len(members), tokens, cells, gaps.tril_())


def gate_and_value(projected: Tensor) -> tuple[Tensor, Tensor]:
    """[U | V] = SiLU(projected). [T, 3 D] -> [T, 2 D], [T, D]."""
    dim = projected.shape[1] // 3
    gate, value = F.silu(projected).split([2 * dim, dim], dim=1)
    return gate, value


def gated(gate: Tensor, mixed: Tensor, mask: Mask | None) -> Tensor:
    """U * RMSNorm(mixed), then dropout. [T, C] twice -> [T, C]."""
    out = gate * rms_norm(mixed, None)
    return out if mask is None else keyed.dropout(out, mask)


def rms_norm(x: Tensor, mask: Mask | None) -> Tensor:
    """See `fuxi_beta.ops.rms_norm`."""
    normed = F.rms_norm(x, (x.shape[-1],), eps=RMS_EPS)
    return normed if mask is None else keyed.dropout(normed, mask)


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
    """The same without that tensor.

    Its dot products are a sampled dense-dense product and its gradients weighted sums of rows, so the cost does not
    depend on the size of the catalogue.
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
