"""Training in this process: deterministic, the same steps as the trainer's, and validation keeps the best epoch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.evaluation.leave_one_out import evaluate_leave_one_out
from fuxi_beta.training.fit import fit
from fuxi_beta.training.trainer import DivergedError

SONGS, DAY = 30, 86_400
MODEL = ModelConfig(dim=8, layers=1, max_history=12, dropout=0.1)
TRAIN = TrainConfig(
    protocol="leave_one_out",
    mode="all",
    epochs=4,
    batch_size=8,
    negatives=8,
    lr=0.01,
    item_optimizer="adamw",
    min_listeners=0,
    capacity_margin=0.0,
    seed=3,
)


@pytest.fixture
def manifest(make_shards):
    """Song k is followed by song k + 1, so there is something to learn."""
    random = np.random.default_rng(0)
    buckets = [{}, {}]
    for user in range(40):
        start, count = int(random.integers(SONGS)), int(random.integers(6, 14))
        times = np.sort(random.integers(0, 30 * DAY, count))
        buckets[user % 2][user] = [((start + k) % SONGS + 1, int(t), 100) for k, t in enumerate(times)]
    return make_shards(buckets, vocabulary_size=SONGS, data_end=31 * DAY, row_group_events=57)


def ndcg(manifest, trained) -> float:
    result = evaluate_leave_one_out(
        manifest, {"it": trained}, model=MODEL, train=trained.train_config, config=EvaluateConfig()
    )
    return result.metrics["it"]["all"]["ndcg_10"]


@pytest.mark.parametrize("name", ["fuxi-beta", "hstu", "gru4rec"])
def test_it_learns_and_the_same_arguments_give_the_same_model(manifest, name):
    model, steps = replace(MODEL, name=name), []
    fitted = fit(manifest, model=model, train=replace(TRAIN, epochs=12), on_step=lambda *done: steps.append(done))
    again = fit(manifest, model=model, train=replace(TRAIN, epochs=1, min_steps=steps[0][1]))
    assert fitted.epoch_losses == again.epoch_losses and len(fitted.epoch_losses) == 12
    assert torch.equal(fitted.model.item_vectors, again.model.item_vectors)
    assert fitted.epoch_losses[-1] < 0.7 * fitted.epoch_losses[0]
    assert ndcg(manifest, fitted.model) > 0.6
    total = steps[0][1]
    assert steps == [(done + 1, total) for done in range(total)] and total % 12 == 0
    assert fitted.best_epoch is None


def test_validation_returns_the_weights_of_the_best_epoch(manifest):
    seen = []

    def quality(trained) -> float:
        seen.append(trained.item_vectors)
        return [0.1, 0.4, 0.4, 0.3][len(seen) - 1]

    fitted = fit(manifest, model=MODEL, train=replace(TRAIN, held_out=2), quality=quality)
    assert fitted.best_epoch == 2 and fitted.qualities == [0.1, 0.4, 0.4, 0.3]
    assert torch.equal(fitted.model.item_vectors, seen[1])
    assert not torch.equal(seen[1], seen[3])


def test_a_loss_that_is_not_finite_ends_the_run(manifest):
    with pytest.raises(DivergedError, match="the training loss is"):
        fit(manifest, model=MODEL, train=replace(TRAIN, temperature=1e-45))
