"""Keys that Triton combines, bit for bit those of `stateless_random`."""

import pytest
import torch

from fuxi_beta import ops
from fuxi_beta.data import stateless_random
from fuxi_beta.ops.triton import tokenwise, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _automatic_again():
    yield
    ops.use("auto")


def random_parts(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.randint(-(1 << 62), 1 << 62, (2, count), generator=torch.Generator().manual_seed(count))
    return first, second


@pytest.mark.parametrize("count", [0, 1, 255, 1000])
def test_every_mixture_has_the_bits_of_stateless_random(count):
    a, b = random_parts(count)
    mixtures = ((a,), (a, b), (a, 7), (7, a), (1234, 5, a), (a, b, 7), (a, 0, b, 1), (b, a, a, b), (b, a, b, a, 3, 3))
    for parts in mixtures:
        found = tokenwise.combine(*(part if isinstance(part, int) else part.to(DEVICE) for part in parts))
        assert torch.equal(found.cpu(), stateless_random.combine(*parts))


@pytest.mark.parametrize(
    "number", [0, 1, -1, 16, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]
)
def test_integers_of_every_size_have_the_bits_of_stateless_random(number):
    part, _ = random_parts(40)
    for parts in ((part, number), (number, part)):
        found = tokenwise.combine(*(x if isinstance(x, int) else x.to(DEVICE) for x in parts))
        assert torch.equal(found.cpu(), stateless_random.combine(*parts))


def test_views_and_more_dimensions():
    wide = torch.stack(random_parts(60), dim=1)
    found = tokenwise.combine(wide.to(DEVICE)[:, 0], 3, wide.to(DEVICE)[:, 1])
    assert torch.equal(found.cpu(), stateless_random.combine(wide[:, 0], 3, wide[:, 1]))
    turned = wide.view(20, 6).t()
    found = tokenwise.combine(turned.to(DEVICE), turned.to(DEVICE))
    assert torch.equal(found.cpu(), stateless_random.combine(turned, turned))


def test_the_operator_takes_one_launch_where_it_can_and_plain_torch_elsewhere(monkeypatch):
    ops.use("triton")
    a, b = random_parts(50)
    here = a.to(DEVICE), b.to(DEVICE)
    others = ((3, 5), (a.view(50, 1), b), (a, a.to(torch.int32)))
    expected, plain = stateless_random.combine(a, b, 3), [stateless_random.combine(*parts) for parts in others]
    with monkeypatch.context() as patch:
        patch.delattr(stateless_random, "combine")
        assert torch.equal(ops.combine(*here, 3).cpu(), expected)
    for parts, wanted in zip(others, plain, strict=True):
        found = ops.combine(*(part if isinstance(part, int) else part.to(DEVICE) for part in parts))
        assert torch.equal(found.cpu(), wanted)
