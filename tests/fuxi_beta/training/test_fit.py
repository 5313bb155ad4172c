"""Training in this process: deterministic, the same steps as the trainer's, and validation keeps the best epoch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.evaluation.leave_one_out import evaluate_leave_one_out
from fuxi_beta.training.fit import fit
from fuxi_beta.training.resume import EpochCheckpoints
from fuxi_beta.training.trainer import DivergedError
from pipelines.errors import InputError

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


def stopped_after(epochs: int):
    """Ends a training when the first step of the next epoch was taken."""

    def on_step(done: int, total: int) -> None:
        if done > epochs * total // TRAIN.epochs:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize(
    "changed", [{}, {"ema": 0.9, "negatives_from": "in_batch", "logq": True, "completion_weight": 0.5}]
)
def test_a_stopped_training_goes_on_with_its_newest_epoch_and_gives_the_same_model(manifest, tmp_path, changed):
    train, checkpoints = replace(TRAIN, **changed), EpochCheckpoints(tmp_path / "it", every_s=0)
    whole = fit(manifest, model=MODEL, train=train)
    for epochs in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            fit(manifest, model=MODEL, train=train, on_step=stopped_after(epochs), checkpoints=checkpoints)
        assert [path.name[-3:] for path in (tmp_path / "it").iterdir()] == [f"-e{epochs}"]  # the newest alone is kept
        checkpoints = EpochCheckpoints(tmp_path / "it", every_s=0)
    (tmp_path / "it" / ".half-written").mkdir()
    steps = []
    resumed = fit(manifest, model=MODEL, train=train, on_step=lambda *done: steps.append(done), checkpoints=checkpoints)
    assert resumed.resumed_at == 3 and steps[0][0] == 3 * steps[0][1] // TRAIN.epochs + 1
    assert resumed.epoch_losses == whole.epoch_losses and len(resumed.epoch_seconds) == TRAIN.epochs
    assert torch.equal(resumed.model.item_vectors, whole.model.item_vectors)
    weights = resumed.model.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.model.model.state_dict().items())
    checkpoints.remove()
    assert not (tmp_path / "it").exists()


def test_checkpoints_of_another_training_are_left_and_damaged_ones_named(manifest, tmp_path):
    checkpoints = EpochCheckpoints(tmp_path, every_s=0)
    with pytest.raises(KeyboardInterrupt):
        fit(manifest, model=MODEL, train=TRAIN, on_step=stopped_after(2), checkpoints=checkpoints)
    other = fit(manifest, model=MODEL, train=replace(TRAIN, lr=0.02), checkpoints=EpochCheckpoints(tmp_path))
    assert other.resumed_at == 0
    (file,) = tmp_path.glob("*-e2/*.distcp")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=rf"{file.name} does not match its SHA-256: remove .*-e2 and run again"):
        fit(manifest, model=MODEL, train=TRAIN, checkpoints=EpochCheckpoints(tmp_path))


def test_a_short_training_writes_no_checkpoint(manifest, tmp_path):
    fit(manifest, model=MODEL, train=TRAIN, checkpoints=EpochCheckpoints(tmp_path / "it"))
    assert not (tmp_path / "it").exists()
