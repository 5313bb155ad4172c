"""The operators as C++ kernels for float32 on the CPU; `build` compiles them. See `fuxi_beta.ops` for what they do."""

from typing import Any

import torch
from torch import Tensor

from fuxi_beta.batches import Batch


class PackedGaps:
    """The times of a batch as they are: the kernels make the rows of the maps where they use them."""

    def __init__(self, batch: Batch) -> None:
        self.longest = int(batch.lengths.max()) if batch.num_listeners else 0
        times = (batch.offsets, batch.timestamp, batch.next_timestamp)
        self.times = tuple(tensor.contiguous() for tensor in times)

    def mix(self, value: Tensor, by_lag: Tensor, scale: Tensor | None, decay: Tensor | None) -> Tensor:
        """See `fuxi_beta.ops.Gaps.mix`."""
        return _Mix.apply(value, by_lag, scale, decay, *self.times)  # type: ignore[return-value]


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, by_lag: Tensor, scale: Tensor | None, decay: Tensor | None, *times: Tensor
    ) -> Tensor:
        value, by_lag = value.contiguous(), by_lag.contiguous()
        ctx.save_for_backward(value, by_lag, *times)
        ctx.curve = (False, 0.0, 0.0) if scale is None or decay is None else (True, scale.item(), decay.item())
        return torch.ops.fuxi_beta.mix_forward(value, *times, by_lag, *ctx.curve)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, by_lag, *times = ctx.saved_tensors
        of_value, of_by_lag, of_scale, of_decay = torch.ops.fuxi_beta.mix_backward(
            gradients[0].contiguous(), value, *times, by_lag, *ctx.curve
        )
        of_curve = (value.new_tensor(of_scale), value.new_tensor(of_decay)) if ctx.curve[0] else (None, None)
        return of_value, of_by_lag, *of_curve, None, None, None


def sampled_softmax(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """See `fuxi_beta.ops.sampled_softmax`."""
    return _SampledSoftmax.apply(states, table, target, negatives, masked, temperature)  # type: ignore[return-value]


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, *drawn: Any) -> Tensor:
        *rows, temperature = drawn
        loss, *gradients = torch.ops.fuxi_beta.sampled_softmax(
            states.contiguous(), table.contiguous(), *(tensor.contiguous() for tensor in rows), temperature
        )
        ctx.save_for_backward(*gradients)
        return states.new_tensor(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_table = ctx.saved_tensors
        return of_states * gradients[0], of_table * gradients[0], None, None, None, None


def dropout(x: Tensor, keys: Tensor, rate: float) -> Tensor:
    """See `fuxi_beta.keyed.dropout`."""
    return _Dropout.apply(x, keys.contiguous(), rate)  # type: ignore[return-value]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor, rate: float) -> Tensor:
        ctx.keys, ctx.rate = keys, rate
        return torch.ops.fuxi_beta.dropout(x.contiguous(), keys, rate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # The mask is a function of the keys: cheaper made again than kept.
        return torch.ops.fuxi_beta.dropout(gradients[0].contiguous(), ctx.keys, ctx.rate), None, None


def integers(keys: Tensor, count: int, below: int) -> Tensor:
    """See `fuxi_beta.keyed.integers`."""
    return torch.ops.fuxi_beta.draw(keys.contiguous(), count, below)
