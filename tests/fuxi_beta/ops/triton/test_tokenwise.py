"""Triton's token-wise operators against plain torch in float64, and its random bits, equal to `stateless_random`.

In Triton's interpreter where there is no GPU, as a GPU computes (`as_hardware`); compiled where there is one.
"""

import pytest
import torch
from torch import Tensor

from fuxi_beta.data import stateless_random
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import reference
from fuxi_beta.ops.triton import tokenwise, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"
ROUNDED = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # by which a result is, at most
SUMMED = 3e-6  # of the largest number: what sums in float32 leave
DTYPES = list(ROUNDED)


def compare(ours, exact, x: Tensor, dtype: torch.dtype) -> None:
    """Both functions on the same rounded input, with the gradient."""
    mine = x.to(DEVICE, dtype).requires_grad_()
    theirs = mine.detach().cpu().double().requires_grad_()
    found, expected = ours(mine), exact(theirs)
    upstream = torch.linspace(-1, 1, found.numel()).view_as(found).to(dtype)
    gradients = (
        torch.autograd.grad(found, mine, upstream.to(DEVICE)),
        torch.autograd.grad(expected, theirs, upstream.double()),
    )
    for a, b in ((found, expected), (gradients[0][0], gradients[1][0])):
        assert a.dtype == dtype
        largest = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.cpu().double(), b, rtol=ROUNDED[dtype], atol=SUMMED * largest)


def random_mask(tokens: int, rate: float) -> Mask:
    return Mask(torch.randint(-(1 << 62), 1 << 62, (tokens,)), rate)


def on_device(mask: Mask | None) -> Mask | None:
    return None if mask is None else Mask(mask.keys.to(DEVICE), mask.rate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [6, 48, 130])
@pytest.mark.parametrize("rate", [None, 0.2])
def test_values_and_gradients(channels, rate, dtype):
    torch.manual_seed(channels)
    x = torch.randn(33, channels) * 3
    mask = None if rate is None else random_mask(33, rate)
    there = on_device(mask)
    compare(lambda x: tokenwise.rms_norm(x, there), lambda x: reference.rms_norm(x, mask), x, dtype)
    compare(tokenwise.swiglu, reference.swiglu, x, dtype)
    if mask is not None and there is not None:
        compare(lambda x: tokenwise.dropout(x, there), lambda x: stateless_random.dropout(x, mask), x, dtype)


@pytest.mark.parametrize("channels", [1, 15, 64, 301])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999])
def test_dropout_zeroes_the_same_channels_as_the_reference(channels, rate):
    mask = random_mask(40, rate)
    x = torch.ones(40, channels)
    assert torch.equal(tokenwise.dropout(x.to(DEVICE), on_device(mask)).cpu(), stateless_random.dropout(x, mask))  # type: ignore[arg-type]


@pytest.mark.parametrize("below", [1, 2, 1000, 2**31 - 1])
def test_draws_are_those_of_the_reference(below):
    keys = torch.randint(-(1 << 62), 1 << 62, (40,))
    for count in (1, 2, 7, 300):
        assert torch.equal(
            tokenwise.integers(keys.to(DEVICE), count, below).cpu(), stateless_random.integers(keys, count, below)
        )


def test_draws_below_nothing_are_refused():
    with pytest.raises(ValueError, match="cannot draw below 0"):
        tokenwise.integers(torch.ones(2, dtype=torch.int64, device=DEVICE), 3, 0)


def test_no_tokens_and_views():
    empty = torch.zeros(0, 8, device=DEVICE, requires_grad=True)
    mask = Mask(torch.zeros(0, dtype=torch.int64, device=DEVICE), 0.5)
    for function in (lambda x: tokenwise.rms_norm(x, mask), tokenwise.swiglu, lambda x: tokenwise.dropout(x, mask)):
        (gradient,) = torch.autograd.grad(function(empty).sum(), empty)
        assert gradient.shape == (0, 8)
    assert tokenwise.integers(mask.keys, 3, 9).shape == (0, 3)
    wide = torch.randn(9, 40)
    found = tokenwise.swiglu(wide.to(DEVICE)[:, ::2]).cpu()
    torch.testing.assert_close(found, reference.swiglu(wide[:, ::2]))
