"""Train any sequence model on shards in this process: what an experiment needs, without a cluster.

The daily job trains through Ray (`jobs.train`), with checkpoints and any number of workers; both take the same steps.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fuxi_beta import models
from fuxi_beta.candidates import candidate_songs
from fuxi_beta.checkpoint import TrainedModel
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.embedding import PlainItemTable, capacity_rows
from fuxi_beta.reader import TrainingBatches, prefetched
from fuxi_beta.trainer import Trainer
from pipelines.shards import Manifest

Quality = Callable[[TrainedModel], float]
"""Measures a model after an epoch; more is better."""


@dataclass
class Fitted:
    """A trained model and how its training went."""

    model: TrainedModel
    epoch_losses: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)  # wall time of steps; what `quality` takes is not in it
    qualities: list[float] = field(default_factory=list)
    best_epoch: int | None = None  # counted from 1; None where no `quality` chose


def fit(
    manifest: Manifest,
    *,
    model: ModelConfig,
    train: TrainConfig,
    data_end: int | None = None,
    device: torch.device | str = "cpu",
    quality: Quality | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train `train.epochs` epochs from `train.seed`. Same arguments, same result.

    data_end: Unix second before which every target is, by default all of the shards. quality: measured after every
    epoch; the weights of the best one are returned (validation), else the last ones.
    on_step: called with (steps done, steps in all). Raises DivergedError if the loss is not finite.
    """
    torch.manual_seed(train.seed)
    data_end = manifest.data_end if data_end is None else data_end
    candidates = candidate_songs(manifest, train=train, data_end=data_end)
    rows = capacity_rows(manifest.vocabulary_size, train.capacity_margin)
    trainer = Trainer(
        models.build(model),
        PlainItemTable(rows, model.dim, train=train, device=device),
        train=train,
        candidates=torch.from_numpy(candidates.nonzero()[0]),
        device=device,
    )
    batches = TrainingBatches(
        manifest,
        model=model,
        train=train,
        data_end=data_end,
        rank=0,
        world_size=1,
        vocabulary_size=manifest.vocabulary_size,
    )
    fitted = Fitted(_trained(trainer, manifest, model, candidates, data_end))
    for epoch in range(train.epochs):
        _epoch(trainer, batches, epoch, fitted, on_step)
        if quality is not None:
            _keep_best(fitted, _trained(trainer, manifest, model, candidates, data_end), quality)
    if quality is None:
        fitted.model = _trained(trainer, manifest, model, candidates, data_end)
    return fitted


def _epoch(
    trainer: Trainer,
    batches: TrainingBatches,
    epoch: int,
    fitted: Fitted,
    on_step: Callable[[int, int], None] | None,
) -> None:
    started, loss, positions = time.perf_counter(), 0.0, 0
    steps = batches.steps_per_epoch
    for step, batch in enumerate(prefetched(batches.epoch(epoch)), start=1):
        result = trainer.step(batch, epoch=epoch)
        loss, positions = loss + result.loss * result.positions, positions + result.positions
        if on_step:
            on_step(epoch * steps + step, trainer.train.epochs * steps)
    fitted.epoch_losses.append(loss / max(positions, 1))
    fitted.epoch_seconds.append(time.perf_counter() - started)


def _keep_best(fitted: Fitted, trained: TrainedModel, quality: Quality) -> None:
    fitted.qualities.append(quality(trained))
    if fitted.best_epoch is None or fitted.qualities[-1] > max(fitted.qualities[:-1]):
        fitted.best_epoch, fitted.model = len(fitted.qualities), trained


def _trained(
    trainer: Trainer, manifest: Manifest, config: ModelConfig, candidates: np.ndarray, data_end: int
) -> TrainedModel:
    """A copy of what is learned so far, on the CPU."""
    network = models.build(config)
    network.load_state_dict({name: _copy(tensor) for name, tensor in trainer.model.state_dict().items()})
    item_vectors = trainer.table.full_weight()
    mask = torch.zeros(len(item_vectors), dtype=torch.bool)
    mask[: len(candidates)] = torch.from_numpy(candidates)
    return TrainedModel(
        model=network.eval(),
        model_config=config,
        train_config=trainer.train,
        item_vectors=item_vectors,
        candidates=mask,
        vocabulary_size=manifest.vocabulary_size,
        ds=str(manifest.ds),
        data_end=data_end,
    )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
