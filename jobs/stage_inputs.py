"""What each stage of a day is made from: the stages before it and the settings that it reads.

A stage's marker names them. When they change, the stage is stale and runs again (`jobs.day`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.config import Config

_CATALOGUE = ("logs.catalogue_columns", "logs.csv", "logs.partition")
"""How the catalogue is read."""


@dataclass(frozen=True)
class StageInputs:
    """The inputs of a stage beside the run record. A setting is a section, or a key as "train.protocol"."""

    after: tuple[str, ...] = ()  # stages whose results, or whose outputs, it reads
    settings: tuple[str, ...] = ()  # that decide its result
    also_reads: tuple[str, ...] = ()  # settings that decide nothing which makes the stage worth running again
    failures: bool = False  # whether it shows why stages before it did not finish
    took: tuple[str, ...] = ()  # figures of its result that say what it took and not what it made


STAGE_INPUTS = {
    "sessionize": StageInputs(
        settings=("logs", "sequences", "model.side", "model.content", "serving"),
        also_reads=("train", "model"),  # a count of songs that enough listeners play; whether the model takes a side
        took=("wall_s", "cpu_s", "cpu_s_per_million_rows", "task_cpu_s", "peak_gb", "temporary_bytes"),
    ),
    "hits": StageInputs(
        after=("sessionize",),
        settings=("train.min_completion", "recommend.k", "evaluate.at", "serving"),
    ),
    "train": StageInputs(
        after=("sessionize",),
        settings=("model", "train", "serving", "deterministic"),
        also_reads=("rules", "evaluate"),  # stored beside the model, for callers of its pyfunc
        took=("resumed_at", "rollbacks", "kernels", "events_per_s", "waiting_share", "seconds_per_epoch", "overhead"),
    ),
    "evaluate": StageInputs(
        after=("sessionize", "train"),
        settings=("evaluate", "gates.metric", "model", "train", "rules", "recommend.k", "serving", *_CATALOGUE),
    ),
    "promote": StageInputs(
        after=("train", "evaluate"),
        settings=("gates", "train.protocol"),
        also_reads=("serving",),  # the calendar, of which no request time is asked
    ),
    "recommend": StageInputs(
        after=("sessionize", "promote"),
        settings=(
            "recommend",
            "rules",
            "evaluate.popularity_days",
            "evaluate.popularity_daily_cap",
            "model",
            "train",
            "serving",
            *_CATALOGUE,
        ),
    ),
    "report": StageInputs(
        after=("sessionize", "hits", "train", "evaluate", "promote", "recommend"),
        settings=("gates.metric", "gates.floor", "train.protocol", *_CATALOGUE),
        also_reads=("serving",),
        failures=True,
    ),
}
"""Every stage of a day, in order: `jobs/stages/NAME.py` each."""


def settings_of(stage: str, config: Config) -> dict[str, Any]:
    """The settings that decide the result of a stage: "section.key" -> value."""
    return {key: value for key, value in config.counted().items() if is_declared(key, STAGE_INPUTS[stage].settings)}


def all_before(stage: str) -> set[str]:
    """Every stage that a stage is made from, directly or through others."""
    after = STAGE_INPUTS[stage].after
    return {*after, *(name for other in after for name in all_before(other))}


def is_declared(key: str, settings: tuple[str, ...]) -> bool:
    """Whether a key, or its section, is among some settings."""
    return key in settings or key.partition(".")[0] in settings


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings that have changed, as "key: old -> new". Keys that only one release knows count as their default."""
    default = Config().counted()  # type: ignore[call-arg]
    before = {key: then.get(key, default.get(key)) for key in now}
    return tuple(f"{key}: {_shown(before[key])} -> {_shown(now[key])}" for key in now if before[key] != now[key])


def _shown(value: Any) -> str:
    return (
        repr(value)
        if isinstance(value, (str, list, dict))
        else {None: "null", True: "true", False: "false"}.get(value, str(value))
    )
