"""The channels of content and of waves in Triton against plain torch in float64: values, every gradient, odd lengths.

In Triton's interpreter where there is no GPU, as a GPU computes (`as_hardware`); compiled where there is one. Chunks
are 16 tokens in the interpreter.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.padding import Padding
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import damped_waves as plain_waves
from fuxi_beta.ops import reference
from fuxi_beta.ops.triton import content, damped_waves, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of the largest number. Operands are rounded to eight bits in bf16 and cut to eleven for TF32 in fp16: what is summed,
# maps and states; what the norm gave and the gradient that is kept for the way back; and the result.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2 * 2.0**-10 + 3 * 2.0**-11, torch.bfloat16: 5 * 2.0**-8}
OF_RATES = 10  # times as much, of each rate's gradient: a sum over all pairs, which cancels
RAGGED = [5, 0, 1, 34, 15, 16, 17, 0]
PERIODS = (3600, 86_400, 604_800)
Function = Callable[..., Tensor]


def kernels_and_plain(channel: str, batch: Batch, mask: Mask | None, *, gated: bool) -> tuple[Function, Function]:
    """The operator of a channel, or if not `gated` its sum alone, in Triton and as defined."""
    there, padding = batch.to(DEVICE), Padding(batch)
    on_device = None if mask is None else Mask(mask.keys.to(DEVICE), mask.rate)

    def sums(inputs: Tensor, rates: Tensor) -> Tensor:
        if channel == "content":
            return padding.each(inputs, lambda rows, _: reference.retention(rows, rates))

        def of_group(rows: Tensor, number: int) -> Tensor:
            group = padding.groups[number]
            times = group.by_listener(batch.next_timestamp), group.by_listener(batch.timestamp)
            return plain_waves.waves_dense(rows, rates, PERIODS, *times)

        return padding.each(inputs, of_group)

    def plain(projected: Tensor, rates: Tensor) -> Tensor:
        if not gated:
            return sums(projected, rates)
        dim = projected.shape[1] // (4 if channel == "content" else 2)
        active = F.silu(projected)
        return reference.gated(active[:, :dim], sums(active[:, dim:], rates), mask)

    def kernels(projected: Tensor, rates: Tensor) -> Tensor:
        if channel == "content":
            return (
                content.retention(projected, rates, there, on_device)
                if gated
                else content.retained(projected, rates, there)
            )
        if not gated:
            return damped_waves.waves(projected, rates, PERIODS, there)
        return damped_waves.periodic(projected, rates, PERIODS, there, on_device)

    return kernels, plain


def inputs_of(channel: str, tokens: int, dim: int, heads: int, dtype: torch.dtype, *, gated: bool) -> list[Tensor]:
    torch.manual_seed(dim)
    parts = {("content", True): 4, ("content", False): 3, ("waves", True): 2, ("waves", False): 1}[channel, gated]
    rates = [0.5, 0.01, 1e-4, 2.0][:heads] if channel == "content" else [1e-4, 2e-6, 3e-7]
    return [torch.randn(tokens, parts * dim).to(dtype), torch.tensor(rates)]


def compare(
    channel: str,
    batch: Batch,
    dim: int,
    heads: int = 2,
    dtype: torch.dtype = torch.float32,
    mask: Mask | None = None,
    *,
    gated: bool = True,
) -> None:
    """Both implementations on the same rounded inputs, with all gradients."""
    kernels, plain = kernels_and_plain(channel, batch, mask, gated=gated)
    inputs = inputs_of(channel, len(batch.timestamp), dim, heads, dtype, gated=gated)
    mine = [tensor.to(DEVICE).requires_grad_() for tensor in inputs]
    theirs = [tensor.double().requires_grad_() for tensor in inputs]
    found, expected = kernels(*mine), plain(*theirs)
    assert found.dtype == dtype
    upstream = torch.sin(torch.arange(found.numel()) * 0.7).view_as(found).to(dtype)
    gradients = torch.autograd.grad(found, mine, upstream.to(DEVICE))
    exact = torch.autograd.grad(expected, theirs, upstream.double(), materialize_grads=True)
    for ours, right, of in zip((found, *gradients), (expected, *exact), (found, *mine), strict=True):
        assert ours.shape == right.shape and ours.dtype == of.dtype
        size = right.detach().abs()
        bound = (
            OF_RATES * TOLERANCE[dtype] * size if of is mine[1] else TOLERANCE[dtype] * size.max() if len(size) else 0
        )
        error = (ours.detach().cpu().double() - right.detach()).abs()
        assert (error <= bound + 1e-30).all(), f"off by {error.max():.1e}, {bound} is allowed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channel", ["content", "waves"])
@pytest.mark.parametrize("gated", [True, False])
def test_a_channel_on_ragged_histories(make_batch, channel, dtype, gated):
    batch = make_batch(RAGGED)
    mask = Mask(torch.arange(sum(RAGGED)) * 977, 0.25)
    compare(channel, batch, 20, 2, dtype, mask if gated else None, gated=gated)


@pytest.mark.parametrize("channel", ["content", "waves"])
@pytest.mark.parametrize("lengths", [[], [0, 0], [1], [0, 16, 0], [32, 1, 33], [1] * 9])
def test_a_channel_at_odd_lengths(make_batch, channel, lengths):
    """What is normalised does not depend on how a play by itself has decayed: the gradient would be rounding alone."""
    compare(channel, make_batch(lengths), 8, 1, gated=max(lengths, default=0) != 1)


@pytest.mark.parametrize(("dim", "heads"), [(1, 1), (6, 3), (36, 1), (48, 1)])
def test_heads_of_odd_widths_and_of_several_tiles(make_batch, dim, heads):
    """The loss of a channel of width 1 is nothing but rounding: its norm leaves a sign."""
    compare("content", make_batch([18, 3]), dim, heads, gated=dim > 1)


@pytest.mark.parametrize("dim", [1, 7, 50, 200])
def test_waves_of_widths_that_periods_do_not_divide(make_batch, dim):
    compare("waves", make_batch([18, 3]), dim, gated=dim > 1)


@pytest.mark.parametrize("choice", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channel", ["content", "waves"])
def test_every_choice_of_chunks(make_batch, take_choice, channel, dtype, choice):
    take_choice(choice)
    compare(channel, make_batch([70, 0, 64, 1]), 24, 1, dtype)


def test_decays_that_forget_at_once_and_never(make_batch):
    batch = make_batch([40])
    for rate in (1e-7, 30.0):
        projected = torch.randn(40, 48, generator=torch.Generator().manual_seed(1))
        mine = [projected.to(DEVICE).requires_grad_(), torch.tensor([rate], device=DEVICE, requires_grad=True)]
        found = content.retained(mine[0], mine[1], batch.to(DEVICE))
        expected = reference.retention(projected.double()[:, None], torch.tensor([rate]).double())[:, 0]
        close = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(found.detach().cpu().double(), expected, rtol=1e-4, atol=close)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), mine))


def test_waves_over_decades_and_of_equal_times(make_batch):
    """An hour's phase is exact after fifty years, which are 64 s apart in float32."""
    batch = make_batch([20, 20])
    equal = torch.full((40,), 1_999_999_999)
    distant = 1_999_999_999 + torch.arange(40) * 90_000_000
    for times in (equal, distant):
        odd = replace(batch, timestamp=times, next_timestamp=times + torch.arange(40) % 3 * 1800)
        assert odd.in_order
        compare("waves", odd, 12)


def test_a_listener_alone_gets_the_same_bits_as_in_a_batch(make_batch):
    batch = make_batch([7, 40, 1])
    alone = batch.slice(1, 2)
    for channel in ("content", "waves"):
        together, _ = kernels_and_plain(channel, batch, None, gated=True)
        single, _ = kernels_and_plain(channel, alone, None, gated=True)
        projected, rates = (tensor.to(DEVICE) for tensor in inputs_of(channel, 48, 16, 2, torch.float32, gated=True))
        with torch.no_grad():
            assert torch.equal(single(projected[7:47], rates), together(projected, rates)[7:47])
