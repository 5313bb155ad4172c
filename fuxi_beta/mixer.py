"""AFTM, the attention-free token mixer (section 5.3, equations 13 and 14), on packed tokens.

Projections, norms and gates work on packed tokens. Only the two maps need the square of a listener's history:
listeners of like length are padded together, mixed, and packed again.

Shapes: `B` listeners, `T` packed tokens, `D` width, `C` = 2 D channels, `n` padded length of a group of `G` listeners.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuxi_beta.batches import Batch
from fuxi_beta.bias import PositionalBias, PowerBias, log_gap
from fuxi_beta.ffn import rms_norm

_GROUPS = 8
_MIN_GROUP = 8  # smaller groups of listeners cost more in calls than they save in padding


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

    def pack(self, padded: Tensor) -> Tensor:
        """[n, G, C] -> the group's tokens, [., C]."""
        return padded.flatten(0, 1).index_select(0, self.cells)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch go in the maps; computed once a batch and shared by all layers."""

    groups: tuple[Group, ...]
    packed_order: Tensor | None  # int64 [T]: places of the packed tokens in the groups laid end to end

    def pack(self, padded: list[Tensor]) -> Tensor:
        """The mixed groups as packed tokens again. [T, C]."""
        rows = [group.pack(cells) for group, cells in zip(self.groups, padded, strict=True)]
        return rows[0] if self.packed_order is None else torch.cat(rows).index_select(0, self.packed_order)


def layout(batch: Batch, dtype: torch.dtype) -> Layout:
    """Group the listeners of a batch by length and take the logarithms of all their gaps."""
    lengths, position, listener = batch.lengths, batch.position, batch.listener
    count = max(1, min(_GROUPS, batch.num_listeners // _MIN_GROUP))
    if count == 1:
        return Layout((_group(batch, lengths, position, listener, None, dtype),), None)
    groups, tokens = [], []
    by_length = lengths.argsort(stable=True)
    for members in by_length.tensor_split(count):
        groups.append(_group(batch, lengths, position, listener, members, dtype))
        tokens.append(groups[-1].tokens)
    order = torch.cat(tokens)
    return Layout(
        tuple(groups), torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    )


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


class TokenMixer(nn.Module):
    """[U | V] = SiLU(n W);  output U * RMSNorm(concat(B V, B^t V)).

    V has D channels and both maps read the same V, as Table 1's 5nd^2 and the authors' code have it; "2d" for W_v below
    equation 13 is a slip. No softmax and no 1/n. Maps are shared by heads, so heads only order the channels:
    [position | time] head by head.
    """

    def __init__(self, dim: int, heads: int, reach: int, *, temporal: bool) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.project = nn.Parameter(torch.empty(dim, 3 * dim).normal_(std=0.02))  # W: 2 D of U, then D of V
        self.positional = PositionalBias(reach)
        self.temporal = PowerBias() if temporal else None

    def forward(self, normed: Tensor, layout: Layout) -> Tensor:
        """normed: RMSNorm(x) [T, D] -> [T, C]."""
        gate, value = F.silu(normed @ self.project).split([2 * self.dim, self.dim], dim=1)
        mixed = layout.pack([self.mix(group.pad(value), group) for group in layout.groups])
        return gate * rms_norm(mixed)

    def mix(self, value: Tensor, group: Group) -> Tensor:
        """concat(B V, B^t V) of one group, channels ordered by head. [n, G, D] -> [n, G, C]."""
        n = len(value)
        by_position = (self.positional(n) @ value.flatten(1)).view_as(value)
        if self.temporal is None:
            by_time = torch.zeros_like(value)
        else:
            decayed = self.temporal.decayed(group.log_gap).tril()
            by_time = self.temporal.scale * torch.bmm(decayed, value.transpose(0, 1)).transpose(0, 1)
        return self.by_head(by_position, by_time)

    def last(self, normed: Tensor, batch: Batch) -> Tensor:
        """What `forward` gives at each listener's last token, at the cost of one row of the maps. [T, D] -> [B, C].

        Rows of listeners without tokens are zeros.
        """
        has_tokens = batch.lengths > 0
        last_token = (batch.offsets[1:] - 1).clamp(min=0)
        gate, value = F.silu(normed @ self.project).split([2 * self.dim, self.dim], dim=1)
        listener = batch.listener
        lag = batch.offsets[1:][listener] - 1 - torch.arange(len(value), device=value.device)

        def row_times_value(weight: Tensor) -> Tensor:  # [T] -> [B, D]
            return value.new_zeros(batch.num_listeners, self.dim).index_add(0, listener, weight[:, None] * value)

        by_position = row_times_value(self.positional.by_lag(self.positional.reach)[lag])
        if self.temporal is None:
            by_time = torch.zeros_like(by_position)
        else:
            gaps = log_gap(batch.next_timestamp[last_token[listener]], batch.timestamp, value.dtype)
            by_time = self.temporal.scale * row_times_value(self.temporal.decayed(gaps))
        gate_of_last = gate.new_zeros(batch.num_listeners, gate.shape[1])
        gate_of_last[has_tokens] = gate[last_token[has_tokens]]
        return gate_of_last * rms_norm(self.by_head(by_position, by_time))

    def by_head(self, by_position: Tensor, by_time: Tensor) -> Tensor:
        """Channels [position of head h | time of head h] for each h. [..., D] twice -> [..., C]."""
        if self.heads == 1:
            return torch.cat([by_position, by_time], dim=-1)
        shape = (*by_position.shape[:-1], self.heads, self.dim // self.heads)
        return torch.cat([by_position.view(shape), by_time.view(shape)], dim=-1).flatten(-2)
