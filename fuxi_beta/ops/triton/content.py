"""Retention in Triton, forward and backward, in time linear in the length of a history: `fuxi_beta.ops.retention`.

Output and gradients are four scans of one form, as in `cpu/retention.cpp`. A program walks over one head of one
listener in chunks of tokens; inside of a chunk the map is square, and a state [d, d] stands for all chunks before:

    out_n = sum over m of e^(-g (|n - m| + 1)) (by_n . source_m) into_m

|          | m        | by | source | into |
| -------- | -------- | -- | ------ | ---- |
| y_n      | up to n  | q  | k      | v    |
| of q_n   | up to n  | dy | v      | k    |
| of k_n   | from n   | v  | dy     | q    |
| of v_n   | from n   | k  | q      | dy   |

A falling scan, from n on, is a rising one with the places of a chunk reversed. The scan of q also keeps how fast its
state falls with g, which gives the gradient of g. The exponents of a chunk are never positive, whatever g. The states
stay in registers, in float32; a head wider than a program's tile of `into` is cut into several, each with its own.
Nothing is stored but results, and no sum uses atomics.

Shapes: `T` packed tokens, `D` width in `H` heads of width `d`, `B` listeners, `M` tokens of a chunk, `W` channels.
"""

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.triton import tuning
from fuxi_beta.ops.triton.gate import gate, ungate
from fuxi_beta.ops.triton.launch import device_function, kernel, on_device
from fuxi_beta.ops.triton.tokenwise import exp2, operands, silu, silu_slope
from fuxi_beta.ops.triton.tuning import Chunks, ceil_div, power_of_two

OUTPUT, OF_QUERY, OF_KEY, OF_VALUE = range(4)
_OF_QUERY, _OF_KEY, _OF_VALUE = tl.constexpr(OF_QUERY), tl.constexpr(OF_KEY), tl.constexpr(OF_VALUE)
_LOG2_E = tl.constexpr(math.log2(math.e))


@device_function
def load_rows(rows, stride, row, channel, inside, RAW: tl.constexpr):
    """Rows of a matrix in float32; SiLU of them if they are RAW. [M, W]."""
    values = tl.load(rows + row[:, None] * stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if RAW:
        values = silu(values)
    return values


@kernel
def _scan_kernel(by, source, into, own, out, falls, offsets, decay, by_stride, source_stride, into_stride, own_stride,
                 out_stride, size, SCAN: tl.constexpr, RAW: tl.constexpr, TOKENS: tl.constexpr, STATE: tl.constexpr,
                 WIDTH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One of the scans, SCAN, of a head of a listener. Queries, keys and values are before their SiLU if RAW.

    own: what a gradient is of, in the columns of out. falls: float32 [B, H, tiles], sums for the gradient of g.
    """
    listener, head, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(offsets + listener)
    length = (tl.load(offsets + listener + 1) - start).to(tl.int32)
    speed = -tl.load(decay + head).to(tl.float32) * _LOG2_E
    first = head * size
    by += start * by_stride + first
    source += start * source_stride + first
    into += start * into_stride + first
    own += start * own_stride + first
    step = tl.arange(0, TOKENS)
    place = step if SCAN < _OF_KEY else TOKENS - 1 - step  # in the order of the scan
    lag = place[:, None] - place[None, :]
    within = tl.where(lag >= 0, exp2(speed * (tl.maximum(lag, 0) + 1).to(tl.float32)), 0.0)
    since = exp2(speed * (place + 2).to(tl.float32))[:, None]  # from the last token of the chunk before
    until = exp2(speed * (TOKENS - 1 - place).to(tl.float32))[:, None]  # to the last token of its own
    across = exp2(speed * TOKENS)
    deep, channel = tl.arange(0, STATE), tile * WIDTH + tl.arange(0, WIDTH)
    state, falling = tl.zeros([STATE, WIDTH], tl.float32), tl.zeros([STATE, WIDTH], tl.float32)  # and - d state / dg
    total = tl.zeros([TOKENS], tl.float32)
    chunks = tl.cdiv(length, TOKENS)
    for number in range(0, chunks):
        chunk = number if SCAN < _OF_KEY else chunks - 1 - number
        row = chunk * TOKENS + step
        of_state = (row < length)[:, None] & (deep < size)[None, :]
        of_tile = (row < length)[:, None] & (channel < size)[None, :]
        asked = load_rows(by, by_stride, row, deep, of_state, RAW and SCAN != _OF_QUERY)
        kept = load_rows(source, source_stride, row, deep, of_state, RAW and SCAN != _OF_KEY)
        added = load_rows(into, into_stride, row, channel, of_tile, RAW and SCAN != _OF_VALUE).to(OPERAND)
        pair = tl.dot(asked.to(OPERAND), tl.trans(kept).to(OPERAND), input_precision=PRECISION) * within
        result = tl.dot(pair.to(OPERAND), added, input_precision=PRECISION)
        asked *= since
        result = tl.dot(asked.to(OPERAND), state.to(OPERAND), result, input_precision=PRECISION)
        kept *= until
        if SCAN == _OF_QUERY:
            slope = tl.dot((pair * (lag + 1).to(tl.float32)).to(OPERAND), added, input_precision=PRECISION)
            far = (asked * (place + 2).to(tl.float32)[:, None]).to(OPERAND)
            slope = tl.dot(far, state.to(OPERAND), slope, input_precision=PRECISION)
            slope = tl.dot(asked.to(OPERAND), falling.to(OPERAND), slope, input_precision=PRECISION)
            total += tl.sum(slope * load_rows(own, own_stride, row, channel, of_tile, RAW), 1)
            old = (kept * (TOKENS - 1 - place).to(tl.float32)[:, None]).to(OPERAND)
            falling = (falling + state * TOKENS) * across
            falling = tl.dot(tl.trans(old), added, falling, input_precision=PRECISION)
        if RAW and SCAN >= _OF_QUERY:
            result *= silu_slope(load_rows(own, own_stride, row, channel, of_tile, False))
        at = out + start * out_stride + first + row[:, None] * out_stride + channel[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=of_tile)
        state = tl.dot(tl.trans(kept).to(OPERAND), added, state * across, input_precision=PRECISION)
    if SCAN == _OF_QUERY:
        program = (listener * tl.num_programs(1) + head) * tl.num_programs(2) + tile
        tl.store(falls + program, -tl.sum(total, 0))


def retention(projected: Tensor, decay: Tensor, batch: Batch, mask: Mask | None) -> Tensor:
    """See `fuxi_beta.ops.retention`."""
    differentiated = torch.is_grad_enabled() and (projected.requires_grad or decay.requires_grad)
    return _Retention.apply(projected, decay, mask, batch.offsets, differentiated)  # type: ignore[return-value]


def retained(query_key_value: Tensor, decay: Tensor, batch: Batch) -> Tensor:
    """See `fuxi_beta.ops.retained`."""
    return _Retained.apply(query_key_value, decay, batch.offsets)  # type: ignore[return-value]


class _Retention(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, projected: Tensor, decay: Tensor, *rest: Any) -> Tensor:
        ctx.mask, offsets, differentiated = rest
        projected, where = projected.contiguous(), (offsets.contiguous(), decay.contiguous())
        tokens, dim = len(projected), projected.shape[1] // 4
        mixed, out = projected.new_empty(tokens, dim), projected.new_empty(tokens, dim)
        _scan(OUTPUT, _parts(projected[:, dim:]), mixed, *where, raw=True)
        inverse_rms = projected.new_empty(tokens if differentiated else 0, dtype=torch.float32)
        gate(mixed, projected, ctx.mask, out, inverse_rms)
        ctx.save_for_backward(projected, mixed, inverse_rms, *where)
        return out

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        projected, normed, inverse_rms, *where = ctx.saved_tensors
        dim, of_projected = projected.shape[1] // 4, torch.empty_like(projected)
        of_mixed = ungate(gradients[0], projected, normed, inverse_rms, ctx.mask, of_projected)
        of_decay = _backward(of_mixed, projected[:, dim:], of_projected[:, dim:], *where, raw=True)
        return of_projected, of_decay, None, None, None


class _Retained(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, query_key_value: Tensor, decay: Tensor, offsets: Tensor) -> Tensor:
        query_key_value, where = query_key_value.contiguous(), (offsets.contiguous(), decay.contiguous())
        ctx.save_for_backward(query_key_value, *where)
        out = query_key_value.new_empty(len(query_key_value), query_key_value.shape[1] // 3)
        _scan(OUTPUT, _parts(query_key_value), out, *where, raw=False)
        return out

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_key_value, *where = ctx.saved_tensors
        of_packed = torch.empty_like(query_key_value)
        of_decay = _backward(gradients[0].contiguous(), query_key_value, of_packed, *where, raw=False)
        return of_packed, of_decay, None


def _parts(packed: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, as views. [T, 3 D] -> three of [T, D]."""
    return packed.chunk(3, dim=1)


def _backward(gradient: Tensor, packed: Tensor, of_packed: Tensor, offsets: Tensor, decay: Tensor, *, raw: bool):
    """The gradient of g from that of Y; those of q, k and v go into of_packed. [T, D], [T, 3 D] -> [H]."""
    (query, key, value), outs = _parts(packed), _parts(of_packed)
    falls = _scan(OF_QUERY, (gradient, value, key), outs[0], offsets, decay, own=query, raw=raw)
    _scan(OF_KEY, (value, gradient, query), outs[1], offsets, decay, own=key, raw=raw)
    _scan(OF_VALUE, (key, query, gradient), outs[2], offsets, decay, own=value, raw=raw)
    return falls.sum((0, 2), dtype=torch.float64).to(decay.dtype)


def _scan(
    scan: int,
    sources: tuple[Tensor, ...],
    out: Tensor,
    offsets: Tensor,
    decay: Tensor,
    *,
    raw: bool,
    own: Tensor | None = None,
) -> Tensor:
    """One of the scans of by, source and into. Returns the sums for the gradient of g, [B, H, tiles]."""
    listeners, heads, size = len(offsets) - 1, len(decay), out.shape[1] // len(decay)
    if not out.numel():
        return decay.new_zeros(listeners, heads, 1)
    tensors = (*sources, out if own is None else own, out)

    def call(choice: Chunks) -> Tensor:
        tiles = ceil_div(size, choice.width)
        falls = out.new_empty(listeners, heads, tiles, dtype=torch.float32)
        _scan_kernel[(listeners, heads, tiles)](
            *tensors, falls, offsets, decay, *(tensor.stride(0) for tensor in tensors), size, SCAN=scan, RAW=raw,
            TOKENS=choice.tokens, STATE=_padded(size), WIDTH=choice.width, **operands(out.dtype), **choice.launch,
        )  # fmt: skip
        return falls

    key = ("retention", scan, out.device.index, out.dtype, size, raw)
    return tuning.run(key, _choices(scan, out.dtype, size), call)


def _padded(size: int) -> int:
    return max(16, power_of_two(size))


def _choices(scan: int, dtype: torch.dtype, size: int) -> list[Chunks]:
    """Choices for `_scan_kernel`, the likeliest first: states and the square map of a chunk take most registers."""
    width = min(_padded(size), 32 if scan == OF_QUERY or dtype != torch.bfloat16 else 64)
    if tuning.INTERPRETED:
        return [Chunks(16, min(width, 32), 4, 1)]
    if dtype != torch.bfloat16:
        return [Chunks(16, 16 if scan == OF_QUERY else width, 4, 1), Chunks(16, 16, 8, 1)]
    if size > 64:
        return [Chunks(32, 32, 8, 1), Chunks(16, 16, 8, 1)]
    return [Chunks(32, width, 8, 1), Chunks(64, width, 8, 1), Chunks(32, width, 4, 1)]
