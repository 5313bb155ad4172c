"""Train any sequence model on shards in this process: what an experiment needs, without a cluster.

The daily job trains through Ray (`jobs.stages.train`), with checkpoints and any number of workers; both take the same
steps.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fuxi_beta import models
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.candidates import candidates_and_plays
from fuxi_beta.data.reader import TrainingBatches, prefetched
from fuxi_beta.data.side import KnownSongs, SongSide, side_information, takes_side
from fuxi_beta.data.transfer import pinned
from fuxi_beta.training.checkpoint import TrainedModel
from fuxi_beta.training.item_table import PlainItemTable, capacity_rows
from fuxi_beta.training.resume import EpochCheckpoints, FitProgress, training_key
from fuxi_beta.training.song_table import song_table
from fuxi_beta.training.trainer import Trainer, assembled
from pipelines.calendar import Calendar
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
    resumed_at: int = 0  # epochs that were finished before, by a training that was stopped


def fit(
    manifest: Manifest,
    *,
    model: ModelConfig,
    train: TrainConfig,
    data_end: int | None = None,
    catalogue: pa.Table | None = None,
    device: torch.device | str = "cpu",
    quality: Quality | None = None,
    on_step: Callable[[int, int], None] | None = None,
    checkpoints: EpochCheckpoints | None = None,
) -> Fitted:
    """Train `train.epochs` epochs, or `train.min_steps` steps, from `train.seed`. Same arguments, same result.

    data_end: Unix second before which every target is, by default all of the shards. catalogue: where `model.side` and
    `model.content` are columns of, a row a song in the order of item indices (`fuxi_beta.data.side.align`); songs that
    are released from `data_end` on are no candidates until `TrainedModel.as_of` a later time.
    quality: measured after every epoch; the weights of the best one are returned (validation), else the last ones.
    on_step: called with (steps done, steps in all). checkpoints: where a training that was stopped goes on, without
    `quality`, whose best weights are not in a checkpoint. Raises DivergedError if the loss is not finite, InputError
    for a catalogue without a column that is asked for, or a damaged checkpoint.
    """
    data_end = manifest.data_end if data_end is None else data_end
    songs = known_songs(manifest, catalogue, model=model, train=train, data_end=data_end)
    trainer = new_trainer(
        manifest, songs.candidates, model=model, train=train, device=device, side=songs.side, plays=songs.plays
    )
    batches = all_batches(manifest, model=model, train=train, data_end=data_end)
    key = training_key(manifest, catalogue, model=model, train=train, data_end=data_end)
    checkpoints = checkpoints if quality is None else None
    progress = checkpoints.restore(trainer, key) if checkpoints else FitProgress()
    qualities, best, resumed_at = [], None, len(progress.epoch_losses)
    epochs = train.epochs_of(batches.steps_per_epoch)
    for epoch in range(resumed_at, epochs):
        started = time.perf_counter()
        progress.epoch_losses.append(_epoch(trainer, batches, epoch, epochs, on_step))
        progress.epoch_seconds.append(time.perf_counter() - started)
        if checkpoints and epoch + 1 < epochs:
            checkpoints.save(trainer, key, progress)
        if quality is not None:
            trained = _trained(trainer, manifest, songs, data_end)
            qualities.append(quality(trained))
            best = trained if qualities[-1] > max(qualities[:-1], default=-math.inf) else best
    return Fitted(
        model=best or _trained(trainer, manifest, songs, data_end),
        epoch_losses=progress.epoch_losses,
        epoch_seconds=progress.epoch_seconds,
        qualities=qualities,
        best_epoch=1 + qualities.index(max(qualities)) if best else None,
        resumed_at=resumed_at,
    )


def known_songs(
    manifest: Manifest, catalogue: pa.Table | None, *, model: ModelConfig, train: TrainConfig, data_end: int
) -> KnownSongs:
    """The candidates of a training, and its side information if the model takes any. Arguments as for `fit`."""
    candidates, plays = candidates_and_plays(manifest, train=train, data_end=data_end)
    if not takes_side(model):
        return KnownSongs(candidates, plays)
    calendar = Calendar(manifest.timezone)
    information = side_information(
        catalogue, model=model, calendar=calendar, candidates=candidates, played=plays > 0, cut=data_end
    )
    return KnownSongs(candidates, plays, information)


def new_trainer(
    manifest: Manifest,
    candidates: np.ndarray,
    *,
    model: ModelConfig,
    train: TrainConfig,
    device: torch.device | str = "cpu",
    side: SongSide | None = None,
    plays: np.ndarray | None = None,
) -> Trainer:
    """A network and its item table at the start, from `train.seed`.

    candidates: bool [vocabulary + 1]; plays: int64 [vocabulary + 1], for negatives that are drawn by them.
    """
    torch.manual_seed(train.seed)
    rows = capacity_rows(manifest.vocabulary_size, train.capacity_margin)
    return Trainer(
        models.build(model),
        song_table(rows, model.dim, train=train, side=side, device=device, kind=PlainItemTable),
        train=train,
        candidates=torch.from_numpy(candidates.nonzero()[0]),
        plays=None if plays is None else torch.from_numpy(plays[candidates]),
        device=device,
    )


def all_batches(manifest: Manifest, *, model: ModelConfig, train: TrainConfig, data_end: int) -> TrainingBatches:
    """The batches of a training on one rank."""
    size = manifest.vocabulary_size
    return TrainingBatches(
        manifest, model=model, train=train, data_end=data_end, rank=0, world_size=1, vocabulary_size=size
    )


def _epoch(
    trainer: Trainer, batches: TrainingBatches, epoch: int, epochs: int, on_step: Callable[[int, int], None] | None
) -> float:
    """Every step of an epoch. Returns the mean loss over its positions."""
    loss, positions, steps = 0.0, 0, batches.steps_per_epoch
    read = prefetched(pinned(batches.epoch(epoch), trainer.device))
    for step, result in enumerate(trainer.learn(read, epoch=epoch), start=1):
        loss, positions = loss + result.loss * result.positions, positions + result.positions
        if on_step:
            on_step(epoch * steps + step, epochs * steps)
    return loss / max(positions, 1)


def _trained(trainer: Trainer, manifest: Manifest, songs: KnownSongs, data_end: int) -> TrainedModel:
    """A copy of what is learned so far, on the CPU."""
    network = models.build(trainer.model.config)
    with trainer.averaged():
        network.load_state_dict({name: _copy(tensor) for name, tensor in trainer.model.state_dict().items()})
        parts = trainer.table.full_parts()
    trained = assembled(network, parts, train=trainer.train, candidates=songs.candidates, information=songs.information)
    return replace(trained, ds=str(manifest.ds), data_end=data_end).as_of(data_end - 1)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
