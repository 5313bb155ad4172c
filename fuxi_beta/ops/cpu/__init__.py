"""The operators as C++ kernels for float32 on the CPU; `build` compiles them. See `fuxi_beta.ops` for what they do."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.contributions import Term
from fuxi_beta.ops.token_mixer import Power


class PackedTimes:
    """The times of a batch as they are: the kernels compute the rows of the maps where they use them."""

    def __init__(self, batch: Batch) -> None:
        self.longest = batch.longest
        times = (batch.offsets, batch.timestamp, batch.next_timestamp)
        self.times = tuple(tensor.contiguous() for tensor in times)

    def token_mixer(self, projected: Tensor, by_lag: Tensor, power: Power | None, mask: Mask | None) -> Tensor:
        """See `fuxi_beta.ops.token_mixer`."""
        return _TokenMixer.apply(projected, by_lag, mask, *self.times, *(power or ()))  # type: ignore[return-value]

    def apply_maps(self, value: Tensor, by_lag: Tensor, power: Power | None) -> Tensor:
        """See `fuxi_beta.ops.apply_maps`."""
        return _ApplyMaps.apply(value, by_lag, *self.times, *(power or ()))  # type: ignore[return-value]

    def block(self, x: Tensor, by_lag: Tensor, power: Power | None, weights: Sequence[Tensor]) -> Tensor:
        """See `fuxi_beta.ops.block`."""
        maps = (by_lag.detach().contiguous(), *_power_arguments(power or ()))
        matrices = (weight.detach() for weight in weights)
        return torch.ops.fuxi_beta.block(x.detach().contiguous(), *self.times, *maps, *matrices)

    def last_rows(
        self, normed: Tensor, by_lag: Tensor, power: Power | None, project: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """See `fuxi_beta.ops.last_rows`."""
        maps = (by_lag.detach().contiguous(), *_power_arguments(power or ()))
        *found, decayed = torch.ops.fuxi_beta.last_rows(normed.contiguous(), *self.times, *maps, project.detach())
        return *found, decayed if power else None


def _power_arguments(power: Sequence[Tensor]) -> tuple[bool, float, float, float]:
    """Whether there is a temporal map, and its a, b and c; c is 0 where there is none."""
    numbers = [number.item() for number in power]
    scale, decay, exponent = numbers + [0.0] * (3 - len(numbers))
    return bool(numbers), scale, decay, exponent


class _ApplyMaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, by_lag: Tensor, *rest: Tensor) -> Tensor:
        times, power = rest[:3], rest[3:]
        value, by_lag = value.contiguous(), by_lag.contiguous()
        ctx.power = _power_arguments(power)
        ctx.count = len(power)
        ctx.save_for_backward(value, *times, by_lag)
        return torch.ops.fuxi_beta.apply_maps(value, *times, by_lag, *ctx.power)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_value, of_by_lag, *of_power = torch.ops.fuxi_beta.apply_maps_backward(
            gradients[0].contiguous(), *ctx.saved_tensors, *ctx.power
        )
        return of_value, of_by_lag, None, None, None, *map(of_by_lag.new_tensor, of_power[: ctx.count])


class _TokenMixer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, by_lag: Tensor, mask: Mask | None, *rest: Tensor) -> Tensor:
        times, power = rest[:3], rest[3:]
        projected, by_lag = projected.contiguous(), by_lag.contiguous()
        ctx.settings = (*_power_arguments(power), *_mask(mask))
        ctx.count = len(power)
        out, value, mixed = torch.ops.fuxi_beta.token_mixer(projected, *times, by_lag, *ctx.settings)
        ctx.save_for_backward(projected, value, mixed, *times, by_lag)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_projected, of_by_lag, *of_power = torch.ops.fuxi_beta.token_mixer_backward(
            gradients[0].contiguous(), *ctx.saved_tensors, *ctx.settings
        )
        return of_projected, of_by_lag, None, None, None, None, *map(of_by_lag.new_tensor, of_power[: ctx.count])


def periodic(projected: Tensor, rate: Tensor, waves: Sequence[Tensor], mask: Mask | None) -> Tensor:
    """See `fuxi_beta.ops.periodic`. waves: offsets, then phases [T, K, 4], gaps [T, 2] and bounds as in kernels.h."""
    return _Periodic.apply(projected, rate, mask, *waves)  # type: ignore[return-value]


class _Periodic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, rate: Tensor, mask: Mask | None, offsets: Tensor, *rest: Tensor) -> Tensor:
        projected, ctx.mask = projected.contiguous(), _mask(mask)
        where = tuple(tensor.contiguous() for tensor in (offsets, rate, *rest))
        out, mixed = torch.ops.fuxi_beta.periodic(projected, *where, *ctx.mask)
        ctx.save_for_backward(projected, mixed, *where)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_inputs = torch.ops.fuxi_beta.periodic_backward(gradients[0].contiguous(), *ctx.saved_tensors, *ctx.mask)
        return *of_inputs, None, None, None, None, None


def retention(projected: Tensor, decay: Tensor, batch: Batch, mask: Mask | None) -> Tensor:
    """See `fuxi_beta.ops.retention`."""
    return _Retention.apply(projected, decay, mask, batch.offsets)  # type: ignore[return-value]


class _Retention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, decay: Tensor, mask: Mask | None, offsets: Tensor) -> Tensor:
        projected, where, ctx.mask = projected.contiguous(), (offsets.contiguous(), decay.contiguous()), _mask(mask)
        out, retained = torch.ops.fuxi_beta.retention(projected, *where, *ctx.mask)
        ctx.save_for_backward(projected, retained, *where)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_inputs = torch.ops.fuxi_beta.retention_backward(gradients[0].contiguous(), *ctx.saved_tensors, *ctx.mask)
        return *of_inputs, None, None


def _mask(mask: Mask | None) -> tuple[Tensor | None, float]:
    return (None, 0.0) if mask is None else (mask.keys.contiguous(), mask.rate)


def rms_norm(x: Tensor, mask: Mask | None, dtype: torch.dtype | None = None) -> Tensor:
    """See `fuxi_beta.ops.rms_norm`."""
    return _RmsNorm.apply(x, mask).to(dtype or x.dtype)  # type: ignore[union-attr]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Mask | None) -> Tensor:
        x, ctx.mask = x.contiguous(), _mask(mask)
        ctx.save_for_backward(x)
        return torch.ops.fuxi_beta.rms_norm(x, *ctx.mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # The mask is a function of its keys: cheaper computed again than kept.
        return torch.ops.fuxi_beta.rms_norm_backward(gradients[0].contiguous(), *ctx.saved_tensors, *ctx.mask), None


def swiglu(x: Tensor) -> Tensor:
    """See `fuxi_beta.ops.swiglu`."""
    return _SwiGLU.apply(x)  # type: ignore[return-value]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.contiguous())
        return torch.ops.fuxi_beta.swiglu(x.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.ops.fuxi_beta.swiglu_backward(gradients[0].contiguous(), *ctx.saved_tensors)


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


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """See `fuxi_beta.data.stateless_random.dropout`."""
    return _Dropout.apply(x, mask)  # type: ignore[return-value]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Mask) -> Tensor:
        ctx.mask = _mask(mask)
        return torch.ops.fuxi_beta.dropout(x.contiguous(), *ctx.mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.fuxi_beta.dropout(gradients[0].contiguous(), *ctx.mask), None


def integers(keys: Tensor, count: int, below: int) -> Tensor:
    """See `fuxi_beta.data.stateless_random.integers`."""
    return torch.ops.fuxi_beta.integers(keys.contiguous(), count, below)


def strongest_plays(
    terms: Sequence[Term], offsets: Tensor, item_index: Tensor, rows: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """See `fuxi_beta.ops.strongest_plays`."""
    vectors = [term.vector.detach().contiguous() for term in terms]
    towards = [term.towards.detach().contiguous() for term in terms]
    ones = vectors[0].new_empty(0)
    factors = [ones if term.factor is None else term.factor.detach().contiguous() for term in terms]
    where = (tensor.contiguous() for tensor in (offsets, item_index, rows))
    return torch.ops.fuxi_beta.strongest_plays(vectors, factors, towards, *where, count)


def top_k_of_scores(
    scores: Tensor, *, candidates: Tensor, k: int, seen: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """See `fuxi_beta.ops.top_k_of_scores`. k: at least 1."""
    scores = scores.detach()
    rows = scores if scores.stride(1) == 1 or not scores.numel() else scores.contiguous()
    return torch.ops.fuxi_beta.top_k_of_scores(rows, candidates.contiguous(), *seen_pairs(seen), k)


def seen_pairs(seen: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Seen pairs as the kernels take them."""
    if seen is None:
        nothing = torch.zeros(0, dtype=torch.int64)
        return nothing, nothing
    return seen[0].contiguous(), seen[1].contiguous()
