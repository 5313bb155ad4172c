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
    Days,
    EvaluateConfig,
    Hours,
    Kernels,
    Mebibytes,
    Minutes,
    ModelConfig,
    Plays,
    Seconds,
    Share,
    Songs,
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
from pipelines.schema import DS, OPTIONAL_COLUMNS, PLAY_SOURCE, REQUIRED_COLUMNS

ENVIRONMENT_PREFIX = "FUXI_"
RENAMED = {"sequences.max_deltas": "sequences.max_increments"}
"""Keys of earlier releases: refused with the name to write now."""
_NEWER_SECTIONS = {"serving", "rules"}
"""Sections that run records of earlier releases do not know: they count where they are not the default."""
_NEWER_KEYS = {
    "logs": {"timestamp_unit", "partition", "csv", "catalogue_columns", "unchosen_sources"},
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
        "incremental",
        "unchosen_weight",
        "max_rollbacks",
        "spike_factor",
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
    "log_format": True,
    "metrics": True,
    "lineage": True,
    "logs": {"path", "catalogue", "max_rejected_share"},
    "sequences": {"check_digests"},
}
"""Where things run and are stored, and bounds that decide only whether a day is refused."""


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CsvConfig(Section):
    """How CSV files are written; `logs.csv.null_values` is for the texts of every format."""

    separator: str = Field(
        "auto", description="one character; auto: the one of comma, tab, semicolon and bar that finds the columns"
    )
    quote: str = Field('"', description="around cells that contain separators or line ends; empty: none")
    escape: str = Field("", description="before a quote within a cell, for example a backslash (Spark, MySQL)")
    null_values: tuple[str, ...] = Field(NULL_TEXTS, description="texts that stand for no value, in every format")
    header: bool = Field(True, description="whether the first line has the names of the columns")
    columns: tuple[str, ...] = Field((), description="names of the columns, for files without a header")

    @model_validator(mode="after")
    def _single_characters(self) -> "CsvConfig":
        if problem := one_character(CsvSpec(**self.model_dump())):
            raise ValueError(problem)
        if not self.header and not self.columns:
            raise ValueError("without a header, logs.csv.columns must name the columns")
        return self


class LogsConfig(Section):
    """Where the play logs are and what their columns are called (docs/own-logs.md)."""

    path: str = Field(
        "",
        description="folder with a `ds=YYYY-MM-DD/` folder for each landing day, the date on which the files in it "
        "arrived; or a Delta table; local or `s3://`",
    )
    format: Literal["auto", *FORMATS] = Field("auto", description="auto: by the endings of the files")  # type: ignore[valid-type]
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="our column: the logs' column, for example `{user_id: listener, timestamp: played_at}`",
    )
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        "auto", description="unit of times that are numbers; auto: by the size of the first values of a landing day"
    )
    partition: str | tuple[str, ...] = Field(
        DS,
        description="key of the folders whose value is the landing day; or three keys, for example "
        "`[year, month, day]`",
    )
    csv: CsvConfig = CsvConfig()  # type: ignore[call-arg]
    catalogue: str = Field(
        "", description="folder of the optional catalogue table (item_id, title, artist_id, artist, ...)"
    )
    catalogue_columns: dict[str, str] = Field(
        default_factory=dict,
        description="our column: the catalogue's, for example `{title: name}`; item_id is named by `logs.columns`",
    )
    play_events: tuple[str, ...] = Field(("play",), description="values of event_type that are plays")
    other_events: tuple[str, ...] = Field(
        ("like", "pause", "seek"), description="values of event_type that are known and ignored"
    )
    unchosen_sources: tuple[str, ...] = Field(
        (),
        description="values of play_source of plays that listeners did not choose, for example `[shuffle, "
        "recommended]`; empty: the column is not read (docs/own-logs.md#plays-that-nobody-chose)",
    )
    max_late_days: Days = Field(60, ge=0, description="events that are older when they land are rejected")
    max_rejected_share: Share = Field(
        0.25, ge=0, le=1, description="a day with a larger share of rejected rows is refused"
    )

    @property
    def partition_keys(self) -> tuple[str, ...]:
        """`partition` as the keys that it names."""
        return (self.partition,) if isinstance(self.partition, str) else self.partition

    def spec(self, *, user_id_type: str, item_id_type: str) -> LogSpec:
        """Where the logs are and how to read them. The types of ids are a workspace's."""
        return LogSpec(
            **self.model_dump(include={"path", "format", "columns", "timestamp_unit", "unchosen_sources"}),
            user_id_type=user_id_type,
            item_id_type=item_id_type,
            partition=self.partition_keys,
            csv=CsvSpec(**self.csv.model_dump()),
        )

    @model_validator(mode="after")
    def _sources_are_told_apart(self) -> "LogsConfig":
        if PLAY_SOURCE in self.columns and not self.unchosen_sources:
            raise ValueError(
                f"columns names {PLAY_SOURCE}, but unchosen_sources is empty, so nothing reads it: list the values of "
                f"{self.columns[PLAY_SOURCE]} that mean that the listener did not choose the play"
            )
        return self

    @field_validator("partition")
    @classmethod
    def _one_or_three_keys(cls, keys: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not keys or (not isinstance(keys, str) and len(keys) not in (1, 3)):
            raise ValueError("give one key whose values are dates, or three: of the year, the month and the day")
        return keys


class QualityConfig(Section):
    """When a day's input is refused (docs/data-quality.md). A value may equal its bound."""

    min_volume_ratio: float = Field(
        0.5, ge=0, le=1, description="least plays per landing day, relative to the median of the last published days"
    )
    max_volume_ratio: float = Field(3.0, ge=1, description="most plays per landing day, relative to that median")
    trailing_days: Days = Field(
        28, ge=3, le=365, description="published days of which the median is taken; at least 3 must be there"
    )
    max_unknown_song_share: Share = Field(
        0.5, ge=0, le=1, description="plays of songs that were not known before the day; not checked on a first build"
    )
    max_age_s: Seconds = Field(172_800, ge=1, description="from the newest valid play to the start of the serving day")
    max_null_share: Share = Field(0.2, ge=0, le=1, description="rows without a value in a required column")
    max_null_shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="the same for single columns, for example `{play_ms: 0.4}`"
    )
    max_null_rise: Share = Field(
        0.25, ge=0, le=1, description="how far the share of nulls of an optional column may be above its median"
    )
    max_duplicate_share: Share = Field(0.3, ge=0, le=1, description="accepted plays that were stored already")
    min_plays: Plays = Field(
        200, ge=0, description="with fewer plays per landing day only plays and rejected rows are checked"
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
    """How histories are kept. Time zone, buckets and types of ids are fixed for the life of a workspace."""

    timezone: str = Field("UTC", description="IANA name of the time zone in which days begin")
    buckets: int = Field(256, description="number of hash buckets of listeners, a power of two")
    max_history: Plays = Field(2000, ge=1, description="newest plays that are kept of a listener")
    row_group_events: Plays = Field(
        1_000_000, ge=1, description="in a row group of a shard, the unit in which training reads"
    )
    max_increments: Days = Field(
        7, ge=0, description="increments that a bucket may have before it is rewritten; 0: it is rewritten every day"
    )
    check_digests: bool = Field(
        False,
        description="whether each shard is compared with its SHA-256 before it is read, once a process; its size and "
        "the checksums of its pages always are (docs/workspace.md#damage)",
    )
    session_gap_s: Seconds = Field(1800, ge=1, description="a longer pause starts a new session")
    user_id_type: Literal["int64", "string"] = Field("int64", description="type of the listeners' ids")
    item_id_type: Literal["int64", "string"] = Field("int64", description="type of the songs' ids")


class GatesConfig(Section):
    """When a challenger may serve, and when a baseline does in its place (docs/day.md#gates)."""

    metric: str = Field("ndcg_30", description="metric by which is decided")
    margin: float = Field(0.05, ge=0, description="relative loss against the champion that is tolerated")
    best_of_days: Days = Field(
        28,
        ge=1,
        description="a challenger that is more than twice the margin below the best of so many days is refused; each "
        "day's value is taken relative to the baselines of that day",
    )
    floor: float = Field(
        0.95,
        ge=0,
        description="least value relative to that of the last full retrain on the same listeners; a challenger below "
        "it is refused, and the next training starts from random weights",
    )
    serve_baseline: bool = Field(
        True,
        description="whether a baseline that is significantly better than the model serves the day "
        "(docs/day.md#never-worse-than-a-baseline)",
    )


class ServingConfig(Section):
    """When lists are requested."""

    request_hour: int = Field(
        REQUEST_HOUR,
        ge=0,
        le=23,
        description="hour of the day, in `sequences.timezone`, at which the day's lists are requested; an exported "
        "model keeps the hour that it was trained for",
    )


class RecommendConfig(Section):
    """The daily list, and the audit before it is published."""

    k: Songs = Field(30, ge=1, description="length of a list")
    reasons: Plays = Field(2, ge=0, description="named as the reasons of a song; 0: none (docs/lists.md#reasons)")
    active_days: Days = Field(365, ge=1, description="a listener without a play for longer gets no list of their own")
    serve_stale: bool = Field(
        True, description="whether lists are made from the last good histories when a day's input is refused"
    )
    max_listener_drop: Share = Field(
        0.5, description="audit: largest drop of the number of listeners from the day before"
    )
    max_fallback_share: Share = Field(0.5, description="audit: largest share of lists of popular songs")
    min_coverage: Share = Field(0.01, description="audit: least share of the eligible songs that are in any list")
    max_top_share: Share = Field(0.9, description="audit: largest share of lists that one song may be in")
    max_empty_share: Share = Field(0.05, ge=0, le=1, description="audit: largest share of lists without a song")
    max_short_share: Share | None = Field(
        None, ge=0, le=1, description="audit: largest share of lists with fewer songs than `recommend.k`; null: any"
    )
    max_overlap: Share = Field(
        0.9, ge=0, le=1, description="audit: largest mean share of a list that was in the listener's list before"
    )
    min_artists: float | None = Field(None, ge=0, description="audit: least mean number of artists per list; null: any")
    max_artist_share: Share | None = Field(
        None, ge=0, le=1, description="audit: largest mean share of a list by its most frequent artist; null: any"
    )
    min_novelty: float | None = Field(
        None, ge=0, description="audit: least mean novelty of a listed song, in bits; null: any"
    )
    max_gini: float | None = Field(
        None, ge=0, le=1, description="audit: largest Gini coefficient of lists by song; null: any"
    )


class SegmentRules(Section):
    """The rules that differ for the listeners of a segment; what is not given is as for everybody."""

    explicit: bool | None = Field(None, description="as `rules.explicit`")
    max_per_artist: Annotated[int, Field(ge=0)] | Literal["auto"] | None = Field(
        None, description="as `rules.max_per_artist`"
    )
    new_releases: int | None = Field(None, ge=0, description="as `rules.new_releases`")
    popularity_dampening: float | None = Field(None, ge=0, description="as `rules.popularity_dampening`")
    explore: int | None = Field(None, ge=0, description="as `rules.explore`")


class RulesConfig(Section):
    """Which songs may be in a list (docs/lists.md has an example of each rule)."""

    heard_days: Annotated[int, Field(ge=0)] | Literal["ever", "auto"] = Field(
        "auto",
        description="no song that the listener played in so many days, or ever; auto: ever where `train.mode` is "
        "exclusive, else 0",
    )
    listed_days: Days = Field(7, ge=0, le=60, description="no song of the listener's lists of so many days before")
    one_version: bool | Literal["auto"] = Field(
        "auto", description="whether songs with one work_id count as one; auto: if the catalogue has that column"
    )
    max_per_artist: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="most songs by one artist; 0: any number; auto: 2 if the catalogue has artist_id"
    )
    space_artists: bool = Field(
        True, description="whether songs by one artist are moved apart where the list allows it"
    )
    explicit: bool = Field(True, description="whether songs that the catalogue marks as explicit may be listed")
    song_lists: str = Field(
        "",
        description="table of songs and artists that are blocked, or the only ones allowed, for everybody or a segment",
    )
    feedback: str = Field("", description="table of likes and dislikes of songs and artists by listeners")
    listeners: str = Field("", description="table of listeners and their segments")
    segments: dict[str, SegmentRules] = Field(
        default_factory=dict,
        description="segment: the rules that differ for it, for example `{kids: {explicit: false}}`; it may have "
        "explicit, max_per_artist, new_releases, popularity_dampening and explore",
    )
    new_releases: Songs = Field(
        0, ge=0, description="released in the last `rules.new_release_days` days that come first in a list"
    )
    new_release_days: Days = Field(30, ge=1, description="a song is a new release for so long")
    new_release_min_score: float = Field(0.0, description="score that a new release needs to come first")
    popularity_dampening: float = Field(
        0.0, ge=0, description="what the most popular song loses of its score; others lose less"
    )
    max_known_share: Share = Field(
        1.0, ge=0, le=1, description="most songs of a list that the listener has played, where lists may repeat songs"
    )
    explore: Songs = Field(0, ge=0, description="of a list that are drawn at random, to explore")
    explore_pool: Songs = Field(200, ge=1, description="next in the ranking after the list, from which they are drawn")
    explore_seed: int = Field(0, description="seed of that draw: another one draws other songs")
    max_rejected_share: Share = Field(
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
    """How the Delta tables are kept small (docs/maintain.md)."""

    every_days: Days = Field(
        7, ge=0, description="how often `fuxi daily` maintains the tables; 7: on Sundays; 0: never"
    )
    retention_hours: Hours = Field(
        168,
        description="how long earlier versions of the tables and files of killed runs are kept; 48 to 720",
    )

    @field_validator("retention_hours")
    @classmethod
    def _no_reader_is_broken(cls, hours: int) -> int:
        if hours < 48:
            raise ValueError("readers of yesterday's version and runs in progress need their files: give 48 or more")
        if hours > 720:
            raise ValueError("the Delta log knows versions of the last 30 days only: give 720 or less")
        return hours


class RetainConfig(Section):
    """For how many days is kept what a workspace stores, counted back from the newest; 0 keeps all.

    `fuxi retain` deletes the rest (docs/workspace.md#when-it-may-be-deleted).
    """

    in_daily: bool = Field(
        False, description="whether `fuxi daily` applies these bounds after its report, too; `fuxi retain` always does"
    )
    scratch_days: Days = Field(7, ge=0, description="checkpoints and exports of finished trainings")
    sequences_days: Days = Field(0, ge=0, description="shards that no kept day reads")
    lists_days: Days = Field(0, ge=0, description="lists; at least 8, and more than `rules.listed_days`")
    quarantine_days: Days = Field(0, ge=0, description="rejected rows")
    reports_days: Days = Field(0, ge=0, description="the pages of the days")
    models_days: Days = Field(
        0, ge=0, description="model versions that serve no day with a run record and have no alias"
    )
    runs_days: Days = Field(0, ge=0, description="run records and stage markers; more than `gates.best_of_days`")


class ClusterConfig(Section):
    """Spark and Ray. The defaults run everything on this machine and listen on loopback only."""

    spark_master: str = Field("", description="master of Spark; empty: as spark-submit says, else `local[*]`")
    spark_driver_memory: str = Field("1g", description="heap of Spark's driver, as Spark writes it")
    spark_options: dict[str, str] = Field(default_factory=dict, description="options that are passed to Spark")
    ray_address: str = Field("local", description="address of a running Ray cluster; local: one is started here")
    ray_object_store_mb: Mebibytes = Field(512, ge=75, description="memory of the object store of a local Ray")
    train_workers: int | tuple[int, int] = Field(
        1,
        description="number of training processes, at least 1; or [min, max]: as many as the cluster has room for, "
        "which may change (docs/operations.md#workers-that-come-and-go)",
    )
    train_cpus_per_worker: int = Field(1, ge=1, description="cores, and threads, of each of them")
    train_gpus_per_worker: int = Field(0, ge=0, description="GPUs of each of them")
    recommend_gpus_per_task: float = Field(
        0.0, ge=0, le=1, description="part of a GPU that a task of the daily lists takes; 0: it runs on CPUs"
    )
    max_failures: int = Field(3, ge=0, description="number of worker deaths that a training survives")
    stall_minutes: Minutes = Field(
        30.0, ge=0, description="a stage without any progress for so long is ended and started again; 0: never"
    )
    stage_retries: int = Field(
        2, ge=0, description="how often a command starts a stage again after a process died or it stood still"
    )
    kernels: Kernels = Field(
        "auto",
        description="implementation of the model's operators: the fastest there is (auto), plain PyTorch (reference), "
        "or only the C++ (cpu) or Triton (triton) kernels, and an error without them",
    )

    @field_validator("train_workers", mode="before")
    @classmethod
    def _check_workers(cls, value: object) -> object:
        """A number, or two of which the second is not smaller."""
        pair = isinstance(value, (list, tuple))
        numbers: list[Any] = list(value) if pair else [value]
        whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 1 for number in numbers)
        if not whole or (pair and (len(numbers) != 2 or numbers[0] > numbers[1])):
            raise ValueError(f"is {value!r}: write a number from 1 on, or [min, max] with min <= max")
        return value

    @property
    def worker_bounds(self) -> tuple[int, int]:
        """The fewest and the most training processes."""
        return self.train_workers if isinstance(self.train_workers, tuple) else (self.train_workers, self.train_workers)


class MlflowConfig(Section):
    """The model registry."""

    tracking_uri: str = Field(
        "", description="MLflow server; empty: a SQLite file in a local workspace; required for `s3://` workspaces"
    )
    model_name: str = Field("fuxi-beta-daily", description="name of the experiment and of the registered model")


class MetricsConfig(Section):
    """Where Prometheus finds the metrics of a day; docs/monitoring.md says which."""

    prometheus_file: str = Field(
        "", description="local file, ending in `.prom`, that node_exporter's textfile collector reads; empty: none"
    )
    push_gateway: str = Field("", description="URL of a push gateway, `http://gateway:9091` for example; empty: none")
    job: str = Field(
        "fuxi", min_length=1, description="the job under which metrics are pushed; another one for each workspace"
    )

    @field_validator("prometheus_file")
    @classmethod
    def _is_read(cls, file: str) -> str:
        if file and not file.endswith(".prom"):
            raise ValueError("the textfile collector reads files that end in .prom: give one")
        return file


class LineageConfig(Section):
    """Events of OpenLineage. Where they go is told to its client, by OPENLINEAGE_URL or its other variables."""

    openlineage: bool = Field(
        False, description="whether the start and the end of every day and stage are told; needs `openlineage-python`"
    )
    namespace: str = Field("fuxi", min_length=1, description="namespace of the jobs")


class Config(Section):
    """All sections."""

    workspace: str = Field("./workspace", description="where everything is stored: a folder or `s3://bucket/prefix`")
    deterministic: bool = Field(
        True, description="whether the same inputs give the same lists, bit by bit, with the same number of workers"
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="log lines; auto: text on a terminal, JSON elsewhere; `--log-format` overrides it"
    )
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
    metrics: MetricsConfig = MetricsConfig()  # type: ignore[call-arg]
    lineage: LineageConfig = LineageConfig()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _weighs_what_is_read(self) -> "Config":
        if self.train.unchosen_weight != 1 and not self.logs.unchosen_sources:
            raise ValueError(
                f"train.unchosen_weight is {self.train.unchosen_weight:g}, but logs.unchosen_sources is empty, so "
                "every play counts as chosen: list the values of play_source that mean that it was not"
            )
        return self

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
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        found = "" if isinstance(given, dict) else f" (found {given!r})"  # of a whole section, the message says it
        raise InputError(f"{where}: {message}{found}" if where else message) from None
    _check_model(config)
    return config


def as_yaml(config: Config, *, defaults: bool = False) -> str:
    """A configuration as a file that `load_config` reads. defaults: with the settings that have their default."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=not defaults), sort_keys=False)


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
    raise InputError(f"{source}: unknown key {prefix}{key}: did you mean {prefix}{nearest(key, valid)}?")


def nearest(key: str, valid: Collection[str]) -> str:
    """The valid key that is spelt most like one."""
    return difflib.get_close_matches(str(key), list(valid), n=1, cutoff=0.0)[0]


def _keys(section: Any) -> Collection[str] | None:
    """The keys of a section, a model of pydantic or a dataclass of `fuxi_beta.config`; None for a single value."""
    return getattr(section, "model_fields", None) or getattr(section, "__dataclass_fields__", None)
