"""Token-wise operators in Triton: RMSNorm, SwiGLU, dropout and counter-based random numbers.

Each takes one pass over memory forward and one backward. A program holds whole rows, so that sums over the channels of
a token stay in registers. Random bits equal those of `fuxi_beta.data.stateless_random`: a mask is a function of its
keys, so the backward pass computes it again instead of keeping it.

Shapes: `T` packed tokens, `C` channels, `H` hidden channels, `R` rows of a program, `K` draws.
"""

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxi_beta.data import stateless_random
from fuxi_beta.data.stateless_random import Mask, signed
from fuxi_beta.ops.reference import RMS_EPS
from fuxi_beta.ops.triton.launch import device_function, kernel, on_device
from fuxi_beta.ops.triton.tuning import INTERPRETED, ceil_div, power_of_two

EPS = tl.constexpr(RMS_EPS)
_INTERPRETED = tl.constexpr(INTERPRETED)
_MINUS_LOG2_E = tl.constexpr(-math.log2(math.e))
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
FIRST_MULTIPLIER = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND_MULTIPLIER = tl.constexpr(0x94D049BB133111EB)

_ELEMENTS = 4096  # of a program: 32 a thread of four warps
_KEYS = 256  # of a program
_PARTS = 4  # of a key, at most, in one launch of `combine`


@device_function
def exp2(x):
    """2^x of float32 by one hardware instruction, to 2^-22 of the result; Triton's function takes four."""
    if _INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@device_function
def log2(x):
    """The binary logarithm of float32 by one hardware instruction; Triton's function takes twenty."""
    if _INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@device_function
def sigmoid(x):
    """1 / (1 + e^-x) of float32 by hardware instructions."""
    below = 1.0 + exp2(x * _MINUS_LOG2_E)
    if _INTERPRETED:
        return 1.0 / below
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [below], dtype=tl.float32, is_pure=True,
                                     pack=1)  # fmt: skip


@device_function
def silu(x):
    """x sigmoid(x) of float32."""
    return x * sigmoid(x)


@device_function
def silu_slope(x):
    """The derivative of `silu`."""
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


@device_function
def split_time(seconds):
    """An int64 up to 2^44 as two float32 with that exact sum: a multiple of 2^20 and the remainder.

    Differences of such pairs are as exact as those of integers, while Unix seconds in one float32 are 64 s apart. They
    take three additions; int64 would take a slow conversion as well.
    """
    return (seconds >> 20).to(tl.float32) * 1048576.0, (seconds & 1048575).to(tl.float32)


@device_function
def scramble(x):
    """`stateless_random.scramble`. uint64 -> uint64."""
    x = (x ^ (x >> 30)) * FIRST_MULTIPLIER
    x = (x ^ (x >> 27)) * SECOND_MULTIPLIER
    return x ^ (x >> 31)


@device_function
def words(keys, numbers):
    """64 random bits for each key and number: `stateless_random.words`. int64 and int32 that broadcast -> uint64."""
    return scramble(keys.to(tl.uint64) + (numbers + 1).to(tl.uint64) * GOLDEN)


@device_function
def keep_factors(keys, first, zeroed, factor, WIDTH: tl.constexpr, BY_FOUR: tl.constexpr):
    """The factors of dropout, 0 or `factor`, of the channels from `first` on. int64 [R] -> float32 [R, WIDTH].

    zeroed: how many of the 65536 values of a channel's sixteen bits drop it. BY_FOUR: whether `first` is a multiple of
    4, so that each random word is computed once for its four channels.
    """
    if BY_FOUR:
        word = words(keys[:, None], (first // 4 + tl.arange(0, WIDTH // 4))[None, :])
        lane = (tl.arange(0, 4) * 16).to(tl.uint64)
        bits = tl.reshape(word[:, :, None] >> lane[None, None, :], [keys.shape[0], WIDTH])
    else:
        channel = first + tl.arange(0, WIDTH)
        bits = words(keys[:, None], (channel // 4)[None, :]) >> (channel % 4 * 16).to(tl.uint64)[None, :]
    # stateless_random compares them, as signed numbers, with zeroed - 32768; with the sign bit flipped they start at 0.
    return tl.where(((bits & 0xFFFF) ^ 0x8000).to(tl.int32) >= zeroed, factor, 0.0)


@kernel(dynamic=("tokens",))
def _norm_kernel(x, keys, out, tokens, channels, zeroed, factor, ROWS: tl.constexpr, WIDTH: tl.constexpr,
                 MASKED: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < channels)[None, :]
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    values *= tl.rsqrt(tl.sum(values * values, 1) / channels + EPS)[:, None]
    if MASKED:
        values *= keep_factors(tl.load(keys + row, mask=row < tokens, other=0), 0, zeroed, factor, WIDTH, True)
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


@kernel(dynamic=("tokens",))
def _norm_backward_kernel(gradient, x, keys, of_x, tokens, channels, zeroed, factor, ROWS: tl.constexpr,
                          WIDTH: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < channels)[None, :]
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    upstream = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    if MASKED:
        upstream *= keep_factors(tl.load(keys + row, mask=row < tokens, other=0), 0, zeroed, factor, WIDTH, True)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / channels + EPS)
    shrink = tl.sum(upstream * values, 1) / channels * inverse * inverse
    tl.store(
        of_x + at, (inverse[:, None] * (upstream - values * shrink[:, None])).to(of_x.dtype.element_ty), mask=inside
    )


@kernel(dynamic=("tokens",))
def _dropout_kernel(x, keys, out, tokens, channels, zeroed, factor, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * WIDTH
    channel = first + tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < channels)[None, :]
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    kept = keep_factors(tl.load(keys + row, mask=row < tokens, other=0), first, zeroed, factor, WIDTH, True)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * kept
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


@kernel(dynamic=("tokens",))
def _swiglu_kernel(x, out, tokens, hidden, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < hidden)[None, :]
    at = row.to(tl.int64)[:, None] * hidden + channel[None, :]
    gate_at = row.to(tl.int64)[:, None] * (2 * hidden) + channel[None, :]
    gate = tl.load(x + gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + gate_at + hidden, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (silu(gate) * up).to(out.dtype.element_ty), mask=inside)


@kernel(dynamic=("tokens",))
def _swiglu_backward_kernel(gradient, x, of_x, tokens, hidden, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < hidden)[None, :]
    at = row.to(tl.int64)[:, None] * hidden + channel[None, :]
    gate_at = row.to(tl.int64)[:, None] * (2 * hidden) + channel[None, :]
    upstream = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + gate_at + hidden, mask=inside, other=0.0).to(tl.float32)
    tl.store(of_x + gate_at, (upstream * up * silu_slope(gate)).to(of_x.dtype.element_ty), mask=inside)
    tl.store(of_x + gate_at + hidden, (upstream * silu(gate)).to(of_x.dtype.element_ty), mask=inside)


@kernel(dynamic=("first", "second", "third", "fourth", "count"))
def _combine_kernel(first, second, third, fourth, out, count, PARTS: tl.constexpr, SIZE: tl.constexpr):
    """The first PARTS arguments are integers, or pointers to int64 [count]."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < count
    key = tl.zeros([SIZE], tl.uint64)
    for number in tl.static_range(PARTS):
        part = (first, second, third, fourth)[number]
        if part.dtype.is_ptr():
            part = tl.load(part + place, mask=inside, other=0)
        key = scramble((key + part.to(tl.int64).to(tl.uint64) + 1) * GOLDEN)
    tl.store(out + place, key.to(tl.int64), mask=inside)


@kernel(dynamic=("tokens",))
def _integers_kernel(keys, out, tokens, draws, below, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * WIDTH
    key = tl.load(keys + row, mask=row < tokens, other=0)
    word = words(key[:, None], (first // 2 + tl.arange(0, WIDTH // 2))[None, :])
    halves = (tl.arange(0, 2) * 32).to(tl.uint64)
    bits = tl.reshape(word[:, :, None] >> halves[None, None, :], [ROWS, WIDTH]) & 0xFFFFFFFF
    draw = first + tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (draw < draws)[None, :]
    at = row.to(tl.int64)[:, None] * draws + draw[None, :]
    tl.store(out + at, (bits * below >> 32).to(tl.int64), mask=inside)


def mask_arguments(mask: Mask | None, like: Tensor) -> tuple[Tensor, int, float]:
    """Keys, zeroed and factor of `keep_factors`; placeholders that no kernel reads where there is no mask."""
    if mask is None:
        return like, 0, 1.0
    zeroed = round(mask.rate * 65536)
    return mask.keys.contiguous(), zeroed, 65536 / (65536 - zeroed)


def operands(dtype: torch.dtype) -> dict[str, Any]:
    """Dtype and precision of the products of a dtype, as a kernel takes them: bf16 for bf16, else float32.

    Matrix units take three TF32 products for float32 values and one for fp16, whose narrow range maps would exceed.
    """
    if dtype == torch.bfloat16:
        return {"OPERAND": tl.bfloat16, "PRECISION": "ieee"}
    return {"OPERAND": tl.float32, "PRECISION": "tf32" if dtype == torch.float16 else "tf32x3"}


def rows_of(channels: int) -> tuple[int, int, int]:
    """Rows, padded channels and warps of a program that holds whole rows."""
    width = max(16, power_of_two(channels))
    return max(1, _ELEMENTS // width), width, 4 if width <= _ELEMENTS else 16


def rms_norm(x: Tensor, mask: Mask | None, dtype: torch.dtype | None = None) -> Tensor:
    """See `fuxi_beta.ops.rms_norm`."""
    return _RmsNorm.apply(x, mask, dtype)  # type: ignore[return-value]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, x: Tensor, mask: Mask | None, dtype: torch.dtype | None) -> Tensor:
        x, ctx.mask = x.contiguous(), mask
        ctx.save_for_backward(x)
        out = torch.empty_like(x, dtype=dtype)
        rows, width, warps = rows_of(x.shape[1])
        keys, zeroed, factor = mask_arguments(mask, x)
        if x.numel():
            _norm_kernel[(ceil_div(len(x), rows),)](
                x, keys, out, *x.shape, zeroed, factor, ROWS=rows, WIDTH=width, MASKED=mask is not None, num_warps=warps
            )
        return out

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        of_x = torch.empty_like(x)
        rows, width, warps = rows_of(x.shape[1])
        keys, zeroed, factor = mask_arguments(ctx.mask, x)
        if x.numel():
            _norm_backward_kernel[(ceil_div(len(x), rows),)](
                gradients[0].contiguous(), x, keys, of_x, *x.shape, zeroed, factor,
                ROWS=rows, WIDTH=width, MASKED=ctx.mask is not None, num_warps=warps,
            )  # fmt: skip
        return of_x, None, None


def swiglu(x: Tensor) -> Tensor:
    """See `fuxi_beta.ops.swiglu`."""
    return _SwiGLU.apply(x)  # type: ignore[return-value]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = x.new_empty(len(x), x.shape[1] // 2)
        if out.numel():
            grid, tile = _tiles(*out.shape)
            _swiglu_kernel[grid](x, out, *out.shape, **tile)
        return out

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        of_x = torch.empty_like(x)
        if x.numel():
            tokens, hidden = len(x), x.shape[1] // 2
            grid, tile = _tiles(tokens, hidden)
            _swiglu_backward_kernel[grid](gradients[0].contiguous(), x, of_x, tokens, hidden, **tile)
        return of_x


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """See `fuxi_beta.data.stateless_random.dropout`."""
    return _Dropout.apply(x, mask)  # type: ignore[return-value]


class _Dropout(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, x: Tensor, mask: Mask) -> Tensor:
        ctx.mask = mask
        return _dropped(x.contiguous(), mask)

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _dropped(gradients[0].contiguous(), ctx.mask), None


def _dropped(x: Tensor, mask: Mask) -> Tensor:
    out = torch.empty_like(x)
    if x.numel():
        grid, tile = _tiles(*x.shape)
        keys, zeroed, factor = mask_arguments(mask, x)
        _dropout_kernel[grid](x, keys, out, *x.shape, zeroed, factor, **tile)
    return out


@on_device
def combine(*parts: int | Tensor) -> Tensor:
    """See `fuxi_beta.ops.combine`. The tensors are int64 of one shape. More than four parts go to plain torch."""
    if len(parts) > _PARTS:
        return stateless_random.combine(*parts)
    arguments = [part.contiguous() if isinstance(part, Tensor) else signed(part) for part in parts]
    out = torch.empty_like(next(part for part in arguments if isinstance(part, Tensor)))
    if count := out.numel():
        unused = [0] * (_PARTS - len(parts))
        _combine_kernel[(ceil_div(count, _KEYS),)](*arguments, *unused, out, count, PARTS=len(parts), SIZE=_KEYS)
    return out


@on_device
def integers(keys: Tensor, count: int, below: int) -> Tensor:
    """See `fuxi_beta.data.stateless_random.integers`."""
    if not 0 < below < 1 << 31:
        raise ValueError(f"cannot draw below {below}: it must be in 1..2^31 - 1")
    out = keys.new_empty(len(keys), count)
    if out.numel():
        grid, tile = _tiles(*out.shape)
        _integers_kernel[grid](keys.contiguous(), out, *out.shape, below, **tile)
    return out


def _tiles(rows: int, columns: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid and the tile of a kernel that does not need whole rows."""
    width = min(256, max(16, power_of_two(columns)))
    height = _ELEMENTS // 2 // width
    return (ceil_div(rows, height), ceil_div(columns, width)), {"ROWS": height, "WIDTH": width}
