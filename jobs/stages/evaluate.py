"""`fuxi evaluate`: challenger, champion, popularity and first-order Markov measured on the same listeners."""

import datetime as dt
from typing import Any

import numpy as np

from jobs.day import Day
from jobs.registry import versions as registry
from jobs.runtime import kernels
from jobs.runtime.console import progress
from jobs.serving.rules import served_lists
from jobs.tables.metrics import write_metrics
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest, read_manifest

CHALLENGER, CHAMPION, POPULARITY, MARKOV = "challenger", "champion", "popularity", "markov"


def run(day: Day) -> dict[str, Any]:
    """Measure on the shards of `day.ds` and replace the day's rows of the metrics table.

    Returns protocol, listeners, excluded, request_time (Unix seconds; None under leave_one_out), slices (listeners of
    each), versions (of challenger and champion) and metrics: recommender -> slice -> metric -> value.
    """
    trained = day.marker("train")
    if trained is None:
        raise InputError(f"no model is trained for {day.ds}: run `fuxi train --ds {day.ds}` first")
    champion = registry.champion(day)
    versions = {CHALLENGER: str(trained["model_version"])} | ({CHAMPION: champion.version} if champion else {})
    manifest = read_manifest(day.workspace.sequences(day.ds))
    try:
        measured = _next_day(day, manifest, versions) if _is_daily(day) else _leave_one_out(day, manifest, versions)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model versions {versions} cannot be measured: {error}") from None
    metrics: dict[str, Any] = measured["metrics"]
    named = {versions.get(name, name): slices for name, slices in metrics.items()}
    protocol = day.config.train.protocol
    write_metrics(day.workspace, day.ds, named, protocol=protocol, listeners=measured["slices"])
    return {"protocol": protocol, **measured, "versions": versions}


def _is_daily(day: Day) -> bool:
    return day.config.train.protocol == "next_day"


def _next_day(day: Day, manifest: Manifest, versions: dict[str, str]) -> dict[str, Any]:
    from fuxi_beta.evaluation.next_day import evaluate_next_day

    calendar, config = day.workspace.calendar, day.config
    cut = calendar.day_start(day.ds - dt.timedelta(days=1))
    known = known_songs(manifest, before=cut)
    recommenders = _models(day, versions) | _baselines(day, manifest, end=cut, candidates=known)
    with progress("evaluate", min(manifest.rows, config.evaluate.max_listeners), unit="listeners") as advance:
        result = evaluate_next_day(
            manifest,
            recommenders,
            ds=day.ds,
            calendar=calendar,
            model=config.model,
            train=config.train,
            config=config.evaluate,
            known_items=known,
            fallback=recommenders[POPULARITY],
            lists=served_lists,
            on_progress=_increments(advance),
        )
    return {
        "listeners": result.listeners,
        "excluded": result.excluded,
        "request_time": result.request_time,
        "slices": result.slices,
        "metrics": result.metrics,
    }


def _leave_one_out(day: Day, manifest: Manifest, versions: dict[str, str]) -> dict[str, Any]:
    from fuxi_beta.evaluation.leave_one_out import evaluate_leave_one_out

    config = day.config
    every_song = np.arange(manifest.vocabulary_size + 1) > 0
    scorers = _models(day, versions) | _baselines(day, manifest, end=manifest.data_end, candidates=every_song)
    with progress("evaluate", manifest.rows, unit="listeners") as advance:
        result = evaluate_leave_one_out(
            manifest,
            scorers,
            model=config.model,
            train=config.train,
            config=config.evaluate,
            on_progress=_increments(advance),
        )
    return {
        "listeners": result.listeners,
        "excluded": result.excluded,
        "request_time": None,
        "slices": result.slices,
        "metrics": result.metrics,
    }


def known_songs(manifest: Manifest, *, before: int) -> np.ndarray:
    """Songs with an event before a Unix second. bool [vocabulary_size + 1].

    The vocabulary's first_ds does not tell: on the first day of a workspace every song is new to it.
    """
    known = np.zeros(manifest.vocabulary_size + 1, bool)
    for file, group, _ in manifest.row_groups():
        histories = manifest.histories(file, group)
        known[histories.item_index[histories.timestamp < before]] = True
        known[histories.heard_items] = True  # of events older than those kept
    return known


def _models(day: Day, versions: dict[str, str]) -> dict[str, Any]:
    from fuxi_beta.training.checkpoint import load_export

    kernels.choose(day.config.cluster)
    return {name: load_export(registry.download_model(day, version)) for name, version in versions.items()}


def _baselines(day: Day, manifest: Manifest, *, end: int, candidates: np.ndarray) -> dict[str, Any]:
    import torch

    from fuxi_beta.baselines.markov import fit_markov
    from fuxi_beta.baselines.popularity import fit_popularity

    train, mask = day.config.train, torch.from_numpy(candidates)
    popularity = fit_popularity(manifest, end=end, train=train, config=day.config.evaluate, candidates=mask)
    return {POPULARITY: popularity, MARKOV: fit_markov(manifest, end=end, train=train, candidates=mask)}


def _increments(advance: Any) -> Any:
    """`advance(amount)` as the callback of (done, all) that the library calls."""
    before = 0

    def on_progress(done: int, _: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return on_progress
