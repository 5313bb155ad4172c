"""The periodic channel in Triton, forward and backward, in time linear in the length: `fuxi_beta.ops.periodic`.

A program walks over the channels of one period and kind, sine or cosine, of one listener in chunks of tokens. Inside of
a chunk the map is square; e^(-r x) is exact in x, and sine and cosine of a difference of phases split into products of
one of each time, so a pair takes one exponential. Two numbers a channel stand for all chunks before, as of the key time
of the last token (forwards) or of the first one (backwards). So times must be in order.

| scan      | sums over | what                               | out                                                 |
| --------- | --------- | ---------------------------------- | --------------------------------------------------- |
| `OUTPUT`  | m up to n | A(t_{n+1} - t_m) v_m               | Y                                                   |
| `OF_RATE` | m up to n | x A(x) v_m, times the gradient of n| a number a program: the gradient of the rate        |
| `OF_VALUE`| n from m  | A(t_{n+1} - t_m) dy_n              | the gradient of v                                   |

The maps are bf16 for bf16 values as operands of products; states, sums and exponents are float32. No sum uses atomics.

Shapes: `T` packed tokens, `D` width, `K` periods, `B` listeners, `M` tokens of a chunk, `W` channels of a program.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.damped_waves import phases_of
from fuxi_beta.ops.triton import tuning
from fuxi_beta.ops.triton.content import load_rows
from fuxi_beta.ops.triton.gate import gate, ungate
from fuxi_beta.ops.triton.launch import device_function, kernel, on_device
from fuxi_beta.ops.triton.tokenwise import exp2, operands, silu_slope, split_time
from fuxi_beta.ops.triton.tuning import Chunks, ceil_div, power_of_two

OUTPUT, OF_RATE, OF_VALUE = range(3)
_OF_RATE, _OF_VALUE = tl.constexpr(OF_RATE), tl.constexpr(OF_VALUE)
_LOG2_E = tl.constexpr(math.log2(math.e))


@device_function
def _seconds(high, low, from_high, from_low, SIGN: tl.constexpr):
    """SIGN times the difference of two split times that broadcast, at least 0."""
    return tl.maximum(SIGN * ((high - from_high) + (low - from_low)), 0.0)


@device_function
def _to_and_of(timestamp, next_timestamp, phases, row, has_row, stride, sine, FALLING: tl.constexpr):
    """Times, split, and factors of the phases of tokens: as rows that a sum is for, then as rows that it is of.

    A(x) = e^(-r x) (q cos(p) + s sin(p)), p the phase of the key time and q, s the factors of the query time: its
    cosine and sine, or for a sine wave its sine and minus its cosine. Sums are for queries, FALLING ones for keys.
    """
    query_high, query_low = split_time(tl.load(next_timestamp + row, mask=has_row, other=0))
    key_high, key_low = split_time(tl.load(timestamp + row, mask=has_row, other=0))
    phase = phases + row * stride
    key_cosine, key_sine = tl.load(phase, mask=has_row, other=0.0), tl.load(phase + 1, mask=has_row, other=0.0)
    query_cosine = tl.load(phase + 2 + sine, mask=has_row, other=0.0)
    query_sine = tl.load(phase + 3 - sine, mask=has_row, other=0.0) * (1 - 2 * sine)
    if FALLING:
        return key_high, key_low, key_cosine, key_sine, query_high, query_low, query_cosine, query_sine
    return query_high, query_low, query_cosine, query_sine, key_high, key_low, key_cosine, key_sine


@kernel
def _waves_kernel(source, other, out, falls, timestamp, next_timestamp, phases, rate, offsets, source_stride,
                  other_stride, out_stride, dim, periods, SCAN: tl.constexpr, SIGN: tl.constexpr, RAW: tl.constexpr,
                  TOKENS: tl.constexpr, WIDTH: tl.constexpr, OPERAND: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """One of the scans, of a group of channels of a listener. Values are before their SiLU if RAW.

    source: what is summed, v or in `OF_VALUE` dy. other: dy or in `OF_VALUE` v. phases: [T, K, 4]. SIGN: 1, or -1 for a
    scan from the last token to the first. falls: float32 [B, 2 K, tiles], sums for the gradient of the rates.
    """
    listener, group, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(offsets + listener)
    length = (tl.load(offsets + listener + 1) - start).to(tl.int32)
    last = tl.cdiv(length, TOKENS) * TOKENS - TOKENS
    sine = (group < periods).to(tl.int32)
    phases += (start * periods + group % periods) * 4
    speed = -tl.load(rate + group % periods).to(tl.float32) * _LOG2_E
    stop = (group + 1) * dim // (2 * periods)
    channel = group * dim // (2 * periods) + tile * WIDTH + tl.arange(0, WIDTH)
    step = tl.arange(0, TOKENS)
    nothing = tl.zeros([WIDTH], tl.float32)
    cosines, sines, falling_cosines, falling_sines = nothing, nothing, nothing, nothing  # the state, - d state / dr
    total = tl.zeros([TOKENS], tl.float32)
    # The state is as of the time of one token, to begin with the first in the order of the scan.
    seen = timestamp + start + (0 if SIGN > 0 else length - 1)
    seen_high, seen_low = split_time(tl.load(seen, mask=length > 0, other=0))
    for ahead in range(0, length, TOKENS):
        first = ahead if SIGN > 0 else last - ahead
        row = first + step
        inside = (row < length)[:, None] & (channel < stop)[None, :]
        high, low, cosine, sine_, of_high, of_low, of_cosine, of_sine = _to_and_of(
            timestamp + start, next_timestamp + start, phases, row, row < length, periods * 4, sine, SIGN < 0
        )
        edge = tl.minimum(first + TOKENS, length) - 1 if SIGN > 0 else first
        edge_high, edge_low = split_time(tl.load(timestamp + start + edge))
        elapsed = _seconds(high[:, None], low[:, None], of_high[None, :], of_low[None, :], SIGN)
        wave = cosine[:, None] * of_cosine[None, :] + sine_[:, None] * of_sine[None, :]
        weight = tl.where(SIGN * (step[:, None] - step[None, :]) >= 0, exp2(speed * elapsed) * wave, 0.0)
        since, until = (
            _seconds(high, low, seen_high, seen_low, SIGN),
            _seconds(edge_high, edge_low, of_high, of_low, SIGN),
        )
        across = _seconds(edge_high, edge_low, seen_high, seen_low, SIGN)
        left, kept, passed = exp2(speed * since), exp2(speed * until), exp2(speed * across)
        cosine, sine_ = (left * cosine)[:, None], (left * sine_)[:, None]
        rows = load_rows(source + start * source_stride, source_stride, row, channel, inside, RAW and SCAN != _OF_VALUE)
        to_cosines, to_sines = (kept * of_cosine)[:, None] * rows, (kept * of_sine)[:, None] * rows
        result = cosine * cosines[None, :] + sine_ * sines[None, :]
        if SCAN == _OF_RATE:
            result *= since[:, None]
            result += cosine * falling_cosines[None, :] + sine_ * falling_sines[None, :]
            result += tl.dot((weight * elapsed).to(OPERAND), rows.to(OPERAND), input_precision=PRECISION)
            total += tl.sum(
                result * load_rows(other + start * other_stride, other_stride, row, channel, inside, False), 1
            )
            falling_cosines = (falling_cosines + cosines * across) * passed + tl.sum(to_cosines * until[:, None], 0)
            falling_sines = (falling_sines + sines * across) * passed + tl.sum(to_sines * until[:, None], 0)
        else:
            result += tl.dot(weight.to(OPERAND), rows.to(OPERAND), input_precision=PRECISION)
            if RAW and SCAN == _OF_VALUE:
                result *= silu_slope(load_rows(other + start * other_stride, other_stride, row, channel, inside, False))
            at = out + start * out_stride + row[:, None] * out_stride + channel[None, :]
            tl.store(at, result.to(out.dtype.element_ty), mask=inside)
        cosines, sines = cosines * passed + tl.sum(to_cosines, 0), sines * passed + tl.sum(to_sines, 0)
        seen_high, seen_low = edge_high, edge_low
    if SCAN == _OF_RATE:
        program = (listener * tl.num_programs(1) + group) * tl.num_programs(2) + tile
        tl.store(falls + program, -tl.sum(total, 0))


def periodic(projected: Tensor, rate: Tensor, periods: Sequence[int], batch: Batch, mask: Mask | None) -> Tensor:
    """See `fuxi_beta.ops.periodic`. Times must be in order."""
    differentiated = torch.is_grad_enabled() and (projected.requires_grad or rate.requires_grad)
    where = _where(batch, periods)
    return _Periodic.apply(projected, rate, mask, differentiated, *where)  # type: ignore[return-value]


def waves(value: Tensor, rate: Tensor, periods: Sequence[int], batch: Batch) -> Tensor:
    """See `fuxi_beta.ops.waves`. Times must be in order."""
    return _Waves.apply(value, rate, *_where(batch, periods))  # type: ignore[return-value]


class _Periodic(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, projected: Tensor, rate: Tensor, *rest: Any) -> Tensor:
        ctx.mask, differentiated, *where = rest
        projected, rate, dim = projected.contiguous(), rate.contiguous(), projected.shape[1] // 2
        mixed, out = projected.new_empty(len(projected), dim), projected.new_empty(len(projected), dim)
        _scan(OUTPUT, projected[:, dim:], mixed, mixed, rate, where, raw=True)
        inverse_rms = projected.new_empty(len(projected) if differentiated else 0, dtype=torch.float32)
        gate(mixed, projected, ctx.mask, out, inverse_rms)
        ctx.save_for_backward(projected, mixed, inverse_rms, rate, *where)
        return out

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        projected, normed, inverse_rms, rate, *where = ctx.saved_tensors
        dim, of_projected = projected.shape[1] // 2, torch.empty_like(projected)
        of_mixed = ungate(gradients[0], projected, normed, inverse_rms, ctx.mask, of_projected)
        of_rate = _backward(of_mixed, projected[:, dim:], of_projected[:, dim:], rate, where, raw=True)
        return of_projected, of_rate, *[None] * 6


class _Waves(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, value: Tensor, rate: Tensor, *where: Tensor) -> Tensor:
        value, rate = value.contiguous(), rate.contiguous()
        ctx.save_for_backward(value, rate, *where)
        out = torch.empty_like(value)
        _scan(OUTPUT, value, out, out, rate, where, raw=False)
        return out

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, rate, *where = ctx.saved_tensors
        of_value = torch.empty_like(value)
        return of_value, _backward(gradients[0].contiguous(), value, of_value, rate, where, raw=False), *[None] * 4


def _where(batch: Batch, periods: Sequence[int]) -> tuple[Tensor, ...]:
    """Both times [T], phases float32 [T, K, 4] and offsets, as the kernel takes them."""
    times = batch.timestamp.contiguous(), batch.next_timestamp.contiguous()
    return *times, phases_of(batch, periods).float(), batch.offsets.contiguous()


def _backward(
    gradient: Tensor, value: Tensor, of_value: Tensor, rate: Tensor, where: Sequence[Tensor], *, raw: bool
) -> Tensor:
    """The gradient of the rates from that of Y; that of v goes into of_value. [K]."""
    falls = _scan(OF_RATE, value, gradient, of_value, rate, where, raw=raw)
    _scan(OF_VALUE, gradient, value, of_value, rate, where, raw=raw)
    return falls.sum((0, 2), dtype=torch.float64).view(2, -1).sum(0).to(rate.dtype)


def _scan(
    scan: int, source: Tensor, other: Tensor, out: Tensor, rate: Tensor, where: Sequence[Tensor], *, raw: bool
) -> Tensor:
    """One of the scans into out. Returns the sums for the gradient of the rates, [B, 2 K, tiles]."""
    offsets, periods, dim = where[-1], len(rate), out.shape[1]
    listeners, widest = len(offsets) - 1, ceil_div(dim, 2 * periods)
    if not out.numel():
        return rate.new_zeros(listeners, 2 * periods, 1)

    def call(choice: Chunks) -> Tensor:
        tiles = ceil_div(widest, choice.width)
        falls = out.new_empty(listeners, 2 * periods, tiles, dtype=torch.float32)
        _waves_kernel[(listeners, 2 * periods, tiles)](
            source, other, out, falls, *where[:-1], rate, offsets, source.stride(0), other.stride(0), out.stride(0),
            dim, periods, SCAN=scan, SIGN=-1 if scan == OF_VALUE else 1, RAW=raw, TOKENS=choice.tokens,
            WIDTH=choice.width, **operands(out.dtype), **choice.launch,
        )  # fmt: skip
        return falls

    key = ("waves", scan, out.device.index, out.dtype, widest, raw)
    return tuning.run(key, _choices(out.dtype, widest), call)


def _choices(dtype: torch.dtype, widest: int) -> list[Chunks]:
    """Choices for `_waves_kernel`, the likeliest first. widest: channels of the largest group."""
    width = min(max(16, power_of_two(widest)), 64)
    if tuning.INTERPRETED:
        return [Chunks(16, min(width, 32), 4, 1)]
    if dtype == torch.bfloat16:
        return [Chunks(32, width, 8, 1), Chunks(64, width, 8, 1), Chunks(32, width, 4, 1)]
    return [Chunks(32, width, 8, 1), Chunks(16, width, 4, 1)]
