"""The sampled softmax in Triton: loss and gradient of the states in one pass, the table's gradient in another.

Forward, one program a position: rows are gathered tile by tile, and an online softmax keeps the weighted sum of rows
with the normaliser, so one pass gives the loss and the gradient of the state. Backward, one program a row of the table:
the pairs of row and position are sorted, so the positions of a program are contiguous; it sums their states in that
order and writes its row once. No atomics, so with fixed tiles (`tuning`) equal inputs give equal bits.

Only the sorted integers have the size of all pairs: the weight of a pair is computed again from the state and the row,
which its program holds anyway. To keep the weights would cost 4 bytes written, a sector of 32 bytes read (the sorted
order scatters the reads) and the memory; to compute them costs D multiplications.

Shapes: `P` positions with a target, `K` negatives each, `U` unique songs of the batch, `D` width.
"""

from collections.abc import Hashable
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxi_beta.ops.triton import tuning
from fuxi_beta.ops.triton.launch import kernel, on_device

# Floats of gathered rows in a program, which holds as many of their sum: 16, 32 or 8 registers each with four warps.
_TILES = (2048, 4096, 1024)


def sampled_softmax(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """See `fuxi_beta.ops.sampled_softmax`. Operands in fp32, bf16 or fp16; all sums and the result in fp32."""
    return _SampledSoftmax.apply(  # type: ignore[return-value]
        *(tensor.contiguous() for tensor in (states, table, target, negatives, masked)), 1.0 / temperature
    )


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(
        ctx: Any, states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, inverse: float
    ) -> Tensor:
        losses, log_norm, missed = torch.empty(3, len(states), dtype=torch.float32, device=states.device)
        of_states = torch.empty_like(states)

        def call(tile: int) -> None:
            block_rows, block_dim = _blocks(states.shape[1], tile)
            _losses_and_states[(len(states),)](
                states, table, target, negatives, masked.view(torch.uint8), losses, log_norm, missed, of_states,
                inverse, K=negatives.shape[1], DIM=states.shape[1], BLOCK_K=block_rows, BLOCK_D=block_dim,
            )  # fmt: skip

        if len(states):
            tuning.run(("softmax", *_key(states, table, negatives)), _TILES, call)
        ctx.inverse = inverse
        ctx.save_for_backward(states, table, target, negatives, masked, log_norm, missed, of_states)
        return losses.sum()

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *_, of_states = ctx.saved_tensors
        of_table = _of_table(ctx, gradients[0]) if ctx.needs_input_grad[1] else None
        return of_states * gradients[0], of_table, None, None, None, None


def _of_table(ctx: Any, gradient: Tensor) -> Tensor:
    states, table, target, negatives, masked, log_norm, missed, _ = ctx.saved_tensors
    of_table = torch.empty_like(table)
    order, starts = _pairs_by_row(target, negatives, masked, len(table))

    def call(tile: int) -> None:
        block_pairs, block_dim = _blocks(states.shape[1], tile)
        _sums_by_row[(len(table),)](
            states, table, order, starts, log_norm, missed, gradient, of_table, ctx.inverse,
            PER_POSITION=1 + negatives.shape[1], DIM=states.shape[1], BLOCK_PAIRS=block_pairs, BLOCK_D=block_dim,
        )  # fmt: skip

    if len(table):
        tuning.run(("sums by row", *_key(states, table, negatives)), _TILES, call)
    return of_table


def _key(states: Tensor, table: Tensor, negatives: Tensor) -> tuple[Hashable, ...]:
    """Key of the tuning: all that the fastest tiles depend on."""
    return states.device.index, states.shape[1], states.dtype, table.dtype, negatives.shape[1]


def _blocks(dim: int, tile: int) -> tuple[int, int]:
    """Rows of a tile and its width, both powers of two."""
    block_dim = max(tuning.power_of_two(dim), 16)
    return min(max(tile // block_dim, 2), 64), block_dim


def _pairs_by_row(target: Tensor, negatives: Tensor, masked: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Pairs sorted by row, then position: int64 [P (1 + K)], position * (1 + K) + draw, the target first; and the
    start of each row's pairs: int64 [U + 1]. Masked pairs come after those of the last row."""
    row = torch.cat([target[:, None], negatives.masked_fill(masked, rows)], dim=1).to(torch.int32)
    ordered, order = row.flatten().sort(stable=True)
    every_row = torch.arange(rows + 1, dtype=torch.int32, device=row.device)
    return order, torch.searchsorted(ordered, every_row)


@kernel
def _losses_and_states(states, table, target, negatives, masked, losses, log_norms, missed, of_states, inverse,
                       K: tl.constexpr, DIM: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Loss, log of the normaliser, 1 - p(target) and d loss / d state of one position."""
    position = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    state = tl.load(states + position * DIM + d, mask=inside, other=0.0).to(tl.float32)
    own = tl.load(table + tl.load(target + position) * DIM + d, mask=inside, other=0.0).to(tl.float32)
    positive = tl.sum(state * own, axis=0) * inverse

    # Each row of a tile keeps a separate softmax, so that the loop never waits for other warps.
    highest = tl.zeros([BLOCK_K], tl.float32) + positive
    total = tl.zeros([BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for start in range(0, K, BLOCK_K):
        draw = start + tl.arange(0, BLOCK_K)
        counts = tl.load(masked + position * K + draw, mask=draw < K, other=1) == 0
        row = tl.load(negatives + position * K + draw, mask=counts, other=0)
        at = table + row[:, None] * DIM + d[None, :]
        rows = tl.load(at, mask=counts[:, None] & inside[None, :], other=0.0).to(tl.float32)
        logits = tl.where(counts, tl.sum(rows * state[None, :], axis=1) * inverse, float("-inf"))
        higher = tl.maximum(highest, logits)
        shrink = tl.exp(highest - higher)
        weight = tl.exp(logits - higher)
        total = total * shrink + weight
        sums = sums * shrink[:, None] + weight[:, None] * rows
        highest = higher

    top = tl.max(highest, axis=0)
    scale = tl.exp(highest - top)
    others = tl.sum(total * scale, axis=0)
    norm = others + tl.exp(positive - top)
    tl.store(losses + position, tl.log(norm) + (top - positive))
    tl.store(log_norms + position, tl.log(norm) + top)
    miss = others / norm  # the target's weight is p - 1, which this is without cancellation
    tl.store(missed + position, miss)
    gradient = (tl.sum(sums * scale[:, None], axis=0) / norm - miss * own) * inverse
    tl.store(of_states + position * DIM + d, gradient.to(of_states.dtype.element_ty), mask=inside)


@kernel
def _sums_by_row(states, table, order, starts, log_norms, missed, upstream, of_table, inverse,
                 PER_POSITION: tl.constexpr, DIM: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
                 BLOCK_D: tl.constexpr):  # fmt: skip
    """One row's gradient: the weighted sum of the states paired with it, or zeros."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    vector = tl.load(table + row * DIM + d, mask=inside, other=0.0).to(tl.float32)
    last = tl.load(starts + row + 1)
    sums = tl.zeros([BLOCK_PAIRS, BLOCK_D], tl.float32)
    for first in range(tl.load(starts + row), last, BLOCK_PAIRS):
        place = first + tl.arange(0, BLOCK_PAIRS)
        has_pair = place < last
        pair = tl.load(order + place, mask=has_pair, other=0)
        position = pair // PER_POSITION
        at = states + position[:, None] * DIM + d[None, :]
        state = tl.load(at, mask=has_pair[:, None] & inside[None, :], other=0.0).to(tl.float32)
        logit = tl.sum(state * vector[None, :], axis=1) * inverse
        weight = tl.exp(logit - tl.load(log_norms + position, mask=has_pair, other=0.0))
        weight = tl.where(pair % PER_POSITION == 0, -tl.load(missed + position, mask=has_pair, other=0.0), weight)
        sums += weight[:, None] * state
    gradient = tl.sum(sums, axis=0) * (tl.load(upstream) * inverse)
    tl.store(of_table + row * DIM + d, gradient.to(of_table.dtype.element_ty), mask=inside)
