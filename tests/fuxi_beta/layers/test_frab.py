"""FRAB's parameters: where they start is in `test_elapsed_functions`, what runs for them in `test_aftm`."""

import torch

from fuxi_beta.layers.frab import FRAB


def test_the_power_is_a_times_one_plus_x_to_the_minus_b():
    frab, seconds = FRAB(), torch.tensor([0.0, 1.0, 3.0, 86_400.0])
    a, b = frab.power
    torch.testing.assert_close(frab.curve(seconds), a * (1 + seconds) ** -b)
    torch.testing.assert_close(frab.decayed(seconds.log1p()), (1 + seconds) ** -b)


def test_parameters_keep_the_names_that_exports_have():
    assert {name: tuple(tensor.shape) for name, tensor in FRAB().state_dict().items()} == {"scale": (), "decay": ()}
