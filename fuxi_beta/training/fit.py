"""Train any sequence model on shards in this process: what an experiment needs, without a cluster.

The daily job trains through Ray (`jobs.stages.train`), with checkpoints and any number of workers; both take the same
steps.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fuxi_beta import models
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.candidates import candidate_songs
from fuxi_beta.data.reader import TrainingBatches, prefetched
from fuxi_beta.data.transfer import pinned
from fuxi_beta.training.checkpoint import TrainedModel
from fuxi_beta.training.item_table import PlainItemTable, capacity_rows
from fuxi_beta.training.trainer import Trainer
from pipelines.histories.shards import Manifest

Quality = Callable[[TrainedModel], float]
"""Measures a model after an epoch; more is better."""


@dataclass(frozen=True)
class Fitted:
    """A trained model and how its training went."""

    model: TrainedModel
    epoch_losses: list[float]
    epoch_seconds: list[float]  # wall time of steps; what `quality` takes is not in it
    qualities: list[float]
    best_epoch: int | None  # counted from 1; None where no `quality` chose


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
    data_end = manifest.data_end if data_end is None else data_end
    candidates = candidate_songs(manifest, train=train, data_end=data_end, counted_before=data_end)
    trainer = new_trainer(manifest, candidates, model=model, train=train, device=device)
    batches = all_batches(manifest, model=model, train=train, data_end=data_end)
    losses, seconds, qualities, best = [], [], [], None
    for epoch in range(train.epochs):
        started = time.perf_counter()
        losses.append(_epoch(trainer, batches, epoch, on_step))
        seconds.append(time.perf_counter() - started)
        if quality is not None:
            trained = _trained(trainer, manifest, model, candidates, data_end)
            qualities.append(quality(trained))
            best = trained if qualities[-1] > max(qualities[:-1], default=-math.inf) else best
    return Fitted(
        model=best or _trained(trainer, manifest, model, candidates, data_end),
        epoch_losses=losses,
        epoch_seconds=seconds,
        qualities=qualities,
        best_epoch=1 + qualities.index(max(qualities)) if best else None,
    )


def new_trainer(
    manifest: Manifest,
    candidates: np.ndarray,
    *,
    model: ModelConfig,
    train: TrainConfig,
    device: torch.device | str = "cpu",
) -> Trainer:
    """A network and its item table at the start, from `train.seed`. candidates: bool [vocabulary + 1]."""
    torch.manual_seed(train.seed)
    rows = capacity_rows(manifest.vocabulary_size, train.capacity_margin)
    return Trainer(
        models.build(model),
        PlainItemTable(rows, model.dim, train=train, device=device),
        train=train,
        candidates=torch.from_numpy(candidates.nonzero()[0]),
        device=device,
    )


def all_batches(manifest: Manifest, *, model: ModelConfig, train: TrainConfig, data_end: int) -> TrainingBatches:
    """The batches of a training on one rank."""
    size = manifest.vocabulary_size
    return TrainingBatches(
        manifest, model=model, train=train, data_end=data_end, rank=0, world_size=1, vocabulary_size=size
    )


def _epoch(trainer: Trainer, batches: TrainingBatches, epoch: int, on_step: Callable[[int, int], None] | None) -> float:
    """Every step of an epoch. Returns the mean loss over its positions."""
    loss, positions, steps = 0.0, 0, batches.steps_per_epoch
    read = prefetched(pinned(batches.epoch(epoch), trainer.device))
    for step, result in enumerate(trainer.learn(read, epoch=epoch), start=1):
        loss, positions = loss + result.loss * result.positions, positions + result.positions
        if on_step:
            on_step(epoch * steps + step, trainer.train.epochs * steps)
    return loss / max(positions, 1)


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
