"""The whole network: against a slow reference per listener, causal, indifferent to packing, counter-based dropout."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxi_beta.config import ModelConfig
from fuxi_beta.data import stateless_random
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.models.base import Dropout
from fuxi_beta.models.fuxi_beta import FuXiBeta

CONFIG = ModelConfig(dim=8, layers=2, heads=2, ffn_multiply=3, max_history=16, position_margin=5)


def network(config: ModelConfig = CONFIG, *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model: Any = FuXiBeta(config).double()  # torch types a module's members as Tensor | Module
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.project.mul_(15)  # away from the linear regime of the initial weights
            block.mixer.positional.weight.mul_(20)
    return model


def vectors_of(batch, dim: int = 8) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(100, dim, dtype=torch.float64)[batch.item_index]


def slow_listener(model: Any, vectors: Tensor, timestamp: list[int], next_timestamp: list[int]) -> Tensor:
    """FuXi-beta for one listener, written from MODELS' formulas with dense [n, n] maps."""
    config, n = model.config, len(vectors)
    heads, size = config.heads, config.dim // config.heads
    reach = config.max_history + config.position_margin

    def rms(x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    x = vectors * math.sqrt(config.dim) + model.positions[:n]
    for block in model.blocks:
        mixer, ffn = block.mixer, block.ffn
        position_map = torch.zeros(n, n, dtype=x.dtype)
        time_map = torch.zeros(n, n, dtype=x.dtype)
        for i in range(n):
            for j in range(i + 1):
                position_map[i, j] = mixer.positional.weight[reach - 1 + j - i]
                if mixer.temporal is not None:
                    gap = max(next_timestamp[i] - timestamp[j], 0)
                    stretched = math.log(1.0 + gap) ** getattr(mixer.temporal, "exponent", 1.0)
                    time_map[i, j] = mixer.temporal.scale * torch.exp(-mixer.temporal.decay * stretched)
        projected = silu(rms(x) @ mixer.project)
        gate, value = projected[:, : 2 * config.dim], projected[:, 2 * config.dim :]
        channels = []
        for head in range(heads):
            part = value[:, head * size : (head + 1) * size]
            channels += [position_map @ part, time_map @ part]
        mixed = gate * rms(torch.cat(channels, dim=1))
        joined = mixed @ ffn.merge.weight.T + ffn.merge.bias + x
        hidden = ffn.down.in_features
        first, third = ffn.gate_and_up.weight[:hidden], ffn.gate_and_up.weight[hidden:]
        m = rms(joined)
        x = (silu(m @ first.T) * (m @ third.T)) @ ffn.down.weight.T + joined
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-6)


@pytest.mark.parametrize("temporal", ["pow", "exppow", "zero"])
def test_network_equals_the_slow_reference(make_batch, temporal):
    model, batch = network(replace(CONFIG, temporal=temporal)), make_batch([5, 0, 16, 1])
    if temporal == "exppow":
        with torch.no_grad():
            for number, block in enumerate(model.blocks):
                block.mixer.temporal.exponent.fill_(0.6 + number)
    vectors = vectors_of(batch)
    found = model(vectors, batch)
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        times, following = batch.timestamp[start:end].tolist(), batch.next_timestamp[start:end].tolist()
        if start < end:
            expected = slow_listener(model, vectors[start:end], times, following)
            torch.testing.assert_close(found[start:end], expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_encode_last_is_the_last_row_of_forward(make_batch, layers):
    model, batch = network(replace(CONFIG, layers=layers)), make_batch([5, 0, 16, 1])
    vectors = vectors_of(batch)
    full, last = model(vectors, batch), model.encode_last(vectors, batch)
    torch.testing.assert_close(last[[0, 2, 3]], full[[4, 20, 21]])
    assert not last[1].any()


def test_exppow_starts_where_pow_ended(make_batch):
    """So a champion's weights carry over."""
    champion, batch = network(), make_batch([5, 0, 16, 1])
    later = network(replace(CONFIG, temporal="exppow"), seed=1)
    missing, unknown = later.load_state_dict(champion.state_dict(), strict=False)
    assert not unknown and {name.split(".")[-1] for name in missing} == {"exponent"}
    vectors = vectors_of(batch)
    torch.testing.assert_close(later(vectors, batch), champion(vectors, batch))
    torch.testing.assert_close(later.encode_last(vectors, batch), champion.encode_last(vectors, batch))
    assert later.temporal_curves() == [] and len(later.temporal_weights(torch.ones(3))) == 2
    later(vectors, batch)[:, 0].sum().backward()
    assert all(block.mixer.temporal.exponent.grad != 0 for block in later.blocks)


def test_temporal_zero_has_no_temporal_parameters_and_ignores_time(make_batch):
    model, batch = network(replace(CONFIG, temporal="zero")), make_batch([6, 9])
    assert not [name for name, _ in model.named_parameters() if "temporal" in name]
    assert model.temporal_curves() == []
    shifted = replace(batch, next_timestamp=batch.next_timestamp + 12345)
    torch.testing.assert_close(model(vectors_of(batch), shifted), model(vectors_of(batch), batch), rtol=0, atol=0)


def test_dropout_depends_on_seed_epoch_and_sample(make_batch):
    model, batch = network(), make_batch([6, 9])
    vectors = vectors_of(batch)
    base = model(vectors, batch, key=DropoutKey(1, 0))
    torch.testing.assert_close(model(vectors, batch, key=DropoutKey(1, 0)), base, rtol=0, atol=0)
    assert not torch.allclose(model(vectors, batch, key=DropoutKey(2, 0)), base)
    assert not torch.allclose(model(vectors, batch, key=DropoutKey(1, 1)), base)
    assert not torch.allclose(model(vectors, replace(batch, sample=batch.sample + 1), key=DropoutKey(1, 0)), base)


def test_every_token_and_every_site_has_a_mask_of_its_own(make_batch):
    dropout = Dropout(DropoutKey(1, 0), make_batch([6, 9]), 0.5)
    masks = torch.cat(
        [stateless_random.dropout(torch.ones(15, 64), mask) for mask in (dropout.mask(), dropout.mask()) if mask]
    )
    assert len(masks.unique(dim=0)) == 30


def test_too_long_a_context_is_refused(make_batch):
    with pytest.raises(ValueError, match="17 tokens"):
        batch = make_batch([17])
        network()(vectors_of(batch), batch)


def test_initial_values_follow_the_published_ones():
    torch.manual_seed(0)
    model: Any = FuXiBeta(ModelConfig(dim=64, layers=8))
    curves = model.temporal_curves()
    assert len(curves) == 8
    assert all(-0.2 <= a <= 0.2 and 0.4 <= b <= 0.8 for a, b in curves)
    assert model.positions.shape == (211, 64)
    torch.testing.assert_close(model.positions.std().item(), math.sqrt(2 / (211 + 64)), rtol=0.05, atol=0)
    mixer, ffn = model.blocks[0].mixer, model.blocks[0].ffn
    assert mixer.positional.weight.shape == (421,)
    assert mixer.project.shape == (64, 192)
    torch.testing.assert_close(mixer.project.std().item(), 0.02, rtol=0.05, atol=0)
    assert ffn.gate_and_up.weight.abs().max() <= math.sqrt(6 / 128) + 1e-6  # Xavier-uniform of W1 and W3 each
    assert [name for name, _ in ffn.named_parameters() if "bias" in name] == ["merge.bias"]
