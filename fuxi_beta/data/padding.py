"""Listeners of like length padded together, for attention maps and recurrences.

Shapes: `B` listeners, `T` packed tokens, `C` channels, `n` padded length of a group of `G` listeners. Cells are laid
out position first, [n, G, C]: one map that all listeners share is then one matrix product, and a recurrence runs along
the first dimension. Padding follows a listener's tokens, so a causal operator never reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fuxi_beta.data.batches import Batch

_GROUPS = 8
_MIN_GROUP = 8  # smaller groups of listeners cost more in calls than they save in padding


@dataclass(frozen=True)
class Group:
    """Listeners of one padded length."""

    length: int  # n
    listeners: int  # G
    tokens: Tensor  # int64, packed tokens of the group
    cells: Tensor  # int64, the cell of each of them: position * G + column of the listener

    def pad(self, packed: Tensor) -> Tensor:
        """[T, C] -> [n, G, C], zeros in padding."""
        cells = packed.new_zeros(self.length * self.listeners, packed.shape[1])
        cells = cells.index_copy(0, self.cells, packed.index_select(0, self.tokens))
        return cells.view(self.length, self.listeners, packed.shape[1])

    def unpad(self, padded: Tensor) -> Tensor:
        """[n, G, C] -> the group's tokens [., C]."""
        return padded.flatten(0, 1).index_select(0, self.cells)

    def by_listener(self, values: Tensor) -> Tensor:
        """[T] -> [G, n], zeros in padding."""
        flat = values.new_zeros(self.length * self.listeners).index_copy_(0, self.cells, values[self.tokens])
        return flat.view(self.length, self.listeners).t()


class Padding:
    """The groups of a batch: `each` pads every group, applies a function and packs the results."""

    def __init__(self, batch: Batch, groups: int = _GROUPS) -> None:
        self.groups: tuple[Group, ...]
        self._packed_order: Tensor | None = None  # int64 [T]: places of the tokens in the concatenated groups
        lengths, position, listener = batch.lengths, batch.position, batch.listener
        count = max(1, min(groups, batch.num_listeners // _MIN_GROUP))
        if count == 1:
            all_listeners = torch.arange(batch.num_listeners, device=lengths.device)
            self.groups = (_group(lengths, position, listener, all_listeners),)
            return
        members = lengths.argsort(stable=True).tensor_split(count)
        self.groups = tuple(_group(lengths, position, listener, rows) for rows in members)
        order = torch.cat([group.tokens for group in self.groups])
        places = torch.arange(len(order), device=order.device)
        self._packed_order = torch.empty_like(order).index_copy_(0, order, places)

    def join(self, rows: Sequence[Tensor]) -> Tensor:
        """Tokens of each group [., C], as from `Group.unpad` -> [T, C]."""
        if self._packed_order is None:
            return rows[0]
        return torch.cat(list(rows)).index_select(0, self._packed_order)

    def each(self, packed: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        """`function(padded [n, G, C], number of the group) -> [n, G, C']` on every group. [T, C] -> [T, C']."""
        return self.join([group.unpad(function(group.pad(packed), number)) for number, group in enumerate(self.groups)])


def _group(lengths: Tensor, position: Tensor, listener: Tensor, members: Tensor) -> Group:
    column = torch.full_like(lengths, -1).index_copy_(0, members, torch.arange(len(members), device=lengths.device))
    tokens = (column[listener] >= 0).nonzero().squeeze(1)
    n = int(lengths[members].max()) if len(members) else 0
    return Group(n, len(members), tokens, position[tokens] * len(members) + column[listener[tokens]])
