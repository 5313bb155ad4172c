"""FRAB's parameters: where they start is in `test_elapsed_functions`, what runs for them in `test_aftm`."""

import pytest
import torch

from fuxi_beta.layers.frab import FRAB, ExpPow


def test_the_power_is_a_times_one_plus_x_to_the_minus_b():
    frab, seconds = FRAB(), torch.tensor([0.0, 1.0, 3.0, 86_400.0])
    a, b = frab.power
    torch.testing.assert_close(frab.curve(seconds), a * (1 + seconds) ** -b)
    torch.testing.assert_close(frab.decayed(seconds.log1p()), (1 + seconds) ** -b)


def test_parameters_keep_the_names_that_exports_have():
    assert {name: tuple(tensor.shape) for name, tensor in FRAB().state_dict().items()} == {"scale": (), "decay": ()}


def test_the_exponential_of_a_power_starts_as_frab_and_takes_its_weights():
    frab, later, seconds = FRAB(), ExpPow(), torch.tensor([0.0, 1.0, 3.0, 86_400.0])
    later.load_state_dict(frab.state_dict() | {"exponent": later.exponent.detach()})
    torch.testing.assert_close(later.curve(seconds), frab.curve(seconds))
    with torch.no_grad():
        later.exponent.fill_(0.5)
    expected = frab.scale * torch.exp(-frab.decay * seconds.log1p() ** 0.5)
    torch.testing.assert_close(later.curve(seconds), expected)


def test_an_exponent_driven_below_zero_stays_finite():
    later = ExpPow()
    with torch.no_grad():
        later.exponent.fill_(-0.5)
    assert later.power[2].item() == pytest.approx(0.01)
    assert later.curve(torch.tensor([0.0, 10.0, 1e8])).isfinite().all()
