"""Both attention maps of FuXi-beta without a square: time and memory linear in the length of a history.

`temporal_linear` is FRAB (equations 11 and 12) by way of Euler's integral. A power is a mixture of exponentials,

    (1 + x)^(-b) = 1 / Gamma(b) * integral over s > 0 of s^(b - 1) e^(-s) e^(-s x) ds

and with s = e^u the trapezoid rule on fixed nodes u gives K of them, whose weights alone depend on b. An exponential of
a gap factors into one of the event looked back at and one of the event that asks, so the past of a row is K running
sums. The packed tokens are cut into chunks without regard to where sequences end: inside a chunk the map is taken
exactly, and only the sequence that crosses a boundary hands its K sums on.

`positional_toeplitz` is RAB (equation 8), a causal convolution: a matrix product when short, an FFT when long.

Shapes: `T` packed tokens, `B` sequences, `D` channels, `K` nodes, `c` chunks of `m` tokens in a block.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64  # m: tokens between which the map is taken exactly
BLOCK = 32 * CHUNK  # tokens worked on at once: their sums and maps stay in the cache
LOWEST_DECAY, HIGHEST_DECAY = -0.1, 3.0
LONGEST_SPAN = 10**8  # seconds, a little over three years

_STEP = 0.52  # of u. The rule's own error is 2 |Gamma(b + 2 pi i / step)| / Gamma(b): 5e-6 at b = 3, less below
_NODES = 48  # K, the node s = 0 among them
_TOP = 2.5  # u of the fastest node: beyond it e^(-s) leaves nothing


def linear_applies(timestamp: Tensor, next_timestamp: Tensor, offsets: Tensor, decay: Tensor) -> bool:
    """Whether `temporal_linear` may stand in for the dense map.

    True if the decay is within [-0.1, 3] and, in every sequence, events are in order of time, none asks for a time
    before its own, and at most 10^8 seconds lie between the first event and the last time asked for.

    timestamp, next_timestamp: int64 [T], Unix seconds. offsets: int64 [B + 1]. decay: b, 0-d.
    """
    if not LOWEST_DECAY <= round(float(decay), 6) <= HIGHEST_DECAY:
        return False
    times = _times(timestamp, next_timestamp, offsets)
    same = times.owner[1:] == times.owner[:-1]
    in_order = (timestamp[1:] >= timestamp[:-1]) | ~same[1:]
    first = timestamp[offsets[:-1].clamp(max=max(len(timestamp) - 1, 0))] if len(timestamp) else timestamp
    span = next_timestamp - first.repeat_interleave(offsets.diff()) if len(timestamp) else timestamp
    return bool(in_order.all() & (next_timestamp >= timestamp).all() & (span <= LONGEST_SPAN).all())


def temporal_linear(
    value: Tensor, timestamp: Tensor, next_timestamp: Tensor, offsets: Tensor, scale: Tensor, decay: Tensor
) -> Tensor:
    """FRAB times values: row i is the sum over j <= i of a (1 + max(t_{i+1} - t_j, 0))^(-b) v_j. [T, D].

    Only where `linear_applies`. Each weight of the map is then within 1e-4 of itself: 7e-5 from the nodes, the rest from
    fp32. Differentiable once in value, scale and decay; keeps no tensor of its own for the backward pass.

    value: float32 [T, D], sequence k at offsets[k] : offsets[k + 1]; rows may lie apart, as in a slice of columns.
    timestamp, next_timestamp: int64 [T], Unix seconds of each event and of the event it predicts.
    offsets: int64 [B + 1], from 0 to T. scale, decay: a and b, 0-d.
    """
    result: Tensor = _TemporalLinear.apply(value, timestamp, next_timestamp, offsets, scale, decay)  # pyright: ignore
    return result


@dataclass(frozen=True)
class _Times:
    """When packed tokens happened; place 0 stands before the first token and belongs to no sequence."""

    owner: Tensor  # int32 [1 + T], the sequence of each token
    seen: Tensor  # int32 [1 + T], t_j in seconds after the first event of the sequence
    asked: Tensor  # int32 [1 + T], t_{i+1} likewise


def _times(timestamp: Tensor, next_timestamp: Tensor, offsets: Tensor) -> _Times:
    owner = torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())
    first = timestamp[offsets[:-1][owner]]

    def padded(rows: Tensor, fill: int) -> Tensor:
        return torch.nn.functional.pad(rows.to(torch.int32), (1, 0), value=fill)

    return _Times(padded(owner, -1), padded(timestamp - first, 0), padded(next_timestamp - first, 0))


def _spans(tokens: int) -> list[tuple[int, int]]:
    """Blocks of whole chunks, then what is left as one short chunk."""
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

    log_gap: Tensor  # [c, m, m], log(1 + x)
    power: Tensor  # [c, m, m], (1 + x)^(-b) within the chunk, 0 above the diagonal and between sequences
    since: Tensor  # [c, m, K], e^(-s (t_{i+1} - r)), r the last event before the chunk; 0 in other sequences than its
    until: Tensor  # [c, m, K], e^(-s (r' - t_j)), r' the chunk's own last event; 0 in other sequences than its
    across: Tensor  # [c, K, 1], e^(-s (r' - r)) if one sequence holds both


def _block(times: _Times, span: tuple[int, int], speed: Tensor, decay: Tensor) -> _Block:
    """speed: s of the nodes [K]."""
    owner, seen, asked = (_chunks(rows[1:], span) for rows in (times.owner, times.seen, times.asked))
    length = owner.shape[1]
    owner_before, seen_before = (rows[span[0] : span[1] : length, None] for rows in (times.owner, times.seen))  # [c, 1]
    owner_last, seen_last = owner[:, -1:], seen[:, -1:]
    gap = (asked[:, :, None] - seen[:, None, :]).clamp_(min=0)
    log_gap = gap.add_(1).to(speed.dtype).log_()
    power = (log_gap * -decay).exp_().tril_()
    since = _exponentials(asked - seen_before, speed)
    until = _exponentials(seen_last - seen, speed)
    across = _exponentials(seen_last - seen_before, speed)
    if owner_before[0] != owner_last[-1]:
        power *= owner[:, :, None] == owner[:, None, :]
        since *= (owner == owner_before)[:, :, None]
        until *= (owner == owner_last)[:, :, None]
        across *= (owner_last == owner_before)[:, :, None]
    return _Block(log_gap, power, since, until, across.transpose(1, 2))


def _exponentials(seconds: Tensor, speed: Tensor) -> Tensor:
    return (seconds.clamp(min=0).to(speed.dtype)[..., None] * -speed).exp_()


class _TemporalLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, timestamp: Tensor, next_timestamp: Tensor, offsets: Tensor, scale: Tensor, decay: Tensor
    ) -> Tensor:
        ctx.save_for_backward(value, timestamp, next_timestamp, offsets, scale, decay)
        times, speed = _times(timestamp, next_timestamp, offsets), _speeds(value)
        weight = (scale * _weights(decay)).to(value.dtype)
        output = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        sums = value.new_zeros(BLOCK // CHUNK + 1, _NODES, value.shape[1])  # sums[i]: as chunk i finds them
        for span in _spans(len(value)):
            block = _block(times, span, speed, decay)
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
        value, timestamp, next_timestamp, offsets, scale, decay = ctx.saved_tensors
        times, speed = _times(timestamp, next_timestamp, offsets), _speeds(value)
        weight = (scale * _weights(decay)).to(value.dtype)
        grad_value = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        grad_scale = torch.zeros((), dtype=torch.float64, device=value.device)
        grad_decay = torch.zeros_like(grad_scale)
        grad_node = torch.zeros(_NODES, dtype=torch.float64, device=value.device)
        sums = value.new_zeros(BLOCK // CHUNK + 1, _NODES, value.shape[1])  # sums[i + 1]: asked of chunk i by later ones
        for span in reversed(_spans(len(value))):
            block = _block(times, span, speed, decay)
            rows, above, result = _chunks(value, span), _chunks(upstream, span), _chunks(grad_value, span)
            count = len(rows)
            sums[count] = sums[0]
            torch.bmm(block.since.mT, above, out=sums[:count])
            for chunk in reversed(range(count)):
                sums[chunk].addcmul_(block.across[chunk], sums[chunk + 1])
            by_pair = torch.bmm(above, rows.mT).mul_(block.power)  # [c, m, m], what each weight of the map adds
            grad_scale += by_pair.sum()
            grad_decay -= by_pair.mul_(block.log_gap).sum()
            grad_node += torch.bmm(rows, sums[1 : count + 1].mT).mul_(block.until).sum((0, 1))
            torch.bmm(block.power.mul_(scale).mT, above, out=result)
            result.baddbmm_(block.until.mul_(weight), sums[1 : count + 1])
        with torch.enable_grad():
            free = decay.detach().double().requires_grad_()
            weighted = grad_node @ _weights(free)
            (through_nodes,) = torch.autograd.grad(weighted, free)
        grad_scale += weighted.detach()
        grad_decay = scale * (grad_decay + through_nodes)
        return grad_value, None, None, None, grad_scale.to(scale.dtype), grad_decay.to(decay.dtype)


def _speeds(like: Tensor) -> Tensor:
    """s of the nodes, per second: 0, then e^u from slow to fast. [K]."""
    u = _TOP - _STEP * torch.arange(_NODES - 2, -1, -1, dtype=torch.float64)
    return torch.cat([u.new_zeros(1), u.exp()]).to(like)


def _weights(decay: Tensor) -> Tensor:
    """Weights of the nodes, float64 [K], smooth in b at and below 0 too: 1 / Gamma(b) is taken as b / Gamma(1 + b).

    The trapezoid rule goes on for ever towards s = 0. Below the slowest node r, s x is small for every gap allowed, so
    there e^(-s x) is a parabola in s: its values at 0, r and r e^step stand for all the nodes left out, with weights that
    give the same sum, first and second moment.
    """
    decay = decay.double()
    u = _TOP - _STEP * torch.arange(_NODES - 2, -1, -1, dtype=torch.float64, device=decay.device)
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
