"""The loss of one training step, as a sum that is then divided by the number of targets of all ranks.

Shapes: `T` packed tokens, `P` targets, `K` negatives each, `C` candidates, `U` unique songs of the batch, `D` width,
`V` rows of the item table.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fuxi_beta import ops
from fuxi_beta.config import TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.models.base import l2_normalise
from fuxi_beta.training.completion import CompletionHead
from fuxi_beta.training.negatives import Frequencies, Masks, draw, log_expected_draws

_LOGITS_AT_ONCE = 1 << 24
"""Logits of the full softmax that are held at once."""


class ItemLookup(Protocol):
    """What the loss needs of an item table, plain or sharded."""

    rows: int
    host_waits: bool

    def __call__(self, item_index: Tensor, /) -> Tensor:
        """Raw vectors [U, D] of songs int64 [U], ascending and distinct, maybe none; differentiable.

        On a device padding (0) may follow them, unless `host_waits`; its vectors get no gradient.
        """
        ...


def training_loss(
    model: nn.Module,
    lookup: ItemLookup,
    batch: Batch,
    *,
    train: TrainConfig,
    epoch: int,
    candidates: Tensor,
    frequencies: Frequencies | None = None,
    head: CompletionHead | None = None,
) -> tuple[Tensor, int]:
    """Sum of the softmax loss over this rank's targets, and their number.

    model: a SequenceModel, maybe wrapped. candidates: int64, ascending, the songs that negatives are drawn from, as
    `train.negatives_from` says; frequencies: what `popularity` and `in_batch` draw by. head: its loss is added, times
    `train.completion_weight`. A negative that equals the target, or another target of the same state, is masked;
    learning from `first_listens`, where no target is a song heard before, also one that the listener has heard. Without
    targets the sum is a zero that still has a graph through the model and the lookup, so that every rank can take every
    step. The lookup is called exactly once. Nothing waits for a device, unless the lookup does.
    """
    draws = None
    if train.negatives_from != "full":
        draws = draw(batch, train=train, epoch=epoch, count=len(candidates), frequencies=frequencies)
    occurs, at_most = _songs_of_step(batch, candidates, draws, rows=lookup.rows)
    songs, row = _unique_songs(occurs, at_most=None if lookup.host_waits or occurs.device.type == "cpu" else at_most)
    vectors = lookup(songs)
    states = model(F.embedding(row[batch.item_index], vectors), batch, key=DropoutKey(train.seed, epoch))
    table = l2_normalise(vectors)
    of_head = 0 if head is None else train.completion_weight * head.loss(states, table, row, batch)
    if not len(batch.positions):
        return states.sum() * 0 + table.sum() * 0 + of_head, 0

    target_row, states = row[batch.target[batch.positions]], states.index_select(0, batch.states)
    masks = Masks(batch, train=train, target_row=target_row, row=row, width=len(songs))
    if draws is None:
        loss = _full_softmax(states, table, target_row, row[candidates], masks, train.temperature)
    else:
        negative_rows = row[candidates].take(draws)
        masked = masks(negative_rows)
        if train.logq:
            logq = torch.zeros(lookup.rows, dtype=table.dtype, device=table.device)
            logq[candidates] = log_expected_draws(train, frequencies, candidates).to(table.dtype)
            states, table = _with_correction(states, table, logq[songs] * train.temperature)
            negative_rows = negative_rows + len(songs)
        loss = ops.sampled_softmax(states, table, target_row, negative_rows, masked, train.temperature)
    return loss + of_head, len(batch.positions)


def _songs_of_step(batch: Batch, candidates: Tensor, draws: Tensor | None, *, rows: int) -> tuple[Tensor, int]:
    """Which songs a step reads, bool [V], and at most how many. draws: places among candidates; None: all of them."""
    target = batch.target[batch.positions]
    drawn = torch.full((len(candidates),), draws is None, device=target.device)
    if draws is not None:
        drawn.index_fill_(0, draws.flatten(), True)
    occurs = torch.zeros(rows, dtype=torch.bool, device=target.device).index_copy_(0, candidates, drawn)
    occurs.index_fill_(0, batch.item_index, True).index_fill_(0, target, True)
    at_most = len(batch.item_index) + len(target) + (len(candidates) if draws is None else draws.numel())
    if batch.next_item is not None:
        occurs.index_fill_(0, batch.next_item, True)[:1].fill_(False)  # padding is read by nobody
        at_most += len(batch.next_item)
    return occurs, at_most


def _with_correction(states: Tensor, table: Tensor, correction: Tensor) -> tuple[Tensor, Tensor]:
    """States and songs with one more column: products with the rows from U on are less by the correction. [P, D + 1].

    correction: [U]. The table is [2 U, D + 1]: the songs as targets, whose products are as they are, then as negatives.
    """
    as_targets = F.pad(table, (0, 1))
    as_negatives = torch.cat([table, -correction[:, None]], dim=1)
    return F.pad(states, (0, 1), value=1.0), torch.cat([as_targets, as_negatives])


def _full_softmax(
    states: Tensor, table: Tensor, target_row: Tensor, candidate_rows: Tensor, masks: Masks, temperature: float
) -> Tensor:
    """Sum over targets of the softmax loss against all candidates that are not masked.

    states: [P, D]; candidate_rows: int64 [C]. Logits are computed for a few targets at once, and again in the backward
    pass, so that no more than `_LOGITS_AT_ONCE` of them are held.
    """
    songs, targets = table[candidate_rows], table[target_row]

    def loss(start: int, states: Tensor, songs: Tensor, targets: Tensor) -> Tensor:
        chosen = slice(start, start + len(states))
        masked = masks(candidate_rows.expand(len(states), -1), chosen)
        negative = (states @ songs.t() / temperature).masked_fill(masked, -torch.inf)
        positive = (states * targets).sum(1, keepdim=True) / temperature
        return (torch.cat([positive, negative], dim=1).logsumexp(1) - positive[:, 0]).sum()

    step, total = max(1, _LOGITS_AT_ONCE // len(candidate_rows)), states.new_zeros(())
    for start in range(0, len(states), step):
        part = slice(start, start + step)
        total = total + checkpoint(
            loss, start, states[part], songs, targets[part], use_reentrant=False, preserve_rng_state=False
        )
    return total


def _unique_songs(occurs: Tensor, *, at_most: int | None) -> tuple[Tensor, Tensor]:
    """The songs that occur, ascending, int64 [U], and each song's row among them, -1 for none, int64 [V].

    Only the device knows U. at_most: an upper bound of it, to which the songs are padded with song 0, so that the host
    need not wait for U.
    """
    row = occurs.cumsum(0).sub_(1).masked_fill_(~occurs, -1)
    if at_most is None:
        return occurs.nonzero().squeeze(1), row
    places = min(at_most, len(occurs))
    songs = torch.zeros(places + 1, dtype=torch.int64, device=occurs.device)
    songs.scatter_(0, row.masked_fill(~occurs, places), torch.arange(len(occurs), device=occurs.device))
    return songs[:places], row
