"""The periodic channel: damped waves of elapsed time, and their gate (FuXi-Linear, arXiv 2602.23671).

    [U | V] = SiLU(projected);  output U * RMSNorm(Y), dropped out
    Y_n = sum over m <= n of e^(-r_k x) sin(2 pi x / P_k) v_m,  x = t_{n+1} - t_m      sine channels of period k
    Y_n = sum over m <= n of e^(-r_k x) cos(2 pi x / P_k) v_m                          cosine channels

Periods P are whole seconds, so the phase is (x mod P) 2 pi / P, exact in integers whatever the time. Of K periods, the
channels are cut into 2 K groups as equal as can be: sines of all periods, then cosines. In the decay a negative x
counts as 0. A damped wave of x is a product of one of t_{n+1} and one of t_m, so the past of a row is two numbers a
channel: time and memory are linear in the length of a history, and nothing is approximated.

| implementation     | where                                  | what                                                  |
| ------------------ | -------------------------------------- | ----------------------------------------------------- |
| `cpu/periodic.cpp` | float32 on the CPU, times in order     | the recurrence                                        |
| `waves_chunked`    | any device and dtype, times in order   | chunks of tokens: a square map inside of a chunk, the |
|                    |                                        | state between them                                    |
| `waves_dense`      | any device and dtype; the definition   | the whole map                                         |

Shapes: `T` packed tokens, `D` width, `K` periods, `n` padded length of a group of `G` listeners, `m` tokens of a chunk.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import cpu, dispatch
from fuxi_beta.ops.linear import in_order
from fuxi_beta.ops.reference import gated
from fuxi_beta.ops.retention import CHUNK, Packed


def periodic(
    projected: Tensor, rate: Tensor, periods: Sequence[int], packed: Packed, mask: Mask | None = None
) -> Tensor:
    """U * RMSNorm(Y) with [U | V] = SiLU(projected), then dropout. [T, 2 D] -> [T, D].

    rate: r of each period, per second, above zero. [K]. periods: P, whole seconds. mask: of the dropout, if any.
    """
    batch = packed.batch
    if dispatch.kernels_for(projected, rate) is cpu and in_order(batch):
        where = batch.offsets, *waves_of(batch, periods, projected)
        return cpu.periodic(projected, rate, where, mask)
    gate, value = F.silu(projected).chunk(2, dim=1)
    return gated(gate, waves(value, rate, periods, packed), mask)


def waves(value: Tensor, rate: Tensor, periods: Sequence[int], packed: Packed) -> Tensor:
    """Y in plain torch, in linear time for long histories. [T, D] -> [T, D]."""
    batch = packed.batch
    chunked = dispatch.in_linear_time(batch) and in_order(batch)

    def of_group(padded: Tensor, number: int) -> Tensor:
        group = packed.padding.groups[number]
        times = group.by_listener(batch.next_timestamp), group.by_listener(batch.timestamp)
        return (waves_chunked if chunked else waves_dense)(padded, rate, periods, *times)

    return packed.padding.each(value, of_group)


def waves_dense(padded: Tensor, rate: Tensor, periods: Sequence[int], query_time: Tensor, key_time: Tensor) -> Tensor:
    """Y of a padded group: the definition. [n, G, D]; times int64 [G, n] -> [n, G, D]."""
    return _parts(_within(padded, rate, periods, query_time, key_time), len(periods))


def waves_chunked(
    padded: Tensor, rate: Tensor, periods: Sequence[int], query_time: Tensor, key_time: Tensor, chunk: int = CHUNK
) -> Tensor:
    """`waves_dense` chunk by chunk, for times in order: no map is larger than a chunk."""

    def mixed_from(values: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _products([_map(r, p, query, key) for r, p in zip(rate, periods, strict=True)], values)

    rows, state, seen_at = [], None, key_time[:, :1]
    for start in range(0, len(padded), chunk):
        value = padded[start : start + chunk]
        query, key = (time[:, start : start + chunk] for time in (query_time, key_time))
        mixed = _within(value, rate, periods, query, key)
        rows.append(mixed if state is None else mixed + mixed_from(state, query, seen_at))
        last = key[:, -1:]  # state: what all plays so far would be worth to a row that asks at the time of the last
        added = mixed_from(_complex(value), last, key)
        state, seen_at = added if state is None else added + mixed_from(state, last, seen_at), last
    if not rows:  # an empty sum that depends on every parameter
        return waves_dense(padded, rate, periods, query_time, key_time)
    return _parts(torch.cat(rows), len(periods))


def channel_bounds(dim: int, periods: int) -> list[int]:
    """First channels of the 2 K groups, and D at the end."""
    return [group * dim // (2 * periods) for group in range(2 * periods + 1)]


def _within(padded: Tensor, rate: Tensor, periods: Sequence[int], query_time: Tensor, key_time: Tensor) -> Tensor:
    """The causal maps times the values. Complex [n, G, D]."""
    maps = [_map(r, p, query_time, key_time).tril() for r, p in zip(rate, periods, strict=True)]
    return _products(maps, _complex(padded))


def _map(rate: Tensor, period: int, query_time: Tensor, key_time: Tensor) -> Tensor:
    """e^((-r + 2 pi i / P) x), x = query time - key time. int64 [G, q] and [G, k] -> complex [G, q, k]."""
    difference = query_time[:, :, None] - key_time[:, None, :]
    phase = difference.remainder(period).to(rate.dtype) * (2 * math.pi / period)
    return torch.polar(torch.exp(-rate * difference.clamp(min=0).to(rate.dtype)), phase)


def _products(maps: Sequence[Tensor], values: Tensor) -> Tensor:
    """The map of each group's period times its channels. maps: K of [G, q, k]. Complex [k, G, D] -> [q, G, D]."""
    cuts = channel_bounds(values.shape[2], len(maps))[1:-1]
    columns = values.transpose(0, 1).tensor_split(cuts, dim=2)
    mixed = [torch.bmm(own, part) for own, part in zip([*maps, *maps], columns, strict=True)]
    return torch.cat(mixed, dim=2).transpose(0, 1)


def _parts(mixed: Tensor, periods: int) -> Tensor:
    """The imaginary part of sine channels, the real part of cosine channels. Complex [n, G, D] -> [n, G, D]."""
    sines = channel_bounds(mixed.shape[2], periods)[periods]
    return torch.cat([mixed[..., :sines].imag, mixed[..., sines:].real], dim=2)


def _complex(values: Tensor) -> Tensor:
    return values.to(torch.complex128 if values.dtype == torch.float64 else torch.complex64)


def waves_of(batch: Batch, periods: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Phases [T, K, 4], gaps [T, 2] and channel bounds int64 [2 K + 1], as the kernel takes them."""
    period = torch.tensor(periods, device=like.device)
    times = torch.stack([batch.timestamp, batch.next_timestamp], dim=1)  # [T, 2]
    phase = times[:, None, :].remainder(period[:, None]).double() * (2 * math.pi / period[:, None])  # [T, K, 2]
    phases = torch.stack([phase.cos(), phase.sin()], dim=3).flatten(2)
    since = F.pad(batch.timestamp.diff(), (1, 0)) * (batch.position > 0)
    gaps = torch.stack([since, batch.next_timestamp - batch.timestamp], dim=1)
    bounds = torch.tensor(channel_bounds(like.shape[1] // 2, len(periods)))
    return phases.to(like.dtype), gaps.to(like.dtype), bounds
