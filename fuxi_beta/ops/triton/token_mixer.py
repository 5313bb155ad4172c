"""The causal token mixer in Triton: equations 13 and 14 on packed tokens, forward and backward.

A program works on a tile of rows or columns of one listener. The entries of both maps are computed where tensor cores
use them and never leave the registers. V is read once for both maps.

| kernel            | program               | computes                                                          |
| ----------------- | --------------------- | ----------------------------------------------------------------- |
| `_values_kernel`  | any tokens            | V = SiLU(projected), for long histories only                      |
| `_rows_kernel`    | rows i of the maps    | [B V | B^t V], then RMSNorm, U and dropout if it has all channels |
| `gate.gate`       | any tokens            | RMSNorm, U and dropout of wider models                            |
| `gate.ungate`     | any tokens            | the gradients of U and of [B V | B^t V]                           |
| `_columns_kernel` | columns j of the maps | the gradient of V; sums of each lag, of a, b and c over its tile  |
| `_lags_kernel`    | lags                  | the sums of the tiles, lag by lag                                 |

RMSNorm needs all channels of a token. Up to `_WHOLE` channels of V a program of `_rows_kernel` holds them all in
registers, so the mixed values are normalised before they are first stored; beyond, the rows kernel stores its tile of
channels and `gate` makes a second pass. SiLU is applied to V when it is loaded: that takes the least traffic,
as only the projection is read and no V is written. Its cost grows with the length of a history, because each tile of
rows activates the same V again; from `_LONG` events on a separate pass, which reads and writes V once, should be
cheaper.

No sum uses atomics: every program stores its own sums, and a second kernel adds them in a fixed order. With fixed tiles
(`tuning`) equal inputs give equal bits.

Operands of products are bf16 for bf16 values, else float32 on tensor cores: three TF32 products for float32 values; one
for fp16, whose narrow range the maps would exceed (a decay of 3 turns a day into 1e-15, one of -0.5 turns three years
into 1e4). Sums, logarithms, norms and gates are float32. Elapsed times are exact (`split_time`).

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
from fuxi_beta.ops.token_mixer import Power
from fuxi_beta.ops.triton import tuning
from fuxi_beta.ops.triton.gate import gate, ungate
from fuxi_beta.ops.triton.launch import device_function, kernel, on_device
from fuxi_beta.ops.triton.tiles import FIELDS, Sequences
from fuxi_beta.ops.triton.tokenwise import (
    EPS,
    exp2,
    keep_factors,
    log2,
    mask_arguments,
    operands,
    rows_of,
    silu,
    silu_slope,
    split_time,
)
from fuxi_beta.ops.triton.tuning import ceil_div, power_of_two

_WHOLE = 256  # channels of V whose rows a program can hold: two sums of 64 x 256 are half of an SM's registers
_LONG = 256  # events from which V is activated once instead of at every read
_LAGS, _TILES_AT_ONCE, _LAG_SPLITS = 64, 32, 64  # of `_lags_kernel`: lags and tiles of a step, splits of the tiles
_WIDE_UNITS = {9, 10}  # compute capabilities whose matrix units take operands from shared memory
_MARGIN = 256  # zeros on either side of by_lag: above the diagonal, and for rows of a tile beyond the history
_TILE_FIELDS = tl.constexpr(FIELDS)
_LN2 = tl.constexpr(math.log(2))
_LEAST_LOG = tl.constexpr(1e-30)  # below log(2), that of a second
_LOG2_E = tl.constexpr(math.log2(math.e))


@dataclass(frozen=True)
class Choice:
    """Tile sizes and launch options of a kernel of the maps."""

    own: int  # tokens of a program
    others: int  # tokens of a step of its loop
    width: int  # channels of a program
    warps: int
    stages: int
    activate_first: bool = False  # whether V is activated in a separate pass

    @property
    def launch(self) -> dict[str, int]:
        """Triton's launch options."""
        return {"num_warps": self.warps, "num_stages": self.stages}


@device_function
def _tile(tiles, place):
    """First token and end of the history, both relative to the listener's first token; that token; the first lag."""
    first = tl.load(tiles + place * _TILE_FIELDS)
    start = tl.load(tiles + place * _TILE_FIELDS + 1)
    stop = tl.load(tiles + place * _TILE_FIELDS + 2)
    lag = tl.load(tiles + place * _TILE_FIELDS + 3)
    return (first - start).to(tl.int32), (stop - start).to(tl.int32), start, lag


@device_function
def _log_elapsed(query_high, query_low, key_high, key_low, exponent, STRETCHED: tl.constexpr):
    """l with 2^(-b l) as the weight of a pair of split query and key times that broadcast, and the slope of ln l by c.

    x = max(t_{i+1} - t_j, 0). l is log2(1 + x), the slope is not used; or if STRETCHED log2(e) log(1 + x)^c and
    log(log(1 + x)), 0 where x is 0, where the first and its product with the second, its derivative, go to 0.
    """
    elapsed = (query_high - key_high) + (query_low - key_low)
    log_elapsed = log2(1.0 + tl.maximum(elapsed, 0.0))
    slope = log_elapsed
    if STRETCHED:
        log_log = log2(tl.maximum(log_elapsed * _LN2, _LEAST_LOG))
        stretched = exp2(log_log * tl.load(exponent).to(tl.float32)) * _LOG2_E
        slope = tl.where(log_elapsed > 0.0, log_log * _LN2, 0.0)
        log_elapsed = tl.where(log_elapsed > 0.0, stretched, 0.0)
    return log_elapsed, slope


@device_function
def _store_power(at, of_scale, of_decay, of_exponent, scale, speed):
    """Sums of a tile: the gradients of a, b and c from the sums of its columns. speed: -b."""
    tl.store(at, tl.sum(of_scale, 0))
    tl.store(at + 1, tl.sum(of_decay, 0) * scale * -_LN2)
    tl.store(at + 2, tl.sum(of_exponent, 0) * scale * speed * _LN2)


@device_function
def _normed_and_gated(values, inverse, normed_at, gate_at, mask_key_at, has_row, inside, first, zeroed, factor,
                      WIDTH: tl.constexpr, MASKED: tl.constexpr, SAVED: tl.constexpr,
                      BY_FOUR: tl.constexpr):  # fmt: skip
    """U * values / RMS, dropped out; stores values / RMS if SAVED. first: channel of the first value. [R, WIDTH]."""
    values *= inverse[:, None]
    if SAVED:
        tl.store(normed_at, values.to(normed_at.dtype.element_ty), mask=inside)
    values *= silu(tl.load(gate_at, mask=inside, other=0.0).to(tl.float32))
    if MASKED:
        values *= keep_factors(tl.load(mask_key_at, mask=has_row, other=0), first, zeroed, factor, WIDTH, BY_FOUR)
    return values


@kernel
def _rows_kernel(value, projected, keys, out, normed, inverse_rms, tiles, timestamp, next_timestamp, by_lag, scale,
                 decay, exponent, dim, value_stride, zeroed, factor, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                 WIDTH: tl.constexpr, TEMPORAL: tl.constexpr, STRETCHED: tl.constexpr, GATED: tl.constexpr,
                 MASKED: tl.constexpr, SAVED: tl.constexpr, ACTIVATED: tl.constexpr, BY_FOUR: tl.constexpr,
                 OPERAND: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Rows of [B V | B^t V], or of the gated output and of what its backward pass needs.

    value: V or, unless ACTIVATED, V before its SiLU; rows `value_stride` apart. out: [T, C].
    """
    first, length, start, _ = _tile(tiles, tl.program_id(0))
    # A listener's last rows look back furthest: they are scheduled first, so that no long program runs last.
    first = tl.maximum(length - 1, 0) // ROWS * ROWS - first
    row = first + tl.arange(0, ROWS)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    has_row, has_channel = row < length, channel < dim
    value += start * value_stride
    if TEMPORAL:
        query_high, query_low = split_time(tl.load(next_timestamp + start + row, mask=has_row, other=0))
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
            key_high, key_low = split_time(tl.load(timestamp + start + column, mask=has_column, other=0))
            log_elapsed, _slope = _log_elapsed(query_high[:, None], query_low[:, None], key_high[None, :],
                                               key_low[None, :], exponent, STRETCHED)  # fmt: skip
            decayed = exp2(log_elapsed * speed)
            by_time = tl.dot(tl.where(lag >= 0, decayed, 0.0).to(OPERAND), v, by_time, input_precision=PRECISION)
    if TEMPORAL:
        by_time *= tl.load(scale).to(tl.float32)
    inside = has_row[:, None] & has_channel[None, :]
    at = (start + row)[:, None] * (2 * dim) + channel[None, :]
    if GATED:
        squares = tl.sum(by_position * by_position, 1) + tl.sum(by_time * by_time, 1)
        inverse = tl.rsqrt(squares / (2 * dim) + EPS)
        gate_at = projected + (start + row)[:, None] * (3 * dim) + channel[None, :]
        mask_key_at = keys + start + row
        if SAVED:
            tl.store(inverse_rms + start + row, inverse, mask=has_row)
        # One half after the other: both together would not fit into the registers.
        by_position = _normed_and_gated(by_position, inverse, normed + at, gate_at, mask_key_at, has_row, inside, 0,
                                        zeroed, factor, WIDTH, MASKED, SAVED, True)  # fmt: skip
        tl.store(out + at, by_position.to(out.dtype.element_ty), mask=inside)
        by_time = _normed_and_gated(by_time, inverse, normed + at + dim, gate_at + dim, mask_key_at, has_row, inside,
                                    dim, zeroed, factor, WIDTH, MASKED, SAVED, BY_FOUR)  # fmt: skip
        tl.store(out + at + dim, by_time.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(out + at, by_position.to(out.dtype.element_ty), mask=inside)
        tl.store(out + at + dim, by_time.to(out.dtype.element_ty), mask=inside)


@device_function
def _gradient_rows(gradient, first, length, dim, channel, SIZE: tl.constexpr, BOTH: tl.constexpr):
    """SIZE rows of the gradient of [B V | B^t V], of its first half or of BOTH halves.

    The two halves of a token are adjacent, so they are loaded as two rows of D channels: one product serves both maps.
    """
    if BOTH:
        row, stop, stride = 2 * first + tl.arange(0, 2 * SIZE), 2 * length, dim
    else:
        row, stop, stride = first + tl.arange(0, SIZE), length, 2 * dim
    inside = (row < stop)[:, None] & (channel < dim)[None, :]
    return tl.load(gradient + row[:, None] * stride + channel[None, :], mask=inside, other=0.0)


@device_function
def _sums_by_diagonal(pair, SIZE: tl.constexpr):
    """Sums of the diagonals k - SIZE (below) and k (above) for k = 0, 1, ... [SIZE, SIZE] -> two of [SIZE]."""
    step = tl.arange(0, SIZE)
    shifted = step[:, None] + step[None, :]
    # Rotating row c by c turns diagonals into columns: entry [c, (c + k) mod SIZE] is on k, or on k - SIZE if it wraps.
    rotated = tl.gather(pair, shifted % SIZE, 1)
    return tl.sum(tl.where(shifted >= SIZE, rotated, 0.0), 0), tl.sum(tl.where(shifted < SIZE, rotated, 0.0), 0)


@kernel(dynamic=("lags",))
def _columns_kernel(gradient, source, of_source, tiles, timestamp, next_timestamp, by_lag, scale, decay,
                    exponent, lag_sums, power_sums, dim, source_stride, of_stride, lags, SIZE: tl.constexpr,
                    WIDTH: tl.constexpr, TEMPORAL: tl.constexpr, STRETCHED: tl.constexpr, ACTIVATED: tl.constexpr,
                    OPERAND: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The gradients of a tile of columns, from the rows below: of V, and sums for each lag, for a, b and c.

    gradient: of [B V | B^t V], [T, C]. source: V or, unless ACTIVATED, V before its SiLU; of_source gets its gradient.
    The maps are transposed here, columns first. Sums over channels are linear, so each tile of channels stores separate
    sums: lag_sums [channel tiles, lags], power_sums [channel tiles, S, 3].
    """
    place, channel_tile = tl.program_id(0), tl.program_id(1)
    first, length, start, first_lag = _tile(tiles, place)
    step = tl.arange(0, SIZE)
    column = first + step
    channel = channel_tile * WIDTH + tl.arange(0, WIDTH)
    inside = (column < length)[:, None] & (channel < dim)[None, :]
    source_at = source + (start + column)[:, None] * source_stride + channel[None, :]
    v = tl.load(source_at, mask=inside, other=0.0)
    if not ACTIVATED:
        v = silu(v.to(tl.float32))
    v = v.to(OPERAND)
    gradient += start * (2 * dim)
    sums_at = lag_sums + channel_tile.to(tl.int64) * lags + first_lag
    if TEMPORAL:
        key_high, key_low = split_time(tl.load(timestamp + start + column, mask=column < length, other=0))
        speed, factor = -tl.load(decay).to(tl.float32), tl.load(scale).to(tl.float32)
    of_value = tl.zeros([SIZE, WIDTH], tl.float32)
    of_scale, of_decay, of_exponent = (tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32),
                                       tl.zeros([SIZE], tl.float32))  # fmt: skip
    unfinished = tl.zeros([SIZE], tl.float32)  # sums of the lags that this step begins and the next one completes
    for ahead in range(0, length - first, SIZE):
        row = first + ahead + step
        lag = row[None, :] - column[:, None]
        weight = tl.load(by_lag + lag)
        above = _gradient_rows(gradient, first + ahead, length, dim, channel, SIZE, TEMPORAL).to(OPERAND)
        if TEMPORAL:
            query_high, query_low = split_time(tl.load(next_timestamp + start + row, mask=row < length, other=0))
            log_elapsed, slope = _log_elapsed(query_high[None, :], query_low[None, :], key_high[:, None],
                                              key_low[:, None], exponent, STRETCHED)  # fmt: skip
            decayed = tl.where(lag >= 0, exp2(log_elapsed * speed), 0.0)
            weight = tl.reshape(tl.join(weight, (decayed * factor).to(OPERAND)), [SIZE, 2 * SIZE])
        of_value = tl.dot(weight, above, of_value, input_precision=PRECISION)
        pair = tl.trans(tl.dot(above, tl.trans(v), input_precision=PRECISION))
        if TEMPORAL:
            pair, by_time = tl.split(tl.reshape(pair, [SIZE, SIZE, 2]))
            share = decayed * by_time
            of_scale += tl.sum(share, 1)
            of_decay += tl.sum(share * log_elapsed, 1)
            if STRETCHED:
                of_exponent += tl.sum(share * log_elapsed * slope, 1)
        ended, begun = _sums_by_diagonal(pair, SIZE)
        ended_lag = ahead - SIZE + step
        tl.store(sums_at + ended_lag, unfinished + ended, mask=(ended_lag >= 0) & (ended_lag < length - first))
        unfinished = begun
    last_lag = (length - first - 1) // SIZE * SIZE + step
    tl.store(sums_at + last_lag, unfinished, mask=(last_lag >= 0) & (last_lag < length - first))
    if TEMPORAL:
        _store_power(power_sums + (channel_tile * tl.num_programs(0) + place) * 3, of_scale, of_decay, of_exponent,
                     factor, speed)  # fmt: skip
    if not ACTIVATED:
        of_value *= silu_slope(tl.load(source_at, mask=inside, other=0.0).to(tl.float32))
    of_at = of_source + (start + column)[:, None] * of_stride + channel[None, :]
    tl.store(of_at, of_value.to(of_source.dtype.element_ty), mask=inside)


@kernel(dynamic=("places", "lags", "reach"))
def _lags_kernel(lag_sums, tiles, out, places, lags, channel_tiles, reach, SIZE: tl.constexpr, AT_ONCE: tl.constexpr):
    """Adds the sums of the tiles lag by lag, each program for a share of them. out: [programs of axis 1, reach]."""
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
        for _ in range(channel_tiles):
            total += tl.sum(tl.load(sums_at[:, None] + lag[None, :], mask=inside, other=0.0), 0)
            sums_at += lags
    tl.store(out + tl.program_id(1) * reach + lag, total, mask=lag < reach)


@kernel(dynamic=("tokens",))
def _values_kernel(projected, out, tokens, dim, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """V = SiLU(the last third of projected). [T, 3 D] -> [T, D]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (channel < dim)[None, :]
    at = row.to(tl.int64)[:, None] * dim
    value = tl.load(projected + at * 3 + 2 * dim + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at + channel[None, :], silu(value).to(out.dtype.element_ty), mask=inside)


class PackedTimes:
    """The times of a batch cut into tiles: the kernels compute the maps where they use them."""

    def __init__(self, batch: Batch) -> None:
        self.longest = batch.longest
        self.sequences = Sequences.of(batch)

    def token_mixer(self, projected: Tensor, by_lag: Tensor, power: Power | None, mask: Mask | None) -> Tensor:
        """See `fuxi_beta.ops.token_mixer`."""
        tensors = (projected, by_lag, *(power or ()))
        differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        rest = (*_padded(power), mask, self.sequences, differentiated)
        return _TokenMixer.apply(projected, by_lag, *rest)  # type: ignore[return-value]

    def apply_maps(self, value: Tensor, by_lag: Tensor, power: Power | None) -> Tensor:
        """See `fuxi_beta.ops.apply_maps`."""
        return _ApplyMaps.apply(value, by_lag, *_padded(power), self.sequences)  # type: ignore[return-value]


def _padded(power: Power | None) -> tuple[Tensor | None, ...]:
    """a, b and c, None for those that are not there."""
    return (*(power or ()), None, None, None)[:3]


class _ApplyMaps(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, value: Tensor, *rest: Any) -> Tensor:
        by_lag, *power, ctx.sequences = rest
        value, by_lag = value.contiguous(), by_lag.contiguous()
        ctx.save_for_backward(value, by_lag, *power)
        return _Maps(ctx.sequences, by_lag, *power).apply(value)

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, *parameters = ctx.saved_tensors
        of_value = torch.empty_like(value)
        maps = _Maps(ctx.sequences, *parameters)
        of_maps = maps.backward(gradients[0].contiguous(), value, of_value, activated=True)
        return of_value, *of_maps, None


class _TokenMixer(torch.autograd.Function):
    @staticmethod
    @on_device
    def forward(ctx: Any, projected: Tensor, *rest: Any) -> Tensor:
        by_lag, *power, mask, sequences, differentiated = rest
        projected, by_lag = projected.contiguous(), by_lag.contiguous()
        out, kept = _Maps(sequences, by_lag, *power).gated(projected, mask, differentiated=differentiated)
        ctx.sequences, ctx.mask = sequences, mask
        ctx.save_for_backward(projected, *kept, by_lag, *power)
        return out

    @staticmethod
    @once_differentiable
    @on_device
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        projected, normed, inverse_rms, *parameters = ctx.saved_tensors
        dim, of_projected = projected.shape[1] // 3, torch.empty_like(projected)
        of_mixed = ungate(gradients[0], projected, normed, inverse_rms, ctx.mask, of_projected)
        source, of_source = projected[:, 2 * dim :], of_projected[:, 2 * dim :]
        of_maps = _Maps(ctx.sequences, *parameters).backward(of_mixed, source, of_source, activated=False)
        return of_projected, *of_maps, None, None, None


@dataclass(frozen=True)
class _Maps:
    """Both maps of a batch: its sequences and the parameters of the weights."""

    sequences: Sequences
    by_lag: Tensor  # [reach]
    scale: Tensor | None  # 0-d
    decay: Tensor | None  # 0-d
    exponent: Tensor | None = None  # 0-d; None where it is 1

    def __post_init__(self) -> None:
        if len(self.by_lag) < self.sequences.longest:
            raise ValueError(
                f"a history has {self.sequences.longest} events, but by_lag only {len(self.by_lag)} weights"
            )

    @property
    def temporal(self) -> bool:
        """Whether there is a temporal map."""
        return self.scale is not None and self.decay is not None

    @property
    def stretched(self) -> bool:
        """Whether the temporal map has an exponent."""
        return self.exponent is not None

    def _pointers(self, size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The pointers that every kernel of the maps takes; placeholders for those of a, b and c that are not there.

        by_lag has zeros around it, so that kernels need not test for the diagonal and the end of a history.
        """
        padded = F.pad(self.by_lag, (_MARGIN, _MARGIN)).to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
        power = (padded if number is None else number for number in (self.scale, self.decay, self.exponent))
        times = (self.sequences.timestamp, self.sequences.next_timestamp)
        return (self.sequences.tiles(size).table, *times, padded[_MARGIN:], *power)

    def _key(self, name: str, like: Tensor, dim: int) -> tuple[object, ...]:
        """Key of the tuning: all that the fastest tiles depend on."""
        of_maps = (power_of_two(self.sequences.longest), self.temporal, self.stretched)
        return (name, like.device.index, like.dtype, dim, *of_maps)

    def apply(self, value: Tensor) -> Tensor:
        """[B V | B^t V]. [T, D] -> [T, C]."""
        tokens, dim = value.shape
        out = value.new_empty(tokens, 2 * dim)

        def call(choice: Choice) -> None:
            rows = choice.own
            _rows_kernel[self._grid(choice, dim)](
                value, value, value, out, out, out, *self._pointers(rows, value.dtype), dim, value.stride(0), 0, 1.0,
                ROWS=rows, COLUMNS=choice.others, WIDTH=choice.width, TEMPORAL=self.temporal, STRETCHED=self.stretched,
                GATED=False,
                MASKED=False, SAVED=False, ACTIVATED=True, BY_FOUR=True, **operands(value.dtype), **choice.launch,
            )  # fmt: skip

        if out.numel():
            tuning.run(self._key("apply", value, dim), _rows_choices(value.dtype, dim, activated=True), call)
        return out

    def gated(
        self, projected: Tensor, mask: Mask | None, *, differentiated: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """U * RMSNorm([B V | B^t V]), then dropout; and for the backward pass the normed values and 1 / RMS.

        [T, 3 D] -> [T, C], ([T, C], [T]); the latter two are empty if they are not needed.
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
                STRETCHED=self.stretched, GATED=whole, MASKED=mask is not None, SAVED=differentiated,
                ACTIVATED=choice.activate_first, BY_FOUR=dim % 4 == 0, **operands(projected.dtype), **choice.launch,
            )  # fmt: skip
            if not whole:
                gate(normed, projected, mask, out, inverse_rms)

        if out.numel():
            choices = _rows_choices(projected.dtype, dim, activated=False, long=self.sequences.longest >= _LONG)
            tuning.run(self._key("mix", projected, dim), choices, call)
        return out, (normed, inverse_rms)

    def backward(
        self, gradient: Tensor, source: Tensor, of_source: Tensor, *, activated: bool
    ) -> tuple[Tensor | None, ...]:
        """The gradients of by_lag, a, b and c from that of [B V | B^t V]; the one of `source` goes into `of_source`.

        source: V, or V before its SiLU unless `activated`; it and of_source may be slices of columns. [T, D].
        """
        dim = source.shape[1]
        of_by_lag = torch.zeros_like(self.by_lag)
        power = (self.scale, self.decay, self.exponent)
        of_power = [None if number is None else torch.zeros_like(number) for number in power]
        if not source.numel():
            return of_by_lag, *of_power

        def call(choice: Choice) -> tuple[Tensor, Tensor]:
            tiles = self.sequences.tiles(choice.own)
            channel_tiles = ceil_div(dim, choice.width)
            lag_sums = gradient.new_empty(channel_tiles, tiles.lags, dtype=torch.float32)
            power_sums = gradient.new_empty(channel_tiles * len(tiles), 3, dtype=torch.float32)
            _columns_kernel[self._grid(choice, dim)](
                gradient, source, of_source, *self._pointers(choice.own, source.dtype), lag_sums, power_sums, dim,
                source.stride(0), of_source.stride(0), tiles.lags, SIZE=choice.own, WIDTH=choice.width,
                TEMPORAL=self.temporal, STRETCHED=self.stretched, ACTIVATED=activated, **operands(source.dtype),
                **choice.launch,
            )  # fmt: skip
            return self._sum_by_lag(lag_sums, choice), power_sums

        choices = _columns_choices(source.dtype, dim)
        by_lag, power_sums = tuning.run(self._key(f"back, {activated=}", source, dim), choices, call)
        of_by_lag.copy_(by_lag)
        if self.temporal:
            for of_number, total in zip(of_power, power_sums.sum(0, dtype=torch.float64), strict=True):
                if of_number is not None:
                    of_number.copy_(total)
        return of_by_lag, *of_power

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
    """V = SiLU of the last third of the columns. [T, 3 D] -> [T, D]."""
    tokens, dim = len(projected), projected.shape[1] // 3
    out = projected.new_empty(tokens, dim)
    rows, width, warps = rows_of(dim)
    _values_kernel[(ceil_div(tokens, rows),)](projected, out, tokens, dim, ROWS=rows, WIDTH=width, num_warps=warps)
    return out


def _rows_choices(dtype: torch.dtype, dim: int, *, activated: bool, long: bool = False) -> list[Choice]:
    """Choices for `_rows_kernel`, the likeliest first. activated: V is given; long: else activate it first."""
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
    # Near the length from which a history is `long`, which is faster depends on the card.
    return choices if activated else [*choices, replace(choices[0], activate_first=not first)]


def _columns_choices(dtype: torch.dtype, dim: int) -> list[Choice]:
    """Choices for `_columns_kernel`, the likeliest first."""
    width = max(16, power_of_two(min(dim, _WHOLE)))
    if tuning.INTERPRETED:
        return [Choice(16, 16, width, 4, 1)]
    # Without the wide matrix units of data-centre cards, the operands of wide tiles take more registers than there are.
    # Spilled registers would take gigabytes, because a card reserves their memory for all threads that it can run.
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
