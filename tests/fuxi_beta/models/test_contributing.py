"""CONTRIBUTING.md's way to add a model in one file, walked through with the file it shows."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fuxi_beta import models
from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.evaluation.leave_one_out import evaluate_leave_one_out
from fuxi_beta.training.fit import fit
from jobs.config import load_config

TEXT = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
NAME = "decayed-mean"


@pytest.fixture
def added(tmp_path: Path):
    """The file as a reader would save it, imported."""
    (code,) = re.findall(r"## Add a model.*?```python\n(.*?)```", TEXT, re.DOTALL)
    file = tmp_path / "decayed_mean.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("decayed_mean", file)
    assert spec and spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield
    del models.SYSTEMS[NAME]


def formula(model, vectors: torch.Tensor) -> torch.Tensor:
    """The docstring's sum, for one listener."""
    x = vectors * model.config.dim**0.5 + model.positions[: len(vectors)]
    mapped, c = x @ model.linear.weight.T, torch.sigmoid(model.decay)
    rows = [x[i] + sum(c ** (i - j) * mapped[j] for j in range(i + 1)) for i in range(len(x))]
    out = torch.stack(rows)
    return out / out.norm(dim=1, keepdim=True)


def test_the_file_is_a_model_like_the_others(added, make_batch):
    model = models.build(ModelConfig(name=NAME, dim=8, max_history=16)).double()
    batch = make_batch([5, 0, 16, 1])
    vectors = torch.randn(22, 8, dtype=torch.float64)
    found = model(vectors, batch)
    for start, end in ((0, 5), (5, 21), (21, 22)):
        torch.testing.assert_close(found[start:end], formula(model, vectors[start:end]))
    assert not models.takes_time(NAME)
    model(vectors[:0], make_batch([0, 0]), key=DropoutKey(1, 1)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_is_trained_measured_and_configured_by_its_name(added, make_shards):
    random = np.random.default_rng(0)
    users = {}
    for user in range(40):
        start, times = int(random.integers(30)), np.sort(random.integers(0, 10**6, 10))
        users[user] = [((start + k) % 30 + 1, int(time), 100) for k, time in enumerate(times)]
    manifest = make_shards([users], vocabulary_size=30, data_end=10**6 + 1, row_group_events=100)
    train = TrainConfig(
        protocol="leave_one_out",
        mode="all",
        epochs=15,
        batch_size=8,
        negatives=8,
        lr=0.01,
        item_optimizer="adamw",
        min_listeners=0,
    )
    model = ModelConfig(name=NAME, dim=8, max_history=12, dropout=0.1)

    def hits(epochs: int) -> float:
        trained = fit(manifest, model=model, train=replace(train, epochs=epochs)).model
        result = evaluate_leave_one_out(manifest, {"it": trained}, model=model, train=train, config=EvaluateConfig())
        return result.metrics["it"]["all"]["hr_10"]

    assert hits(15) > 0.8
    assert load_config(overrides=[f"model.name={NAME}"]).model.name == NAME
