"""Keyed randomness: the right statistics, and nothing but the key decides."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fuxi_beta.data import stateless_random


def keys(count: int, seed: int = 1) -> torch.Tensor:
    return stateless_random.combine(seed, torch.arange(count))


def test_the_finaliser_is_splitmix64():
    """First outputs of splitmix64 from state 1234567, published with its reference code."""
    golden, state = 0x9E3779B97F4A7C15, 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = stateless_random.words(torch.tensor([state]), 4)[0].tolist()
    assert golden and [value % 2**64 for value in found] == expected


def test_integers_are_uniform_and_reach_both_ends():
    draws = stateless_random.integers(keys(2000), 100, 37)
    counts = torch.bincount(draws.flatten(), minlength=37).double()
    assert draws.shape == (2000, 100)
    assert len(counts) == 37
    expected = 200_000 / 37
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 12 < chi_square < 75  # 36 degrees of freedom


def test_an_odd_number_of_draws_is_a_prefix_of_a_longer_one():
    torch.testing.assert_close(
        stateless_random.integers(keys(9), 7, 1000), stateless_random.integers(keys(9), 10, 1000)[:, :7]
    )


@pytest.mark.parametrize("below", [0, 1 << 31])
def test_integers_refuse_an_impossible_range(below):
    with pytest.raises(ValueError, match="cannot draw below"):
        stateless_random.integers(keys(1), 1, below)


def test_order_and_value_of_the_parts_matter():
    found = {int(stateless_random.combine(*parts)) for parts in ((1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1, 3))}
    assert len(found) == 5


def test_neighbouring_keys_share_no_bits_on_average():
    words = stateless_random.words(keys(4000), 1)[:, 0]
    bits = (words[:, None] >> torch.arange(64)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.05
    flips = (bits[1:] != bits[:-1]).double().mean(0)
    assert (flips - 0.5).abs().max() < 0.05


@pytest.mark.parametrize(("rate", "channels"), [(0.2, 50), (0.2, 7), (0.5, 100)])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate, channels):
    out = stateless_random.dropout(torch.ones(20_000, channels), stateless_random.Mask(keys(20_000), rate))
    dropped = (out == 0).double()
    assert abs(dropped.mean() - rate) < 0.004
    assert (dropped.mean(0) - rate).abs().max() < 0.02
    assert abs(out.mean() - 1) < 0.01
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - rate)), rtol=1e-4, atol=0)
    together = (dropped[:, 0] * dropped[:, 1]).mean()  # neighbours of one word are independent
    assert abs(together - rate**2) < 0.012


def test_a_mask_belongs_to_its_token_not_to_its_row():
    many, few = keys(50), keys(50)[[7, 3, 40]]
    mask = stateless_random.dropout(torch.ones(50, 12), stateless_random.Mask(many, 0.3))
    torch.testing.assert_close(
        stateless_random.dropout(torch.ones(3, 12), stateless_random.Mask(few, 0.3)), mask[[7, 3, 40]], rtol=0, atol=0
    )


def test_permutations_are_permutations_and_differ_by_key():
    first, second = stateless_random.permutation(1000, 1, 2), stateless_random.permutation(1000, 1, 3)
    assert sorted(first.tolist()) == list(range(1000))
    assert not torch.equal(first, second)
    assert torch.equal(first, stateless_random.permutation(1000, 1, 2))
    assert abs(float(torch.corrcoef(torch.stack([first.double(), torch.arange(1000.0).double()]))[0, 1])) < 0.1


class Operations(TorchDispatchMode):
    """Names of what PyTorch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_numbers_of_the_host_reach_a_device_without_a_copy():
    there = torch.zeros(4, dtype=torch.int64, device="meta")
    with Operations() as operations:
        found = stateless_random.combine(7, there, 3, there)
    assert (found.device.type, found.shape, found.dtype) == ("meta", (4,), torch.int64)
    assert {"add", "mul"} <= set(operations.names)
    assert not [name for name in operations.names if "copy" in name or name == "lift_fresh"]


def test_keys_are_what_they_were():
    """Checkpoints outlive releases: the same parts must go on giving the same bits."""
    ascending = torch.arange(3)
    assert int(stateless_random.combine(1, 2)) == -394211987857106081
    expected = [5315825235997129818, 4988376750709450698, -1279577871892132308]
    assert stateless_random.combine(2**64 - 1, ascending, -5, ascending).tolist() == expected
