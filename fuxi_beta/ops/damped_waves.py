"""The sums of the periodic channel (`fuxi_beta.ops.periodic`) in plain torch, and its times as its kernel takes them.

Shapes: `T` packed tokens, `D` width, `K` periods, `n` padded length of a group of `G` listeners, `q` rows and `k`
columns of a map.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.data.batches import Batch

CHUNK = 64


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
    left = torch.exp(-rate * difference.clamp(min=0).to(rate.dtype))
    return torch.complex(
        left * phase.cos(), left * phase.sin()
    )  # the gradient of torch.polar is NaN where it underflows


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


def phases_of(batch: Batch, periods: Sequence[int]) -> Tensor:
    """Cosine and sine of the phase of each token's time and of the time it predicts. float64 [T, K, 4]."""
    times = torch.stack([batch.timestamp, batch.next_timestamp], dim=1)  # [T, 2]
    phase = torch.stack([times.remainder(period).double() * (2 * math.pi / period) for period in periods], dim=1)
    return torch.stack([phase.cos(), phase.sin()], dim=3).flatten(2)


def waves_of(batch: Batch, periods: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Phases [T, K, 4], gaps [T, 2] and channel bounds int64 [2 K + 1], as the C++ kernel takes them."""
    since = F.pad(batch.timestamp.diff(), (1, 0)) * (batch.position > 0)
    gaps = torch.stack([since, batch.next_timestamp - batch.timestamp], dim=1)
    bounds = torch.tensor(channel_bounds(like.shape[1] // 2, len(periods)))
    return phases_of(batch, periods).to(like.dtype), gaps.to(like.dtype), bounds
