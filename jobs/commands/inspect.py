"""`fuxi inspect`: what play logs are like before the first run, and the configuration that reads them."""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.config import Config, load_config
from pipelines import storage
from pipelines.errors import InputError
from pipelines.logs.formats.base import AUTO, LogFile, LogSpec
from pipelines.logs.inspection import columns, dialect, layout, mapping, trial
from pipelines.logs.validate import ValidationRules
from pipelines.redact import visible
from pipelines.schema import DS, EVENT_TYPE, OPTIONAL_COLUMNS, REQUIRED_COLUMNS

ROWS, FILES = 10_000, 20
_GUESSED = {"logs", "sequences"}
"""Sections whose settings are guessed unless they are said."""
_LATEST = dt.date(2100, 1, 1)


@dataclass(frozen=True)
class Inspection:
    """All that was found. `problem` is empty if the settings read the sample."""

    layout: layout.Layout
    sampled: list[LogFile]
    rows_each: int
    profiles: list[columns.Profile]
    mapping: mapping.Mapping
    settings: dict[str, Any]  # sections of a configuration
    trial: trial.Trial
    notes: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class _Read:
    """Samples of files, and what was guessed and found out while they were read."""

    spec: LogSpec  # with the dialect of the CSV files
    samples: list[columns.Sample]
    notes: tuple[str, ...]
    problem: str


def given_settings(file: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The sections that a file and `--set` say. Environment variables are left out: secrets are kept in them."""
    config = load_config(file, overrides=overrides, environment={})
    said = config.model_dump(mode="json", exclude_unset=True)
    changed = config.model_dump(mode="json", exclude_defaults=True)
    for name in said.keys() - _GUESSED:  # the model's are dataclasses, which do not know what was said
        said[name] = changed.get(name)
    return {name: value for name, value in said.items() if value is not None}


def run(path: str, given: dict[str, Any], *, rows: int = ROWS, files: int = FILES) -> Inspection:
    """Look at the logs at a path. given: sections of a configuration whose settings are kept and not guessed.

    No engine is started and nothing is written. Raises InputError if nothing is there, or no file can be read.
    """
    config = load_config(values=given, environment={})
    said = given.get("logs", {})
    start = _spec(config)
    found = layout.look(path, start, partition_is_given="partition" in said)
    sampled = layout.choose(found, files)
    if not sampled:
        raise InputError(f"all files below {found.path} are empty: correct the path")
    spec = dataclasses.replace(start, path=found.path, format=found.format, partition=found.partition)
    read = _read(spec, sampled, rows)
    profiles = columns.profiles(read.samples, until=_until(found), null_texts=spec.csv.null_values)
    events = (*said.get("play_events", ()), *said.get("other_events", ()))
    guessed = mapping.guess(profiles, files=len(read.samples), given=said.get("columns", {}), events=events)
    settings = _settings(found, read.spec, guessed, given)
    final = load_config(values=settings, environment={})
    problem = read.problem or guessed.problem
    tried = trial.Trial()
    if not problem:
        # An empty file may be one that the job refuses.
        empty = [file for file in found.files if not file.size][:1]
        tried = trial.read(_spec(final), _rules(final), [*sampled, *empty], rows=rows)
    notes = (*found.notes, *read.notes, *guessed.notes, *_notes_of_trial(tried, final))
    problem = found.problem or problem or _verdict(tried, final)
    lines = tuple(visible(note) for note in notes)
    return Inspection(found, sampled, rows, profiles, guessed, settings, tried, lines, visible(problem))


def _spec(config: Config) -> LogSpec:
    types = {name: getattr(config.sequences, name) for name in ("user_id_type", "item_id_type")}
    return config.logs.spec(**types)


def _rules(config: Config) -> ValidationRules:
    configured = config.logs.model_dump(include={"play_events", "other_events", "max_late_days"})
    return ValidationRules(**configured, timezone=config.sequences.timezone)


def _until(found: layout.Layout) -> int:
    """The Unix second before which times are plausible: two days behind the last landing day."""
    newest = dt.date.fromisoformat(found.landing_days[-1]) if found.landing_days else _LATEST
    return ((newest - dt.date(1970, 1, 1)).days + 2) * 86_400


def _read(spec: LogSpec, files: Sequence[LogFile], rows: int) -> _Read:
    """Sample files; those that cannot be read are left to the trial, unless it is all of them."""
    notes: tuple[str, ...] = ()
    problem = first_error = ""
    samples: list[columns.Sample] = []
    guessed = False
    for file in files:
        try:
            if not guessed and layout.is_csv(spec, file):
                guess = dialect.guess(file, spec)
                spec, notes, problem, guessed = (
                    dataclasses.replace(spec, csv=guess.csv),
                    guess.notes,
                    guess.problem,
                    True,
                )
            samples.append(columns.sample(spec, file, rows))
        except InputError as error:
            first_error = first_error or str(error)
    if not samples:
        raise InputError(first_error)
    return _Read(spec, samples, notes, problem)


def _settings(found: layout.Layout, spec: LogSpec, guessed: mapping.Mapping, given: dict[str, Any]) -> dict[str, Any]:
    """The sections that read these logs: what is given, and of the rest what is not the default."""
    logs: dict[str, Any] = {"path": found.path}
    if found.partition != (DS,):
        logs["partition"] = found.partition[0] if len(found.partition) == 1 else list(found.partition)
    if found.format != AUTO:
        logs["format"] = found.format
    named = {name: column for name, column in guessed.columns.items() if name != column}
    if named:
        logs["columns"] = {name: named[name] for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if name in named}
    if csv := _csv_settings(spec, guessed):
        logs["csv"] = csv
    default = load_config(environment={}).logs
    if EVENT_TYPE in guessed.columns:
        if guessed.play_events and set(guessed.play_events) != set(default.play_events):
            logs["play_events"] = list(guessed.play_events)
        if set(guessed.other_events) - set(default.other_events):
            logs["other_events"] = list(dict.fromkeys((*default.other_events, *guessed.other_events)))
    if guessed.unchosen_sources:
        logs["unchosen_sources"] = list(guessed.unchosen_sources)
    types = {"user_id_type": guessed.user_id_type, "item_id_type": guessed.item_id_type}
    sequences = {name: type_ for name, type_ in types.items() if type_ != "int64"}
    merged = {"workspace": "./workspace", **given}
    merged["logs"] = logs | given.get("logs", {}) | {"path": found.path}
    if "columns" in logs:
        merged["logs"]["columns"] = logs["columns"] | given.get("logs", {}).get("columns", {})
    if "csv" in logs:
        merged["logs"]["csv"] = logs["csv"] | given.get("logs", {}).get("csv", {})
    if sequences or "sequences" in given:
        merged["sequences"] = sequences | given.get("sequences", {})
    return merged


def _csv_settings(spec: LogSpec, guessed: mapping.Mapping) -> dict[str, Any]:
    """What of the dialect is not found by itself."""
    default, csv = type(spec.csv)(), spec.csv
    changed = {
        field.name: getattr(csv, field.name)
        for field in dataclasses.fields(csv)
        if getattr(csv, field.name) != getattr(default, field.name)
    }
    if changed.get("separator") == "," and not csv.columns:
        del changed["separator"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def _notes_of_trial(tried: trial.Trial, config: Config) -> list[str]:
    notes = []
    if tried.late_days:
        notes.append(
            f"rows are up to {tried.late_days:,} days older than the day on which they landed: logs.max_late_days: "
            f"{tried.late_days} takes them all, as a first dump of history may need"
        )
    units = sorted(set(tried.units.values()))
    if len(units) > 1:
        notes.append(
            f"times that are numbers are in {' and '.join(units)}, by landing day: logs.timestamp_unit: auto reads both"
        )
    if tried.accepted and tried.duplicates / tried.accepted >= 0.01:
        share, bound = tried.duplicates / tried.accepted, config.quality.max_duplicate_share
        allowed = f"; quality.max_duplicate_share allows {bound:.0%}" if share > bound else ""
        notes.append(f"{share:.0%} of the sampled plays repeat another (same listener, song and second){allowed}")
    return notes


def _verdict(tried: trial.Trial, config: Config) -> str:
    """Why these settings do not read the sample, in one line; "" if they do."""
    bound = config.logs.max_rejected_share
    if tried.refused:
        more = f" (and {len(tried.refused) - 1} more files of the sample)" if len(tried.refused) > 1 else ""
        return f"{tried.refused[0]}{more}"
    if not tried.rows:
        return "the sampled files have no rows: correct the path"
    if tried.rejected_share > bound:
        reason, count = tried.rejected.most_common(1)[0]
        example = tried.examples.get(reason, "")
        return (
            f"{tried.rejected_share:.1%} of the sampled rows would be rejected, logs.max_rejected_share allows "
            f"{bound:.0%}; most ({count:,}) as {reason}{f': {example}' if example else ''}"
        )
    if not tried.accepted:
        return "no row of the sample is a play: see logs.play_events and logs.other_events"
    return ""


def settings_as_yaml(settings: dict[str, Any]) -> str:
    """Sections of a configuration as text."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def as_yaml(inspection: Inspection) -> str:
    """The configuration as a file: what it was made from, the settings, and as comments what is to be known."""
    sampled, files = len(inspection.sampled), len(inspection.layout.files)
    head = [
        f"Made by `fuxi inspect` from the first {inspection.rows_each:,} rows of {sampled:,} of {files:,} files.",
        *inspection.notes,
    ]
    comments = "".join(f"# {line}\n" for line in head)
    return comments + settings_as_yaml(inspection.settings)


def write(inspection: Inspection, file: str, *, force: bool = False) -> None:
    """Write the configuration. InputError if it does not read the sample, or if the file is there and not `force`."""
    if inspection.problem:
        raise InputError(f"{file} is not written: {inspection.problem}")
    uri = storage.absolute(file)
    if storage.exists(uri) and not force:
        raise InputError(f"{file} is there already and is not replaced: give another name, or --force")
    storage.write_bytes(uri, as_yaml(inspection).encode())
