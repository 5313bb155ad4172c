"""What a chain of warm starts is worth: `python -m benchmarks.warm_start --folder FOLDER [--quick]`.

Three deployments have the same histories of synthetic logs, day by day, and the same first model. One trains each day
from the model of the day before, as `fuxi daily` does, one does so from the plays that are new alone
(`train.incremental`), the third one trains from nothing, on all history. No gate stands between them: every model is
promoted. Each day's models are measured on the same listeners, beside the first model, which nobody trained further,
and item-kNN. What is there already is not done again, so a run that was stopped goes on where it was.
"""

import argparse
import datetime as dt
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuxi_beta.evaluation.next_day import evaluate_next_day
from fuxi_beta.evaluation.statistics import paired_difference
from fuxi_beta.recommender import Recommender
from fuxi_beta.training.checkpoint import load_export
from jobs.commands.demo import CATALOGUE, FIRST_LANDING_DAY, demo_config
from jobs.day import Day, open_day, run_stage
from jobs.registry import versions
from jobs.runtime import machine
from jobs.serving.baselines import ITEM_KNN, fit_baseline, known_songs
from jobs.stages import sessionize, train
from pipelines.synthetic import SyntheticConfig, generate

WARM, NEW, FULL, FROZEN = "warm start", "incremental", "full retrain", "first model"
CHAINS = {WARM: [], NEW: ["train.incremental=true"], FULL: ["train.full_every_days=1"]}
"""Deployments: the settings of each beside the demo's."""
METRIC, HISTORY_DAYS = "ndcg_30", 42


def open_chain(folder: Path, name: str, where: list[str], days: list[dt.date]) -> Day:
    """A deployment on its first day: the histories of all days are there, and the first model, which all share."""
    home = folder / name.replace(" ", "-")
    first = folder / WARM.replace(" ", "-")
    if name != WARM and not home.exists():
        shutil.copytree(first, home)
    chain = open_day(demo_config(str(home), [*where, *CHAINS[name]]), days[0])
    if name == WARM:
        for ds in days:
            run_stage(chain.at(ds), "sessionize", sessionize.run)
        train_days(chain, days[:1])
    return chain


def train_days(day: Day, days: list[dt.date]) -> None:
    """Train a model on each of some days and promote it."""
    for ds in days:
        today = day.at(ds)
        made = run_stage(today, "train", train.run)
        versions.promote(today, str(made["model_version"]))
        print(
            f"{ds} version {made['model_version']}, from {made['warm_started_from']}, {made['steps']} steps", flush=True
        )


def measure(chains: Mapping[str, Day], first: dt.date) -> Mapping[str, np.ndarray]:
    """Recommender -> the metric of each listener of a day, those who have something to find. [U]"""
    warm = chains[WARM]
    ds, config = warm.ds, warm.config
    cut = warm.calendar.day_start(ds - dt.timedelta(days=1))
    manifest = warm.manifest(ds)
    known = known_songs(manifest, before=cut)
    recommenders: dict[str, Recommender] = {
        ITEM_KNN: fit_baseline(
            ITEM_KNN, manifest, end=cut, train=config.train, config=config.evaluate, candidates=known
        )
    }
    request = warm.calendar.request_time(ds - dt.timedelta(days=1))
    for name, day in {**chains, FROZEN: warm.at(first)}.items():
        if result := day.result("train"):
            folder = versions.download_model(day, str(result["model_version"]))
            recommenders[name] = load_export(folder).as_of(request)
    result = evaluate_next_day(
        manifest,
        recommenders,
        ds=ds,
        calendar=warm.calendar,
        model=config.model,
        train=config.train,
        config=config.evaluate,
        known_items=known,
        keep=METRIC,
    )
    return result.values


def costs(day: Day) -> dict[str, Any]:
    """Steps and seconds of a day's training; none without one."""
    marker = day.marker("train")
    if marker is None:
        return {}
    result = marker["result"]
    return {"steps": result["steps"], "seconds": marker["seconds"], "of steps": sum(result["seconds_per_epoch"])}


def compared(values: Mapping[dt.date, Mapping[str, np.ndarray]], name: str, other: str) -> dict[str, Any]:
    """The difference of two recommenders over all listener-days that both have, paired."""
    shared = [day for day in values.values() if name in day and other in day]
    if not shared:
        return {}
    sides = [np.concatenate([day[side] for day in shared])[None] for side in (name, other)]
    found = paired_difference(sides[0], sides[1], seed=1)
    means = [float(side.mean()) for side in sides]
    return {"days": len(shared), "cases": sides[0].size, name: means[0], other: means[1], "difference": found.mean} | {
        "low": found.low,
        "high": found.high,
    }


def main() -> None:
    """Print the table of days, the comparisons and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="logs and workspaces; they stay")
    parser.add_argument("--listeners", type=int, default=3000)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--full-every", type=int, default=1, help="train from nothing on every so manieth day only")
    parser.add_argument("--quick", action="store_true", help="300 listeners, three days: shows that it runs")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    listeners, number = (300, 3) if options.quick else (options.listeners, options.days)
    first = FIRST_LANDING_DAY + dt.timedelta(days=HISTORY_DAYS)
    days = [first + dt.timedelta(days=n) for n in range(number)]
    logs = options.folder.resolve() / "logs"
    if not logs.exists():
        size = {**CATALOGUE, "first_day": FIRST_LANDING_DAY, "days": HISTORY_DAYS + number}
        generate(SyntheticConfig(listeners=listeners, **size), str(logs))
    where = [f"logs.path={logs}/plays", f"logs.catalogue={logs}/catalogue", *options.overrides]
    chains = {name: open_chain(options.folder, name, where, days) for name in CHAINS}
    for name, chain in chains.items():
        every = options.full_every if name == FULL else 1
        train_days(chain, [ds for n, ds in enumerate(days) if n and n % every == 0])
    values = {ds: measure({name: chain.at(ds) for name, chain in chains.items()}, first) for ds in days[1:]}
    names = (*CHAINS, FROZEN, ITEM_KNN)
    rows = []
    for ds in days[1:]:
        means = {name: float(values[ds][name].mean()) for name in names if name in values[ds]}
        rows.append({"ds": str(ds), "cases": len(values[ds][WARM]), **means})
        rows[-1] |= {f"{name}, cost": costs(chain.at(ds)) for name, chain in chains.items()}
        print(f"{ds}  {len(values[ds][WARM]):>6}  " + "  ".join(f"{name} {mean:.4f}" for name, mean in means.items()))
    pairs = [compared(values, name, other) for name in (WARM, NEW) for other in (FULL, FROZEN, ITEM_KNN)]
    pairs.append(compared(values, NEW, WARM))
    for pair in pairs:
        print(pair)
    print(json.dumps({"benchmark": "warm_start", "machine": machine.describe(), "rows": rows, "pairs": pairs}))


if __name__ == "__main__":
    main()
