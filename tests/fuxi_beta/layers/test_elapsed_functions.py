"""FRAB and the other functions of elapsed time: by hand at single gaps, as causal maps, and their initial values."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from fuxi_beta.data.padding import Padding
from fuxi_beta.layers.elapsed_functions import FUNCTIONS
from fuxi_beta.ops.elapsed import Elapsed

FORMULAS = {
    "linear": lambda p, x: p["a"] * x + p["b"],
    "log": lambda p, x: p["a"] * math.log(1 + p["b"] * x) + p["c"],
    "exp": lambda p, x: p["a"] * math.exp(-math.exp(p["b"]) * x),
    "sin": lambda p, x: p["c"] * math.sin(p["a"] * x + p["b"]) + p["d"],
    "pow": lambda p, x: p["scale"] * (1 + x) ** -p["decay"],
    "exppow": lambda p, x: p["scale"] * math.exp(-p["decay"] * math.log(1 + x) ** p["exponent"]),
    "zero": lambda p, x: 0.0,
}


def by_hand(function: Any, name: str, x: float) -> float:
    """The paper's formula (section 6.4.2) in plain Python."""
    if name in FORMULAS:
        return FORMULAS[name]({key: value.item() for key, value in function.named_parameters()}, x)
    if name == "bucket":
        return function.weight[min(int(math.log(max(abs(x), 1)) / 0.301), 128)].item()
    if name == "mixed":
        names = ("linear", "log", "exp", "sin", "pow")
        return sum(by_hand(part, key, x) for key, part in zip(names, function.parts, strict=True)) / 5
    return perceptron(function, x)


def perceptron(function: Any, x: float) -> float:
    first, second, third = function.first, function.second, function.third
    hidden = [math.sin(w[0] * x + b) for w, b in zip(first.weight.tolist(), first.bias.tolist(), strict=True)]
    sums = [
        sum(w * h for w, h in zip(row, hidden, strict=True)) + b
        for row, b in zip(second.weight.tolist(), second.bias.tolist(), strict=True)
    ]
    active = [value / (1 + math.exp(-value)) for value in sums]
    return sum(w * h for w, h in zip(third.weight[0].tolist(), active, strict=True)) + third.bias.item()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_map_holds_the_formula_below_the_diagonal_and_nothing_above(make_batch, name):
    torch.manual_seed(2)
    function, batch = FUNCTIONS[name]().double(), make_batch([6, 3])
    (group,) = Padding(batch).groups
    found = function(Elapsed(batch, group, torch.float64))
    assert found.shape == (2, 6, 6)
    for row, (start, end) in enumerate([(0, 6), (6, 9)]):
        for i in range(end - start):
            for j in range(6):
                gap = int(batch.next_timestamp[start + i] - batch.timestamp[start + j]) if j < end - start else 0
                expected = by_hand(function, name, max(gap, 0)) if j <= i else 0.0
                assert found[row, i, j].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_request_time_moves_its_own_row_alone(make_batch, name):
    torch.manual_seed(2)
    function, batch = FUNCTIONS[name]().double(), make_batch([6])
    query_time = batch.next_timestamp.clone()
    query_time[3] += 50_000
    maps = [
        function(Elapsed(b, Padding(b).groups[0], torch.float64))[0]
        for b in (batch, replace(batch, next_timestamp=query_time))
    ]
    assert torch.equal(maps[0][[0, 1, 2, 4, 5]], maps[1][[0, 1, 2, 4, 5]])
    assert torch.equal(maps[0], maps[1]) == (name in {"zero", "exp"})  # exp is zero at gaps of hours


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "zero"])
def test_every_parameter_has_the_gradient_of_finite_differences(make_batch, name):
    torch.manual_seed(5)
    function, batch = FUNCTIONS[name]().double(), make_batch([5, 4])
    batch = replace(batch, timestamp=torch.arange(9) * 3, next_timestamp=torch.arange(9) * 3 + 2)
    elapsed, weight = Elapsed(batch, Padding(batch).groups[0], torch.float64), torch.randn(2, 5, 5, dtype=torch.float64)
    total = (function(elapsed) * weight).sum()
    gradients = torch.autograd.grad(total, list(function.parameters()))
    for parameter, gradient in zip(function.parameters(), gradients, strict=True):
        flat = parameter.data.view(-1)
        for k in range(min(len(flat), 20)):
            kept = flat[k].item()
            values = []
            for step in (1e-6, -1e-6):
                flat[k] = kept + step
                values.append((function(elapsed) * weight).sum().item())
            flat[k] = kept
            assert gradient.view(-1)[k].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("linear", {"a": (-0.01, 0.01), "b": (-0.2, 0.2)}),
        ("log", {"a": (-0.01, 0.01), "b": (0.5, 1.0), "c": (-0.05, 0.05)}),
        ("exp", {"a": (-0.2, 0.2), "b": (-2.0, 0.0)}),
        ("sin", {"a": (-0.02, 0.02), "b": (-math.pi, math.pi), "c": (-2.0, 2.0), "d": (0.0, 0.0)}),
        ("pow", {"scale": (-0.2, 0.2), "decay": (0.4, 0.8)}),
        ("exppow", {"scale": (-0.2, 0.2), "decay": (0.4, 0.8), "exponent": (1.0, 1.0)}),
    ],
)
def test_parameters_start_in_their_published_ranges(name, bounds):
    torch.manual_seed(0)
    drawn = [dict(FUNCTIONS[name]().named_parameters()) for _ in range(200)]
    for key, (low, high) in bounds.items():
        values = [parameters[key].item() for parameters in drawn]
        assert low <= min(values) and max(values) <= high
        if low < high:
            assert max(values) - min(values) > 0.9 * (high - low)


def test_log_stays_finite_where_training_drives_its_factor_below_zero():
    function = FUNCTIONS["log"]()
    with torch.no_grad():
        function.b.fill_(-0.5)  # type: ignore[operator, union-attr]
    assert function.curve(torch.tensor([0.0, 10.0, 1e8])).isfinite().all()
