"""Further channels of the mixer against their formulas, and models that had none before."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxi_beta import models
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.layers.channel import Channel
from fuxi_beta.layers.content import ContentChannel, DecayRates
from fuxi_beta.layers.intervals import IntervalChannel
from fuxi_beta.layers.periodic import PeriodicChannel
from fuxi_beta.models.base import Dropout, ForwardContext
from fuxi_beta.training.item_table import PlainItemTable
from fuxi_beta.training.trainer import ITEM_WEIGHT, Trainer

CONFIG = ModelConfig(dim=12, layers=2, heads=2, max_history=16, position_margin=5, dropout=0.0)
WITH_CONTENT = replace(CONFIG, content_channel=True)
WITH_BOTH = replace(WITH_CONTENT, periodic_channel=True)
WITH_INTERVALS = replace(WITH_CONTENT, interval_channel=True)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def far_from_zero(kind: type[Channel], dim: int) -> Any:
    """A channel in float64 that adds more than nothing."""
    torch.manual_seed(0)
    channel: Any = kind(dim).double()  # type: ignore[call-arg]
    with torch.no_grad():
        channel.project.mul_(30)
        channel.out.normal_()
    return channel


def same_in_value_and_every_gradient(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def slow_content(channel: Any, normed: Tensor) -> Tensor:
    """What the content channel adds for one listener, [n, D] -> [n, D]."""
    dim, heads = channel.dim, channel.heads
    gate, query, key, value = silu(normed @ channel.project).split(dim, dim=1)
    total, rates = torch.zeros((), dtype=normed.dtype), []
    for raw in channel.decay.raw:
        total = total + torch.log(1 + torch.exp(raw))
        rates.append(torch.exp(-total))
    rows = []
    for n in range(len(normed)):
        row = torch.zeros(dim, dtype=normed.dtype)
        for head in range(heads):
            own = slice(head * dim // heads, (head + 1) * dim // heads)
            for m in range(n + 1):
                weight = torch.exp(-rates[head] * (n - m + 1)) * (query[n, own] @ key[m, own])
                row = row + torch.cat([value[m, own] * weight * (column == head) for column in range(heads)])
        rows.append(row)
    return (gate * rms(torch.stack(rows))) @ channel.out


@pytest.mark.parametrize(("dim", "heads"), [(12, 4), (10, 2), (7, 1), (9, 3)])
def test_content_equals_the_loop_in_value_and_every_gradient(make_batch, dim, heads):
    channel = far_from_zero(ContentChannel, dim)
    assert channel.heads == heads
    batch = make_batch([5, 0, 9, 1])
    normed = torch.randn(15, dim, dtype=torch.float64, requires_grad=True)
    ctx = ForwardContext(batch, normed, Dropout(None, batch, 0.0))
    found = channel(normed, ctx, None)
    expected = torch.cat([slow_content(channel, normed[start:end]) for start, end in ((0, 5), (5, 14), (14, 15))])
    same_in_value_and_every_gradient(found, expected, [normed, *channel.parameters()])


def slow_periodic(channel: Any, normed: Tensor, asked: list[int], played: list[int]) -> Tensor:
    """What the periodic channel adds for one listener, [n, D] -> [n, D]."""
    gate, value = silu(normed @ channel.project).split(channel.dim, dim=1)
    gammas, rows = torch.sigmoid(channel.damping.raw), []
    for n in range(len(normed)):
        row = torch.zeros(channel.dim, dtype=normed.dtype)
        for m in range(n + 1):
            x = asked[n] - played[m]
            for k, period in enumerate((3600, 86_400, 604_800)):
                left = gammas[k] ** (2 * math.pi * max(x, 0) / period)
                for group, wave in ((k, math.sin), (3 + k, math.cos)):
                    own = torch.zeros(channel.dim, dtype=normed.dtype)
                    own[group * channel.dim // 6 : (group + 1) * channel.dim // 6] = 1
                    row = row + left * wave(2 * math.pi * (x % period) / period) * value[m] * own
        rows.append(row)
    return (gate * rms(torch.stack(rows))) @ channel.out


@pytest.mark.parametrize("dim", [12, 7])
def test_periodic_equals_the_loop_in_value_and_every_gradient(make_batch, dim):
    channel = far_from_zero(PeriodicChannel, dim)
    batch = make_batch([5, 0, 9, 1])
    normed = torch.randn(15, dim, dtype=torch.float64, requires_grad=True)
    found = channel(normed, ForwardContext(batch, normed, Dropout(None, batch, 0.0)), None)
    asked, played = batch.next_timestamp.tolist(), batch.timestamp.tolist()
    slow = [slow_periodic(channel, normed[s:e], asked[s:e], played[s:e]) for s, e in ((0, 5), (5, 14), (14, 15))]
    expected = torch.cat(slow)
    same_in_value_and_every_gradient(found, expected, [normed, *channel.parameters()])


def slow_intervals(channel: Any, normed: Tensor, played: list[int]) -> Tensor:
    """What the interval channel adds for one listener, [n, D] -> [n, D]."""
    gate, value = silu(normed @ channel.project).split(channel.dim, dim=1)
    rows = []
    for n in range(len(normed)):
        weights = [(1.0 + played[n] - played[m]) ** -channel.decay for m in range(n + 1)]
        rows.append(sum(weight * value[m] for m, weight in enumerate(weights)))
    return (gate * rms(torch.stack(rows))) @ channel.out


@pytest.mark.parametrize("dim", [12, 7])
def test_intervals_equal_the_loop_in_value_and_every_gradient_whatever_the_request(make_batch, dim):
    channel = far_from_zero(IntervalChannel, dim)
    batch = make_batch([5, 0, 9, 1])
    batch = replace(batch, next_timestamp=batch.next_timestamp + 12_345)
    normed = torch.randn(15, dim, dtype=torch.float64, requires_grad=True)
    found = channel(normed, ForwardContext(batch, normed, Dropout(None, batch, 0.0)), None)
    played = batch.timestamp.tolist()
    expected = torch.cat([slow_intervals(channel, normed[s:e], played[s:e]) for s, e in ((0, 5), (5, 14), (14, 15))])
    same_in_value_and_every_gradient(found, expected, [normed, *channel.parameters()])


def test_waves_start_by_falling_e_fold_in_four_periods():
    torch.manual_seed(0)
    rates = torch.stack([PeriodicChannel(12).damping() for _ in range(50)]).mean(0)
    periods = 1 / rates / torch.tensor([3600.0, 86_400.0, 604_800.0])
    torch.testing.assert_close(periods, torch.full((3,), 4.0), rtol=0.02, atol=0)


def test_heads_start_by_forgetting_after_4_16_64_and_256_plays():
    torch.manual_seed(0)
    rates = torch.stack([ContentChannel(64).decay() for _ in range(50)]).mean(0)
    torch.testing.assert_close(1 / rates, torch.tensor([4.0, 16.0, 64.0, 256.0]), rtol=0.05, atol=0)
    halves = torch.stack([DecayRates(3, math.log(2))() for _ in range(50)]).mean(0)
    torch.testing.assert_close(halves, torch.tensor([0.5, 0.25, 0.125]), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("config", "channels"),
    [(WITH_CONTENT, ["content"]), (WITH_BOTH, ["content", "periodic"]), (WITH_INTERVALS, ["content", "interval"])],
)
def test_a_channel_starts_without_effect_and_learns(make_batch, config, channels):
    """So the champion without the channel is where training with it begins."""
    torch.manual_seed(0)
    before: Any = models.build(CONFIG)
    after: Any = models.build(config)
    missing, unknown = after.load_state_dict(before.state_dict(), strict=False)
    assert not unknown and missing and {name.split(".")[3] for name in missing} == set(channels)
    batch = make_batch([5, 0, 16, 1])
    vectors = torch.randn(22, 12)
    assert torch.equal(after(vectors, batch), before(vectors, batch))
    assert torch.equal(after.encode_last(vectors, batch), before.encode_last(vectors, batch))
    after(vectors, batch)[:, 0].sum().backward()
    for block in after.blocks:
        assert all(block.channels[name].out.grad.abs().max() > 0 for name in channels)


def test_a_channel_leaves_the_dropout_of_the_first_layer_as_it_was(make_batch):
    """Its masks are drawn after those of the mixer and of the MFFN."""
    torch.manual_seed(0)
    before, after = (models.build(replace(config, layers=1, dropout=0.2)) for config in (CONFIG, WITH_CONTENT))
    after.load_state_dict(before.state_dict(), strict=False)
    batch, vectors = make_batch([7, 3]), torch.randn(10, 12)
    key = DropoutKey(3, 1)
    assert torch.equal(after(vectors, batch, key=key), before(vectors, batch, key=key))


@pytest.mark.parametrize(
    "config",
    [
        WITH_CONTENT,
        WITH_BOTH,
        WITH_INTERVALS,
        replace(WITH_BOTH, temporal="exppow"),
        replace(CONFIG, sparse_positions=0.5),
    ],
)
def test_a_warm_start_takes_the_champions_weights_and_trains_on(make_batch, config):
    train = TrainConfig(mode="all", negatives=4, batch_size=4, item_optimizer="adamw")
    batch, songs = make_batch([5, 9, 16, 1]), torch.arange(1, 21)

    def trainer_of(config: ModelConfig, seed: int) -> Trainer:
        torch.manual_seed(seed)
        return Trainer(models.build(config), PlainItemTable(24, 12, train=train), train=train, candidates=songs)

    parent, child = trainer_of(CONFIG, 0), trainer_of(config, 1)
    for _ in range(3):
        parent.step(batch, epoch=0)
    tensors = {name: tensor.clone() for name, tensor in parent.state().items()}
    child.warm_start(tensors | {ITEM_WEIGHT: parent.table.full_weight()}, known_rows=24)
    vectors = parent.table.full_weight()[batch.item_index]
    assert config.contains(CONFIG)
    key = DropoutKey(1, 0)  # as in training, which leaves no position out
    before, after = (trainer.model(vectors, batch, key=key) for trainer in (parent, child))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6 if config.temporal == "exppow" else 0)
    losses = [child.step(batch, epoch=0).loss for _ in range(20)]
    assert losses[-1] < losses[0]
    for block in child.model.blocks:  # type: ignore[union-attr]
        assert all(channel.out.any() for channel in block.further_channels())  # type: ignore[union-attr]
        assert config.temporal == "pow" or block.mixer.temporal.exponent != 1  # type: ignore[union-attr]


def test_a_shape_contains_those_without_its_channels():
    assert WITH_CONTENT.contains(CONFIG) and WITH_CONTENT.contains(replace(WITH_CONTENT, dropout=0.5))
    assert WITH_BOTH.contains(WITH_CONTENT) and WITH_BOTH.contains(CONFIG) and not WITH_CONTENT.contains(WITH_BOTH)
    assert replace(WITH_CONTENT, temporal="exppow").contains(CONFIG)
    assert not CONFIG.contains(replace(CONFIG, temporal="exppow"))
    assert not CONFIG.contains(WITH_CONTENT) and not WITH_CONTENT.contains(replace(CONFIG, layers=3))


@pytest.mark.parametrize("changes", [{"name": "hstu"}, {"name": "fuxi-alpha"}, {"temporal": "exp"}])
def test_models_without_the_option_refuse_it(changes):
    with pytest.raises(ValueError, match=r"model\.content_channel is on: fuxi-beta with temporal"):
        replace(WITH_CONTENT, **changes)
