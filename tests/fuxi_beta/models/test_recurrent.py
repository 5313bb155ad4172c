"""GRU4Rec and NARM against their formulas, one listener and one position at a time, with every gradient."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxi_beta.config import ModelConfig
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.models.base import ForwardContext
from fuxi_beta.models.gru4rec import GRU4Rec
from fuxi_beta.models.narm import NARM

CONFIG = ModelConfig(dim=6, hidden=5, layers=2, max_history=16, position_margin=3)
LENGTHS = [[5, 0, 16, 1], [1], [row % 9 for row in range(40)]]  # the last is padded in several groups


def network(cls: type, config: ModelConfig = CONFIG) -> Any:
    torch.manual_seed(0)
    model: Any = cls(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "positions":  # away from the linear regime, and no bias left at zero
                parameter.copy_(torch.randn_like(parameter))
    return model


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def slow_gru(gru: Any, x: Tensor) -> list[Tensor]:
    hidden = gru.hidden_size
    w, u, b, d = gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0
    reset, update, new = slice(0, hidden), slice(hidden, 2 * hidden), slice(2 * hidden, 3 * hidden)
    state, states = torch.zeros(hidden, dtype=x.dtype), []
    for token in x:
        r = sigmoid(w[reset] @ token + b[reset] + u[reset] @ state + d[reset])
        z = sigmoid(w[update] @ token + b[update] + u[update] @ state + d[update])
        c = torch.tanh(w[new] @ token + b[new] + r * (u[new] @ state + d[new]))
        state = (1 - z) * c + z * state
        states.append(state)
    return states


def slow_gru4rec(model: Any, x: Tensor) -> Tensor:
    return torch.stack([model.output.weight @ state + model.output.bias for state in slow_gru(model.gru, x)])


def slow_narm(model: Any, x: Tensor) -> Tensor:
    states, local = slow_gru(model.gru, x), model.local
    rows = []
    for t, now in enumerate(states):
        powers, purpose = [], torch.zeros_like(now)
        for j in range(t + 1):
            activation = sigmoid(local.query.weight @ now + local.key.weight @ states[j])
            powers.append(torch.exp((local.score.weight[0] * activation).sum()))
        for j, power in enumerate(powers):
            purpose = purpose + power / sum(powers) * states[j]
        rows.append(model.decoder.weight @ torch.cat([now, purpose]))
    return torch.stack(rows)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("cls", "slow"), [(GRU4Rec, slow_gru4rec), (NARM, slow_narm)])
def test_network_and_gradients_equal_the_slow_reference(make_batch, cls, slow, lengths, equal_with_gradients):
    equal_with_gradients(network(cls), make_batch(lengths), slow)


@pytest.mark.parametrize("cls", [GRU4Rec, NARM])
def test_single_precision_agrees_with_double(make_batch, cls):
    model, batch = network(cls), make_batch([5, 0, 16, 1])
    vectors = torch.randn(22, 6)
    torch.testing.assert_close(model.float()(vectors, batch), model.double()(vectors.double(), batch).float())


@pytest.mark.parametrize("cls", [GRU4Rec, NARM])
def test_the_number_of_layers_does_not_count_and_the_hidden_width_does(cls):
    shapes = [parameter.shape for parameter in network(cls).parameters()]
    assert [parameter.shape for parameter in network(cls, replace(CONFIG, layers=7)).parameters()] == shapes
    assert network(cls, replace(CONFIG, hidden=9)).gru.weight_hh_l0.shape == (27, 9)


def test_narm_has_the_published_dropouts(make_batch):
    model, batch, rates = network(NARM), make_batch([5, 3]), []

    def record(x: Tensor, rate: float | None = None) -> Tensor:
        rates.append((rate, x.shape[1]))
        return x

    x = torch.randn(8, 6, dtype=torch.float64)
    recorder: Any = record
    model.encode(x, ForwardContext(batch, x, recorder))
    assert model.embedding_dropout == 0.25
    assert rates == [(0.5, 2 * CONFIG.hidden)]


@pytest.mark.parametrize("cls", [GRU4Rec, NARM])
def test_without_a_rate_nothing_is_dropped(make_batch, cls):
    model, batch = network(cls, replace(CONFIG, dropout=0.0)), make_batch([5, 3])
    vectors = torch.randn(8, 6, dtype=torch.float64)
    torch.testing.assert_close(model(vectors, batch, key=DropoutKey(1, 1)), model(vectors, batch), rtol=0, atol=0)


def test_initial_values():
    torch.manual_seed(0)
    gru4rec: Any = GRU4Rec(ModelConfig())
    narm: Any = NARM(ModelConfig())
    for model in (gru4rec, narm):
        assert not model.gru.bias_ih_l0.any() and not model.gru.bias_hh_l0.any()
        bound = math.sqrt(6 / 150)  # of one gate, not of the three stacked
        assert 0.95 * bound < model.gru.weight_ih_l0.abs().max() <= bound
    assert 0.95 * math.sqrt(6 / 200) < gru4rec.gru.weight_hh_l0.abs().max() <= math.sqrt(6 / 200)
    for gate in narm.gru.weight_hh_l0.chunk(3):
        torch.testing.assert_close(gate @ gate.T, torch.eye(100), rtol=0, atol=1e-5)
