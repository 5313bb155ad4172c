"""One run from beginning to end: train, rank, write `NAME.ranks.parquet` and then `NAME.json`.

Runs are independent of each other and deterministic in their spec, so a series may make them in any order, in any
process, and again.
"""

import datetime as dt
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fuxi_beta import models, ops
from fuxi_beta.baselines.base import ScoredBaseline
from fuxi_beta.baselines.bprmf import BPRMFConfig, fit_bprmf
from fuxi_beta.baselines.ease import fit_ease
from fuxi_beta.baselines.item_knn import fit_item_knn
from fuxi_beta.baselines.markov import fit_markov
from fuxi_beta.baselines.popularity import fit_popularity
from fuxi_beta.baselines.recency import fit_recency
from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.evaluation.leave_one_out import ListenerScorer, Scorer, evaluate_leave_one_out, split_time
from fuxi_beta.evaluation.next_day import evaluate_next_day
from fuxi_beta.presets import Preset
from fuxi_beta.training.checkpoint import TrainedModel
from fuxi_beta.training.fit import fit
from jobs.reproduce import runs
from jobs.reproduce.runs import Curves, Dataset, Run
from jobs.reproduce.settings import SANITY, Spec
from jobs.runtime import machine
from jobs.stages.evaluate import known_songs
from pipelines.calendar import Calendar
from pipelines.histories.shards import Manifest

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
CURVE_SECONDS = np.unique(np.logspace(0, 8, 97).round()).tolist()
"""Where the functions of elapsed time are noted: 1 s to three years."""


@dataclass(frozen=True)
class Task:
    """Everything a process needs for one run."""

    spec: Spec
    preset: Preset
    dataset: Dataset
    manifest: Manifest
    folder: str  # the run's files go there
    command: str
    device: str = "cpu"

    @cached_property
    def data_end(self) -> int:
        """Unix second before which everything is that may be learned from."""
        manifest = self.manifest
        if self.spec.protocol == "temporal_split":
            return split_time(manifest)
        if self.spec.protocol == "next_day":
            return Calendar(manifest.timezone).day_start(manifest.ds - dt.timedelta(days=1))
        return manifest.data_end

    @cached_property
    def known(self) -> np.ndarray:
        """Songs known by then. bool [V]."""
        return known_songs(self.manifest, before=self.data_end)


@dataclass
class _Trained:
    """What is to be ranked, and what its training left behind."""

    scorer: Scorer | ListenerScorer
    epoch_losses: list[float]
    epoch_seconds: list[float]
    parameters: int
    best_epoch: int | None = None
    curves: Curves | None = None


def perform(task: Task, on_step: OnStep | None = None) -> list[Run]:
    """Train and measure; returns the runs written.

    A model that takes t_{i+1} and was trained on true times is measured a second time with listeners' gaps permuted,
    which costs no training. Raises DivergedError or InputError, and then writes nothing.
    """
    model, train = task.spec.configs(task.preset)
    started = time.perf_counter()
    trained = _train(task, model, train, on_step)
    seconds = time.perf_counter() - started
    written = []
    for condition in reversed(_conditions(task.spec)):  # so the run that was asked for is written last
        permute = task.spec.seed if condition == "permuted" else None
        if task.spec.protocol == "next_day":
            found = _next_day(task, trained.scorer, model, train)
        else:
            split = task.data_end if task.spec.protocol == "temporal_split" else None
            found = _measure(task, trained.scorer, model, train, permute_gaps=permute, split=split)
        spec = replace(task.spec, condition=condition)
        written.insert(0, _write(task, spec, trained, found, seconds))
    return written


def _conditions(spec: Spec) -> tuple[runs.Condition, ...]:
    if spec.protocol != "leave_one_out":
        return ("true",)
    if spec.condition in {"true", "permuted"} and models.takes_time(spec.system):
        return ("true", "permuted")
    return (spec.condition,)


def _train(task: Task, model: ModelConfig, train: TrainConfig, on_step: OnStep | None) -> _Trained:
    if task.spec.system in SANITY:
        return _Trained(_sanity(task, train), [], [], 0)
    if task.spec.system == "bprmf":
        return _bprmf(task, train, on_step)
    quality = _validated(task, model, train) if task.spec.validation else None
    fitted = fit(
        task.manifest,
        model=model,
        train=train,
        data_end=task.data_end,
        device=task.device,
        quality=quality,
        on_step=on_step,
    )
    network = fitted.model.model
    weights = network.temporal_weights(torch.tensor(CURVE_SECONDS))
    return _Trained(
        scorer=fitted.model,
        epoch_losses=[round(loss, 5) for loss in fitted.epoch_losses],
        epoch_seconds=fitted.epoch_seconds,
        parameters=sum(p.numel() for p in network.parameters()) + fitted.model.item_vectors.numel(),
        best_epoch=fitted.best_epoch,
        curves=Curves(CURVE_SECONDS, [layer.tolist() for layer in weights]) if weights else None,
    )


def _sanity(task: Task, train: TrainConfig) -> ScoredBaseline:
    end, manifest, system = task.data_end, task.manifest, task.spec.system
    known = torch.from_numpy(task.known) if task.spec.protocol == "next_day" else None
    if system == "popularity":
        return fit_popularity(manifest, end=end, train=train, config=EvaluateConfig(), candidates=known)
    fits = {"recency": fit_recency, "markov": fit_markov, "item-knn": fit_item_knn, "ease": fit_ease}
    return fits[system](manifest, end=end, train=train, candidates=known)


def _bprmf(task: Task, train: TrainConfig, on_step: OnStep | None) -> _Trained:
    losses: list[float] = []
    times = [time.perf_counter()]

    def on_epoch(epoch: int, loss: float) -> None:
        losses.append(round(loss, 5))
        times.append(time.perf_counter())
        if on_step:
            on_step(epoch, task.spec.epochs)

    config = BPRMFConfig(factors=task.preset.model.dim, epochs=task.spec.epochs, seed=task.spec.seed)
    fitted = fit_bprmf(task.manifest, end=task.data_end, train=train, config=config, on_epoch=on_epoch)
    factors = fitted.factors
    parameters = sum(part.numel() for part in (factors.users, factors.items, factors.bias))
    return _Trained(fitted, losses, np.diff(times).tolist(), parameters)


def _validated(task: Task, model: ModelConfig, train: TrainConfig) -> Callable[[TrainedModel], float]:
    """NDCG@10 on each listener's second-newest play."""

    def quality(trained: TrainedModel) -> float:
        return _measure(task, trained, model, train, newest_removed=1).metrics["all"]["ndcg_10"]

    return quality


@dataclass(frozen=True)
class _Measured:
    """Means by slice, and under leave_one_out the rank of each listener's song."""

    metrics: dict[str, dict[str, float]]
    slices: dict[str, int]
    user_id: pa.Array | None = None
    ranks: np.ndarray | None = None


def _measure(
    task: Task, scorer: Scorer | ListenerScorer, model: ModelConfig, train: TrainConfig, **cases: Any
) -> _Measured:
    result = evaluate_leave_one_out(
        task.manifest, {"run": scorer}, model=model, train=train, config=EvaluateConfig(), **cases
    )
    return _Measured(result.metrics["run"], result.slices, result.user_id, result.ranks["run"])


def _next_day(task: Task, recommender: Any, model: ModelConfig, train: TrainConfig) -> _Measured:
    manifest, config, known = task.manifest, EvaluateConfig(), torch.from_numpy(task.known)
    popularity = fit_popularity(manifest, end=task.data_end, train=train, config=config, candidates=known)
    result = evaluate_next_day(
        manifest,
        {"run": recommender},
        ds=manifest.ds,
        calendar=Calendar(manifest.timezone),
        model=model,
        train=train,
        config=config,
        known_items=task.known,
        fallback=popularity,
    )
    return _Measured(result.metrics["run"], result.slices)


def _write(task: Task, spec: Spec, trained: _Trained, found: _Measured, seconds: float) -> Run:
    run = Run(
        name=spec.name,
        dataset=task.dataset,
        system=spec.system,
        layers=spec.layers,
        temporal=spec.temporal,
        hidden=spec.hidden if spec.system == "gru4rec" else 0,
        epochs=spec.epochs,
        published_epochs=task.spec.epochs if task.spec.system == "bprmf" else task.preset.train.epochs,
        seed=spec.seed,
        condition=spec.condition,
        validation=spec.validation,
        best_epoch=trained.best_epoch,
        protocol=spec.protocol,
        metrics=found.metrics,
        listeners=found.slices,
        curves=trained.curves,
        epoch_losses=trained.epoch_losses,
        epoch_seconds=round(statistics.median(trained.epoch_seconds), 3) if trained.epoch_seconds else 0.0,
        train_seconds=round(seconds, 3),
        parameters=trained.parameters,
        uses_time=models.takes_time(spec.system),
        machine=machine.describe(),
        date=str(dt.datetime.now(dt.UTC).date()),
        command=task.command,
        kernels=ops.describe(task.device),
    )
    if found.user_id is not None and found.ranks is not None:
        runs.write_ranks(task.folder, run.name, found.user_id.to_numpy(zero_copy_only=False), found.ranks)
    runs.write(task.folder, run)
    return run
