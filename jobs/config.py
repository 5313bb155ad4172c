"""Every setting of the daily job: its type, default, bounds and description, and how it is read.

Precedence: `--set section.key=value` over `FUXI_SECTION__KEY` over the YAML file over the defaults here.
Unknown keys are refused with the nearest valid name.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fuxi_beta.config import (
    FAST_TEMPORAL,
    EvaluateConfig,
    Kernels,
    ModelConfig,
    TrainConfig,
    learn_from_before,
)
from pipelines import storage
from pipelines.calendar import REQUEST_HOUR
from pipelines.errors import InputError
from pipelines.logs.formats import FORMATS
from pipelines.logs.formats.base import CsvSpec, LogSpec
from pipelines.logs.formats.csv import one_character
from pipelines.logs.formats.values import NULL_TEXTS
from pipelines.redact import remember
from pipelines.schema import DS, OPTIONAL_COLUMNS, REQUIRED_COLUMNS

ENVIRONMENT_PREFIX = "FUXI_"
RENAMED = {"sequences.max_deltas": "sequences.max_increments"}
"""Keys of earlier releases: refused with the name to write now."""
_NEWER_SECTIONS = {"serving", "rules"}
"""Sections that run records of earlier releases do not know: they count where they are not the default."""
_NEWER_KEYS = {
    "logs": {"timestamp_unit", "partition", "csv", "catalogue_columns"},
    "recommend": {"reasons"},
    "model": {"side", "content", "content_channel", "periodic_channel", "interval_channel", "sparse_positions"},
    "train": {
        "target_window",
        "objective",
        "skip_weight",
        "random_windows",
        "negatives_from",
        "uniform_share",
        "logq",
        "completion_weight",
        "ema",
        "min_steps",
        "full_every_days",
    },
    "evaluate": {"baselines", "baseline_events", "baseline_songs"},
    "gates": {"floor", "serve_baseline"},
}
"""The same for single keys of older sections."""
_LIST_BOUNDS = {
    "max_empty_share",
    "max_short_share",
    "max_overlap",
    "min_artists",
    "max_artist_share",
    "min_novelty",
    "max_gini",
}
"""Bounds of `recommend` that earlier releases lack. They decide only whether lists are refused, and do not count."""
_OLDER_LIST_BOUNDS = {"serve_stale", "max_listener_drop", "max_fallback_share", "min_coverage", "max_top_share"}
"""What else decides only whether lists are refused. It counts in the hash of a run record, and in no stage's marker."""
_RULE_TABLES = {"song_lists", "feedback", "listeners"}
"""Where tables of rules are stored."""
_NO_RESULT: dict[str, Any] = {
    "workspace": True,
    "cluster": True,
    "mlflow": True,
    "quality": True,
    "maintain": True,
    "retain": True,
    "logs": {"path", "catalogue", "max_rejected_share"},
    "sequences": {"check_digests"},
}
"""Where things run and are stored, and bounds that decide only whether a day is refused."""


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CsvConfig(Section):
    """How CSV files are written; `null_values` holds for the texts of every format."""

    separator: str = Field("auto", description="auto: the one of , tab ; | that finds the columns in the header")
    quote: str = Field('"', description="around cells with separators or line ends; empty: none")
    escape: str = Field("", description="before a quote within a cell, for example a backslash (Spark, MySQL)")
    null_values: tuple[str, ...] = Field(NULL_TEXTS, description="texts that stand for no value")
    header: bool = Field(True, description="whether the first line has the columns' names")
    columns: tuple[str, ...] = Field((), description="names of the columns, for files without a header")

    @model_validator(mode="after")
    def _single_characters(self) -> "CsvConfig":
        if problem := one_character(CsvSpec(**self.model_dump())):
            raise ValueError(problem)
        if not self.header and not self.columns:
            raise ValueError("without a header, logs.csv.columns must name the columns")
        return self


class LogsConfig(Section):
    """Where the play logs are and how their columns map onto ours."""

    path: str = Field(
        "", description="folder of ds=YYYY-MM-DD/ folders by landing day, or a Delta table; local or s3://"
    )
    format: Literal["auto", *FORMATS] = Field("auto", description="auto: by file ending")  # type: ignore[valid-type]
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="our column -> the logs' column, for example {user_id: listener, timestamp: played_at}",
    )
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        "auto", description="of times that are numbers; auto: by the size of a landing day's first values"
    )
    partition: str | tuple[str, ...] = Field(
        DS, description="key of the folders that is the landing day, or several: [year, month, day]"
    )
    csv: CsvConfig = CsvConfig()  # type: ignore[call-arg]
    catalogue: str = Field("", description="folder of the optional catalogue table (item_id, title, artist_id, ...)")
    catalogue_columns: dict[str, str] = Field(
        default_factory=dict,
        description="our column -> the catalogue's, for example {title: name}; item_id: see columns",
    )
    play_events: tuple[str, ...] = Field(("play",), description="values of event_type that are plays")
    other_events: tuple[str, ...] = Field(("like", "pause", "seek"), description="known event types that are ignored")
    max_late_days: int = Field(60, ge=0, description="events older than this on their landing day are rejected")
    max_rejected_share: float = Field(0.25, ge=0, le=1, description="a day with more rejected rows is refused")

    @property
    def partition_keys(self) -> tuple[str, ...]:
        """`partition` as the keys that it names."""
        return (self.partition,) if isinstance(self.partition, str) else self.partition

    def spec(self, *, user_id_type: str, item_id_type: str) -> LogSpec:
        """Where the logs are and how to read them. The types of ids are a workspace's."""
        return LogSpec(
            **self.model_dump(include={"path", "format", "columns", "timestamp_unit"}),
            user_id_type=user_id_type,
            item_id_type=item_id_type,
            partition=self.partition_keys,
            csv=CsvSpec(**self.csv.model_dump()),
        )

    @field_validator("partition")
    @classmethod
    def _one_or_three_keys(cls, keys: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not keys or (not isinstance(keys, str) and len(keys) not in (1, 3)):
            raise ValueError("give one key whose values are dates, or three: of the year, the month and the day")
        return keys


class QualityConfig(Section):
    """When a day's input is refused; docs/data-quality.md. A share is between 0 and 1, and may equal its bound."""

    min_volume_ratio: float = Field(
        0.5, ge=0, le=1, description="least plays a landing day, as a multiple of the median of the last published days"
    )
    max_volume_ratio: float = Field(3.0, ge=1, description="most plays a landing day, as a multiple of that median")
    trailing_days: int = Field(28, ge=3, le=365, description="published days that say what is usual; 3 are needed")
    max_unknown_song_share: float = Field(
        0.5, ge=0, le=1, description="plays of songs without an index before the day; not judged on a first build"
    )
    max_age_s: int = Field(172_800, ge=1, description="seconds from the newest valid play to ds 00:00")
    max_null_share: float = Field(0.2, ge=0, le=1, description="rows without a value in a required column")
    max_null_shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="the same for columns of their own bound, for example {play_ms: 0.4}"
    )
    max_null_rise: float = Field(
        0.25, ge=0, le=1, description="how much above their median nulls of an optional column may be"
    )
    max_duplicate_share: float = Field(0.3, ge=0, le=1, description="accepted plays that were there already")
    min_plays: int = Field(
        200, ge=0, description="of a service with fewer plays a landing day only rejected rows are judged"
    )

    @field_validator("max_null_shares")
    @classmethod
    def _known_columns(cls, shares: dict[str, float]) -> dict[str, float]:
        columns = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
        for name in shares:
            if name not in columns:
                raise ValueError(f"{name} is no column: it must be one of {', '.join(columns)}")
        return shares


class SequencesConfig(Section):
    """How listeners' histories are kept."""

    timezone: str = "UTC"
    buckets: int = Field(256, description="user buckets, a power of two; fixed for the life of a workspace")
    max_history: int = Field(2000, ge=1, description="newest events kept per listener")
    row_group_events: int = Field(1_000_000, ge=1, description="events in a row group of a shard; training reads these")
    max_increments: int = Field(7, ge=0, description="days laid over a bucket before it is rewritten; 0: none")
    check_digests: bool = Field(
        False, description="compare each shard with its SHA-256 before it is read; its size and pages always are"
    )
    session_gap_s: int = Field(1800, ge=1, description="a longer pause starts a new session")
    user_id_type: Literal["int64", "string"] = "int64"
    item_id_type: Literal["int64", "string"] = "int64"


class GatesConfig(Section):
    """When a challenger may serve, and when a baseline serves instead of a model."""

    metric: str = "ndcg_30"
    margin: float = Field(0.05, ge=0, description="relative loss against the champion that is tolerated")
    best_of_days: int = Field(
        28,
        ge=1,
        description="more than twice the margin below the best of so many days is refused; each day's value counts "
        "relative to the baselines of that day",
    )
    floor: float = Field(
        0.95,
        ge=0,
        description="least share of the last full retrain's value on the same listeners; below it a challenger is "
        "refused and the next training is a full retrain",
    )
    serve_baseline: bool = Field(
        True, description="a baseline that is better than the model beyond noise serves the day instead"
    )


class ServingConfig(Section):
    """When lists are requested."""

    request_hour: int = Field(
        REQUEST_HOUR, ge=0, le=23, description="hour in sequences.timezone at which a day's lists are requested"
    )


class RecommendConfig(Section):
    """The daily list and the audit before it is published."""

    k: int = Field(30, ge=1)
    reasons: int = Field(2, ge=0, description="plays that are named as the reasons of a song; 0: none")
    active_days: int = Field(365, ge=1, description="listeners without an event for longer get no list")
    serve_stale: bool = Field(True, description="publish from the last good sequences when a day's input is refused")
    max_listener_drop: float = Field(0.5, description="audit: largest allowed fall of listeners against yesterday")
    max_fallback_share: float = Field(0.5, description="audit: largest allowed share of popular lists")
    min_coverage: float = Field(0.01, description="audit: least share of eligible songs in any list")
    max_top_share: float = Field(0.9, description="audit: largest share of lists one song may be in")
    max_empty_share: float = Field(0.05, ge=0, le=1, description="audit: largest share of lists without a song")
    max_short_share: float | None = Field(
        None, ge=0, le=1, description="audit: largest share of lists with fewer songs than k; null: any"
    )
    max_overlap: float = Field(
        0.9, ge=0, le=1, description="audit: largest mean share of a list that was in the listener's list before"
    )
    min_artists: float | None = Field(None, ge=0, description="audit: least mean number of artists a list; null: any")
    max_artist_share: float | None = Field(
        None, ge=0, le=1, description="audit: largest mean share of a list by its commonest artist; null: any"
    )
    min_novelty: float | None = Field(None, ge=0, description="audit: least mean novelty of a song, bits; null: any")
    max_gini: float | None = Field(
        None, ge=0, le=1, description="audit: largest Gini coefficient of lists by song; null: any"
    )


class SegmentRules(Section):
    """What is otherwise for the listeners of a segment; what is not given is as for everybody."""

    explicit: bool | None = None
    max_per_artist: Annotated[int, Field(ge=0)] | Literal["auto"] | None = None
    new_releases: int | None = Field(None, ge=0)
    popularity_dampening: float | None = Field(None, ge=0)
    explore: int | None = Field(None, ge=0)


class RulesConfig(Section):
    """Which songs may stand in a list: docs/lists.md has an example of each."""

    heard_days: Annotated[int, Field(ge=0)] | Literal["ever", "auto"] = Field(
        "auto", description="no song heard in so many days; auto: ever where train.mode is exclusive, else 0"
    )
    listed_days: int = Field(7, ge=0, le=60, description="no song of the listener's lists of so many days before")
    one_version: bool | Literal["auto"] = Field(
        "auto", description="songs of one work_id count as one; auto: where the catalogue has the column"
    )
    max_per_artist: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="songs by one artist; 0: any number; auto: 2 where the catalogue has artist_id"
    )
    space_artists: bool = Field(True, description="no two neighbours by one artist where that can be helped")
    explicit: bool = Field(True, description="whether songs may be listed that the catalogue calls explicit")
    song_lists: str = Field(
        "", description="table of songs and artists that are blocked, or the only ones allowed, for all or a segment"
    )
    feedback: str = Field("", description="table of likes and dislikes of songs and artists by listeners")
    listeners: str = Field("", description="table of listeners and their segments")
    segments: dict[str, SegmentRules] = Field(
        default_factory=dict, description="segment: what is otherwise for it, for example {kids: {explicit: false}}"
    )
    new_releases: int = Field(0, ge=0, description="songs of the last new_release_days that come first")
    new_release_days: int = Field(30, ge=1)
    new_release_min_score: float = Field(0.0, description="score that a new release needs to come first")
    popularity_dampening: float = Field(
        0.0, ge=0, description="what the most popular song loses of its score; others lose less"
    )
    max_known_share: float = Field(1.0, ge=0, le=1, description="share of songs that the listener has heard")
    explore: int = Field(0, ge=0, description="places of a list whose songs are drawn at random")
    explore_pool: int = Field(200, ge=1, description="... from so many songs behind the list")
    explore_seed: int = 0
    max_rejected_share: float = Field(
        0.25, ge=0, le=1, description="a table of rules with more rows that cannot be used is refused"
    )

    @field_validator("segments")
    @classmethod
    def _free_names(cls, segments: dict[str, SegmentRules]) -> dict[str, SegmentRules]:
        for name in segments:
            if name in ("", "all", "default"):
                raise ValueError(f"{name!r} cannot be the name of a segment: tables call everybody so")
        return segments

    def of(self, segment: str) -> "RulesConfig":
        """The rules for a segment; those for everybody if it is not defined."""
        if segment not in self.segments:
            return self
        return self.model_copy(update=self.segments[segment].model_dump(exclude_none=True))


class MaintainConfig(Section):
    """How the Delta tables are kept small; docs/maintain.md."""

    every_days: int = Field(7, ge=0, description="`fuxi daily` does it on every so manieth ds, 7: Sundays; 0: never")
    retention_hours: int = Field(168, description="versions of tables and files of killed runs stay so long; 48 to 720")

    @field_validator("retention_hours")
    @classmethod
    def _no_reader_is_broken(cls, hours: int) -> int:
        if hours < 48:
            raise ValueError("readers of yesterday's version and runs in progress need their files: give 48 or more")
        if hours > 720:
            raise ValueError("the Delta log knows versions of the last 30 days only: give 720 or less")
        return hours


class RetainConfig(Section):
    """How many days are kept of what a workspace stores; 0: all of them. docs/workspace.md says what is lost."""

    in_daily: bool = Field(
        False, description="`fuxi daily` applies the bounds after its report; else `fuxi retain` does"
    )
    scratch_days: int = Field(7, ge=0, description="checkpoints and exports of finished trainings")
    sequences_days: int = Field(0, ge=0, description="shards that no kept day reads")
    lists_days: int = Field(0, ge=0, description="lists; at least 8, and more than rules.listed_days")
    quarantine_days: int = Field(0, ge=0, description="rejected rows")
    reports_days: int = Field(0, ge=0, description="pages")
    models_days: int = Field(0, ge=0, description="versions that serve no day with a run record, and are no alias")
    runs_days: int = Field(0, ge=0, description="run records and markers; more than gates.best_of_days")


class ClusterConfig(Section):
    """Engines. The defaults run everything on this machine and listen on loopback only."""

    spark_master: str = Field("", description="where Spark runs; empty: where spark-submit says, else local[*]")
    spark_driver_memory: str = "1g"
    spark_options: dict[str, str] = Field(default_factory=dict, description="passed to Spark as they are")
    ray_address: str = Field("local", description='"local", or the address of a running cluster')
    ray_object_store_mb: int = Field(512, ge=75, description="shared memory of the local Ray; 75 is its least")
    train_workers: int = Field(1, ge=1)
    train_cpus_per_worker: int = Field(1, ge=1)
    train_gpus_per_worker: int = Field(0, ge=0)
    recommend_gpus_per_task: float = Field(
        0.0, ge=0, le=1, description="share of a GPU that a task of the daily list takes; 0: none"
    )
    max_failures: int = Field(3, ge=0, description="worker deaths a training run survives")
    stall_minutes: float = Field(
        30.0, ge=0, description="a stage without any progress for so long is ended and begun again; 0: never"
    )
    stage_retries: int = Field(
        2, ge=0, description="how often a command begins a stage again after a process died or it stood still"
    )
    kernels: Kernels = Field(
        "auto", description="operators of the model: the fastest there is, plain torch, or one kind or failure"
    )


class MlflowConfig(Section):
    """The model registry."""

    tracking_uri: str = Field("", description="empty: sqlite beside a local workspace; required for s3:// workspaces")
    model_name: str = "fuxi-beta-daily"


class Config(Section):
    """All sections."""

    workspace: str = "./workspace"
    deterministic: bool = Field(True, description="same inputs, same lists, bit by bit, at equal worker counts")
    logs: LogsConfig = LogsConfig()  # type: ignore[call-arg]
    quality: QualityConfig = QualityConfig()  # type: ignore[call-arg]
    sequences: SequencesConfig = SequencesConfig()  # type: ignore[call-arg]
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gates: GatesConfig = GatesConfig()  # type: ignore[call-arg]
    serving: ServingConfig = ServingConfig()  # type: ignore[call-arg]
    recommend: RecommendConfig = RecommendConfig()  # type: ignore[call-arg]
    rules: RulesConfig = RulesConfig()  # type: ignore[call-arg]

    maintain: MaintainConfig = MaintainConfig()  # type: ignore[call-arg]
    retain: RetainConfig = RetainConfig()  # type: ignore[call-arg]
    cluster: ClusterConfig = ClusterConfig()  # type: ignore[call-arg]
    mlflow: MlflowConfig = MlflowConfig()  # type: ignore[call-arg]

    def hash(self) -> str:
        """Digest of the settings that decide what is computed."""
        return hashlib.sha256(json.dumps(self.hashed(), sort_keys=True).encode()).hexdigest()[:16]

    def hashed(self) -> dict[str, Any]:
        """The settings that decide what is computed.

        Where it runs and how it is stored does not count, nor do bounds that decide only whether a day is refused. A
        renamed key counts under its old name, so that a day begun with an earlier release is finished with this one.
        """
        left_out = {
            **_NO_RESULT,
            **dict.fromkeys(_NEWER_SECTIONS, True),
            **_NEWER_KEYS,
            "logs": {"path", "catalogue", "max_rejected_share"} | _NEWER_KEYS["logs"],
            "recommend": _LIST_BOUNDS | _NEWER_KEYS["recommend"],
        }
        content = self.model_dump(mode="json", exclude=left_out)  # type: ignore[arg-type]
        if self.train.learn_from == learn_from_before(self.train.mode):
            del content["train"]["learn_from"]  # an earlier release did the same without having the key
        for old, new in RENAMED.items():
            (old_section, old_key), (section, key) = old.split("."), new.split(".")
            if key in content.get(section, {}):
                content.setdefault(old_section, {})[old_key] = content[section].pop(key)
        included = {**dict.fromkeys(_NEWER_SECTIONS, True), **_NEWER_KEYS}
        newer = self.model_dump(mode="json", include=included, exclude_defaults=True)  # type: ignore[arg-type]
        for key in _RULE_TABLES:
            newer.get("rules", {}).pop(key, None)
        return content | {section: content.get(section, {}) | values for section, values in newer.items() if values}

    def counted(self) -> dict[str, Any]:
        """The settings that decide what is computed, by their names: "train.epochs" -> 3. Stage markers name them."""
        bounds = {"recommend": _LIST_BOUNDS | _OLDER_LIST_BOUNDS, "rules": _RULE_TABLES}
        content = self.model_dump(mode="json", exclude=_NO_RESULT | bounds)  # type: ignore[arg-type]
        sections = {section: values for section, values in content.items() if isinstance(values, dict)}
        flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
        return flat | {key: value for key, value in content.items() if key not in sections}


def load_config(
    file: str | None = None,
    *,
    overrides: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    values: Mapping[str, Any] | None = None,
) -> Config:
    """Read the configuration. `overrides` are "section.key=value" texts; values are YAML, or text as it is typed.

    values: sections in place of a file's.

    Raises InputError with one line that names the source, the key, what was found and the remedy.
    """
    merged: dict[str, Any] = {}
    if values:
        _merge(merged, dict(values), source="values")
    if file:
        _merge(merged, _read_yaml(file), source=file)
    for key, value in sorted((os.environ if environment is None else environment).items()):
        if key.startswith(ENVIRONMENT_PREFIX):
            path = key.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            _merge(merged, _nest(path, value), source=f"environment variable {key}")
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"--set {text!r}: write it as section.key=value, for example --set train.epochs=3")
        _merge(merged, _nest(key.split("."), value), source=f"--set {text}")
    remember(merged)
    try:
        config = Config(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "configuration"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {message} (found {first.get('input')!r})") from None
    _check_model(config)
    return config


def _check_model(config: Config) -> None:
    """Refuse an unknown model, or options that it does not offer, before any stage runs."""
    model, train = config.model, config.train
    if model.name == ModelConfig.name and model.temporal in FAST_TEMPORAL:
        return  # it offers everything, so torch need not be imported
    from fuxi_beta import models

    try:
        models.system(model.name)
    except ValueError as error:
        raise InputError(str(error)) from None
    for name, on in (("train.precision=bf16", train.precision == "bf16"), ("train.compile=true", train.compile)):
        if on:
            raise InputError(
                f"{name}: only fuxi-beta with temporal {' or '.join(FAST_TEMPORAL)} offers it, not {model.name} here"
            )


def _read_yaml(file: str) -> dict[str, Any]:
    uri = storage.absolute(file)
    try:
        storage.check_reachable(uri)
        content = yaml.safe_load(storage.read_bytes(uri))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"configuration file {file} {reason}: correct --config") from None
    except InputError as error:
        raise InputError(f"configuration file {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"configuration file {file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise InputError(f"configuration file {file} must be a mapping of sections, found {type(content).__name__}")
    return content or {}


def _nest(path: list[str], value: str) -> dict[str, Any]:
    """A value below its keys: _nest(["train", "epochs"], "3") is {"train": {"epochs": 3}}.

    Settings that are text stay as they are typed, for example `ws/run #1`, 2026 or on; others are YAML.
    """
    kind: Any = Config
    for key in path:
        kind = _hints(kind).get(key) if _keys(kind) else None
    nested: Any = value
    if kind is not str and not (kind == str | None and value != "null"):
        loader = yaml.BaseLoader if _only_text(kind) else yaml.SafeLoader  # in lists of texts, too, 2026 is a text
        try:
            nested = yaml.load(value, loader)
        except yaml.YAMLError:
            nested = value
    for key in reversed(path):
        nested = {key: nested}
    return nested


def _hints(section: Any) -> dict[str, Any]:
    """The types of a section's settings."""
    fields = getattr(section, "model_fields", None)
    return {name: field.annotation for name, field in fields.items()} if fields else get_type_hints(section)


def _only_text(kind: Any) -> bool:
    """Whether a type is of lists or maps of texts and nothing else."""
    inner = [argument for argument in get_args(kind) if argument is not Ellipsis]
    return bool(inner) and all(argument is str or _only_text(argument) for argument in inner)


def _merge(into: dict[str, Any], new: dict[str, Any], *, source: str, section: Any = None, prefix: str = "") -> None:
    """Check `new`'s keys against the schema and lay it over `into`."""
    hints = _hints(section or Config)
    for key, value in new.items():
        _check_key(key, hints, prefix=prefix, source=source)
        if _keys(hints[key]) is None:
            into[key] = value
            continue
        if not isinstance(value, dict):
            raise InputError(f"{source}: {prefix}{key} is a section of settings, found {value!r}")
        _merge(into.setdefault(key, {}), value, source=source, section=hints[key], prefix=f"{prefix}{key}.")


def _check_key(key: str, valid: Collection[str], *, prefix: str, source: str) -> None:
    if key in valid:
        return
    if new := RENAMED.get(f"{prefix}{key}"):
        raise InputError(f"{source}: {prefix}{key} is now called {new}: rename it")
    near = difflib.get_close_matches(str(key), list(valid), n=1, cutoff=0.0)
    raise InputError(f"{source}: unknown key {prefix}{key}: did you mean {prefix}{near[0]}?")


def _keys(section: Any) -> Collection[str] | None:
    """The keys of a section, a model of pydantic or a dataclass of `fuxi_beta.config`; None for a single value."""
    return getattr(section, "model_fields", None) or getattr(section, "__dataclass_fields__", None)
