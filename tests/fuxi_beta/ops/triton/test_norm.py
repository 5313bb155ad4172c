"""RMSNorm whose result has another dtype than what it norms: rounded once, its gradient not at all."""

import pytest
import torch

from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import reference
from fuxi_beta.ops.triton import tokenwise, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"
ROUNDING = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the largest number


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("tokens", "channels"), [(1, 256), (33, 48), (70, 130), (3, 5000)])
@pytest.mark.parametrize("rate", [None, 0.2])
def test_result_and_gradient_are_rounded_where_they_are_stored_and_nowhere_else(tokens, channels, dtype, rate):
    torch.manual_seed(channels)
    keys = torch.randint(-(1 << 62), 1 << 62, (tokens,))
    masks = (None, None) if rate is None else (Mask(keys.to(DEVICE), rate), Mask(keys, rate))
    mine = (torch.randn(tokens, channels) * 3).to(DEVICE).requires_grad_()
    theirs = mine.detach().cpu().double().requires_grad_()
    found, exact = tokenwise.rms_norm(mine, masks[0], dtype), reference.rms_norm(theirs, masks[1])
    upstream = torch.randn(tokens, channels).to(dtype)
    (of_mine,) = torch.autograd.grad(found, mine, upstream.to(DEVICE))
    (of_theirs,) = torch.autograd.grad(exact, theirs, upstream.double())
    assert (found.dtype, of_mine.dtype) == (dtype, torch.float32)
    assert torch.equal(found.cpu() == 0, exact == 0)
    for ours, wanted, tolerance in ((found, exact, ROUNDING[dtype]), (of_mine, of_theirs, 3e-6)):
        atol = tolerance * wanted.abs().max().item()
        torch.testing.assert_close(ours.detach().cpu().double(), wanted.detach(), rtol=0, atol=atol)


def test_the_result_has_the_dtype_of_what_is_normed_unless_told_otherwise():
    for dtype in (torch.float32, torch.float16):
        assert tokenwise.rms_norm(torch.ones(2, 8, dtype=dtype, device=DEVICE), None).dtype == dtype
    empty = torch.zeros(0, 8, device=DEVICE, requires_grad=True)
    out = tokenwise.rms_norm(empty, None, torch.bfloat16)
    (of_empty,) = torch.autograd.grad(out.sum(), empty)
    assert (out.dtype, out.shape, of_empty.dtype) == (torch.bfloat16, (0, 8), torch.float32)
