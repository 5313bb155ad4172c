"""The C++ kernels against plain torch in float64: values, every gradient, odd shapes, and any number of threads."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fuxi_beta.data import stateless_random
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import cpu, reference, why_no_cpu_kernels
from fuxi_beta.ops.token_mixer import PreparedTimes

pytestmark = pytest.mark.skipif(bool(why_no_cpu_kernels()), reason=f"no C++ kernels: {why_no_cpu_kernels()}")


def close(ours: Tensor, exact: Tensor) -> None:
    """Within 1e-5 of the largest number, which is what a sum in float32 leaves; single numbers cancel more."""
    if not exact.ndim:
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-5)
        return
    scale = exact.abs().max().item() if exact.numel() else 0.0
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * scale + 1e-12)


def compare(ours, exact, inputs: list[Tensor]) -> None:
    """Both functions on the inputs in float32 and float64, with their gradients."""
    singles = [tensor.detach().float().requires_grad_() for tensor in inputs]
    doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found, expected = ours(*singles), exact(*doubles)
    close(found, expected)
    upstream = torch.linspace(-1, 1, found.numel()).view_as(found)
    for mine, theirs in zip(
        torch.autograd.grad(found, singles, upstream),
        torch.autograd.grad(expected, doubles, upstream.double()),
        strict=True,
    ):
        close(mine, theirs)


def mixer(times: PreparedTimes, mask: Mask | None = None):
    """The token mixer as a function of its differentiable arguments."""
    return lambda projected, by_lag, *power: times.token_mixer(projected, by_lag, power or None, mask)


def maps(times: PreparedTimes):
    """The maps alone."""
    return lambda value, by_lag, *power: times.apply_maps(value, by_lag, power or None)


LENGTHS = {
    "ragged": [5, 0, 1, 70, 3, 200, 64, 65, 2],
    "all empty": [0, 0, 0],
    "one listener": [130],
    "one among a thousand": [0] * 500 + [37] + [0] * 499,
    "many": [index % 11 for index in range(300)],
}


@pytest.mark.parametrize("dim", [1, 6, 50, 64, 100])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_mixer(make_batch, lengths, dim):
    batch = make_batch(lengths)
    torch.manual_seed(dim)
    projected = torch.randn(sum(lengths), 3 * dim)
    by_lag, scale, decay = torch.randn(batch.longest), torch.tensor(-0.7), torch.tensor(0.3)
    mask = Mask(torch.randint(1 << 62, (sum(lengths),)), 0.25)
    ours, exact = cpu.PackedTimes(batch), reference.PaddedTimes(batch, torch.float64)
    compare(mixer(ours, mask), mixer(exact, mask), [projected, by_lag, scale, decay])


@pytest.mark.parametrize("decay", [-0.5, -0.1, 0.0, 0.6, 3.0, 8.0])
def test_mixer_at_every_decay_and_with_a_scale_of_zero(make_batch, decay):
    batch = make_batch([90, 3, 41])
    torch.manual_seed(1)
    for scale in (0.0, 1.3):
        inputs = [torch.randn(134, 60), torch.randn(90) * 0.1, torch.tensor(scale), torch.tensor(decay)]
        ours, exact = cpu.PackedTimes(batch), reference.PaddedTimes(batch, torch.float64)
        compare(mixer(ours), mixer(exact), inputs)


@pytest.mark.parametrize("exponent", [0.05, 0.7, 1.0, 1.6])
@pytest.mark.parametrize("decay", [0.1, 0.6, 2.0])
def test_mixer_with_the_exponential_of_a_power(make_batch, decay, exponent):
    batch = make_batch([90, 0, 3, 41, 1])
    torch.manual_seed(1)
    inputs = [torch.randn(135, 60), torch.randn(90) * 0.1, *map(torch.tensor, (-0.8, decay, exponent))]
    ours, exact = cpu.PackedTimes(batch), reference.PaddedTimes(batch, torch.float64)
    compare(mixer(ours), mixer(exact), inputs)
    compare(maps(ours), maps(exact), [torch.randn(135, 20), *inputs[1:]])


def test_mixer_with_an_exponent_of_one_is_the_power(make_batch):
    times = cpu.PackedTimes(make_batch([50, 7]))
    projected, by_lag, power = torch.randn(57, 24), torch.randn(50), (torch.tensor(0.3), torch.tensor(0.6))
    one = times.token_mixer(projected, by_lag, (*power, torch.tensor(1.0)), None)
    torch.testing.assert_close(one, times.token_mixer(projected, by_lag, power, None))


def test_mixer_with_equal_and_with_falling_timestamps(make_batch):
    batch = make_batch([40, 77])
    torch.manual_seed(2)
    inputs = [torch.randn(117, 30), torch.randn(77), torch.tensor(0.4), torch.tensor(0.5)]
    for times in (torch.full((117,), 1_700_000_000), 1_700_000_000 - torch.arange(117) * 1000):
        odd = replace(batch, timestamp=times, next_timestamp=times)
        ours, exact = cpu.PackedTimes(odd), reference.PaddedTimes(odd, torch.float64)
        compare(mixer(ours), mixer(exact), inputs)


def test_mixer_without_the_temporal_channel(make_batch):
    batch = make_batch([8, 0, 100])
    inputs = [torch.randn(108, 24), torch.randn(100)]
    ours, exact = cpu.PackedTimes(batch), reference.PaddedTimes(batch, torch.float64)
    compare(mixer(ours), mixer(exact), inputs)


def test_kernels_take_views(make_batch):
    batch = make_batch([9, 20])
    torch.manual_seed(3)
    wide = torch.randn(29, 60, dtype=torch.float64)
    by_lag, scale, decay = torch.randn(40)[::2], torch.tensor(0.2), torch.tensor(0.4)
    ours, exact = cpu.PackedTimes(batch), reference.PaddedTimes(batch, torch.float64)
    mask = Mask(torch.arange(58)[::2], 0.5)
    for view in (wide[:, ::2], wide.t().contiguous().t()[:, :30]):
        close(
            ours.token_mixer(view.float(), by_lag, (scale, decay), mask),
            exact.token_mixer(view, by_lag.double(), (scale.double(), decay.double()), mask),
        )
    close(cpu.rms_norm(wide.float()[:, ::2], mask), reference.rms_norm(wide[:, ::2], mask))
    close(cpu.swiglu(wide.float()[:, ::3]), reference.swiglu(wide[:, ::3]))


def test_not_a_number_comes_through(make_batch):
    """A diverged parameter must reach the loss, where training notices."""
    times = cpu.PackedTimes(make_batch([6]))
    nan = torch.tensor(float("nan"))
    out = times.token_mixer(torch.ones(6, 9), torch.ones(6), (torch.tensor(0.1), nan), None)
    assert out.isnan().any()
    zero, zeros = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    states = torch.full((2, 4), float("nan"))
    assert cpu.sampled_softmax(states, torch.ones(1, 4), zero, zeros, zeros.bool(), 1.0).isnan()


@pytest.mark.parametrize("channels", [1, 15, 16, 50, 64, 100, 129])
@pytest.mark.parametrize("rate", [None, 0.0, 0.2])
def test_token_wise_operators(channels, rate):
    torch.manual_seed(channels)
    x = torch.randn(33, 2 * channels) * 3
    mask = None if rate is None else Mask(torch.randint(1 << 62, (33,)), rate)
    compare(lambda x: cpu.rms_norm(x, mask), lambda x: reference.rms_norm(x, mask), [x])
    compare(cpu.swiglu, reference.swiglu, [x])
    if mask is not None:
        compare(lambda x: cpu.dropout(x, mask), lambda x: stateless_random.dropout(x, mask), [x])
        assert torch.equal(cpu.dropout(x, mask) == 0, stateless_random.dropout(x, mask) == 0)


@pytest.mark.parametrize("below", [1, 2, 1000, 2**31 - 1])
def test_draws_are_those_of_the_reference(below):
    keys = torch.randint(1 << 62, (40,))
    for count in (1, 2, 7, 128):
        assert torch.equal(cpu.integers(keys, count, below), stateless_random.integers(keys, count, below))


@pytest.mark.parametrize(
    ("positions", "rows", "negatives", "dim"),
    [(1, 1, 1, 1), (7, 3, 5, 6), (300, 2000, 128, 50), (90, 400, 33, 100), (5, 10_000, 16, 256), (0, 4, 3, 8)],
)
def test_loss(positions, rows, negatives, dim):
    torch.manual_seed(positions)
    states = torch.nn.functional.normalize(torch.randn(positions, dim).double(), dim=1)
    table = torch.nn.functional.normalize(torch.randn(rows, dim).double(), dim=1)
    target, drawn = torch.randint(rows, (positions,)), torch.randint(rows, (positions, negatives))
    masked = (drawn == target[:, None]) | (torch.rand(positions, negatives) < 0.3)
    masked[:1] = True  # a position may lose all its negatives
    compare(
        lambda states, table: cpu.sampled_softmax(states, table, target, drawn, masked, 0.05),
        lambda states, table: reference.sampled_softmax_gathered(states, table, target, drawn, masked, 0.05),
        [states, table],
    )


def test_results_do_not_depend_on_the_number_of_threads(make_batch):
    batch = make_batch([30, 5, 0, 120, 64, 1] * 20)
    torch.manual_seed(4)
    tokens = len(batch.item_index)
    projected, by_lag = torch.randn(tokens, 60, requires_grad=True), torch.randn(120, requires_grad=True)
    scale, decay = torch.tensor(0.3, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    states, table = torch.randn(tokens, 20, requires_grad=True), torch.randn(700, 20, requires_grad=True)
    target, drawn = torch.randint(700, (tokens,)), torch.randint(700, (tokens, 50))

    def everything() -> list[Tensor]:
        mixed = cpu.PackedTimes(batch).token_mixer(projected, by_lag, (scale, decay), None)
        loss = cpu.sampled_softmax(states, table, target, drawn, drawn == target[:, None], 5.0)
        inputs = [projected, by_lag, scale, decay, states, table]
        return [mixed, loss, *torch.autograd.grad(mixed.square().sum() + loss, inputs)]

    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        # Beyond our kernels only sums of torch's own, over all entries, may differ in the last bit.
        assert all(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(results[0], other, strict=True))
        assert torch.equal(results[0][0], other[0])
        assert torch.equal(results[0][1], other[1])
        assert torch.equal(results[0][3], other[3])
        assert torch.equal(results[0][7], other[7])
