"""One run: train, rank, write `NAME.ranks.parquet` (`NAME.cases.parquet` under next_day) and then `NAME.json`.

Runs are independent of each other and deterministic in their spec, so a series may make them in any order and process,
and repeat them.
"""

import datetime as dt
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
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
from fuxi_beta.evaluation.leave_one_out import (
    LeaveOneOutResult,
    ListenerScorer,
    Scorer,
    evaluate_leave_one_out,
    split_time,
)
from fuxi_beta.evaluation.next_days import (
    NextDaysResult,
    cases_of_days,
    evaluate_next_days,
    first_events,
    measure_cases,
    newest_days,
)
from fuxi_beta.presets import Preset
from fuxi_beta.recommender import Recommender
from fuxi_beta.training.checkpoint import TrainedModel
from fuxi_beta.training.fit import fit
from fuxi_beta.training.resume import EpochCheckpoints
from jobs.reproduce import runs
from jobs.reproduce.ceiling import OracleLists, oracle
from jobs.reproduce.runs import Dataset, ExperimentRun, TemporalCurves, TimeCondition
from jobs.reproduce.served import default_rules
from jobs.reproduce.settings import Settings, settings_of
from jobs.reproduce.side import appearances, catalogue_of
from jobs.reproduce.specs import RunSpec
from jobs.reproduce.systems import CEILINGS, SANITY, UNTRAINED
from jobs.runtime import machine
from pipelines.calendar import Calendar
from pipelines.histories.shards import Manifest

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
CURVE_SECONDS = np.unique(np.logspace(0, 8, 97).round()).tolist()
"""Times at which the functions of elapsed time are stored: 1 s to three years."""


@dataclass(frozen=True)
class RunTask:
    """Everything a process needs for one run."""

    spec: RunSpec
    preset: Preset
    dataset: Dataset
    manifest: Manifest
    folder: str  # the run's files go there
    command: str
    device: str = "cpu"

    @cached_property
    def data_end(self) -> int:
        """Unix second; events before it may be learned from."""
        manifest = self.manifest
        if self.spec.protocol == "temporal_split":
            return split_time(manifest)
        if self.spec.protocol == "next_day":
            return Calendar(manifest.timezone).day_start(manifest.ds - dt.timedelta(days=self.spec.days))
        return manifest.data_end

    @property
    def settings(self) -> Settings:
        """Of the network and its training; none of a baseline without training."""
        return {} if self.spec.system in UNTRAINED else settings_of(*self.spec.configs(self.preset))

    @cached_property
    def known(self) -> np.ndarray:
        """Songs with an event before `data_end`. bool [V]."""
        return (self.first_event < self.data_end) & (np.arange(len(self.first_event)) > 0)

    @cached_property
    def first_event(self) -> np.ndarray:
        """As of `first_events`. int64 [V]."""
        return first_events(self.manifest)


@dataclass
class _Trained:
    """A fitted scorer, and the figures of its training."""

    scorer: Scorer | ListenerScorer | OracleLists
    epoch_losses: list[float]
    epoch_seconds: list[float]
    parameters: int
    best_epoch: int | None = None
    curves: TemporalCurves | None = None
    resumed_s: float = 0.0  # seconds of its epochs before it was stopped


def perform(task: RunTask, on_step: OnStep | None = None) -> list[ExperimentRun]:
    """Train and measure. Returns the runs written.

    A model that takes t_{i+1} and was trained on true times is measured a second time with listeners' gaps permuted,
    which needs no further training. Raises DivergedError or InputError, and then writes nothing.
    """
    model, train = task.spec.configs(task.preset)
    started = time.perf_counter()
    checkpoints = EpochCheckpoints(Path(task.folder, f"{task.spec.name}.training"))
    trained = _train(task, model, train, on_step, checkpoints)
    seconds = time.perf_counter() - started + trained.resumed_s
    written = []
    for condition in reversed(_conditions(task.spec)):  # so that the requested run is written last
        spec = replace(task.spec, condition=condition)
        written.insert(0, _write(task, spec, trained, _measure(task, spec, trained, model, train), seconds))
    checkpoints.remove()
    return written


def _conditions(spec: RunSpec) -> tuple[TimeCondition, ...]:
    if spec.protocol != "leave_one_out":
        return ("true",)
    if spec.condition in {"true", "permuted"} and models.takes_time(spec.system):
        return ("true", "permuted")
    return (spec.condition,)


def _train(
    task: RunTask, model: ModelConfig, train: TrainConfig, on_step: OnStep | None, checkpoints: EpochCheckpoints
) -> _Trained:
    if task.spec.system in CEILINGS:
        return _Trained(oracle(task.manifest, task.spec.system, k=max(EvaluateConfig().at)), [], [], 0)
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
        catalogue=catalogue_of(task.manifest, model),
        device=task.device,
        quality=quality,
        on_step=on_step,
        checkpoints=checkpoints,
    )
    network = fitted.model.model
    weights = network.temporal_weights(torch.tensor(CURVE_SECONDS))
    return _Trained(
        scorer=fitted.model,
        epoch_losses=[round(loss, 5) for loss in fitted.epoch_losses],
        epoch_seconds=fitted.epoch_seconds,
        parameters=sum(p.numel() for p in network.parameters()) + fitted.model.item_vectors.numel(),
        best_epoch=fitted.best_epoch,
        curves=TemporalCurves(CURVE_SECONDS, [layer.tolist() for layer in weights]) if weights else None,
        resumed_s=sum(fitted.epoch_seconds[: fitted.resumed_at]),
    )


def _sanity(task: RunTask, train: TrainConfig) -> ScoredBaseline:
    end, manifest, system = task.data_end, task.manifest, task.spec.system
    known = torch.from_numpy(task.known) if task.spec.protocol == "next_day" else None
    if system == "popularity":
        return fit_popularity(manifest, end=end, train=train, config=EvaluateConfig(), candidates=known)
    fits = {"recency": fit_recency, "markov": fit_markov, "item-knn": fit_item_knn, "ease": fit_ease}
    return fits[system](manifest, end=end, train=train, candidates=known)


def _bprmf(task: RunTask, train: TrainConfig, on_step: OnStep | None) -> _Trained:
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
    parameters = sum(weights.numel() for weights in (factors.users, factors.items, factors.bias))
    return _Trained(fitted, losses, np.diff(times).tolist(), parameters)


def _validated(task: RunTask, model: ModelConfig, train: TrainConfig) -> Callable[[TrainedModel], float]:
    """NDCG@10 on each listener's second-newest play."""

    def quality(trained: TrainedModel) -> float:
        result = evaluate_leave_one_out(
            task.manifest, {"run": trained}, model=model, train=train, config=EvaluateConfig(), newest_removed=1
        )
        return result.metrics["run"]["all"]["ndcg_10"]

    return quality


def _measure(
    task: RunTask, spec: RunSpec, trained: _Trained, model: ModelConfig, train: TrainConfig
) -> LeaveOneOutResult | NextDaysResult:
    """Under the run's protocol and time condition."""
    if spec.protocol == "next_day":
        return _measure_days(task, cast(Recommender | OracleLists, trained.scorer), model)
    permute = spec.seed if spec.condition == "permuted" else None
    split = task.data_end if spec.protocol == "temporal_split" else None
    scorers = {"run": cast(Scorer | ListenerScorer, trained.scorer)}
    return evaluate_leave_one_out(
        task.manifest,
        scorers,
        model=model,
        train=train,
        config=EvaluateConfig(),
        permute_gaps=permute,
        split=split,
    )


def _measure_days(task: RunTask, recommender: Recommender | OracleLists, model: ModelConfig) -> NextDaysResult:
    """On the newest days. Cases and lists are of new songs, whatever the run's settings learned from."""
    manifest, config, calendar = task.manifest, EvaluateConfig(), Calendar(task.manifest.timezone)
    days, first, appears = newest_days(manifest, task.spec.days), task.first_event, appearances(manifest)
    _, train = replace(task.spec, overrides=()).configs(task.preset)
    if isinstance(recommender, OracleLists):
        cases = cases_of_days(
            manifest, days, calendar=calendar, train=train, config=config, first_event=first, appears=appears
        )
        return measure_cases(cases, recommender.lists, config=config, first_event=first)
    if isinstance(recommender, TrainedModel):
        recommender = replace(recommender, train_config=replace(recommender.train_config, mode=train.mode))
    known = torch.from_numpy(task.known)
    popular = fit_popularity(manifest, end=task.data_end, train=train, config=config, candidates=known)
    return evaluate_next_days(
        manifest,
        {"run": recommender},
        days=days,
        calendar=calendar,
        model=model,
        train=train,
        config=config,
        first_event=first,
        appears=appears,
        fallback=popular,
        served=default_rules(manifest, popular) if task.spec.served else None,
    )


def _write(
    task: RunTask, spec: RunSpec, trained: _Trained, result: LeaveOneOutResult | NextDaysResult, seconds: float
) -> ExperimentRun:
    fields = asdict(spec if spec.system == "gru4rec" else replace(spec, hidden=0))
    run = ExperimentRun(
        **{name: value for name, value in fields.items() if name not in {"overrides", "served"}},
        settings=task.settings,
        ds=str(task.manifest.ds),
        name=spec.name,
        dataset=task.dataset,
        published_epochs=task.spec.epochs if task.spec.system == "bprmf" else task.preset.train.epochs,
        best_epoch=trained.best_epoch,
        metrics=result.metrics["run"],
        listeners=result.slices,
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
    if isinstance(result, LeaveOneOutResult):
        runs.write_ranks(task.folder, run.name, result.user_id.to_numpy(zero_copy_only=False), result.ranks["run"])
    else:
        runs.write_cases(task.folder, run.name, result.cases["run"])
    runs.write(task.folder, run)
    return run
