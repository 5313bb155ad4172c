"""What operators promise whatever implementation runs on the CPU."""

import pytest
import torch

from fuxi_beta import ops
from fuxi_beta.config import Kernels
from fuxi_beta.data import stateless_random
from fuxi_beta.data.stateless_random import Mask


@pytest.fixture(autouse=True)
def _automatic_again():
    yield
    ops.use("auto")


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("masked", [False, True])
def test_rms_norm_gives_the_dtype_asked_for_and_takes_its_gradient_in_it(kernels: Kernels, masked):
    ops.use(kernels)
    torch.manual_seed(1)
    x = torch.randn(9, 24, requires_grad=True)
    mask = Mask(stateless_random.combine(3, torch.arange(9)), 0.3) if masked else None
    plain, rounded = ops.rms_norm(x, mask), ops.rms_norm(x, mask, torch.bfloat16)
    upstream = torch.randn(9, 24).bfloat16()
    (of_plain,) = torch.autograd.grad(plain, x, upstream.float())
    (of_rounded,) = torch.autograd.grad(rounded, x, upstream)
    assert plain.dtype == torch.float32
    assert torch.equal(rounded, plain.bfloat16())
    assert torch.equal(of_rounded, of_plain)


def test_combine_is_that_of_stateless_random():
    part = torch.arange(5)
    assert torch.equal(ops.combine(3, part, part, 1), stateless_random.combine(3, part, part, 1))
    assert torch.equal(ops.combine(3, 4), stateless_random.combine(3, 4))
