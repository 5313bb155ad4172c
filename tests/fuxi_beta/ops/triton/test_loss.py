"""The Triton loss against the plain definition in float64: value and both gradients.

In Triton's interpreter where there is no GPU, as a GPU computes (`as_hardware`); compiled where there is one.
"""

import pytest
import torch
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.models.base import l2_normalise
from fuxi_beta.ops.reference import sampled_softmax_gathered
from fuxi_beta.ops.triton import loss, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"
TEMPERATURE = 0.05
ROUNDED = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # by which a result is, at most
SUMMED = 3e-6  # of the largest number: what sums in float32 leave

Case = tuple[Tensor, ...]  # states, table, target, negatives, masked


def case(positions: int, rows: int, negatives: int, dim: int, dtype: torch.dtype = torch.float32) -> Case:
    torch.manual_seed(positions + negatives)
    states = l2_normalise(torch.randn(positions, dim)).to(DEVICE, dtype)
    table = l2_normalise(torch.randn(rows, dim)).to(DEVICE, dtype)
    target, drawn = torch.randint(rows, (positions,)), torch.randint(rows, (positions, negatives))
    masked = (drawn == target[:, None]) | (torch.rand(positions, negatives) < 0.3)
    return states, table, target.to(DEVICE), drawn.to(DEVICE), masked.to(DEVICE)


def value_and_gradients(function, states: Tensor, table: Tensor, *rest: Tensor) -> list[Tensor]:
    inputs = [states.detach().requires_grad_(), table.detach().requires_grad_()]
    value = function(*inputs, *rest, TEMPERATURE)
    return [value.detach(), *torch.autograd.grad(value * 0.7, inputs)]


def compare(inputs: Case) -> None:
    states, table, *rest = inputs
    found = value_and_gradients(loss.sampled_softmax, states, table, *rest)
    expected = value_and_gradients(sampled_softmax_gathered, states.double(), table.double(), *rest)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    # The states' is rounded once more: it is kept from the way forward, and scaled on the way back.
    for ours, exact, of, roundings in zip(found[1:], expected[1:], (states, table), (2, 1), strict=True):
        assert ours.dtype == of.dtype
        largest = exact.abs().max().item() if exact.numel() else 0.0
        rounded = roundings * ROUNDED[of.dtype]
        torch.testing.assert_close(ours.double(), exact, rtol=rounded, atol=SUMMED * largest + 1e-9)


@pytest.mark.parametrize("dtype", list(ROUNDED))
@pytest.mark.parametrize("dim", [16, 48])
@pytest.mark.parametrize(
    ("positions", "rows", "negatives"), [(6, 40, 128), (9, 5, 37), (1, 3, 1)], ids=["128", "37 of few rows", "one"]
)
def test_value_and_gradients(positions, rows, negatives, dim, dtype):
    compare(case(positions, rows, negatives, dim, dtype))


@pytest.mark.parametrize("choice", range(len(loss._TILES)))
def test_every_choice_of_tiles(choice, take_choice):
    take_choice(choice)
    for dim in (16, 320):
        compare(case(3, 30, 70, dim))


def test_states_and_table_of_different_dtypes():
    states, *rest = case(4, 20, 50, 16)
    compare((states.half(), *rest))


def test_views():
    """Targets are a column of their rows, as many callers have them."""
    states, table, target, drawn, masked = case(5, 20, 40, 16)
    rows = torch.cat([target[:, None], drawn], dim=1)
    wide = torch.cat([states, table[:5]], dim=1)[:, ::2]
    compare((wide, table, rows[:, 0], rows[:, 1::2], masked.t().contiguous().t()[:, ::2]))


def test_wide_rows_and_many_negatives():
    compare(case(2, 300, 1100, 320))
    compare(case(2, 500, 4096, 16))


def test_all_negatives_masked_leave_nothing_to_learn():
    states, table, target, drawn, masked = case(5, 12, 20, 16)
    masked[:] = True
    value, of_states, of_table = value_and_gradients(loss.sampled_softmax, states, table, target, drawn, masked)
    assert value.item() == 0
    assert not of_states.any()
    assert not of_table.any()
    masked[2:] = False
    compare((states, table, target, drawn, masked))


def test_one_row_met_by_everybody_and_rows_met_by_nobody():
    states, table, target, drawn, masked = case(30, 50, 16, 16)
    target[:] = 7
    drawn[:, ::2] = 7
    drawn[drawn > 40] = 1
    compare((states, table, target, drawn, masked))
    assert not value_and_gradients(loss.sampled_softmax, states, table, target, drawn, masked)[2][41:].any()


def test_well_predicted_targets_keep_their_digits():
    """p(target) is 1 to seven digits: p - 1 must not be a difference of two such numbers."""
    states, table, _, drawn, _ = case(4, 30, 24, 16)
    states = table[:4].clone()
    target = torch.arange(4, device=DEVICE)
    drawn = drawn.clamp(min=4)
    masked = (states @ table.t()).gather(1, drawn) > 0.2
    found = value_and_gradients(loss.sampled_softmax, states, table, target, drawn, masked)
    exact = value_and_gradients(sampled_softmax_gathered, states.double(), table.double(), target, drawn, masked)
    assert exact[1].abs().max() < 1e-4  # of gradients that are up to 20
    for ours, theirs in zip(found[1:], exact[1:], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_no_positions_give_zero_and_zero_gradients():
    states, table, target, drawn, masked = case(0, 6, 9, 16)
    value, of_states, of_table = value_and_gradients(loss.sampled_softmax, states, table, target, drawn, masked)
    assert value.item() == 0
    assert of_states.shape == (0, 16)
    assert not of_table.any()


def test_the_same_bits_again():
    inputs = case(12, 20, 64, 48)
    first, second = (value_and_gradients(loss.sampled_softmax, *inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in which the interpreter computes
def test_a_number_that_is_none_is_not_hidden():
    states, *rest = case(3, 8, 20, 16)
    states[1, 3] = torch.nan
    value, of_states, _ = value_and_gradients(loss.sampled_softmax, states, *rest)
    assert value.isnan()
    assert of_states.isnan().any(1).tolist() == [False, True, False]


def test_the_dispatch_takes_it_where_triton_runs(monkeypatch):
    (states, table, target, drawn, masked), called, key = case(3, 9, 20, 16), [], loss._key
    monkeypatch.setattr(loss, "_key", lambda *tensors: called.append(1) or key(*tensors))
    try:
        ops.use("triton")
        fast = ops.sampled_softmax(states, table, target, drawn, masked, TEMPERATURE)
        assert called == [1]
        ops.use("reference")
        plain = ops.sampled_softmax(states, table, target, drawn, masked, TEMPERATURE)
        assert called == [1]
    finally:
        ops.use("auto")
    torch.testing.assert_close(fast, plain)
