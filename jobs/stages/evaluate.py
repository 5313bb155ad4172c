"""`fuxi evaluate`: challenger, champion, the last full retrain and baselines measured on the same listeners."""

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from jobs.day import Day, StageResult
from jobs.registry import versions as registry
from jobs.runtime import kernels
from jobs.runtime.console import Advance, doing, log, progress
from jobs.serving.baselines import POPULARITY, fit_baseline, known_songs, too_large
from jobs.serving.day_rules import day_rules, read_item_ids
from jobs.serving.serving_baseline import finite, leads_over_models
from jobs.tables.metrics import CHALLENGER, CHAMPION, OF_REFERENCE, REFERENCE, write_metrics
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest

if TYPE_CHECKING:
    from fuxi_beta.baselines.base import ScoredBaseline
    from fuxi_beta.baselines.popularity import Popularity
    from fuxi_beta.evaluation.leave_one_out import LeaveOneOutResult
    from fuxi_beta.evaluation.next_day import NextDayResult
    from fuxi_beta.evaluation.protocol import Metrics, Progress
    from fuxi_beta.recommender import Recommender
    from fuxi_beta.training.checkpoint import TrainedModel

_SEED = 1
"""Of the bootstrap over listeners."""


def run(day: Day) -> StageResult:
    """Measure on the shards of `day.ds` and replace the day's rows of the metrics table.

    Returns protocol, listeners, excluded, request_time (Unix seconds; None under leave_one_out), slices (listeners of
    each), versions (of challenger, champion and reference), metrics: recommender -> slice -> metric -> value, reference
    (which of them is the last full retrain, None without one), of_reference (challenger and champion -> their share of
    its value of `gates.metric`), comparisons (`leads_over_models`) and differences (`_differences`). InputError if
    there is nobody to measure on.
    """
    trained = day.result("train")
    if trained is None:
        raise InputError(f"no model is trained for {day.ds}: run `fuxi train --ds {day.ds}` first")
    champion, reference = registry.champion(day), registry.reference(day)
    versions = {CHALLENGER: str(trained["model_version"])} | ({CHAMPION: champion.version} if champion else {})
    if reference and reference.version not in versions.values():
        versions[REFERENCE] = reference.version
    frozen = next((name for name, version in versions.items() if reference and version == reference.version), None)
    manifest = day.manifest(day.ds)
    protocol = day.config.train.protocol
    try:
        result = (_next_day if protocol == "next_day" else _leave_one_out)(day, manifest, versions)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"model versions {versions} cannot be measured: {error}") from None
    if not result.listeners:
        raise InputError(
            f"nobody can be measured for {day.ds}: none of {result.excluded:,} listeners {_nothing_to_predict(day)}; "
            "see whether the logs of that day are late"
        )
    measured = {
        "protocol": protocol,
        "listeners": result.listeners,
        "excluded": result.excluded,
        "request_time": getattr(result, "request_time", None),
        "slices": result.slices,
        "metrics": result.metrics,
        "versions": versions,
        "reference": frozen,
        "of_reference": _shares_of_reference(result.metrics, reference=frozen, metric=day.config.gates.metric),
        "comparisons": leads_over_models(getattr(result, "values", {}), models=(CHALLENGER, CHAMPION)),
        "differences": _differences(day.config.gates.metric, result),
    }
    write_metrics(day.workspace, day.ds, _by_version(day, measured), protocol=protocol, listeners=result.slices)
    return measured


def _differences(metric: str, result: "NextDayResult | LeaveOneOutResult") -> list[dict[str, Any]]:
    """The difference of the metric between each two recommenders in each slice, with its 95 % interval.

    Each has metric, slice, of, less (recommenders), mean, low and high. None under leave_one_out, which keeps no
    listeners.
    """
    from fuxi_beta.evaluation.statistics import interval_of_each_pair

    values: Mapping[str, np.ndarray] = getattr(result, "values", {})
    members: Mapping[str, np.ndarray] = getattr(result, "members", {})
    return [
        {"metric": metric, "slice": name, "of": of, "less": less, "mean": mean, "low": low, "high": high}
        for name, listeners in members.items()
        for (of, less), (mean, low, high) in interval_of_each_pair(values, listeners, seed=_SEED).items()
    ]


def _shares_of_reference(metrics: "Metrics", *, reference: str | None, metric: str) -> dict[str, float]:
    """Challenger's and champion's value of a metric over all listeners as a share of the last full retrain's.

    Empty without a reference, or where it has nothing.
    """
    models = (name for name in (CHALLENGER, CHAMPION, REFERENCE) if name in metrics)
    values = finite({name: metrics[name]["all"].get(metric) for name in models})
    if reference is None or not values.get(reference):
        return {}
    return {name: values[name] / values[reference] for name in (CHALLENGER, CHAMPION) if name in values}


def _by_version(day: Day, measured: StageResult) -> dict[str, dict[str, dict[str, float]]]:
    """What the table of metrics gets: model version or baseline -> slice -> metric -> value."""
    versions = measured["versions"]
    rows = {versions.get(name, name): dict(slices) for name, slices in measured["metrics"].items()}
    for name, share in measured["of_reference"].items():
        version = versions[name]
        rows[version]["all"] = {**rows[version]["all"], f"{day.config.gates.metric}{OF_REFERENCE}": share}
    return rows


def _nothing_to_predict(day: Day) -> str:
    """What a listener would need to be measured."""
    if day.config.train.protocol != "next_day":
        return "has a play that is held out"
    new = "for the first time " if day.config.train.mode == "exclusive" else ""
    return f"played a known song {new}on {day.ds - dt.timedelta(days=1)} after the request time"


def _next_day(day: Day, manifest: Manifest, versions: dict[str, str]) -> "NextDayResult":
    from fuxi_beta.evaluation.next_day import evaluate_next_day

    config = day.config
    eve = day.ds - dt.timedelta(days=1)
    cut = day.calendar.day_start(eve)
    known = known_songs(manifest, before=cut)
    with doing("fitting the baselines and loading the models"):
        baselines = _baselines(day, manifest, end=cut, candidates=known)
        models = _models(day, versions, day.calendar.request_time(eve))
    recommenders: dict[str, Recommender] = {**models, **baselines}
    rules = day_rules(day, eve, read_item_ids(day, manifest), cast("Popularity", baselines[POPULARITY]))
    with progress("evaluate", min(manifest.rows, config.evaluate.max_listeners), unit="listeners") as advance:
        return evaluate_next_day(
            manifest,
            recommenders,
            ds=day.ds,
            calendar=day.calendar,
            model=config.model,
            train=config.train,
            config=config.evaluate,
            known_items=_listable(known, models),
            fallback=baselines[POPULARITY],
            served=rules.as_list_maker,
            keep=config.gates.metric,
            on_progress=_increments(advance),
        )


def _leave_one_out(day: Day, manifest: Manifest, versions: dict[str, str]) -> "LeaveOneOutResult":
    from fuxi_beta.evaluation.leave_one_out import evaluate_leave_one_out

    config = day.config
    every_song = np.arange(manifest.vocabulary_size + 1) > 0
    baselines = _baselines(day, manifest, end=manifest.data_end, candidates=every_song)
    with progress("evaluate", manifest.rows, unit="listeners") as advance:
        return evaluate_leave_one_out(
            manifest,
            _models(day, versions, day.calendar.request_time(day.ds)) | baselines,
            model=config.model,
            train=config.train,
            config=config.evaluate,
            on_progress=_increments(advance),
        )


def _listable(known: np.ndarray, models: "dict[str, TrainedModel]") -> np.ndarray:
    """Songs that may be truth: those with a play, and those that a model lists by side information. bool [V]."""
    listable = known.copy()
    for model in models.values():
        if model.listed_from is not None:
            songs = model.candidates[: len(known)].numpy()
            listable[: len(songs)] |= songs
    return listable


def _models(day: Day, versions: dict[str, str], time: int) -> "dict[str, TrainedModel]":
    """The models with the songs that they could list at a time (Unix seconds)."""
    from fuxi_beta.training.checkpoint import load_export

    kernels.choose(day.config.cluster)
    return {name: load_export(registry.download_model(day, version)).as_of(time) for name, version in versions.items()}


def _baselines(day: Day, manifest: Manifest, *, end: int, candidates: np.ndarray) -> "dict[str, ScoredBaseline]":
    found: dict[str, ScoredBaseline] = {}
    for name in (POPULARITY, *day.config.evaluate.baselines):
        if reason := too_large(name, manifest, day.config.evaluate):
            log("baseline left out", baseline=name, reason=reason)
        else:
            found[name] = fit_baseline(
                name, manifest, end=end, train=day.config.train, config=day.config.evaluate, candidates=candidates
            )
    return found


def _increments(advance: Advance) -> "Progress":
    """A progress bar as the callback of (done, all) that evaluation calls."""
    before = 0

    def on_progress(done: int, _: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return on_progress
