"""Settings of single runs: `--set SECTION.KEY=VALUE` over a preset, read and checked as those of the daily job are."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from fuxi_beta.config import ModelConfig, TrainConfig
from jobs.config import load_config
from pipelines.errors import InputError

Settings = dict[str, Any]
"""Section ("model" or "train") -> key -> value, as in a run's file."""
_OPTIONS = {
    "model.name": "--model",
    "model.layers": "--layers",
    "model.temporal": "--model fuxi-beta:FUNCTION",
    "model.hidden": "--model gru4rec:WIDTH",
    "train.epochs": "--epochs",
    "train.seed": "--seeds",
    "train.protocol": "--protocol",
    "train.request_time": "--time-condition",
    "train.held_out": "--validation",
}
"""Settings by which runs are named and grouped, so each has one way to be given."""
_SECTIONS = {"model": ModelConfig, "train": TrainConfig}


def with_settings(model: ModelConfig, train: TrainConfig, overrides: Sequence[str]) -> tuple[ModelConfig, TrainConfig]:
    """The network and its training with some settings changed. overrides: "section.key=value", values are YAML.

    Raises InputError in one line: another section, a key that is unknown or has an option of its own, a bad value.
    """
    if not overrides:
        return model, train
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key.partition(".")[0] not in _SECTIONS:
            raise InputError(f"--set {text}: a run takes settings of {' and '.join(_SECTIONS)}, as model.dim=128")
        if option := _OPTIONS.get(key):
            raise InputError(f"--set {text}: give it by {option}, which the runs' names are made of")
    before = settings_of(model, train)
    config = load_config(values=before, overrides=overrides, environment={})
    return config.model, config.train


def settings_of(model: ModelConfig, train: TrainConfig) -> Settings:
    """Every setting as JSON holds it."""
    return json.loads(json.dumps({"model": asdict(model), "train": asdict(train)}))


def different_settings(stored: Settings, wanted: Settings) -> list[str]:
    """The settings that differ, as "train.lr is 0.001, not 0.003". One that a stored run lacks had its default."""
    found = []
    for section, config in _SECTIONS.items():
        defaults = {field.name: field.default for field in fields(config)}
        for key, value in wanted.get(section, {}).items():
            before = stored.get(section, {}).get(key, defaults.get(key))
            if before != value:
                found.append(f"{section}.{key} is {before}, not {value}")
    return found


def label_of(overrides: Sequence[str], label: str | None) -> str:
    """What names the runs with these settings: the label given, or one made of the settings; "" for neither.

    Raises InputError for a label that cannot be part of a file's name.
    """
    if label is None:
        texts = [text.partition(".")[2] or text for text in overrides]
        return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(texts)).strip("-")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", label):
        raise InputError(f"--label {label}: use up to 80 letters, digits, dots, underscores and hyphens")
    return label
