"""RetNet and FLASH against their formulas, one listener and one position at a time, with every gradient."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxi_beta.config import ModelConfig
from fuxi_beta.models.flash import FLASH
from fuxi_beta.models.retnet import RetNet

CONFIG = ModelConfig(dim=8, layers=2, ffn_multiply=2, max_history=12, position_margin=3)
LENGTHS = [[5, 0, 12, 1], [1], [row % 7 for row in range(40)]]  # the last is padded in several groups


def network(cls: type, config: ModelConfig = CONFIG) -> Any:
    """Weights of a size at which every nonlinearity bends."""
    torch.manual_seed(0)
    model: Any = cls(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "positions":
                parameter.copy_(torch.randn_like(parameter) / (1 if parameter.ndim < 2 else config.dim**0.5))
        for unit in getattr(model, "units", []):
            unit.scale.copy_(torch.randn_like(unit.scale))
            unit.offset.copy_(torch.randn_like(unit.offset))
    return model


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-6)


def turned_product(query: Tensor, key: Tensor, lag: int) -> Tensor:
    """q_i . k_j after rotary turns, from their distance alone."""
    pairs, total = len(query) // 2, torch.zeros((), dtype=query.dtype)
    for c in range(pairs):
        angle = lag * 10000 ** (-c / max(pairs - 1, 1))
        (q0, q1), (k0, k1) = query[2 * c : 2 * c + 2], key[2 * c : 2 * c + 2]
        total = total + (q0 * k0 + q1 * k1) * math.cos(angle) - (q1 * k0 - q0 * k1) * math.sin(angle)
    return total


def slow_retnet(model: Any, x: Tensor, heads: int) -> Tensor:
    dim, hidden = model.config.dim, model.config.ffn_multiply * model.config.dim
    size = dim // heads
    for block in model.blocks:
        w_q, w_k, w_v, w_g = block.retention.project.weight.split(dim)
        w_1, w_3 = block.gate_and_up.weight.split(hidden)
        rows = []
        for i, row in enumerate(x):
            kept = []
            for head in range(heads):
                part, total = slice(head * size, (head + 1) * size), torch.zeros(size, dtype=x.dtype)
                query = w_q[part] @ rms(row)
                for j in range(i + 1):
                    key, value = w_k[part] @ rms(x[j]), w_v[part] @ rms(x[j])
                    score = query @ key if size % 2 else turned_product(query, key, i - j)
                    total = total + score * (1 - 2 ** (-5 - head)) ** (i - j) * value
                kept.append(rms(total))
            o = block.retention.output.weight @ (silu(w_g @ rms(row)) * torch.cat(kept)) + row
            rows.append(block.down.weight @ (silu(w_1 @ rms(o)) * (w_3 @ rms(o))) + o)
        x = torch.stack(rows)
    return x


def slow_flash(model: Any, x: Tensor) -> Tensor:
    config = model.config
    width, reach = 2 * config.dim, config.max_history + config.position_margin

    def norm(row: Tensor) -> Tensor:
        centred = row - row.mean()
        return centred / torch.sqrt((centred * centred).mean() + 1e-6)

    for unit in model.units:
        w_u, w_v, w_z = unit.project.weight.split([width, width, 128])
        rows = []
        for i, row in enumerate(x):
            query = silu(w_z @ norm(row)) * unit.scale[0] + unit.offset[0]
            total = torch.zeros(width, dtype=x.dtype)
            for j in range(i + 1):
                key = silu(w_z @ norm(x[j])) * unit.scale[1] + unit.offset[1]
                score = query @ key / config.max_history + unit.positional.weight[reach - 1 + j - i]
                if score > 0:
                    total = total + score**2 * silu(w_v @ norm(x[j]))
            rows.append(row + unit.output.weight @ (silu(w_u @ norm(row)) * total))
        x = torch.stack(rows)
    return x


@pytest.mark.parametrize("lengths", LENGTHS)
def test_retnet_and_gradients_equal_the_slow_reference(make_batch, lengths, equal_with_gradients):
    equal_with_gradients(network(RetNet), make_batch(lengths), lambda model, x: slow_retnet(model, x, heads=4))


@pytest.mark.parametrize(("dim", "heads"), [(20, 5), (15, 5), (7, 1), (6, 3), (9, 3)])
def test_retnet_takes_the_most_heads_up_to_five_that_divide_the_width(make_batch, dim, heads, equal_with_gradients):
    """And turns no head of odd width."""
    model = network(RetNet, replace(CONFIG, dim=dim, layers=1))
    equal_with_gradients(model, make_batch([5, 12]), lambda model, x: slow_retnet(model, x, heads))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_flash_and_gradients_equal_the_slow_reference(make_batch, lengths, equal_with_gradients):
    equal_with_gradients(network(FLASH), make_batch(lengths), slow_flash)


@pytest.mark.parametrize("cls", [RetNet, FLASH])
def test_single_precision_agrees_with_double(make_batch, cls):
    model, batch = network(cls), make_batch([5, 0, 12, 1])
    vectors = torch.randn(18, 8)
    single, double = model.float()(vectors, batch), model.double()(vectors.double(), batch).float()
    torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [256, 2000])
def test_retnet_stays_finite_on_long_histories(make_batch, length):
    model = network(RetNet, replace(CONFIG, max_history=length, layers=1)).float()
    vectors = torch.randn(length, 8, requires_grad=True)
    out = model(vectors, make_batch([length]))
    (gradient,) = torch.autograd.grad(out[-1].sum(), vectors)
    assert out.isfinite().all() and gradient.isfinite().all()


def test_flash_refuses_histories_of_more_than_one_chunk():
    FLASH(replace(CONFIG, max_history=256))
    with pytest.raises(ValueError, match=r"model\.max_history is 257.*at most 256"):
        FLASH(replace(CONFIG, max_history=257))


def test_flash_has_two_units_a_layer():
    assert len(network(FLASH, replace(CONFIG, layers=3)).units) == 6


def test_initial_values():
    torch.manual_seed(0)
    retnet: Any = RetNet(ModelConfig())
    assert retnet.heads == 5
    projection, bound = retnet.blocks[0].retention.project.weight, math.sqrt(6 / 100)
    assert 0.95 * bound * 2**-2.5 < projection.abs().max() <= bound * 2**-2.5
    unit: Any = FLASH(ModelConfig()).units[0]
    assert not unit.offset.any() and unit.scale.eq(1).all()
    base = unit.project.weight[200:]  # W_z: a matrix of its own, not a part of one of 328 rows
    assert 0.95 * math.sqrt(6 / 178) < base.abs().max() <= math.sqrt(6 / 178)
