"""Properties of every sequence model: causality, invariance to packing and padding, counter-based dropout, empty input.

A new model is put to these tests by being registered, and by nothing else.
"""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from fuxi_beta import models
from fuxi_beta.config import ModelConfig, TemporalName
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.models.base import SequenceModel

CONFIG = ModelConfig(dim=10, layers=2, max_history=16, position_margin=5, hidden=7)
CASES = [
    *(pytest.param(replace(CONFIG, name=name), id=name) for name in sorted(models.SYSTEMS)),
    *(
        pytest.param(replace(CONFIG, temporal=name), id=f"fuxi-beta:{name}")
        for name in get_args(TemporalName)
        if name != "pow"
    ),
    *(
        pytest.param(replace(CONFIG, name=name, heads=2, dim=12, ffn_multiply=2), id=f"{name}, two heads")
        for name in ("fuxi-beta", "fuxi-alpha", "fuxi-beta-frab-no-time", "hstu", "llama", "sasrec")
    ),
    pytest.param(replace(CONFIG, content_channel=True), id="fuxi-beta, content"),
    pytest.param(replace(CONFIG, content_channel=True, periodic_channel=True), id="fuxi-beta, content and periodic"),
    pytest.param(replace(CONFIG, content_channel=True, temporal="zero", dim=12), id="fuxi-beta:zero, content"),
    pytest.param(replace(CONFIG, interval_channel=True), id="fuxi-beta, intervals"),
]
every_model = pytest.mark.parametrize("config", CASES)
TIMELESS_FUNCTIONS = {"zero"}


def network(config: ModelConfig) -> SequenceModel:
    """With weights far enough from zero that every non-linearity shows, and times that reach the output."""
    torch.manual_seed(1)
    model = models.build(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim and "temporal" not in name:
                parameter.mul_(3)
            if name.endswith(("temporal.weight", "gap.weight")):
                parameter.mul_(30)
            if ".channels." in name and name.endswith(".out"):  # a channel starts without effect
                parameter.normal_(std=0.3)
    return model


def vectors_of(batch, config: ModelConfig) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(100, config.dim, dtype=torch.float64)[batch.item_index]


def takes_time(config: ModelConfig) -> bool:
    return models.takes_time(config.name) and config.temporal not in TIMELESS_FUNCTIONS


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"model\.name is 'bert4rec': it must be one of esasrec, flash, fuxi-alpha, "):
        models.build(replace(CONFIG, name="bert4rec"))


def test_a_name_belongs_to_one_system():
    with pytest.raises(ValueError, match="two systems are called hstu"):
        models.register("hstu", models.build, takes_time=True)


@every_model
def test_outputs_are_one_unit_vector_a_token(make_batch, config):
    batch = make_batch([5, 16, 1])
    out = network(config)(vectors_of(batch, config), batch)
    assert out.shape == (22, config.dim)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(22, dtype=torch.float64))


@every_model
@pytest.mark.parametrize("changed", [0, 4, 11])
def test_changing_an_item_changes_no_output_before_it(make_batch, config, changed):
    model, batch = network(config), make_batch([12])
    vectors = vectors_of(batch, config)
    other = vectors.clone()
    other[changed] = torch.randn(config.dim, dtype=torch.float64)  # a shift would be lost on a LayerNorm
    before, after = model(vectors, batch), model(other, batch)
    torch.testing.assert_close(after[:changed], before[:changed], rtol=0, atol=1e-12)
    assert (after[changed] - before[changed]).abs().max() > 1e-9
    assert (after[-1] - before[-1]).abs().max() > 1e-12


@every_model
@pytest.mark.parametrize("changed", [1, 4, 11])
def test_changing_a_timestamp_changes_no_output_before_the_event_that_comes_next(make_batch, config, changed):
    """timestamp k is t_{i+1} of row k - 1: rows before k - 1 must not know it."""
    model, batch = network(config), make_batch([12])
    timestamp = 1_700_000_000 + torch.arange(12) * 7  # seconds at which every function of elapsed time still changes
    batch = replace(batch, timestamp=timestamp, next_timestamp=timestamp + 7)
    moved, asked = timestamp.clone(), batch.next_timestamp.clone()
    moved[changed] += 3
    asked[changed - 1] += 3
    vectors = vectors_of(batch, config)
    before, after = model(vectors, batch), model(vectors, replace(batch, timestamp=moved, next_timestamp=asked))
    torch.testing.assert_close(after[: changed - 1], before[: changed - 1], rtol=0, atol=1e-12)
    differs = bool((after[changed - 1 :] - before[changed - 1 :]).abs().max() > 1e-9)
    assert differs == takes_time(config)


@every_model
def test_the_request_time_reaches_the_last_output_alone(make_batch, config):
    model, batch = network(config), make_batch([9])
    batch = replace(batch, next_timestamp=batch.next_timestamp.clone())
    later = replace(batch, next_timestamp=batch.next_timestamp.clone())
    later.next_timestamp[-1] += 40_000
    vectors = vectors_of(batch, config)
    before, after = model(vectors, batch), model(vectors, later)
    torch.testing.assert_close(after[:-1], before[:-1], rtol=0, atol=1e-12)
    assert bool((after[-1] - before[-1]).abs().max() > 1e-9) == takes_time(config)


@every_model
@pytest.mark.parametrize("key", [None, DropoutKey(seed=5, epoch=2)])
def test_a_listener_alone_equals_the_same_listener_in_a_batch(make_batch, config, key):
    """37 listeners fall into several padded groups, one listener into one without padding."""
    model, batch = network(config), make_batch([row % 15 for row in range(37)], songs=50)
    vectors = vectors_of(batch, config)
    together = model(vectors, batch, key=key)
    for row in (1, 14, 36):
        tokens = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        alone = replace(
            batch,
            offsets=torch.tensor([0, tokens.stop - tokens.start]),
            item_index=batch.item_index[tokens],
            timestamp=batch.timestamp[tokens],
            next_timestamp=batch.next_timestamp[tokens],
            target=batch.target[tokens],
            sample=batch.sample[row : row + 1],
        )
        torch.testing.assert_close(model(vectors[tokens], alone, key=key), together[tokens])


@every_model
def test_dropout_depends_on_its_key(make_batch, config):
    model, batch = network(config), make_batch([6, 9])
    vectors = vectors_of(batch, config)
    base = model(vectors, batch, key=DropoutKey(1, 0))
    torch.testing.assert_close(model(vectors, batch, key=DropoutKey(1, 0)), base, rtol=0, atol=0)
    assert not torch.allclose(model(vectors, batch, key=DropoutKey(2, 0)), base)


@every_model
def test_encode_last_is_the_last_row_of_forward(make_batch, config):
    model, batch = network(config), make_batch([5, 0, 16, 1])
    vectors = vectors_of(batch, config)
    full, last = model(vectors, batch), model.encode_last(vectors, batch)
    torch.testing.assert_close(last[[0, 2, 3]], full[[4, 20, 21]])
    assert not last[1].any()


@every_model
@pytest.mark.parametrize("lengths", [[], [0, 0], [1]])
def test_empty_and_shortest_batches_give_every_parameter_a_finite_gradient(make_batch, config, lengths):
    model, batch = network(config), make_batch(lengths)
    model(vectors_of(batch, config), batch, key=DropoutKey(1, 1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_model
def test_training_in_fp32_lowers_the_loss(make_batch, config):
    """Every parameter that matters moves, so the next song of a fixed batch is learned."""
    torch.manual_seed(0)
    model, batch = models.build(replace(config, dropout=0.0)), make_batch([16, 9, 12, 5], songs=9)
    table = torch.nn.Parameter(torch.randn(10, config.dim) * 0.1)
    optimizer = torch.optim.Adam([*model.parameters(), table], lr=0.01)
    losses = []
    for _ in range(60):
        states = model(table[batch.item_index], batch)
        logits = states @ torch.nn.functional.normalize(table, dim=1).t() / 0.1
        loss = torch.nn.functional.cross_entropy(logits, batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
