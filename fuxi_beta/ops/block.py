"""A block of FuXi-beta, and the last layer's mixer at each last token, put together from operators: the definition.

Shapes: `B` listeners, `T` packed tokens, `D` width, `H` hidden channels, `C` = 2 D channels.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.ops.elapsed import log_elapsed
from fuxi_beta.ops.reference import stretched
from fuxi_beta.ops.token_mixer import Power, PreparedTimes


class BlockWeights(NamedTuple):
    """The matrices of a block, [inputs, outputs] each, in whatever order of memory."""

    project: Tensor  # [D, 3 D]: U in the order [position | time], then V
    merge: Tensor  # [C, D]
    bias: Tensor  # [D], of merge
    gate_and_up: Tensor  # [D, 2 H]
    down: Tensor  # [H, D]


class LastRows(NamedTuple):
    """The mixer's sums at each listener's last token: sum_j by_position[j] V[j], then a sum_j decayed[j] V[j]."""

    value: Tensor  # V [T, D]
    sums: Tensor  # [B, C], zeros for a listener without tokens
    by_position: Tensor  # [T], the last row of B
    decayed: Tensor | None  # [T], that of B^t without its factor a; None: B^t is zero


def compose(
    x: Tensor,
    times: PreparedTimes,
    by_lag: Tensor,
    power: Power | None,
    weights: BlockWeights,
    *,
    operators: Any,
) -> Tensor:
    """The definition of `fuxi_beta.ops.block`. operators: where norm and gate are taken from."""
    mixed = times.token_mixer(operators.rms_norm(x, None) @ weights.project, by_lag, power, None)
    joined = mixed @ weights.merge + weights.bias + x
    inner = operators.swiglu(operators.rms_norm(joined, None) @ weights.gate_and_up)
    return inner @ weights.down + joined


def rows_of_value(value: Tensor, batch: Batch, by_lag: Tensor, power: Power | None) -> LastRows:
    """The definition of `fuxi_beta.ops.last_rows` behind V."""
    tokens = torch.arange(len(value), device=value.device)
    ends = batch.offsets[1:][batch.listener]  # [T]

    def row_times_value(weight: Tensor) -> Tensor:  # [T] -> [B, D]
        return F.embedding_bag(tokens, value, batch.offsets[:-1], mode="sum", per_sample_weights=weight)

    by_position = by_lag[ends - 1 - tokens]
    of_position, decayed = row_times_value(by_position), None
    if power is None:
        of_time = torch.zeros_like(of_position)
    else:
        scale, decay, *exponent = power
        elapsed = log_elapsed(batch.next_timestamp[ends - 1], batch.timestamp, value.dtype)
        decayed = torch.exp(stretched(elapsed, *exponent) * -decay)
        of_time = scale * row_times_value(decayed)
    return LastRows(value, torch.cat([of_position, of_time], dim=-1), by_position, decayed)
