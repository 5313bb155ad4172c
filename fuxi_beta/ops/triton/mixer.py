"""The causal token mixer in Triton: both maps of equations 13 and 14 from registers, on packed tokens, both passes.

A tile of rows or columns of one listener is a program. The entries of both maps are made where tensor cores use them
and never leave the registers. V is read once for both maps. What is where, and why:

| kernel            | program               | does                                                              |
| ----------------- | --------------------- | ----------------------------------------------------------------- |
| `_values_kernel`  | any tokens            | V = SiLU(projected), for long histories only                      |
| `_rows_kernel`    | rows i of the maps    | [B V | B^t V], then RMSNorm, U and dropout if it has all channels |
| `_gate_kernel`    | any tokens            | RMSNorm, U and dropout of wider models                            |
| `_ungate_kernel`  | any tokens            | the gradients of U and of [B V | B^t V]                           |
| `_columns_kernel` | columns j of the maps | the gradient of V; sums of each lag, of a and of b over its tile  |
| `_lags_kernel`    | lags                  | the sums of the tiles, lag by lag                                 |

RMSNorm needs all channels of a token. Up to `_WHOLE` of V a program of `_rows_kernel` has them all in registers, so the
mixed values are normalised before they are first stored; beyond, the rows kernel stores its tile of channels and
`_gate_kernel` makes a second pass. SiLU is taken of V when it is loaded: that reads least, as nothing but the
projection is read and no V is written. Its price grows with the length of a history, as tile after tile of rows
activates the same V again; from `_LONG` events on a pass of its own, which reads and writes V once, should be cheaper.

No sum uses atomics: every program stores its own, and a second kernel adds them in a fixed order. With fixed tiles
(`tuning`) equal inputs give equal bits.

Operands of products are bf16 where values are, else float32 by tensor cores: three TF32 products for float32 values;
one for fp16, whose narrow range the maps would leave (a decay of 3 makes 1e-15 of a day, one of -0.5 makes 1e4 of three
years). Sums, logarithms, norms and gates are float32. Times are subtracted in int64.

Shapes: `T` packed tokens, `D` width, `C` = 2 D channels, `S` places for tiles, `R` rows and `J` columns of a tile.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.triton import tuning
from fuxi_beta.ops.triton.launch import kernel, on_device
from fuxi_beta.ops.triton.tiles import FIELDS, Sequences
from fuxi_beta.ops.triton.tokenwise import (
    EPS,
    exp2,
    keep_factors,
    log2,
    mask_arguments,
    rows_of,
    silu,
    silu_slope,
)
from fuxi_beta.ops.triton.tuning import ceil_div, power_of_two

_WHOLE = 256  # channels of V whose rows a program can hold: two sums of 64 x 256 are half of an SM's registers
_LONG = 256  # events from which V is activated once instead of whenever it is read
_LAGS, _TILES_AT_ONCE, _LAG_SPLITS = 64, 32, 64  # of `_lags_kernel`: its tile, and parts in which tiles are added up
_WIDE_UNITS = {9, 10}  # compute capabilities whose matrix units take operands from shared memory
_MARGIN = 256  # zeros on either side of by_lag: above the diagonal, and of rows that a tile has beyond a history
_TILE_FIELDS = tl.constexpr(FIELDS)
_MINUS_LN2 = tl.constexpr(-math.log(2))


@dataclass(frozen=True)
class Choice:
    """How a kernel of the maps is cut."""

    own: int  # tokens of a program
    others: int  # tokens that a step of its loop looks at
    width: int  # channels of a program
    warps: int
    stages: int
    activate_first: bool = False  # whether V has a pass of its own

    @property
    def launch(self) -> dict[str, int]:
        """What Triton is to be told."""
        return {"num_warps": self.warps, "num_stages": self.stages}


@kernel
def _tile(tiles, place):
    """First token of the tile and the length, counted from the listener's first token, which is third; first lag."""
    first = tl.load(tiles + place * _TILE_FIELDS)
    start = tl.load(tiles + place * _TILE_FIELDS + 1)
    stop = tl.load(tiles + place * _TILE_FIELDS + 2)
    lag = tl.load(tiles + place * _TILE_FIELDS + 3)
    return (first - start).to(tl.int32), (stop - start).to(tl.int32), start, lag


@kernel
def _split_time(seconds):
    """An int64 as two float32 whose sum it is, exactly, up to 2^44: multiples of 2^20, and what is left below that.

    Differences of such pairs are as exact as those of integers, while Unix seconds in one float32 are 64 s apart, and
    take three additions where integers of 64 bits take a slow conversion besides.
    """
    return (seconds >> 20).to(tl.float32) * 1048576.0, (seconds & 1048575).to(tl.float32)


@kernel
def _log_gap(asked_high, asked_low, seen_high, seen_low):
    """log2(1 + max(t_{i+1} - t_j, 0)) of split times that broadcast."""
    gap = (asked_high - seen_high) + (asked_low - seen_low)
    return log2(1.0 + tl.maximum(gap, 0.0))


@kernel
def _normed_and_gated(values, inverse, normed_at, gate_at, key_at, has_row, inside, first, zeroed, factor,
                      WIDTH: tl.constexpr, MASKED: tl.constexpr, SAVED: tl.constexpr,
                      BY_FOUR: tl.constexpr):  # fmt: skip
    """U * values / RMS, dropped out; stores values / RMS if SAVED. first: channel of the first value. [R, WIDTH]."""
    values *= inverse[:, None]
    if SAVED:
        tl.store(normed_at, values.to(normed_at.dtype.element_ty), mask=inside)
    values *= silu(tl.load(gate_at, mask=inside, other=0.0).to(tl.float32))
    if MASKED:
        values *= keep_factors(tl.load(key_at, mask=has_row, other=0), first, zeroed, factor, WIDTH, BY_FOUR)
    return values


@kernel
def _rows_kernel(value, projected, keys, out, normed, inverse_rms, tiles, timestamp, next_timestamp, by_lag, scale,
                 decay, dim, value_stride, zeroed, factor, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                 WIDTH: tl.constexpr, TEMPORAL: tl.constexpr, GATED: tl.constexpr, MASKED: tl.constexpr,
                 SAVED: tl.constexpr, ACTIVATED: tl.constexpr, BY_FOUR: tl.constexpr, OPERAND: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Rows of [B V | B^t V], or of the gated output and what its gradient needs.

    value: V or, unless ACTIVATED, what SiLU makes V of; rows `value_stride` apart. out: [T, C].
    """
    first, length, start, _ = _tile(tiles, tl.program_id(0))
    # A listener's last rows look back furthest: they come first, so that no program is left over at the end.
    first = tl.maximum(length - 1, 0) // ROWS * ROWS - first
    row = first + tl.arange(0, ROWS)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    has_row, has_channel = row < length, channel < dim
    value += start * value_stride
    if TEMPORAL:
        asked_high, asked_low = _split_time(tl.load(next_timestamp + start + row, mask=has_row, other=0))
        speed = -tl.load(decay).to(tl.float32)
    by_position = tl.zeros([ROWS, WIDTH], tl.float32)
    by_time = tl.zeros([ROWS, WIDTH], tl.float32)
    for left in range(0, tl.minimum(first + ROWS, length), COLUMNS):
        column = left + tl.arange(0, COLUMNS)
        has_column = column < length
        lag = row[:, None] - column[None, :]
        v = tl.load(value + column[:, None] * value_stride + channel[None, :],
                    mask=has_column[:, None] & has_channel[None, :], other=0.0)  # fmt: skip
        if not ACTIVATED:
            v = silu(v.to(tl.float32))
        v = v.to(OPERAND)
        by_position = tl.dot(tl.load(by_lag + lag), v, by_position, input_precision=PRECISION)
        if TEMPORAL:
            seen_high, seen_low = _split_time(tl.load(timestamp + start + column, mask=has_column, other=0))
            log_gap = _log_gap(asked_high[:, None], asked_low[:, None], seen_high[None, :], seen_low[None, :])
            decayed = exp2(log_gap * speed)
            by_time = tl.dot(tl.where(lag >= 0, decayed, 0.0).to(OPERAND), v, by_time, input_precision=PRECISION)
    if TEMPORAL:
        by_time *= tl.load(scale).to(tl.float32)
    inside = has_row[:, None] & has_channel[None, :]
    at = (start + row)[:, None] * (2 * dim) + channel[None, :]
    if GATED:
        squares = tl.sum(by_position * by_position, 1) + tl.sum(by_time * by_time, 1)
        inverse = tl.rsqrt(squares / (2 * dim) + EPS)
        gate_at = projected + (start + row)[:, None] * (3 * dim) + channel[None, :]
        key_at = keys + start + row
        if SAVED:
            tl.store(inverse_rms + start + row, inverse, mask=has_row)
        # One half after the other: both at once would not fit in the registers.
        by_position = _normed_and_gated(by_position, inverse, normed + at, gate_at, key_at, has_row, inside, 0, zeroed,
                                        factor, WIDTH, MASKED, SAVED, True)  # fmt: skip
        tl.store(out + at, by_position.to(out.dtype.element_ty), mask=inside)
        by_time = _normed_and_gated(by_time, inverse, normed + at + dim, gate_at + dim, key_at, has_row, inside, dim,
                                    zeroed, factor, WIDTH, MASKED, SAVED, BY_FOUR)  # fmt: skip
        tl.store(out + at + dim, by_time.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(out + at, by_position.to(out.dtype.element_ty), mask=inside)
        tl.store(out + at + dim, by_time.to(out.dtype.element_ty), mask=inside)


@kernel
def _gradient_rows(gradient, first, length, dim, channel, SIZE: tl.constexpr, BOTH: tl.constexpr):
    """Some rows of the gradient of [B V | B^t V], of its first half or of BOTH.

    A token's two halves lie side by side, as two rows of D channels: taken like this, one product serves both maps.
    """
    if BOTH:
        row, stop, stride = 2 * first + tl.arange(0, 2 * SIZE), 2 * length, dim
    else:
        row, stop, stride = first + tl.arange(0, SIZE), length, 2 * dim
    inside = (row < stop)[:, None] & (channel < dim)[None, :]
    return tl.load(gradient + row[:, None] * stride + channel[None, :], mask=inside, other=0.0)


@kernel
def _sums_by_diagonal(pair, SIZE: tl.constexpr):
    """Sums of the diagonals k - SIZE and k, below and above, for k = 0, 1, ...; [J, R] -> 2 of [R], both of SIZE."""
    step = tl.arange(0, SIZE)
    turn = step[:, None] + step[None, :]
    # Rotating row c by c makes columns of diagonals: entry [c, (c + k) mod SIZE] is on k, or on k - SIZE if it wraps.
    turned = tl.gather(pair, turn % SIZE, 1)
    return tl.sum(tl.where(turn >= SIZE, turned, 0.0), 0), tl.sum(tl.where(turn < SIZE, turned, 0.0), 0)


@kernel
def _columns_kernel(gradient, source, of_source, tiles, timestamp, next_timestamp, by_lag, scale, decay, lag_sums,
                    curve_sums, dim, source_stride, of_stride, lags, SIZE: tl.constexpr, WIDTH: tl.constexpr,
                    TEMPORAL: tl.constexpr, ACTIVATED: tl.constexpr, OPERAND: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """What a tile of columns gets from the rows below: the gradient of V, sums of each lag, of a and of b.

    gradient: of [B V | B^t V], [T, C]. source: V or, unless ACTIVATED, what SiLU makes V of; its gradient is wanted.
    The maps stand on their side here, columns first. Sums over channels are linear, so that each tile of channels
    keeps sums of its own: lag_sums [channel tiles, lags], curve_sums [channel tiles, S, 2].
    """
    place, part = tl.program_id(0), tl.program_id(1)
    first, length, start, first_lag = _tile(tiles, place)
    step = tl.arange(0, SIZE)
    column = first + step
    channel = part * WIDTH + tl.arange(0, WIDTH)
    inside = (column < length)[:, None] & (channel < dim)[None, :]
    source_at = source + (start + column)[:, None] * source_stride + channel[None, :]
    v = tl.load(source_at, mask=inside, other=0.0)
    if not ACTIVATED:
        v = silu(v.to(tl.float32))
    v = v.to(OPERAND)
    gradient += start * (2 * dim)
    sums_at = lag_sums + part.to(tl.int64) * lags + first_lag
    if TEMPORAL:
        seen_high, seen_low = _split_time(tl.load(timestamp + start + column, mask=column < length, other=0))
        speed, factor = -tl.load(decay).to(tl.float32), tl.load(scale).to(tl.float32)
    of_value = tl.zeros([SIZE, WIDTH], tl.float32)
    of_scale, of_decay = tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
    unfinished = tl.zeros([SIZE], tl.float32)  # sums of the lags that the tile ahead has begun and the next one ends
    for ahead in range(0, length - first, SIZE):
        row = first + ahead + step
        lag = row[None, :] - column[:, None]
        weight = tl.load(by_lag + lag)
        above = _gradient_rows(gradient, first + ahead, length, dim, channel, SIZE, TEMPORAL).to(OPERAND)
        if TEMPORAL:
            asked_high, asked_low = _split_time(tl.load(next_timestamp + start + row, mask=row < length, other=0))
            log_gap = _log_gap(asked_high[None, :], asked_low[None, :], seen_high[:, None], seen_low[:, None])
            decayed = tl.where(lag >= 0, exp2(log_gap * speed), 0.0)
            weight = tl.reshape(tl.join(weight, (decayed * factor).to(OPERAND)), [SIZE, 2 * SIZE])
        of_value = tl.dot(weight, above, of_value, input_precision=PRECISION)
        pair = tl.trans(tl.dot(above, tl.trans(v), input_precision=PRECISION))
        if TEMPORAL:
            pair, by_time = tl.split(tl.reshape(pair, [SIZE, SIZE, 2]))
            share = decayed * by_time
            of_scale += tl.sum(share, 1)
            of_decay += tl.sum(share * log_gap, 1)
        ended, begun = _sums_by_diagonal(pair, SIZE)
        ended_lag = ahead - SIZE + step
        tl.store(sums_at + ended_lag, unfinished + ended, mask=(ended_lag >= 0) & (ended_lag < length - first))
        unfinished = begun
    last_lag = (length - first - 1) // SIZE * SIZE + step
    tl.store(sums_at + last_lag, unfinished, mask=(last_lag >= 0) & (last_lag < length - first))
    if TEMPORAL:
        curve_at = curve_sums + (part * tl.num_programs(0) + place) * 2
        tl.store(curve_at, tl.sum(of_scale, 0))
        tl.store(curve_at + 1, tl.sum(of_decay, 0) * factor * _MINUS_LN2)
    if not ACTIVATED:
        of_value *= silu_slope(tl.load(source_at, mask=inside, other=0.0).to(tl.float32))
    of_at = of_source + (start + column)[:, None] * of_stride + channel[None, :]
    tl.store(of_at, of_value.to(of_source.dtype.element_ty), mask=inside)


@kernel
def _lags_kernel(lag_sums, tiles, out, places, lags, parts, reach, SIZE: tl.constexpr, AT_ONCE: tl.constexpr):
    """Adds the sums of all tiles lag by lag, each program a share of the tiles. out: [programs of axis 1, reach]."""
    lag = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros([SIZE], tl.float32)
    for group in range(tl.program_id(1) * AT_ONCE, places, tl.num_programs(1) * AT_ONCE):
        place = group + tl.arange(0, AT_ONCE)
        tile = tiles + place * _TILE_FIELDS
        has_place = place < places
        first = tl.load(tile, mask=has_place, other=0)
        stop = tl.load(tile + 2, mask=has_place, other=0)
        sums_at = lag_sums + tl.load(tile + 3, mask=has_place, other=0)
        inside = lag[None, :] < (stop - first)[:, None]
        for _ in range(parts):
            total += tl.sum(tl.load(sums_at[:, None] + lag[None, :], mask=inside, other=0.0), 0)
            sums_at += lags
    tl.store(out + tl.program_id(1) * reach + lag, total, mask=lag < reach)


@kernel
def _values_kernel(projected, out, tokens, dim, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """V = SiLU(the last third of projected). [T, 3 D] -> [T, D]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < dim)[None, :]
    at = row.to(tl.int64)[:, None] * dim
    value = tl.load(projected + at * 3 + 2 * dim + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at + channel[None, :], silu(value).to(out.dtype.element_ty), mask=inside)


@kernel
def _gate_kernel(mixed, projected, keys, out, inverse_rms, tokens, dim, zeroed, factor, ROWS: tl.constexpr,
                 WIDTH: tl.constexpr, MASKED: tl.constexpr, SAVED: tl.constexpr):  # fmt: skip
    """U * RMSNorm(mixed), then dropout. If SAVED, mixed becomes RMSNorm(mixed). [T, C] -> [T, C]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < 2 * dim)[None, :]
    at = row.to(tl.int64)[:, None] * dim
    values = tl.load(mixed + at * 2 + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / (2 * dim) + EPS)
    values *= inverse[:, None]
    if SAVED:
        tl.store(inverse_rms + row, inverse, mask=row < tokens)
        tl.store(mixed + at * 2 + channel[None, :], values.to(mixed.dtype.element_ty), mask=inside)
    values *= silu(tl.load(projected + at * 3 + channel[None, :], mask=inside, other=0.0).to(tl.float32))
    if MASKED:
        values *= keep_factors(tl.load(keys + row, mask=row < tokens, other=0), 0, zeroed, factor, WIDTH, True)
    tl.store(out + at * 2 + channel[None, :], values.to(out.dtype.element_ty), mask=inside)


@kernel
def _ungate_kernel(gradient, projected, normed, inverse_rms, keys, of_projected, of_mixed, tokens, dim, zeroed, factor,
                   ROWS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """The gate's way back: gradients of what SiLU makes U of, and of [B V | B^t V]. [T, C] -> 2 of [T, 3 D], [T, C]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < 2 * dim)[None, :]
    at = row.to(tl.int64)[:, None] * dim
    upstream = tl.load(gradient + at * 2 + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if MASKED:
        upstream *= keep_factors(tl.load(keys + row, mask=row < tokens, other=0), 0, zeroed, factor, WIDTH, True)
    gate = tl.load(projected + at * 3 + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    values = tl.load(normed + at * 2 + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    of_gate = upstream * values * silu_slope(gate)
    tl.store(of_projected + at * 3 + channel[None, :], of_gate.to(of_projected.dtype.element_ty), mask=inside)
    of_values = upstream * silu(gate)
    of_values -= values * (tl.sum(of_values * values, 1) / (2 * dim))[:, None]
    of_values *= tl.load(inverse_rms + row, mask=row < tokens, other=0.0)[:, None]
    tl.store(of_mixed + at * 2 + channel[None, :], of_values.to(of_mixed.dtype.element_ty), mask=inside)


class PackedGaps:
    """The times of a batch as they are, cut into tiles: the kernels make the maps where they use them."""

    def __init__(self, batch: Batch) -> None:
        self.longest = batch.longest
        self.sequences = Sequences.of(batch)

    def mix(
        self, projected: Tensor, by_lag: Tensor, scale: Tensor | None, decay: Tensor | None, mask: Mask | None
    ) -> Tensor:
        """See `fuxi_beta.ops.Gaps.mix`."""
        differentiated = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (projected, by_lag, scale, decay)
        )
        rest = (mask, self.sequences, differentiated)
        return _Mix.apply(projected, by_lag, scale, decay, *rest)  # type: ignore[return-value]

    def apply(self, value: Tensor, by_lag: Tensor, scale: Tensor | None, decay: Tensor | None) -> Tensor:
        """See `fuxi_beta.ops.Gaps.apply`."""
        return _Apply.apply(value, by_lag, scale, decay, self.sequences)  # type: ignore[return-value]


class _Apply(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, value: Tensor, *rest: Any) -> Tensor:
        by_lag, scale, decay, ctx.sequences = rest
        value, by_lag = value.contiguous(), by_lag.contiguous()
        ctx.save_for_backward(value, by_lag, scale, decay)
        return _Maps(ctx.sequences, by_lag, scale, decay).times(value)

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, *parameters = ctx.saved_tensors
        of_value = torch.empty_like(value)
        of_maps = _Maps(ctx.sequences, *parameters).back(gradients[0].contiguous(), value, of_value, activated=True)
        return of_value, *of_maps, None


class _Mix(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, projected: Tensor, *rest: Any) -> Tensor:
        by_lag, scale, decay, mask, sequences, differentiated = rest
        projected, by_lag = projected.contiguous(), by_lag.contiguous()
        out, kept = _Maps(sequences, by_lag, scale, decay).gated(projected, mask, differentiated=differentiated)
        ctx.sequences, ctx.mask = sequences, mask
        ctx.save_for_backward(projected, *kept, by_lag, scale, decay)
        return out

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        projected, normed, inverse_rms, *parameters = ctx.saved_tensors
        tokens, dim = len(projected), projected.shape[1] // 3
        of_projected, of_mixed = torch.empty_like(projected), torch.empty_like(normed)
        if of_mixed.numel():
            rows, width, warps = rows_of(2 * dim)
            keys, zeroed, factor = mask_arguments(ctx.mask, projected)
            _ungate_kernel[(ceil_div(tokens, rows),)](
                gradients[0].contiguous(), projected, normed, inverse_rms, keys, of_projected, of_mixed, tokens, dim,
                zeroed, factor, ROWS=rows, WIDTH=width, MASKED=ctx.mask is not None, num_warps=warps,
            )  # fmt: skip
        source, of_source = projected[:, 2 * dim :], of_projected[:, 2 * dim :]
        of_maps = _Maps(ctx.sequences, *parameters).back(of_mixed, source, of_source, activated=False)
        return of_projected, *of_maps, None, None, None


@dataclass(frozen=True)
class _Maps:
    """Both maps of a batch: its times, and the parameters that turn them into weights."""

    sequences: Sequences
    by_lag: Tensor  # [reach]
    scale: Tensor | None  # 0-d
    decay: Tensor | None  # 0-d

    def __post_init__(self) -> None:
        if len(self.by_lag) < self.sequences.longest:
            raise ValueError(
                f"a history has {self.sequences.longest} events, but by_lag only {len(self.by_lag)} weights"
            )

    @property
    def temporal(self) -> bool:
        """Whether there is a temporal map."""
        return self.scale is not None and self.decay is not None

    def _pointers(self, size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What every kernel of the maps reads; where there is no temporal map, things that it does not look at.

        With zeros around by_lag no kernel has to ask where the diagonal is or a history ends.
        """
        padded = F.pad(self.by_lag, (_MARGIN, _MARGIN)).to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
        scale, decay = self.scale, self.decay
        curve = (padded, padded) if scale is None or decay is None else (scale, decay)
        times = (self.sequences.timestamp, self.sequences.next_timestamp)
        return (self.sequences.tiles(size).table, *times, padded[_MARGIN:], *curve)

    def _key(self, name: str, like: Tensor, dim: int) -> tuple[object, ...]:
        """What the best tiles depend on."""
        return (name, like.device.index, like.dtype, dim, power_of_two(self.sequences.longest), self.temporal)

    def times(self, value: Tensor) -> Tensor:
        """[B V | B^t V]. [T, D] -> [T, C]."""
        tokens, dim = value.shape
        out = value.new_empty(tokens, 2 * dim)

        def call(choice: Choice) -> None:
            rows = choice.own
            _rows_kernel[self._grid(choice, dim)](
                value, value, value, out, out, out, *self._pointers(rows, value.dtype), dim, value.stride(0), 0, 1.0,
                ROWS=rows, COLUMNS=choice.others, WIDTH=choice.width, TEMPORAL=self.temporal, GATED=False,
                MASKED=False, SAVED=False, ACTIVATED=True, BY_FOUR=True, **_operands(value.dtype), **choice.launch,
            )  # fmt: skip

        if out.numel():
            tuning.run(self._key("apply", value, dim), _rows_choices(value.dtype, dim, activated=True), call)
        return out

    def gated(
        self, projected: Tensor, mask: Mask | None, *, differentiated: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """U * RMSNorm([B V | B^t V]), then dropout; and for the way back what RMSNorm gave, and 1 / RMS.

        [T, 3 D] -> [T, C], ([T, C], [T]); the latter two are empty if they are not wanted.
        """
        tokens, dim = len(projected), projected.shape[1] // 3
        whole = dim <= _WHOLE
        out = projected.new_empty(tokens, 2 * dim)
        normed = projected.new_empty(tokens if differentiated or not whole else 0, 2 * dim)
        inverse_rms = projected.new_empty(tokens if differentiated else 0, dtype=torch.float32)
        keys, zeroed, factor = mask_arguments(mask, projected)

        def call(choice: Choice) -> None:
            value = _values(projected) if choice.activate_first else projected[:, 2 * dim :]
            _rows_kernel[self._grid(choice, dim)](
                value, projected, keys, out if whole else normed, normed, inverse_rms,
                *self._pointers(choice.own, projected.dtype), dim, value.stride(0), zeroed, factor,
                ROWS=choice.own, COLUMNS=choice.others, WIDTH=choice.width, TEMPORAL=self.temporal,
                GATED=whole, MASKED=mask is not None, SAVED=differentiated,
                ACTIVATED=choice.activate_first, BY_FOUR=dim % 4 == 0, **_operands(projected.dtype), **choice.launch,
            )  # fmt: skip
            if not whole:
                rows, width, warps = rows_of(2 * dim)
                _gate_kernel[(ceil_div(tokens, rows),)](
                    normed, projected, keys, out, inverse_rms, tokens, dim, zeroed, factor, ROWS=rows, WIDTH=width,
                    MASKED=mask is not None, SAVED=differentiated, num_warps=warps,
                )  # fmt: skip

        if out.numel():
            choices = _rows_choices(projected.dtype, dim, activated=False, long=self.sequences.longest >= _LONG)
            tuning.run(self._key("mix", projected, dim), choices, call)
        return out, (normed, inverse_rms)

    def back(
        self, gradient: Tensor, source: Tensor, of_source: Tensor, *, activated: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """From the gradient of [B V | B^t V] those of by_lag, a and b; that of V's source goes into `of_source`.

        source: V, or if not `activated` what SiLU makes V of; it and of_source may be slices of columns. [T, D].
        """
        dim = source.shape[1]
        of_by_lag = torch.zeros_like(self.by_lag)
        of_scale, of_decay = (
            None if number is None else torch.zeros_like(number) for number in (self.scale, self.decay)
        )
        if not source.numel():
            return of_by_lag, of_scale, of_decay

        def call(choice: Choice) -> tuple[Tensor, Tensor]:
            tiles = self.sequences.tiles(choice.own)
            parts = ceil_div(dim, choice.width)
            lag_sums = gradient.new_empty(parts, tiles.lags, dtype=torch.float32)
            curve_sums = gradient.new_empty(parts * len(tiles), 2, dtype=torch.float32)
            _columns_kernel[self._grid(choice, dim)](
                gradient, source, of_source, *self._pointers(choice.own, source.dtype), lag_sums, curve_sums, dim,
                source.stride(0), of_source.stride(0), tiles.lags, SIZE=choice.own, WIDTH=choice.width,
                TEMPORAL=self.temporal, ACTIVATED=activated, **_operands(source.dtype), **choice.launch,
            )  # fmt: skip
            return self._sum_by_lag(lag_sums, choice), curve_sums

        choices = _columns_choices(source.dtype, dim)
        by_lag, curve_sums = tuning.run(self._key(f"back, {activated=}", source, dim), choices, call)
        of_by_lag.copy_(by_lag)
        if of_scale is not None and of_decay is not None:
            of_curve = curve_sums.sum(0, dtype=torch.float64)
            of_scale.copy_(of_curve[0])
            of_decay.copy_(of_curve[1])
        return of_by_lag, of_scale, of_decay

    def _grid(self, choice: Choice, dim: int) -> tuple[int, int]:
        """A program for each tile of tokens and of channels."""
        return len(self.sequences.tiles(choice.own)), ceil_div(dim, choice.width)

    def _sum_by_lag(self, lag_sums: Tensor, choice: Choice) -> Tensor:
        """The gradient of by_lag. [channel tiles, lags of all tiles] -> float32 [reach]."""
        tiles, reach = self.sequences.tiles(choice.own), len(self.by_lag)
        splits = min(_LAG_SPLITS, ceil_div(len(tiles), _TILES_AT_ONCE))
        out = lag_sums.new_empty(splits, reach)
        _lags_kernel[ceil_div(reach, _LAGS), splits](
            lag_sums, tiles.table, out, len(tiles), tiles.lags, len(lag_sums), reach,
            SIZE=_LAGS, AT_ONCE=_TILES_AT_ONCE,
        )  # fmt: skip
        return out.sum(0)


def _values(projected: Tensor) -> Tensor:
    """V = SiLU of the last third. [T, 3 D] -> [T, D]."""
    tokens, dim = len(projected), projected.shape[1] // 3
    out = projected.new_empty(tokens, dim)
    rows, width, warps = rows_of(dim)
    _values_kernel[(ceil_div(tokens, rows),)](projected, out, tokens, dim, ROWS=rows, WIDTH=width, num_warps=warps)
    return out


def _operands(dtype: torch.dtype) -> dict[str, Any]:
    """What the products of a dtype are made of; see the top of this file."""
    if dtype == torch.bfloat16:
        return {"OPERAND": tl.bfloat16, "PRECISION": "ieee"}
    return {"OPERAND": tl.float32, "PRECISION": "tf32" if dtype == torch.float16 else "tf32x3"}


def _rows_choices(dtype: torch.dtype, dim: int, *, activated: bool, long: bool = False) -> list[Choice]:
    """Cuts of `_rows_kernel`, the likeliest first. activated: V is there; long: else it had better be made first."""
    width = max(16, power_of_two(dim)) if dim <= _WHOLE else min(_WHOLE, 128)
    first = long and not activated
    if tuning.INTERPRETED:
        return [Choice(16, 16, width, 4, 1, first)]
    if dtype == torch.float32:
        cuts = [(32, 32, 8, 2), (16, 32, 8, 2), (16, 16, 4, 1)]
    elif dtype == torch.float16:
        cuts = [(32, 32, 8, 2), (64, 32, 8, 2), (16, 16, 4, 1)]
    else:
        cuts = [(64, 64, 8, 2), (64, 32, 8, 3), (32, 64, 4, 2), (32, 32, 4, 3), (16, 32, 4, 2)]
        if width <= 64:
            cuts = [(64, 64, 4, 3), (128, 64, 8, 2), *cuts]
    choices = [Choice(own, others, width, warps, stages, first) for own, others, warps, stages in cuts]
    # Which is faster depends on the card, near the limit that `long` stands for.
    return choices if activated else [*choices, replace(choices[0], activate_first=not first)]


def _columns_choices(dtype: torch.dtype, dim: int) -> list[Choice]:
    """Cuts of `_columns_kernel`, the likeliest first."""
    width = max(16, power_of_two(min(dim, _WHOLE)))
    if tuning.INTERPRETED:
        return [Choice(16, 16, width, 4, 1)]
    # Without the wide matrix units of data-centre cards the operands of wide tiles take more registers than there are:
    # what they spilled would take gigabytes, as a card sets it aside for all threads that it can run.
    wide = tuning.capability()[0] in _WIDE_UNITS
    if dtype == torch.float32:
        cuts = [(32, 64, 4, 1), (32, 128, 8, 1)] if wide else [(16, 64, 8, 1), (32, 32, 8, 1)]
    elif dtype == torch.float16:
        cuts = [(32, 128, 8, 1), (64, 64, 8, 1)]
    elif wide:
        cuts = [(64, 256, 8, 2), (64, 128, 8, 2), (32, 256, 8, 2), (32, 128, 8, 2)]
    else:
        cuts = [(32, 128, 8, 2), (64, 64, 8, 1), (32, 64, 4, 1)]
    cuts.append((16, 64, 4, 1))
    return list(dict.fromkeys(Choice(own, own, min(width, w), warps, stages) for own, w, warps, stages in cuts))
