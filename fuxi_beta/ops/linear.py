"""Both attention maps of FuXi-beta in time and memory linear in the length of a history.

`temporal_linear` is FRAB (equations 11 and 12) by Euler's integral. A power is a mixture of exponentials,

    (1 + x)^(-b) = 1 / Gamma(b) * integral over s > 0 of s^(b - 1) e^(-s) e^(-s x) ds

and with s = e^u the trapezoid rule on fixed nodes u approximates it by K of them, whose weights alone depend on b. An
exponential of an elapsed time factors into one of the query time and one of the key time, so that K running sums stand
for the whole past of a row. The packed tokens are cut into chunks whatever the ends of sequences: inside a chunk the
map is exact, and the K sums are carried over a boundary between chunks only within the sequence that crosses it.

a exp(-b log(1 + x)^c) is a mixture of exponentials as well, for 0 < c <= 1 with weights that are not negative, but they
have no closed form: those of the same nodes are fitted to its values at many gaps by least squares. That is linear in
the values, and so differentiable in b and c.

`positional_toeplitz` is RAB (equation 8), a causal convolution: a matrix product when short, an FFT when long.

Shapes: `T` packed tokens, `B` sequences, `D` channels, `K` nodes, `c` chunks of `m` tokens in a block.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.reference import gate_and_value, gated, stretched, toeplitz
from fuxi_beta.ops.token_mixer import Power, PreparedTimes

LOWEST_DECAY, HIGHEST_DECAY = -0.1, 3.0
LONGEST_SPAN = 10**8  # seconds, a little over three years
CHUNK = 64  # m: tokens between which the map is taken exactly
BLOCK = 64 * CHUNK  # tokens worked on at once, which bounds the scratch memory whatever T

FIT_BOUND = 1e-5  # of fitted weights, relative to f(0) = 1

_FIT_CUT = (
    1e-7  # singular values below this share of the largest are noise: larger weights would fit float64's rounding
)
_LEAST_LOG = 1e-30
_STEP = 0.52  # of u. The rule's own error is 2 |Gamma(b + 2 pi i / step)| / Gamma(b): 7e-6 at b = 3, less below
_NODES = 48  # K, the node s = 0 among them
_TOP = 2.5  # u of the fastest node: beyond it e^(-s) is negligible
_FFT_FROM = 640  # events of a sequence from which transforms beat the matrix product
_ROWS = 256  # of the matrix product at once: above the diagonal at most a block of them is wasted
_TRANSFORMED = 2**19  # numbers transformed at once: they stay in the cache


class LongHistoryTimes:
    """The times of a batch of long histories. `quadratic` makes those for a temporal map that cannot be linear."""

    def __init__(self, batch: Batch, quadratic: Callable[[], PreparedTimes]) -> None:
        self.longest, self._quadratic = batch.longest, quadratic
        self.times = (batch.timestamp, batch.next_timestamp, batch.offsets)
        self.in_order = in_order(batch)

    @cached_property
    def quadratic(self) -> PreparedTimes:
        """The fallback, made when first needed."""
        return self._quadratic()

    def token_mixer(self, projected: Tensor, by_lag: Tensor, power: Power | None, mask: Mask | None) -> Tensor:
        """See `fuxi_beta.ops.token_mixer`."""
        if not self._is_linear(power):
            return self.quadratic.token_mixer(projected, by_lag, power, mask)
        gate, value = gate_and_value(projected)
        return gated(gate, self.apply_maps(value, by_lag, power), mask)

    def apply_maps(self, value: Tensor, by_lag: Tensor, power: Power | None) -> Tensor:
        """See `fuxi_beta.ops.apply_maps`."""
        if not self._is_linear(power):
            return self.quadratic.apply_maps(value, by_lag, power)
        by_position = positional_toeplitz(value, self.times[2], by_lag)
        by_time = torch.zeros_like(value) if power is None else temporal_linear(value, *self.times, *power)
        return torch.cat([by_position, by_time], dim=1)

    def _is_linear(self, power: Power | None) -> bool:
        return power is None or (self.in_order and _approximates(*power[1:]))


def linear_applies(
    timestamp: Tensor, next_timestamp: Tensor, offsets: Tensor, decay: Tensor, exponent: Tensor | None = None
) -> bool:
    """Whether `temporal_linear` approximates the temporal map here.

    True if the decay is within [-0.1, 3], or with an exponent the fit of the weights is within 10^-5 of 1 everywhere,
    and, in every sequence, events are in order of time, no query time precedes its own event, and the last query time
    is at most 10^8 seconds after the first event.

    timestamp, next_timestamp: int64 [T], Unix seconds. offsets: int64 [B + 1]. decay, exponent: b and c, 0-d.
    """
    return _approximates(decay, exponent) and _in_order(timestamp, next_timestamp, offsets)


def _approximates(decay: Tensor, exponent: Tensor | None = None) -> bool:
    if exponent is None:
        return LOWEST_DECAY - 1e-6 <= decay.item() <= HIGHEST_DECAY + 1e-6  # -0.1 in fp32 is a little less
    return fit_error(decay, exponent) <= FIT_BOUND


def in_order(batch: Batch) -> bool:
    """Whether plays and query times of every listener are in order of time, over at most 10^8 seconds."""
    return _in_order(batch.timestamp, batch.next_timestamp, batch.offsets)


def _in_order(timestamp: Tensor, next_timestamp: Tensor, offsets: Tensor) -> bool:
    sequence = _sequences(offsets)
    in_order = (timestamp.diff() >= 0) | (sequence.diff() != 0)
    span = next_timestamp - timestamp[offsets[sequence]]
    return bool(in_order.all() & (next_timestamp >= timestamp).all() & (span <= LONGEST_SPAN).all())


def temporal_linear(
    value: Tensor,
    timestamp: Tensor,
    next_timestamp: Tensor,
    offsets: Tensor,
    scale: Tensor,
    decay: Tensor,
    exponent: Tensor | None = None,
) -> Tensor:
    """FRAB times values: row i is the sum over j <= i of a (1 + max(t_{i+1} - t_j, 0))^(-b) v_j. [T, D].

    With an exponent c it is a exp(-b log(1 + max(t_{i+1} - t_j, 0))^c) instead.

    Only where `linear_applies`: there each weight of the map is within 2e-5 of itself (8e-6 from the nodes at b = 3,
    1e-6 for b in [0, 1], the rest is fp32), and its derivative in b within 1.5e-4 of the weight (2e-5 for b in [0, 1]).
    With an exponent each weight is within 1.2e-5 of a, and its derivatives in b and c within 2e-4 of a.
    Differentiable once in value, scale, decay and exponent. Saves only its arguments for the backward pass.

    value: float32 [T, D], sequence k at offsets[k] : offsets[k + 1]; rows may lie apart, as in a slice of columns.
    timestamp, next_timestamp: int64 [T], Unix seconds of each event and of the event it predicts.
    offsets: int64 [B + 1], from 0 to T. scale, decay, exponent: a, b and c, 0-d.
    """
    times = timestamp, next_timestamp, offsets
    result: Tensor = _TemporalLinear.apply(value, *times, scale, decay, exponent)  # pyright: ignore
    return result


@dataclass(frozen=True)
class _Times:
    """The times of packed tokens, in seconds after the first event of their sequence; place 0 precedes every token."""

    sequence: Tensor  # int32 [1 + T], the sequence of each token; -1 at place 0
    key: Tensor  # int32 [1 + T], t_j
    query: Tensor  # int32 [1 + T], t_{i+1}


def _times(timestamp: Tensor, next_timestamp: Tensor, offsets: Tensor) -> _Times:
    sequence = _sequences(offsets)
    first = timestamp[offsets[sequence]]

    def padded(rows: Tensor, fill: int) -> Tensor:
        return F.pad(rows.to(torch.int32), (1, 0), value=fill)

    return _Times(padded(sequence, -1), padded(timestamp - first, 0), padded(next_timestamp - first, 0))


def _sequences(offsets: Tensor) -> Tensor:
    """The sequence of each packed token. int64 [T]."""
    return torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())


def _spans(tokens: int) -> list[tuple[int, int]]:
    """(start, end) of blocks of whole chunks, then of the remainder as one short chunk."""
    whole = tokens - tokens % CHUNK
    blocks = [(start, min(start + BLOCK, whole)) for start in range(0, whole, BLOCK)]
    return [*blocks, (whole, tokens)] if whole < tokens else blocks


def _chunks(rows: Tensor, span: tuple[int, int]) -> Tensor:
    """A view of one block of packed rows. [c, m, ...]."""
    start, end = span
    return rows[start:end].unflatten(0, (-1, min(CHUNK, end - start)))


@dataclass(frozen=True)
class _Block:
    """The factors of the map in one block, without a and without the weights of the nodes. No exponent is positive."""

    log_elapsed: Tensor  # [c, m, m], log(1 + x)
    power: Tensor  # [c, m, m], the map without a, within the chunk; 0 above the diagonal and between sequences
    since: Tensor  # [c, m, K], e^(-s (t_{i+1} - r)), r the last event before the chunk; 0 unless of the same sequence
    until: Tensor  # [c, m, K], e^(-s (r' - t_j)), r' the last event of the chunk; 0 unless of the same sequence
    across: Tensor  # [c, K, 1], e^(-s (r' - r)) if r and r' are of one sequence, else 0


def _block(times: _Times, span: tuple[int, int], speed: Tensor, decay: Tensor, exponent: Tensor | None) -> _Block:
    """speed: s of the nodes [K]."""
    sequence, key, query = (_chunks(rows[1:], span) for rows in (times.sequence, times.key, times.query))
    length = sequence.shape[1]
    sequence_before, before = (rows[span[0] : span[1] : length, None] for rows in (times.sequence, times.key))  # [c, 1]
    sequence_last, last = sequence[:, -1:], key[:, -1:]
    elapsed = (query[:, :, None] - key[:, None, :]).clamp_(min=0)
    log_elapsed = elapsed.add_(1).to(speed.dtype).log_()
    power = (stretched(log_elapsed, exponent) * -decay).exp_().tril_()
    since = _exponentials(query - before, speed)
    until = _exponentials(last - key, speed)
    across = _exponentials(last - before, speed)
    if sequence_before[0] != sequence_last[-1]:
        power *= sequence[:, :, None] == sequence[:, None, :]
        since *= (sequence == sequence_before)[:, :, None]
        until *= (sequence == sequence_last)[:, :, None]
        across *= (sequence_last == sequence_before)[:, :, None]
    return _Block(log_elapsed, power, since, until, across.transpose(1, 2))


def _exponentials(seconds: Tensor, speed: Tensor) -> Tensor:
    return (seconds.clamp(min=0).to(speed.dtype)[..., None] * -speed).exp_()


class _TemporalLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        timestamp: Tensor,
        next_timestamp: Tensor,
        offsets: Tensor,
        scale: Tensor,
        decay: Tensor,
        exponent: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(value, timestamp, next_timestamp, offsets, scale, decay, exponent)
        times, speed = _times(timestamp, next_timestamp, offsets), _speeds(value)
        weight = (scale * _node_weights(decay, exponent)).to(value.dtype)
        output = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        sums = value.new_zeros(BLOCK // CHUNK + 1, _NODES, value.shape[1])  # sums[i]: of all that precedes chunk i
        for span in _spans(len(value)):
            block = _block(times, span, speed, decay, exponent)
            rows, result = _chunks(value, span), _chunks(output, span)
            count = len(rows)
            torch.bmm(block.until.mT, rows, out=sums[1 : count + 1])
            for chunk in range(count):
                sums[chunk + 1].addcmul_(block.across[chunk], sums[chunk])
            torch.bmm(block.power.mul_(scale), rows, out=result)
            result.baddbmm_(block.since.mul_(weight), sums[:count])
            sums[0] = sums[count]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The forward pass mirrored: gradients are summed from the last chunk to the first."""
        (upstream,) = grads
        value, timestamp, next_timestamp, offsets, scale, decay, exponent = ctx.saved_tensors
        times, speed = _times(timestamp, next_timestamp, offsets), _speeds(value)
        weight = (scale * _node_weights(decay, exponent)).to(value.dtype)
        grad_value = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        grad_scale = torch.zeros((), dtype=torch.float64, device=value.device)
        grad_decay, grad_exponent = torch.zeros_like(grad_scale), torch.zeros_like(grad_scale)
        grad_node = torch.zeros(_NODES, dtype=torch.float64, device=value.device)
        sums = value.new_zeros(BLOCK // CHUNK + 1, _NODES, value.shape[1])  # sums[i + 1]: from all after chunk i
        for span in reversed(_spans(len(value))):
            block = _block(times, span, speed, decay, exponent)
            rows, above, result = _chunks(value, span), _chunks(upstream, span), _chunks(grad_value, span)
            count = len(rows)
            sums[count] = sums[0]
            torch.bmm(block.since.mT, above, out=sums[:count])
            for chunk in reversed(range(count)):
                sums[chunk].addcmul_(block.across[chunk], sums[chunk + 1])
            by_pair = torch.bmm(above, rows.mT).mul_(block.power)  # [c, m, m], the share of each weight of the map
            grad_scale += by_pair.sum()
            grad_decay -= by_pair.mul_(stretched(block.log_elapsed, exponent)).sum()
            if exponent is not None:  # at a gap of 0 the exponent changes nothing
                grad_exponent -= by_pair.mul_(block.log_elapsed.clamp(min=_LEAST_LOG).log_()).sum()
            grad_node += torch.bmm(rows, sums[1 : count + 1].mT).mul_(block.until).sum((0, 1))
            torch.bmm(block.power.mul_(scale).mT, above, out=result)
            result.baddbmm_(block.until.mul_(weight), sums[1 : count + 1])
        with torch.enable_grad():
            free = [number.detach().double().requires_grad_() for number in (decay, exponent) if number is not None]
            weighted = grad_node @ _node_weights(*free)
            through_nodes = torch.autograd.grad(weighted, free)
        grad_scale += weighted.detach()
        grad_decay = scale * (grad_decay + through_nodes[0])
        of_power = [grad_scale.to(scale.dtype), grad_decay.to(decay.dtype), None]
        if exponent is not None:
            of_power[2] = (scale * (decay * grad_exponent + through_nodes[1])).to(exponent.dtype)
        return grad_value, None, None, None, *of_power


def _speeds(like: Tensor) -> Tensor:
    """s of the nodes, per second: 0, then e^u from slow to fast. [K]."""
    return torch.cat([torch.zeros(1, dtype=torch.float64), _logarithms().exp()]).to(like)


def _logarithms() -> Tensor:
    """u of the nodes but the first, rising. float64 [K - 1]."""
    return _TOP - _STEP * torch.arange(_NODES - 2, -1, -1, dtype=torch.float64)


def fit_error(decay: Tensor, exponent: Tensor) -> float:
    """The largest error of the nodes' sum for exp(-b log(1 + x)^c), over gaps up to 10^8 seconds; f(0) is 1."""
    gaps, nodes, _ = _fit(decay.device)
    with torch.no_grad():
        exact = torch.exp(-decay.double() * stretched(gaps.log1p(), exponent.double()))
        return float((nodes @ _node_weights(decay, exponent) - exact).abs().max())


def _node_weights(decay: Tensor, exponent: Tensor | None = None) -> Tensor:
    """Weights of the nodes. float64 [K]."""
    if exponent is None:
        return _weights(decay)
    gaps, _, inverse = _fit(decay.device)
    return inverse @ torch.exp(-decay.double() * stretched(gaps.log1p(), exponent.double()))


@cache
def _fit(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Gaps in seconds [601], the nodes' exponentials at them [601, K], and their pseudo-inverse. float64."""
    gaps = torch.cat([torch.zeros(1), torch.logspace(0, math.log10(LONGEST_SPAN), 600)]).double()
    nodes = torch.exp(-gaps[:, None] * _speeds(gaps))
    return gaps.to(device), nodes.to(device), torch.linalg.pinv(nodes, rtol=_FIT_CUT).to(device)


def _weights(decay: Tensor) -> Tensor:
    """Weights of the nodes, float64 [K], smooth in b at and below 0 too: 1 / Gamma(b) is taken as b / Gamma(1 + b).

    The trapezoid rule has infinitely many nodes towards s = 0. Below the slowest node r kept here, s x is small for
    every elapsed time allowed and e^(-s x) nearly a parabola in s: its values at 0, r and r e^step replace all the
    nodes left out, with weights that give the same sum, first and second moment.
    """
    decay = decay.double()
    u = _logarithms().to(decay.device)
    over_gamma = torch.exp(-torch.lgamma(1 + decay))
    weights = _STEP * decay * over_gamma * torch.exp(decay * u - u.exp())
    # Nodes left out, u = u_0 - step, u_0 - 2 step, ...: geometric sums of e^(b u) (s / r)^p. e^(-s) is 1 to 1e-9 here.
    half = decay * _STEP / 2
    sinh_ratio = 1 + half**2 / 6 * (1 + half**2 / 20 * (1 + half**2 / 42 * (1 + half**2 / 72)))  # sinh(half) / half
    total = torch.exp(-half) / sinh_ratio  # b step / (e^(b step) - 1), without 0 / 0 at b = 0
    first, second = (_STEP * decay / torch.expm1((decay + power) * _STEP) for power in (1, 2))
    ratio = math.exp(_STEP)
    left_out = over_gamma * torch.exp(decay * u[0])
    at_next = left_out * (second - first) / (ratio * (ratio - 1))
    at_slowest = left_out * first - ratio * at_next
    at_zero = left_out * total - at_slowest - at_next
    return torch.cat([torch.stack([at_zero, weights[0] + at_slowest, weights[1] + at_next]), weights[2:]])


def positional_toeplitz(value: Tensor, offsets: Tensor, weight_by_lag: Tensor) -> Tensor:
    """RAB times values: row i of a sequence is the sum over j <= i of w[i - j] v_j. [T, D].

    Differentiable once in value and weight_by_lag.

    value: float32 [T, D], sequence k at offsets[k] : offsets[k + 1]. offsets: int64 [B + 1], from 0 to T.
    weight_by_lag: [reach], the weight of each number of events looked back. Raises ValueError if a sequence is longer.
    """
    longest = int(offsets.diff().max()) if len(offsets) > 1 else 0
    if longest > len(weight_by_lag):
        raise ValueError(
            f"a sequence has {longest} events, but weight_by_lag only {len(weight_by_lag)}: raise the reach"
        )
    result: Tensor = _PositionalToeplitz.apply(value, offsets, weight_by_lag)  # pyright: ignore
    return result


class _PositionalToeplitz(torch.autograd.Function):
    """Sequences one after the other: no padding, and no copy of those that are multiplied."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, offsets: Tensor, weight_by_lag: Tensor) -> Tensor:
        ctx.save_for_backward(value, offsets, weight_by_lag)
        output = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        short, long = _by_length(offsets)
        matrix = toeplitz(weight_by_lag[: max((end - start for start, end in short), default=0)])
        for start, end in short:
            rows, result = value[start:end], output[start:end]
            for top, bottom in _row_blocks(end - start):
                torch.mm(matrix[top:bottom, :bottom], rows[:bottom], out=result[top:bottom])
        for start, end in long:
            size = _transform_size(end - start)
            weight = torch.fft.rfft(weight_by_lag[: end - start], size)
            for channels in _slabs(value, size):
                rows = torch.fft.rfft(value[start:end, channels].t().contiguous(), size)
                output[start:end, channels] = torch.fft.irfft(rows.mul_(weight), size)[:, : end - start].t()
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grads
        value, offsets, weight_by_lag = ctx.saved_tensors
        grad_value = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        short, long = _by_length(offsets)
        matrix = toeplitz(weight_by_lag[: max((end - start for start, end in short), default=0)])
        grad_matrix = torch.zeros_like(matrix)
        for start, end in short:
            rows, above, result = value[start:end], upstream[start:end], grad_value[start:end]
            length = end - start
            for top, bottom in _row_blocks(length):
                torch.mm(matrix[top:length, top:bottom].t(), above[top:], out=result[top:bottom])
                grad_matrix[top:bottom, :bottom].addmm_(above[top:bottom], rows[:bottom].t())
        grad_weight = _sum_by_lag(grad_matrix, len(weight_by_lag))
        for start, end in long:
            length, size = end - start, _transform_size(end - start)
            weight = torch.fft.rfft(weight_by_lag[:length], size).conj()
            correlation = torch.zeros_like(weight)
            for channels in _slabs(value, size):
                above = torch.fft.rfft(upstream[start:end, channels].t().contiguous(), size)
                rows = torch.fft.rfft(value[start:end, channels].t().contiguous(), size)
                correlation += rows.conj().mul(above).sum(0)
                grad_value[start:end, channels] = torch.fft.irfft(above.mul_(weight), size)[:, :length].t()
            grad_weight[:length] += torch.fft.irfft(correlation, size)[:length]
        return grad_value, None, grad_weight


def _by_length(offsets: Tensor) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(start, end) of the sequences to multiply and of those to transform."""
    bounds = offsets.tolist()
    spans = [(start, end) for start, end in itertools.pairwise(bounds) if start < end]
    return (
        [(start, end) for start, end in spans if end - start < _FFT_FROM],
        [(start, end) for start, end in spans if end - start >= _FFT_FROM],
    )


def _row_blocks(length: int) -> list[tuple[int, int]]:
    return [(top, min(top + _ROWS, length)) for top in range(0, length, _ROWS)]


def _slabs(value: Tensor, size: int) -> list[slice]:
    """Slices of channels that are transformed at once."""
    width = max(1, _TRANSFORMED // size)
    return [slice(first, first + width) for first in range(0, value.shape[1], width)]


def _transform_size(length: int) -> int:
    """The least 5, 6, 7 or 8 times a power of two in which a causal convolution does not wrap around."""
    needed = 2 * length - 1
    unit = max(1, 2 ** (needed - 1).bit_length() // 8)
    return -(-needed // unit) * unit


def _sum_by_lag(matrix: Tensor, reach: int) -> Tensor:
    """The sums of a square matrix's diagonals, [n, n] -> [reach]: lag 0 is the main one, further lags lie below it."""
    n = len(matrix)
    # Columns reversed in rows of 2 n, read again in rows of 2 n - 1: row i shifts by i and diagonals become columns.
    skewed = F.pad(matrix.flip(1), (0, n)).flatten()[: n * (2 * n - 1)].view(n, -1) if n else matrix
    return F.pad(skewed.sum(0)[n - 1 :], (0, reach - n)) if n else matrix.new_zeros(reach)
