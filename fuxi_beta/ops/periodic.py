"""The periodic channel: damped waves of elapsed time, and their gate (FuXi-Linear, arXiv 2602.23671).

    [U | V] = SiLU(projected);  output U * RMSNorm(Y), dropped out
    Y_n = sum over m <= n of e^(-r_k x) sin(2 pi x / P_k) v_m,  x = t_{n+1} - t_m      sine channels of period k
    Y_n = sum over m <= n of e^(-r_k x) cos(2 pi x / P_k) v_m                          cosine channels

Periods P are whole seconds, so the phase is (x mod P) 2 pi / P, exact in integers whatever the time. Of K periods, the
channels are cut into 2 K groups as equal as can be: sines of all periods, then cosines. In the decay a negative x
counts as 0. A damped wave of x is a product of one of t_{n+1} and one of t_m, so the past of a row is two numbers a
channel: time and memory are linear in the length of a history, and nothing is approximated.

| implementation           | where                                | what                                              |
| ------------------------ | ------------------------------------ | ------------------------------------------------- |
| `cpu/periodic.cpp`       | float32 on the CPU, times in order   | the recurrence                                    |
| `triton/damped_waves.py` | a GPU, times in order                | chunks of tokens: a square map inside of a chunk, |
|                          |                                      | the state between them                            |
| `waves_chunked`          | any device and dtype, times in order | the same                                          |
| `waves_dense`            | any device and dtype; the definition | the whole map                                     |

Shapes: `T` packed tokens, `D` width, `K` periods, `n` padded length of a group of `G` listeners, `m` tokens of a chunk.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import cpu, dispatch, triton
from fuxi_beta.ops.damped_waves import waves_chunked, waves_dense, waves_of
from fuxi_beta.ops.reference import gated
from fuxi_beta.ops.retention import Packed


def periodic(
    projected: Tensor, rate: Tensor, periods: Sequence[int], packed: Packed, mask: Mask | None = None
) -> Tensor:
    """U * RMSNorm(Y) with [U | V] = SiLU(projected), then dropout. [T, 2 D] -> [T, D].

    rate: r of each period, per second, above zero. [K]. periods: P, whole seconds. mask: of the dropout, if any.
    """
    batch = packed.batch
    kernels = dispatch.kernels_for(projected, rate) if batch.in_order else None
    if kernels is triton:
        return triton.periodic(projected, rate, periods, batch, mask)
    if kernels is cpu:
        where = batch.offsets, *waves_of(batch, periods, projected)
        return cpu.periodic(projected, rate, where, mask)
    gate, value = F.silu(projected.to(rate.dtype)).chunk(2, dim=1)
    return gated(gate, waves(value, rate, periods, packed), mask).to(projected.dtype)


def waves(value: Tensor, rate: Tensor, periods: Sequence[int], packed: Packed) -> Tensor:
    """Y alone, of values that are not activated; in linear time for long histories. [T, D] -> [T, D]."""
    batch = packed.batch
    if batch.in_order and dispatch.triton_or(None, value) is triton:
        return triton.waves(value, rate, periods, batch)
    chunked = dispatch.in_linear_time(batch) and batch.in_order

    def of_group(padded: Tensor, number: int) -> Tensor:
        group = packed.padding.groups[number]
        times = group.by_listener(batch.next_timestamp), group.by_listener(batch.timestamp)
        return (waves_chunked if chunked else waves_dense)(padded, rate, periods, *times)

    return packed.padding.each(value, of_group)
