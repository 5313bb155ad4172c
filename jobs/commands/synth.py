"""`fuxi synth`: write or extend synthetic music logs, with a progress bar."""

import os
import time
from dataclasses import replace
from typing import Any

from jobs.runtime.console import progress
from pipelines.errors import InputError
from pipelines.synthetic import FROZEN, SyntheticConfig, generate
from pipelines.synthetic.industrial import plan as industrial
from pipelines.synthetic.industrial.config import BASE_DAYS, IndustrialConfig, industrial_config

_DEMO_ONLY = ("listeners", "songs", "artists", "elapsed_time")
_PRESET_ONLY = ("scale", "interactions", "workers")
_NOT_FROZEN = (*_PRESET_ONLY, "seed", "first_day")
FROZEN_PRESET = "frozen"


def main(options: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Generate logs by the options of the command line. given: the names of options that are not left to their default.

    Raises InputError for options that exclude each other.
    """
    options = {name: value for name, value in options.items() if value is not None}
    out, preset = options.pop("out"), options.pop("preset", None)
    if preset is None:
        _refuse(given, _PRESET_ONLY, "{} goes with --preset only: add --preset, or leave it out")
        return synth(SyntheticConfig(**options), out)
    _refuse(given, _DEMO_ONLY, "{} does not go with --preset, which sets it: leave one of the two out")
    if preset == FROZEN_PRESET:
        _refuse(given, _NOT_FROZEN, "{} does not go with --preset frozen, which sets it: leave one of the two out")
        return synth(replace(FROZEN, days=options.get("days", FROZEN.days)), out)
    if {"scale", "interactions"} <= given:
        raise InputError("--scale and --interactions both set the number of plays: leave one of the two out")
    days, workers = options.pop("days", BASE_DAYS), options.pop("workers", len(os.sched_getaffinity(0)))
    config = industrial_config(preset, **{name: value for name, value in options.items() if name not in _DEMO_ONLY})
    return synth_industrial(config, out, days=days, workers=workers)


def synth(config: SyntheticConfig, out: str) -> dict[str, Any]:
    """Generate the days that are missing below `out`; returns where they are, and the rows and days written.

    Raises InputError if `out` holds a log of another configuration.
    """
    started = time.monotonic()
    with progress("Generating plays", config.days, unit="days") as advance:
        result = generate(config, out, on_progress=advance)
    return {**result, "seconds": round(time.monotonic() - started, 2)}


def synth_industrial(config: IndustrialConfig, out: str, *, days: int = BASE_DAYS, workers: int = 1) -> dict[str, Any]:
    """Generate the files that are missing below `out`, in `workers` processes; returns rows, days, bytes and speed.

    Raises InputError if `out` holds another log or its disk is too small.
    """
    plan = industrial.plan(config, out, days=days)
    started = time.monotonic()
    with progress("Generating plays", plan.rows, unit="plays", remaining=True) as advance:
        result = industrial.write(plan, workers=workers, on_progress=advance)
    seconds = time.monotonic() - started
    return {**result, "seconds": round(seconds, 2), "plays_per_second": round(plan.rows / seconds)}


def _refuse(given: set[str], names: tuple[str, ...], message: str) -> None:
    """InputError if any of these options is given."""
    refused = [f"--{name.replace('_', '-')}" for name in names if name in given]
    if refused:
        raise InputError(message.format(", ".join(refused)))
