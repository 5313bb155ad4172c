"""`fuxi evaluate`: challenger, champion and baselines measured on the same listeners."""

import datetime as dt
from typing import TYPE_CHECKING, cast

import numpy as np

from jobs.day import Day, StageResult
from jobs.registry import versions as registry
from jobs.runtime import kernels
from jobs.runtime.console import Advance, log, progress
from jobs.serving.day_rules import day_rules, read_item_ids
from jobs.tables.metrics import write_metrics
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest

if TYPE_CHECKING:
    from fuxi_beta.baselines.base import ScoredBaseline
    from fuxi_beta.baselines.popularity import Popularity
    from fuxi_beta.evaluation.leave_one_out import LeaveOneOutResult
    from fuxi_beta.evaluation.next_day import NextDayResult
    from fuxi_beta.evaluation.protocol import Progress
    from fuxi_beta.recommender import Recommender
    from fuxi_beta.training.checkpoint import TrainedModel

CHALLENGER, CHAMPION, POPULARITY = "challenger", "champion", "popularity"
MARKOV, ITEM_KNN, EASE = "markov", "item-knn", "ease"


def run(day: Day) -> StageResult:
    """Measure on the shards of `day.ds` and replace the day's rows of the metrics table.

    Returns protocol, listeners, excluded, request_time (Unix seconds; None under leave_one_out), slices (listeners of
    each), versions (of challenger and champion) and metrics: recommender -> slice -> metric -> value.
    """
    trained = day.result("train")
    if trained is None:
        raise InputError(f"no model is trained for {day.ds}: run `fuxi train --ds {day.ds}` first")
    champion = registry.champion(day)
    versions = {CHALLENGER: str(trained["model_version"])} | ({CHAMPION: champion.version} if champion else {})
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
    by_version = {versions.get(name, name): slices for name, slices in result.metrics.items()}
    write_metrics(day.workspace, day.ds, by_version, protocol=protocol, listeners=result.slices)
    return {
        "protocol": protocol,
        "listeners": result.listeners,
        "excluded": result.excluded,
        "request_time": getattr(result, "request_time", None),
        "slices": result.slices,
        "metrics": result.metrics,
        "versions": versions,
    }


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


def known_songs(manifest: Manifest, *, before: int) -> np.ndarray:
    """Songs with a play before a Unix second. bool [vocabulary_size + 1].

    `first_ds` of the vocabulary does not say this: on the first day of a workspace it is that day for every song.
    """
    known = np.zeros(manifest.vocabulary_size + 1, bool)
    for file, group, _ in manifest.row_groups():
        histories = manifest.histories(file, group)
        known[histories.item_index[histories.timestamp < before]] = True
        known[histories.heard_items] = True  # of plays older than those kept
    return known


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
    import torch

    from fuxi_beta.baselines.ease import fit_ease
    from fuxi_beta.baselines.item_knn import fit_item_knn
    from fuxi_beta.baselines.markov import fit_markov
    from fuxi_beta.baselines.popularity import fit_popularity

    train, config, mask = day.config.train, day.config.evaluate, torch.from_numpy(candidates)
    popularity = fit_popularity(manifest, end=end, train=train, config=config, candidates=mask)
    fits = {MARKOV: fit_markov, ITEM_KNN: fit_item_knn, EASE: fit_ease}
    found: dict[str, ScoredBaseline] = {POPULARITY: popularity}
    for name in config.baselines:
        if reason := _too_large(name, manifest, day):
            log("baseline left out", baseline=name, reason=reason)
        else:
            found[name] = fits[name](manifest, end=end, train=train, candidates=mask)
    return found


def _too_large(name: str, manifest: Manifest, day: Day) -> str:
    """Why a baseline is not fitted to these sequences; "" if it is."""
    config = day.config.evaluate
    if name in {ITEM_KNN, EASE} and manifest.events > config.baseline_events:
        return f"{manifest.events:,} plays, evaluate.baseline_events is {config.baseline_events:,}"
    if name == EASE and manifest.vocabulary_size > config.baseline_songs:
        return f"{manifest.vocabulary_size:,} songs, evaluate.baseline_songs is {config.baseline_songs:,}"
    return ""


def _increments(advance: Advance) -> "Progress":
    """A progress bar as the callback of (done, all) that evaluation calls."""
    before = 0

    def on_progress(done: int, _: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return on_progress
