"""The periodic channel against loops written from its formula in float64: every implementation and every gradient."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.data.padding import Padding
from fuxi_beta.data.stateless_random import Mask, dropout
from fuxi_beta.ops import cpu, damped_waves, why_no_cpu_kernels

PERIODS = (60, 3600, 86_400)
RATES = (1e-3, 2e-5, 3e-7)
needs_kernels = pytest.mark.skipif(bool(why_no_cpu_kernels()), reason=f"no C++ kernels: {why_no_cpu_kernels()}")


class PackedBatch:
    def __init__(self, batch: Any) -> None:
        self.batch, self.padding = batch, Padding(batch)


def looped(value: Tensor, rate: Tensor, batch: Any) -> Tensor:
    """Y, a pair of tokens at a time. [T, D] -> [T, D]."""
    dim, groups = value.shape[1], 2 * len(rate)
    group = [next(g for g in range(groups) if channel < (g + 1) * dim // groups) for channel in range(dim)]
    rows = []
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        for n in range(start, end):
            row = torch.zeros(dim, dtype=value.dtype)
            for m in range(start, n + 1):
                x = int(batch.next_timestamp[n] - batch.timestamp[m])
                weights = [torch.exp(-r * max(x, 0)) * math.sin(2 * math.pi * (x % p) / p) for r, p in pairs(rate)]
                weights += [torch.exp(-r * max(x, 0)) * math.cos(2 * math.pi * (x % p) / p) for r, p in pairs(rate)]
                row = row + torch.stack([weights[g] for g in group]) * value[m]
            rows.append(row)
    return torch.stack(rows) if rows else value


def pairs(rate: Tensor) -> Any:
    return zip(rate, PERIODS, strict=True)


def gated(projected: Tensor, rate: Tensor, batch: Any, mask: Mask | None = None) -> Tensor:
    gate, value = (projected * torch.sigmoid(projected)).chunk(2, dim=1)
    mixed = looped(value, rate, batch)
    out = gate * mixed / torch.sqrt((mixed**2).mean(1, keepdim=True) + 1e-6)
    return out if mask is None else dropout(out, mask)


def inputs_of(batch: Any, dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(dim)
    projected = torch.randn(int(batch.offsets[-1]), 2 * dim, dtype=torch.float64)
    return [tensor.to(dtype).requires_grad_() for tensor in (projected, torch.tensor(RATES, dtype=torch.float64))]


def with_gradients(function: Any, inputs: list[Tensor]) -> list[Tensor]:
    found = function(*inputs)
    upstream = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    return [found, *torch.autograd.grad(found, inputs, upstream.to(found.dtype), materialize_grads=True)]


def unsorted(batch: Any) -> Any:
    return replace(batch, next_timestamp=batch.next_timestamp - 100_000)


@pytest.mark.parametrize("dim", [3, 6, 16])
@pytest.mark.parametrize("times", [lambda batch: batch, unsorted], ids=["in order", "asked before the play"])
def test_periodic_equals_the_loop_in_value_and_every_gradient(make_batch, dim, times):
    batch = times(make_batch([5, 0, 1, 14, 2]))
    found = with_gradients(lambda x, r: ops.periodic(x, r, PERIODS, PackedBatch(batch)), inputs_of(batch, dim))
    expected = with_gradients(lambda x, r: gated(x, r, batch), inputs_of(batch, dim))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("n", [0, 1, 7, 130])
def test_chunks_equal_the_whole_map(n, chunk):
    torch.manual_seed(0)
    times = 1_700_000_000 + torch.randint(0, 40_000, (3, n + 1)).cumsum(1)
    inputs = [torch.randn(n, 3, 13).double().requires_grad_(), torch.tensor(RATES).double().requires_grad_()]
    where = PERIODS, times[:, 1:], times[:, :-1]
    found = with_gradients(lambda v, r: damped_waves.waves_chunked(v, r, *where, chunk), inputs)
    expected = with_gradients(lambda v, r: damped_waves.waves_dense(v, r, *where), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest error over the largest number."""
    found, exact = found.detach(), exact.detach()
    return float((found - exact).abs().max() / exact.abs().max().clamp(min=1e-30)) if exact.numel() else 0.0


@needs_kernels
@pytest.mark.parametrize("lengths", [[5, 0, 1, 30, 2], [], [0, 0], [index % 4 for index in range(80)]], ids=len)
@pytest.mark.parametrize("dim", [3, 6, 50, 64])
def test_the_kernel_equals_the_loop(make_batch, lengths, dim):
    batch, keys = make_batch(lengths), torch.arange(sum(lengths)) * 977
    mask = Mask(keys, 0.25)
    found = with_gradients(
        lambda x, r: ops.periodic(x, r, PERIODS, PackedBatch(batch), mask), inputs_of(batch, dim, torch.float32)
    )
    expected = with_gradients(lambda x, r: gated(x, r, batch, mask), inputs_of(batch, dim))
    for one, other, bound in zip(found, expected, (1e-5, 1e-4, 1e-3), strict=True):
        assert relative_error(one, other) < bound


@needs_kernels
def test_a_thousand_plays_within_the_bounds_of_float32(make_batch):
    """Over five months; errors relative to the largest number."""
    torch.manual_seed(1)
    times = 1_700_000_000 + torch.randint(0, 30_000, (1001,)).cumsum(0)
    batch = replace(make_batch([1000]), timestamp=times[:-1], next_timestamp=times[1:])
    value, rate = torch.randn(1000, 12), torch.tensor(RATES)
    where = PERIODS, times[None, 1:], times[None, :-1]
    exact = damped_waves.waves_dense(value[:, None].double(), rate.double(), *where)[:, 0]
    chunked = damped_waves.waves_chunked(value[:, None], rate, *where)[:, 0]
    assert relative_error(chunked, exact) < 1e-5
    raw = torch.cat([torch.full_like(value, 30.0), value], dim=1)  # U is 30, V is SiLU of the value
    activated = value.double() * torch.sigmoid(value.double())
    exact = damped_waves.waves_dense(activated[:, None], rate.double(), *where)[:, 0]
    exact = 30 * exact / torch.sqrt((exact**2).mean(1, keepdim=True) + 1e-6)
    found = cpu.periodic(raw, rate, (batch.offsets, *damped_waves.waves_of(batch, PERIODS, raw)), None)
    assert relative_error(found, exact) < 1e-5


def test_later_tokens_and_other_listeners_change_nothing(make_batch):
    batch = make_batch([9, 40])
    projected, rate = inputs_of(batch, 8, torch.float32)
    changed = projected.detach().clone()
    changed[30:] += 1
    before, after = (ops.periodic(rows, rate, PERIODS, PackedBatch(batch)) for rows in (projected, changed))
    assert torch.equal(before[:30], after[:30]) and not torch.equal(before[30], after[30])


def test_waves_that_have_all_but_vanished_have_a_finite_gradient():
    """The fastest of FuXi-Linear's waves is 1e-38 after 20 seconds, and no number at all after 25."""
    times = torch.arange(60)[None]
    inputs = [torch.ones(60, 1, 4), torch.tensor([4.36, 0.54])]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    found = with_gradients(
        lambda v, r: damped_waves.waves_dense(v, r, (1, 8), times, times), [x.requires_grad_() for x in inputs]
    )
    expected = with_gradients(lambda v, r: damped_waves.waves_dense(v, r, (1, 8), times, times), exact)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-5
