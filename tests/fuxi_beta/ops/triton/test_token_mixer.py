"""The Triton mixer against plain torch in float64: values, every gradient, odd shapes and times.

In Triton's interpreter where there is no GPU, as a GPU computes (`as_hardware`); compiled where there is one. Tiles are
16 tokens in the interpreter, so histories of 40 and 70 events take several.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import reference
from fuxi_beta.ops.token_mixer import PreparedTimes
from fuxi_beta.ops.triton import token_mixer, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Roundings of what a number is made of: values and weights, to eight bits in bf16 and cut to eleven for TF32 in fp16;
# what the norm gave and the gradient of both products, kept for the way back; and the result. Sums in float32 are next
# to nothing, and all that there is in float32.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2 * 2.0**-10 + 3 * 2.0**-11, torch.bfloat16: 5 * 2.0**-8}
RAGGED = [5, 0, 1, 70, 16, 17, 0, 40]


def close(ours: Tensor, exact: Tensor, tolerance: float, size: Tensor | None = None) -> None:
    """size: of the terms that each number is a sum of; by default as large as the largest number."""
    assert ours.shape == exact.shape
    if size is None:
        size = exact.abs().max() if exact.numel() else exact.new_zeros(())
    error = (ours.cpu().double() - exact).abs()
    assert (error <= tolerance * size + 1e-30).all(), f"off by {(error / size).max():.1e}, {tolerance:.1e} is allowed"


def run(times: PreparedTimes, inputs: list[Tensor], mask: Mask | None, *, bare: bool) -> Tensor:
    """The token mixer, or if `bare` its maps, of (projected or V, by_lag[, a, b[, c]])."""
    first, by_lag, *power = inputs
    if bare:
        return ops.apply_maps(first, times, by_lag, tuple(power) or None)  # type: ignore[arg-type]
    return ops.token_mixer(first, times, by_lag, tuple(power) or None, mask)  # type: ignore[arg-type]


def sizes_of_terms(
    times: PreparedTimes, inputs: list[Tensor], mask: Mask | None, upstream: Tensor, bare: bool
) -> list[Tensor]:
    """What the gradients of the parameters would be if all their terms had one sign. They are sums over all pairs,
    which may cancel, and no rounding moves a term by more than its share."""
    first, *parameters = (tensor.detach() for tensor in inputs)
    value = first
    if not bare:
        gate, value = reference.gate_and_value(first)
        mixed = run(times, [value, *parameters], None, bare=True).requires_grad_()
        (upstream,) = torch.autograd.grad(reference.gated(gate, mixed, mask), mixed, upstream)
    by_lag, *power = parameters
    sizes = [by_lag.abs().requires_grad_()]
    if power:
        sizes += [power[0].abs().requires_grad_(), *(number.clone().requires_grad_() for number in power[1:])]
    of_sizes = torch.autograd.grad(run(times, [value.abs(), *sizes], None, bare=True), sizes, upstream.abs())
    return [size.abs() for size in of_sizes]


def compare(
    batch: Batch, inputs: list[Tensor], mask: Mask | None = None, dtype: torch.dtype = torch.float32, bare: bool = False
) -> None:
    """Both implementations on the same rounded inputs, with all gradients. bare: only the maps times values.

    inputs: U and V before their SiLU (bare: V), weights by lag and, if there is a temporal channel, a and b.
    """
    first, *parameters = inputs
    mine = [first.to(DEVICE, dtype), *(tensor.to(DEVICE) for tensor in parameters)]
    mine = [tensor.detach().requires_grad_() for tensor in mine]
    theirs = [tensor.detach().cpu().double().requires_grad_() for tensor in mine]
    on_device = None if mask is None else Mask(mask.keys.to(DEVICE), mask.rate)
    times = reference.PaddedTimes(batch, torch.float64)
    found = run(token_mixer.PackedTimes(batch.to(DEVICE)), mine, on_device, bare=bare)
    expected = run(times, theirs, mask, bare=bare)
    assert found.dtype == dtype
    close(found, expected, TOLERANCE[dtype])
    upstream = torch.sin(torch.arange(found.numel()) * 0.7).view_as(found).to(dtype)
    gradients = torch.autograd.grad(found, mine, upstream.to(DEVICE))
    exact = torch.autograd.grad(expected, theirs, upstream.double())
    sizes = [None, *sizes_of_terms(times, theirs, mask, upstream.double(), bare)]
    for ours, right, of, size in zip(gradients, exact, mine, sizes, strict=True):
        assert ours.dtype == of.dtype
        close(ours, right, TOLERANCE[dtype], size)


def random_inputs(batch: Batch, dim: int, decay: float | None, scale: float = -0.7) -> list[Tensor]:
    torch.manual_seed(dim)
    tensors = [torch.randn(len(batch.timestamp), 3 * dim), torch.randn(batch.longest + 3) * 0.5]
    return tensors if decay is None else [*tensors, torch.tensor(scale), torch.tensor(decay)]


def random_mask(batch: Batch, rate: float = 0.25) -> Mask:
    return Mask(torch.randint(-(1 << 62), 1 << 62, (len(batch.timestamp),)), rate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 50, 64])
def test_mixer(make_batch, dim, dtype):
    batch = make_batch(RAGGED)
    compare(batch, random_inputs(batch, dim, 0.3), random_mask(batch), dtype)


@pytest.mark.parametrize("decay", [-0.3, 0.0, 0.5, 3.0, 20.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mixer_at_every_decay(make_batch, decay, dtype):
    batch = make_batch([40, 0, 3])
    compare(batch, random_inputs(batch, 16, decay), None, dtype)


@pytest.mark.parametrize("exponent", [0.01, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bare", [False, True])
def test_mixer_with_an_exponential_of_a_power(make_batch, exponent, dtype, bare):
    """Plays of the same second as the request, and of the second before: log(1 + x)^c and its derivative are 0 at 0."""
    batch = make_batch([40, 0, 3])
    batch = replace(batch, next_timestamp=batch.timestamp + torch.arange(43) % 2)
    first, *parameters = [*random_inputs(batch, 16, 0.3), torch.tensor(exponent)]
    compare(batch, [first[:, :16] if bare else first, *parameters], None if bare else random_mask(batch), dtype, bare)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exponent_of_one_is_the_power(make_batch, dtype):
    batch = make_batch([40, 0, 3])
    projected, by_lag, *power = (tensor.to(DEVICE) for tensor in random_inputs(batch, 16, 0.3))
    times, one = token_mixer.PackedTimes(batch.to(DEVICE)), torch.ones((), device=DEVICE)
    plain, nested = (times.token_mixer(projected.to(dtype), by_lag, (*power, *of), None) for of in ((), (one,)))
    close(nested, plain.cpu().double(), TOLERANCE[dtype])


def test_mixer_with_a_scale_of_zero(make_batch):
    batch = make_batch([20])
    compare(batch, random_inputs(batch, 16, 0.4, scale=0.0))


@pytest.mark.parametrize("lengths", [[0, 0], [1], [16], [17, 1, 1], [1] * 40, [0] * 30 + [18] + [0] * 30])
def test_mixer_at_odd_lengths(make_batch, lengths):
    batch = make_batch(lengths)
    compare(batch, random_inputs(batch, 16, 0.6), random_mask(batch))


def test_mixer_with_equal_with_falling_and_with_distant_times(make_batch):
    batch = make_batch([19, 40])
    steps = torch.arange(59)
    for times in (torch.full((59,), 1_700_000_000), 1_700_000_000 - steps * 1000, steps * 10**11 - 10**12):
        odd = replace(batch, timestamp=times, next_timestamp=times + steps % 2)
        compare(odd, random_inputs(odd, 16, 0.5))


def test_a_second_counts_after_decades(make_batch):
    """Unix seconds in float32 are 64 s to 128 s apart: neighbours would be as good as simultaneous."""
    batch = make_batch([2])
    seconds = torch.tensor([1_999_999_999, 2_000_000_000])
    batch = replace(batch, timestamp=seconds, next_timestamp=seconds + 1)
    scale, decay = torch.tensor(1.0, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    value, nothing = torch.ones(2, 16, device=DEVICE), torch.zeros(2, device=DEVICE)
    out = token_mixer.PackedTimes(batch.to(DEVICE)).apply_maps(value, nothing, (scale, decay))
    torch.testing.assert_close(out[:, 16].cpu(), torch.tensor([1 / 2, 1 / 2 + 1 / 3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixer_without_the_temporal_channel(make_batch, dtype):
    batch = make_batch([8, 0, 40])
    compare(batch, random_inputs(batch, 48, None), random_mask(batch), dtype)
    compare(batch, [torch.randn(48, 16), torch.randn(40)], None, dtype, bare=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_alone(make_batch, dtype):
    batch = make_batch([8, 0, 40])
    _, *parameters = random_inputs(batch, 48, 0.5)
    compare(batch, [torch.randn(48, 48), *parameters], None, dtype, bare=True)


def test_a_width_that_is_no_multiple_of_four(make_batch):
    """The words of random bits then do not start anew at the second half of the channels."""
    batch = make_batch([18, 3])
    compare(batch, random_inputs(batch, 18, 0.5), random_mask(batch))


@pytest.mark.parametrize("choice", range(6))
@pytest.mark.parametrize(
    ("dim", "dtype"), [(48, torch.float32), (48, torch.float16), (48, torch.bfloat16), (130, torch.bfloat16)]
)
def test_every_choice_of_tiles(make_batch, take_choice, dim, dtype, choice):
    take_choice(choice)
    batch = make_batch([20, 0, 1, 130])
    compare(batch, random_inputs(batch, dim, 0.3), random_mask(batch), dtype)


@pytest.mark.parametrize("choice", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choices_for_cards_with_narrow_matrix_units(make_batch, take_choice, monkeypatch, dtype, choice):
    take_choice(choice)
    monkeypatch.setattr(tuning, "capability", lambda: (8, 6))
    batch = make_batch([70])
    compare(batch, random_inputs(batch, 130, 0.3), None, dtype)


@pytest.mark.parametrize("dim", [48, 272])
def test_channels_in_several_tiles(make_batch, dim, monkeypatch):
    """Wider than a program can hold: the norm comes in a second pass, and sums over channels in parts."""
    monkeypatch.setattr(token_mixer, "_WHOLE", 16 if dim == 48 else 256)
    tuning._chosen.clear()
    batch = make_batch([20, 0, 1])
    compare(batch, random_inputs(batch, dim, 0.5), random_mask(batch))
    compare(batch, random_inputs(batch, dim, None))


def test_long_histories_activate_values_once(make_batch, monkeypatch):
    monkeypatch.setattr(token_mixer, "_LONG", 30)
    tuning._chosen.clear()
    batch = make_batch([40, 0, 1])
    compare(batch, random_inputs(batch, 16, 0.5), random_mask(batch))


def test_views_and_other_dtypes_of_parameters(make_batch):
    batch = make_batch([9, 20])
    torch.manual_seed(3)
    wide = torch.randn(29, 96)
    by_lag, scale, decay = torch.randn(40).double()[::2], torch.tensor(0.2).double(), torch.tensor(0.4).double()
    mask = Mask(torch.arange(58)[::2], 0.5)
    exact_times = reference.PaddedTimes(batch, torch.float64)
    exact = exact_times.token_mixer(wide[:, ::2].double(), by_lag, (scale, decay), mask)
    on_device = Mask(torch.arange(58, device=DEVICE)[::2], 0.5)
    inputs = [tensor.to(DEVICE) for tensor in (wide, by_lag, scale, decay)]
    first, *rest = inputs
    ours = token_mixer.PackedTimes(batch.to(DEVICE)).token_mixer(first[:, ::2], rest[0], (rest[1], rest[2]), on_device)
    close(ours, exact, 1e-5)


def test_not_a_number_comes_through(make_batch):
    """A diverged parameter must reach the loss, where training notices."""
    times = token_mixer.PackedTimes(make_batch([6]).to(DEVICE))
    one, nan = torch.tensor(0.1, device=DEVICE), torch.tensor(float("nan"), device=DEVICE)
    projected, by_lag = torch.ones(6, 48, device=DEVICE), torch.ones(6, device=DEVICE)
    for weights, scale, decay in ((by_lag, one, nan), (by_lag, nan, one), (by_lag * nan, one, one)):
        assert times.token_mixer(projected, weights, (scale, decay), None).isnan().any()


def test_too_few_weights_are_refused(make_batch):
    times = token_mixer.PackedTimes(make_batch([6]).to(DEVICE))
    with pytest.raises(ValueError, match="a history has 6 events, but by_lag only 5 weights"):
        times.token_mixer(torch.ones(6, 48, device=DEVICE), torch.ones(5, device=DEVICE), None, None)


def test_a_listener_alone_gets_the_same_bits_as_in_a_batch(make_batch):
    """In inference too, where nothing is kept for a backward pass."""
    batch = make_batch([7, 40, 1])
    projected, by_lag, scale, decay = (tensor.to(DEVICE) for tensor in random_inputs(batch, 16, 0.5))
    together = token_mixer.PackedTimes(batch.to(DEVICE)).token_mixer(projected, by_lag, (scale, decay), None)
    middle = slice(7, 47)
    alone = replace(
        batch,
        offsets=torch.tensor([0, 40]),
        item_index=batch.item_index[middle],
        timestamp=batch.timestamp[middle],
        next_timestamp=batch.next_timestamp[middle],
    )
    times = token_mixer.PackedTimes(alone.to(DEVICE))
    with torch.no_grad():
        out = times.token_mixer(projected[middle], by_lag, (scale, decay), None)
    assert torch.equal(out, together[middle])
    maps = token_mixer._Maps(times.sequences, by_lag, scale, decay)
    assert maps.gated(projected[middle], None, differentiated=False)[1][0].shape == (0, 32)


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU: the interpreter runs one program after another")
def test_gradients_are_the_same_bits_every_time(make_batch):
    batch = make_batch([index % 211 for index in range(200)]).to(DEVICE)
    inputs = [tensor.to(DEVICE).requires_grad_() for tensor in random_inputs(batch, 64, 0.5)]
    times = token_mixer.PackedTimes(batch)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(times, inputs, None, bare=False).square().sum(), inputs)

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exponential_of_a_power_runs_in_plain_torch(make_batch, dtype):
    """The kernels do not have it; the result has the dtype of its input all the same."""
    batch = make_batch([6, 0, 20])
    torch.manual_seed(0)
    projected, by_lag, power = torch.randn(26, 12), torch.randn(20), [torch.tensor(x) for x in (0.3, 0.5, 0.8)]
    on_device = [tensor.to(DEVICE) for tensor in (by_lag, *power)]
    times = token_mixer.PackedTimes(batch.to(DEVICE))
    found = times.token_mixer(projected.to(DEVICE, dtype), on_device[0], tuple(on_device[1:]), None)
    exact = reference.PaddedTimes(batch, torch.float64)
    expected = exact.token_mixer(
        projected.to(dtype).double(), by_lag.double(), tuple(number.double() for number in power), None
    )
    assert found.dtype == dtype
    close(found, expected, 2 * TOLERANCE[dtype])
