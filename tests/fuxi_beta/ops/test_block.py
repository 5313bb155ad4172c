"""A block at inference: the C++ kernels against plain torch in float64, odd shapes, and any number of threads."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fuxi_beta import models, ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.models.base import last_rows
from fuxi_beta.ops import BlockWeights, cpu, reference, why_no_cpu_kernels

needs_kernels = pytest.mark.skipif(bool(why_no_cpu_kernels()), reason=f"no C++ kernels: {why_no_cpu_kernels()}")
LENGTHS = {
    "ragged": [5, 0, 1, 70, 3, 200, 64, 65, 2],
    "all empty": [0, 0, 0],
    "nobody": [],
    "longer than a group": [0, 450, 1],
    "many": [index % 11 for index in range(300)],
}
POWERS = {"pow": (-0.7, 0.3), "exppow": (0.4, 0.2, 0.8), "zero": ()}
SHAPES = [(1, 1), (6, 9), (50, 50), (64, 64), (100, 400)]  # D, H
CASES = [
    *(("ragged", power, shape) for power in POWERS for shape in SHAPES),
    *((lengths, "pow", (50, 50)) for lengths in LENGTHS),
]


def close(ours: Tensor, exact: Tensor) -> None:
    """Within 1e-5 of the largest number, which is what sums in float32 leave."""
    scale = exact.abs().max().item() if exact.numel() else 0.0
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5 * scale + 1e-12)


def weights_of(dim: int, hidden: int, *, double: bool = False) -> BlockWeights:
    """Some of them transposed in memory, as those of torch's linear layers are."""
    torch.manual_seed(dim + hidden)
    drawn = BlockWeights(
        torch.randn(dim, 3 * dim) / dim**0.5,
        (torch.randn(dim, 2 * dim) / dim**0.5).t(),
        torch.randn(dim),
        (torch.randn(2 * hidden, dim) / dim**0.5).t(),
        (torch.randn(dim, hidden) / hidden**0.5).t(),
    )
    return BlockWeights(*(weight.double() for weight in drawn)) if double else drawn


@needs_kernels
@torch.no_grad()
@pytest.mark.parametrize(("case", "kind", "shape"), CASES, ids=str)
def test_a_block_and_the_last_rows(make_batch, case, kind, shape):
    lengths, power, (dim, hidden) = LENGTHS[case], POWERS[kind], shape
    batch = make_batch(lengths)
    x, by_lag = torch.randn(sum(lengths), dim), torch.randn(max(batch.longest, 1))
    numbers = tuple(torch.tensor(number) for number in power)
    exactly = x.double(), by_lag.double(), tuple(number.double() for number in numbers) or None
    times = cpu.PackedTimes(batch), reference.PaddedTimes(batch, torch.float64)
    found = ops.block(x, times[0], by_lag, numbers or None, weights_of(dim, hidden))
    close(found, ops.block(exactly[0], times[1], *exactly[1:], weights_of(dim, hidden, double=True)))
    project = torch.randn(dim, 2 * dim)[:, ::2]  # neither row by row nor column by column in memory
    last = ops.last_rows(x, project, batch, by_lag, numbers or None)
    expected = ops.last_rows(exactly[0], project.double(), batch, *exactly[1:])
    for mine, theirs in zip(last, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            close(mine, theirs)


@needs_kernels
@torch.no_grad()
def test_lags_without_weights_are_left_out(make_batch):
    batch, by_lag = make_batch([90, 3, 200]), torch.randn(200)
    by_lag[10:60], by_lag[120:] = 0, 0
    x, power = torch.randn(293, 20), (torch.tensor(0.5), torch.tensor(0.2))
    double = tuple(number.double() for number in power)
    found = ops.block(x, cpu.PackedTimes(batch), by_lag, power, weights_of(20, 30))
    exact = reference.PaddedTimes(batch, torch.float64)
    close(found, ops.block(x.double(), exact, by_lag.double(), double, weights_of(20, 30, double=True)))


@needs_kernels
@torch.no_grad()
def test_any_number_of_threads_gives_the_same_bits(make_batch):
    batch = make_batch([40, 3, 250, 0, 9] * 20)
    x, by_lag, power = torch.randn(6040, 24), torch.randn(250), (torch.tensor(0.5), torch.tensor(0.2))
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            last = ops.last_rows(x, torch.ones(24, 24), batch, by_lag, power)
            found.append([ops.block(x, cpu.PackedTimes(batch), by_lag, power, weights_of(24, 24)), *last])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, found[0], strict=True))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("channels", [{}, {"content_channel": True}], ids=["plain", "with a channel"])
def test_a_listener_has_one_vector_with_gradients_and_without(make_batch, heads, channels):
    """With gradients a model runs operator by operator, without as blocks. Heads order the channels of both."""
    config = replace(ModelConfig(dim=12, layers=3, heads=heads, max_history=90, position_margin=5), **channels)
    torch.manual_seed(0)
    model = models.build(config)
    batch = make_batch([7, 0, 90, 1, 33])
    vectors = torch.randn(len(batch.item_index), 12)
    slowly = last_rows(model(vectors, batch), batch)
    assert slowly.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_last(vectors, batch), slowly.detach(), atol=1e-5, rtol=0)
    close(model.encode_last(vectors, batch).detach(), slowly.detach().double())
