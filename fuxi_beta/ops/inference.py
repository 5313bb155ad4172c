"""A block of FuXi-beta at inference as operators: the whole block, and the last layer's mixer at each last token.

Without dropout and gradients nothing between a block's input and its output is wanted, so `cpu/block.cpp` keeps it in
the cache; everywhere else, and where gradients are recorded, the block is put together from its operators (`block`).

Shapes: `B` listeners, `T` packed tokens, `D` width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.ops import cpu, tokenwise
from fuxi_beta.ops.block import BlockWeights, LastRows, compose, rows_of_value
from fuxi_beta.ops.dispatch import kernels_for
from fuxi_beta.ops.token_mixer import Power, PreparedTimes


def block(x: Tensor, times: PreparedTimes, by_lag: Tensor, power: Power | None, weights: BlockWeights) -> Tensor:
    """y = MFFN(AFTM(RMSNorm(x)), x) without dropout. [T, D] -> [T, D].

    times, by_lag, power: as of `fuxi_beta.ops.token_mixer`. o = mixer's output times `merge` + bias + x, and y is
    (SiLU(left) * right of RMSNorm(o) times `gate_and_up`) times `down` + o.
    """
    if isinstance(times, cpu.PackedTimes) and _takes_cpu(x, by_lag, *weights):
        return times.block(x, by_lag, power, weights)
    return compose(x, times, by_lag, power, weights, operators=tokenwise)


def last_rows(normed: Tensor, project: Tensor, batch: Batch, by_lag: Tensor, power: Power | None) -> LastRows:
    """The last row of both maps of `fuxi_beta.ops.token_mixer` times V = SiLU(normed times project).

    normed: [T, D]; project: [D, D]; by_lag: at least `batch.longest` weights.
    """
    if _takes_cpu(normed, project, by_lag):
        return LastRows(*cpu.PackedTimes(batch).last_rows(normed, by_lag, power, project))
    return rows_of_value(F.silu(normed @ project), batch, by_lag, power)


def _takes_cpu(*tensors: Tensor) -> bool:
    return not torch.is_grad_enabled() and kernels_for(*tensors) is cpu
