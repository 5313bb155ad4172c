"""Linear time against the dense maps, written from the formulas with `pow` in float64."""

import itertools

import pytest
import torch
from torch import Tensor

from fuxi_beta.ops import linear
from fuxi_beta.ops.linear import linear_applies, positional_toeplitz, temporal_linear

BOUND = 2e-5  # of each weight of the temporal map
DERIVATIVE_BOUND = 1.5e-4  # of its derivative in the decay, relative to 1 + log(1 + gap) weights
RAGGED = [0, 1, 63, 64, 65, 200, 0, 1000, 1]
NOW = 1_772_000_000


def times(lengths: list[int], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """(timestamp, next_timestamp, offsets) of sequences in order of time."""
    timestamp, next_timestamp = [], []
    for length in lengths:
        count = length + 1
        if kind == "three years":
            seen = torch.randint(10**8, (count,)).sort().values
        elif kind == "bursts":  # seconds apart, then days
            seen = torch.where(torch.rand(count) < 0.97, torch.randint(4, (count,)), torch.randint(10**6, (count,)))
            seen = seen.cumsum(0)
        elif kind == "ties":
            seen = torch.randint(2, (count,)).cumsum(0) // 40
        else:  # every scale of gap
            seen = torch.exp(torch.rand(count) * 11).long().cumsum(0)
        timestamp.append(NOW + seen[:-1])
        next_timestamp.append(NOW + seen[1:])
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    return torch.cat(timestamp), torch.cat(next_timestamp), offsets


def dense_temporal(value, timestamp, next_timestamp, offsets, scale, decay) -> Tensor:
    rows = []
    for start, end in itertools.pairwise(offsets.tolist()):
        gap = (next_timestamp[start:end, None] - timestamp[None, start:end]).clamp(min=0)
        rows.append(scale * ((1 + gap.double()) ** -decay).tril() @ value[start:end])
    return torch.cat(rows)


def dense_stretched(value, timestamp, next_timestamp, offsets, scale, decay, exponent) -> Tensor:
    rows = []
    for start, end in itertools.pairwise(offsets.tolist()):
        gap = (next_timestamp[start:end, None] - timestamp[None, start:end]).clamp(min=0)
        rows.append(scale * torch.exp(-decay * gap.double().log1p() ** exponent).tril() @ value[start:end])
    return torch.cat(rows)


def dense_positional(value, offsets, weight_by_lag) -> Tensor:
    rows = [value[:0]]
    for start, end in itertools.pairwise(offsets.tolist()):
        place = torch.arange(end - start)
        rows.append(weight_by_lag[(place[:, None] - place).clamp(min=0)].tril() @ value[start:end])
    return torch.cat(rows)


def exact(tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_()


def relative(found: Tensor | None, expected: Tensor | None) -> float:
    """The largest error, relative to the largest number."""
    assert found is not None
    assert expected is not None
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def assert_temporal_equals_dense(value: Tensor, where: tuple[Tensor, Tensor, Tensor], b: float) -> None:
    """All numbers are positive, so each sum is as accurate as its terms: nothing cancels and nothing hides."""
    scale, decay = torch.tensor(0.7, requires_grad=True), torch.tensor(b, requires_grad=True)
    upstream = torch.rand(value.shape) + 0.1
    assert linear_applies(*where, decay)

    found = temporal_linear(value, *where, scale, decay)
    value_grad, scale_grad, decay_grad = torch.autograd.grad(found, (value, scale, decay), upstream)

    value64, scale64, decay64 = exact(value), exact(scale), exact(decay)
    expected = dense_temporal(value64, *where, scale64, decay64)
    grads = torch.autograd.grad(expected, (value64, scale64, decay64), upstream.double())
    torch.testing.assert_close(found.double(), expected, rtol=BOUND, atol=0)
    torch.testing.assert_close(value_grad.double(), grads[0], rtol=BOUND, atol=0)
    torch.testing.assert_close(scale_grad.double(), grads[1], rtol=BOUND, atol=0)
    sum_of_weights = float((grads[1] * scale64).detach())  # weighted as the terms of the decay's gradient are
    assert abs(decay_grad.double() - grads[2]) <= DERIVATIVE_BOUND * (sum_of_weights + float(grads[2].abs()))


@pytest.mark.parametrize("kind", ["every scale", "bursts", "ties", "three years"])
@pytest.mark.parametrize("b", [-0.1, 0.0, 0.01, 0.5, 1.0, 2.0, 3.0])
def test_temporal_equals_dense_in_value_and_every_gradient(b, kind):
    torch.manual_seed(1)
    value = (torch.rand(sum(RAGGED), 5) + 0.1).requires_grad_()
    assert_temporal_equals_dense(value, times(RAGGED, kind), b)


@pytest.mark.parametrize("b", [-0.1, 0.6])
def test_one_long_sequence_among_many_short_ones(b, monkeypatch):
    monkeypatch.setattr(linear, "BLOCK", 4 * linear.CHUNK)  # the sums pass from block to block
    torch.manual_seed(2)
    lengths = [*(index % 9 for index in range(100)), 3000, *(index % 9 for index in range(100))]
    value = (torch.rand(sum(lengths), 3) + 0.1).requires_grad_()
    assert_temporal_equals_dense(value, times(lengths, "every scale"), b)


def test_a_sequence_that_ends_with_a_chunk_hands_nothing_on():
    torch.manual_seed(3)
    lengths = [linear.CHUNK, linear.CHUNK, 2 * linear.CHUNK]
    value = (torch.rand(sum(lengths), 3) + 0.1).requires_grad_()
    assert_temporal_equals_dense(value, times(lengths, "bursts"), 0.5)


def test_value_may_be_a_slice_of_columns_of_either_sign():
    torch.manual_seed(4)
    where = times(RAGGED, "every scale")
    columns = torch.randn(sum(RAGGED), 12, requires_grad=True)
    scale, decay = torch.tensor(-0.7), torch.tensor(0.5)
    upstream = torch.randn(4, sum(RAGGED)).t()
    found = temporal_linear(columns[:, 3:7], *where, scale, decay)
    (grad,) = torch.autograd.grad(found, columns, upstream)
    columns64 = exact(columns)
    expected = dense_temporal(columns64[:, 3:7], *where, scale.double(), decay.double())
    (expected_grad,) = torch.autograd.grad(expected, columns64, upstream.double())
    assert relative(found, expected) <= BOUND
    assert relative(grad, expected_grad) <= BOUND


@pytest.mark.parametrize("b", [-0.1, 0.0, 0.01, 0.5, 1.0, 2.0, 3.0])
def test_the_nodes_give_the_power_and_its_derivative_over_three_years(b):
    gap = torch.cat([torch.arange(100.0), torch.logspace(2, 8, 500)]).double()
    decay = torch.tensor(b, dtype=torch.float64, requires_grad=True)
    exponentials = torch.exp(-gap[:, None] * linear._speeds(gap))
    power = (1 + gap) ** -decay.detach()
    found = exponentials @ linear._weights(decay).detach()
    derivative = exponentials @ torch.autograd.functional.jacobian(linear._weights, decay)  # pyright: ignore
    assert float((found / power - 1).abs().max()) < 0.8e-5
    assert float((derivative / power + torch.log1p(gap)).abs().max()) < DERIVATIVE_BOUND


@pytest.mark.parametrize("kind", ["every scale", "bursts", "ties", "three years"])
@pytest.mark.parametrize(("b", "c"), [(0.01, 0.2), (0.6, 0.5), (0.6, 1.0), (2.0, 0.9), (0.1, 1.5)])
def test_the_exponential_of_a_power_equals_dense_in_value_and_every_gradient(b, c, kind):
    """Errors relative to the sums of the weights' bounds: a weight is within 1.2e-5 of a, a derivative within 2e-4."""
    torch.manual_seed(6)
    where, value = times(RAGGED, kind), torch.rand(sum(RAGGED), 5).requires_grad_()
    power = [torch.tensor(number, requires_grad=True) for number in (0.7, b, c)]
    assert linear_applies(*where, *power[1:])
    upstream = torch.rand(value.shape)
    found = temporal_linear(value, *where, power[0], *power[1:])
    grads = torch.autograd.grad(found, (value, *power), upstream)

    exactly = [exact(tensor) for tensor in (value, *power)]
    expected = dense_stretched(exactly[0], *where, *exactly[1:])
    expected_grads = torch.autograd.grad(expected, exactly, upstream.double())
    one = torch.tensor(1.0, dtype=torch.float64)
    allowed = dense_stretched(exactly[0].detach(), *where, one, 0 * one, one)  # the sum over plays of the values
    assert ((found.double() - expected).abs() <= 0.7 * 1.2e-5 * allowed + 2e-6 * expected.abs()).all()
    of_one = dense_stretched(exactly[0], *where, one, 0 * one, one)
    (of_value,) = torch.autograd.grad(of_one, exactly[0], upstream.double())
    assert ((grads[0].double() - expected_grads[0]).abs() <= 0.7 * 1.2e-5 * of_value + 2e-6 * expected_grads[0]).all()
    pairs = float((allowed * upstream).sum())
    for mine, theirs, bound in zip(grads[1:], expected_grads[1:], (1.2e-5, 2e-4, 2e-4), strict=True):
        assert abs(float(mine) - float(theirs)) <= bound * pairs + 1e-5 * abs(float(theirs))


@pytest.mark.parametrize("c", [0.05, 0.3, 0.8, 1.0, 1.3])
@pytest.mark.parametrize("b", [0.01, 0.3, 1.0, 3.0])
def test_fitted_nodes_give_the_exponential_of_a_power_over_three_years(b, c):
    """At gaps between those of the fit; weights that do not cancel, so float32 loses nothing."""
    torch.manual_seed(0)
    gap = torch.cat([torch.arange(100.0), torch.exp(torch.rand(3000) * 18.4).floor()]).double()
    decay, exponent = torch.tensor(b, dtype=torch.float64), torch.tensor(c, dtype=torch.float64)
    weights = linear._node_weights(decay, exponent)
    found = torch.exp(-gap[:, None] * linear._speeds(gap)) @ weights
    assert float((found - torch.exp(-decay * gap.log1p() ** exponent)).abs().max()) <= 1.2e-6
    assert float(weights.abs().sum()) < 2
    assert linear.fit_error(decay, exponent) < linear.FIT_BOUND / 5


def test_an_exponent_that_cannot_be_fitted_takes_the_dense_map():
    nothing = torch.zeros(0, dtype=torch.int64)
    where = (nothing, nothing, torch.tensor([0, 0]))
    assert linear_applies(*where, torch.tensor(0.5), torch.tensor(0.9))
    assert not linear_applies(*where, torch.tensor(0.5), torch.tensor(3.0))
    assert not linear_applies(*where, torch.tensor(float("nan")), torch.tensor(1.0))


def test_no_tokens():
    empty, offsets = torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0, 0])
    value, decay = torch.zeros(0, 4, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    assert linear_applies(empty, empty, offsets, decay)
    temporal = temporal_linear(value, empty, empty, offsets, torch.tensor(1.0), decay)
    positional = positional_toeplitz(value, offsets, torch.ones(3, requires_grad=True))
    (temporal.sum() + positional.sum()).backward()
    assert temporal.shape == positional.shape == (0, 4)
    assert float(decay.grad) == 0  # pyright: ignore


@pytest.mark.parametrize(
    ("timestamp", "next_timestamp", "decay", "applies"),
    [
        ([10, 20, 5, 6], [20, 30, 6, 7], 0.5, True),  # the second sequence may be earlier than the first
        ([10, 10, 5, 5], [10, 10, 5, 5], 0.5, True),
        ([20, 10, 5, 6], [20, 30, 6, 7], 0.5, False),  # out of order
        ([10, 20, 6, 5], [20, 30, 6, 7], 0.5, False),
        ([10, 20, 5, 6], [20, 19, 6, 7], 0.5, False),  # asks for a time before its own
        ([10, 20, 5, 6], [20, 10 + 10**8, 6, 7], 0.5, True),
        ([10, 20, 5, 6], [20, 11 + 10**8, 6, 7], 0.5, False),  # too long
        ([10, 20, 5, 6], [20, 30, 6, 7], -0.1, True),
        ([10, 20, 5, 6], [20, 30, 6, 7], 3.0, True),
        ([10, 20, 5, 6], [20, 30, 6, 7], -0.101, False),
        ([10, 20, 5, 6], [20, 30, 6, 7], 3.01, False),
        ([10, 20, 5, 6], [20, 30, 6, 7], float("nan"), False),
    ],
)
def test_linear_applies(timestamp, next_timestamp, decay, applies):
    offsets = torch.tensor([0, 2, 2, 4, 4])
    found = linear_applies(torch.tensor(timestamp), torch.tensor(next_timestamp), offsets, torch.tensor(decay))
    assert found is applies


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "lengths",
    [
        [0, 1, 2, 63, 64, 65, 200, 0],
        [linear._ROWS - 1, linear._ROWS, linear._ROWS + 1, 600, 1],  # products in blocks of rows
        [640, 641, 3, 1000, 1024, 0, 1025],  # transforms of several sizes, and a product
    ],
)
def test_positional_equals_dense_in_value_and_every_gradient(lengths, dtype, monkeypatch):
    monkeypatch.setattr(linear, "_TRANSFORMED", 6000)  # more than one slab of channels
    torch.manual_seed(5)
    columns = torch.randn(sum(lengths), 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(max(lengths) + 3, dtype=dtype, requires_grad=True)
    offsets, upstream = torch.tensor([0, *itertools.accumulate(lengths)]), torch.randn(7, sum(lengths), dtype=dtype).t()
    found = positional_toeplitz(columns[:, 2:9], offsets, weight)
    grads = torch.autograd.grad(found, (columns, weight), upstream)

    columns64, weight64 = exact(columns), exact(weight)
    expected = dense_positional(columns64[:, 2:9], offsets, weight64)
    expected_grads = torch.autograd.grad(expected, (columns64, weight64), upstream.double())
    bound = 1e-12 if dtype == torch.float64 else 2e-6
    assert relative(found, expected) <= bound
    assert relative(grads[0], expected_grads[0]) <= bound
    assert relative(grads[1], expected_grads[1]) <= bound


def test_positional_refuses_a_sequence_beyond_its_reach():
    with pytest.raises(ValueError, match="has 4 events, but weight_by_lag only 3"):
        positional_toeplitz(torch.zeros(6, 2), torch.tensor([0, 2, 6]), torch.zeros(3))
