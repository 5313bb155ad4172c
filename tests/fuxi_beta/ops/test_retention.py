"""Retention against loops written from its formula in float64: every implementation, every gradient, any length."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.data.padding import Padding
from fuxi_beta.data.stateless_random import Mask, dropout
from fuxi_beta.ops import cpu, reference, why_no_cpu_kernels

operator: Any = importlib.import_module("fuxi_beta.ops.retention")  # the function has the module's name

RAGGED = [5, 0, 1, 70, 2, 129, 64, 65, 3]
needs_kernels = pytest.mark.skipif(bool(why_no_cpu_kernels()), reason=f"no C++ kernels: {why_no_cpu_kernels()}")


class PackedBatch:
    def __init__(self, batch: Any) -> None:
        self.batch, self.padding = batch, Padding(batch)


def looped(projected: Tensor, decay: Tensor, batch: Any) -> Tensor:
    """Y, a pair of tokens at a time. [T, 4 D] -> [T, D]."""
    dim, heads = projected.shape[1] // 4, len(decay)
    rows = []
    _, query, key, value = (projected * torch.sigmoid(projected)).view(-1, 4, heads, dim // heads).unbind(1)
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        for n in range(start, end):
            row = torch.zeros(heads, dim // heads, dtype=projected.dtype)
            for m in range(start, n + 1):
                score = torch.exp(-decay * (n - m + 1)) * (query[n] * key[m]).sum(1)
                row = row + score[:, None] * value[m]
            rows.append(row.flatten())
    return torch.stack(rows) if rows else projected.new_zeros(0, dim)


def gated(projected: Tensor, mixed: Tensor, mask: Mask | None = None) -> Tensor:
    gate = projected[:, : mixed.shape[1]]
    out = gate * torch.sigmoid(gate) * mixed / torch.sqrt((mixed**2).mean(1, keepdim=True) + 1e-6)
    return out if mask is None else dropout(out, mask)


def inputs_of(batch: Any, dim: int, heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(dim)
    projected = torch.randn(int(batch.offsets[-1]), 4 * dim, dtype=torch.float64)
    decay = torch.tensor([0.5, 0.01, 1e-4, 2.0], dtype=torch.float64)[:heads]
    return [tensor.to(dtype).requires_grad_() for tensor in (projected, decay)]


def with_gradients(function: Any, inputs: list[Tensor]) -> list[Tensor]:
    found = function(*inputs)
    upstream = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    return [found, *torch.autograd.grad(found, inputs, upstream.to(found.dtype))]


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(("dim", "heads"), [(6, 1), (8, 2), (12, 4)])
def test_retention_equals_the_loop_in_value_and_every_gradient(make_batch, dim, heads, kernels):
    batch = make_batch([5, 0, 1, 20, 2])
    ops.use(kernels)
    try:
        found = with_gradients(lambda x, g: ops.retention(x, g, PackedBatch(batch)), inputs_of(batch, dim, heads))
    finally:
        ops.use("auto")
    expected = with_gradients(lambda x, g: gated(x, looped(x, g, batch)), inputs_of(batch, dim, heads))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("n", [0, 1, 6, 64, 130])
def test_chunks_equal_the_whole_map(n, chunk):
    torch.manual_seed(0)
    inputs = [torch.randn(n, 3, 24, dtype=torch.float64), torch.tensor([0.3, 0.001], dtype=torch.float64)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    found = with_gradients(lambda x, g: operator.retention_chunked(x, g, chunk), inputs)
    expected = with_gradients(reference.retention, inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest error over the largest number."""
    found, exact = found.detach(), exact.detach()
    return float((found - exact).abs().max() / exact.abs().max().clamp(min=1e-30)) if exact.numel() else 0.0


@needs_kernels
@pytest.mark.parametrize("lengths", [RAGGED, [], [0, 0], [index % 7 for index in range(300)]], ids=len)
@pytest.mark.parametrize(("dim", "heads"), [(1, 1), (6, 2), (50, 2), (64, 4), (100, 1), (180, 2)])
def test_the_kernel_equals_plain_torch_in_float64(make_batch, lengths, dim, heads):
    batch = make_batch(lengths)
    mask = Mask(torch.arange(sum(lengths)) * 977, 0.25)
    found = with_gradients(lambda x, g: cpu.retention(x, g, batch, mask), inputs_of(batch, dim, heads, torch.float32))
    padding = Padding(batch)

    def exact(projected: Tensor, decay: Tensor) -> Tensor:
        packed = torch.nn.functional.silu(projected)[:, dim:]
        return gated(projected, padding.each(packed, lambda rows, _: reference.retention(rows, decay)), mask)

    for one, other in zip(found, with_gradients(exact, inputs_of(batch, dim, heads)), strict=True):
        assert relative_error(one, other) < (1e-4 if dim == 1 else 1e-5)  # the norm of one channel cancels


@needs_kernels
@pytest.mark.parametrize("decay", [1e-5, 0.004, 0.7, 30.0])
def test_a_thousand_plays_within_the_bounds_of_float32(make_batch, decay):
    """Linear time is exact; what is left is the rounding of sums. Errors relative to the largest number."""
    batch = make_batch([1000, 0, 17])
    torch.manual_seed(1)
    inputs = [torch.randn(1017, 64), torch.tensor([decay, 0.02])]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    whole = with_gradients(lambda x, g: gated(x, looped_by_rows(x, g, batch)), exact)
    for implementation in (
        lambda x, g: cpu.retention(x, g, batch, None),
        lambda x, g: in_chunks(x, g, batch),
    ):
        found = with_gradients(implementation, [tensor.clone().requires_grad_() for tensor in inputs])
        bounds = (1e-5, 2e-5, 2e-4)  # output, projection, decay, whose gradient is a sum over all pairs
        for one, other, bound in zip(found, whole, bounds, strict=True):
            assert relative_error(one, other) < bound


def in_chunks(projected: Tensor, decay: Tensor, batch: Any) -> Tensor:
    packed = torch.nn.functional.silu(projected)[:, 16:]
    return gated(projected, Padding(batch).each(packed, lambda rows, _: operator.retention_chunked(rows, decay)))


def looped_by_rows(projected: Tensor, decay: Tensor, batch: Any) -> Tensor:
    """`looped`, all pairs of a listener at once."""
    dim, heads = projected.shape[1] // 4, len(decay)
    _, query, key, value = (projected * torch.sigmoid(projected)).view(-1, 4, heads, dim // heads).unbind(1)
    rows = []
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        lag = (torch.arange(end - start)[:, None] - torch.arange(end - start) + 1).clamp(min=0)
        kept = torch.exp(-decay[:, None, None] * lag).tril()
        scores = torch.einsum("nhd,mhd->hnm", query[start:end], key[start:end]) * kept
        rows.append(torch.einsum("hnm,mhd->nhd", scores, value[start:end]).flatten(1))
    return torch.cat(rows)


def test_later_tokens_and_other_listeners_change_nothing(make_batch):
    batch = make_batch([9, 40])
    projected, decay = inputs_of(batch, 8, 2, torch.float32)
    changed = projected.detach().clone()
    changed[30:] += 1
    before, after = (ops.retention(rows, decay, PackedBatch(batch)) for rows in (projected, changed))
    assert torch.equal(before[:30], after[:30]) and not torch.equal(before[30], after[30])


@needs_kernels
def test_any_number_of_threads_gives_the_same_bits(make_batch):
    batch = make_batch(RAGGED)
    threads, results = torch.get_num_threads(), []
    for count in (1, threads + 1):
        torch.set_num_threads(count)
        results.append(
            with_gradients(lambda x, g: cpu.retention(x, g, batch, None), inputs_of(batch, 12, 4, torch.float32))
        )
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
