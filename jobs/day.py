"""One serving day: its run record (the frozen inputs), its stage markers and the engines its stages share."""

import datetime as dt
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from jobs.config import Config
from pipelines import leases, storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.workspace import Workspace, WorkspaceSpec, open_workspace


@dataclass(frozen=True)
class InputFile:
    """A log file as it was when the run record was made."""

    uri: str
    size: int
    etag: str
    landing_day: str = ""  # ISO date of its log partition


@dataclass(frozen=True)
class RunRecord:
    """What a ds is computed from. Made once by the first stage; every re-run reads it."""

    ds: str
    run_id: str
    created_at: str
    config_hash: str
    parent_sequences: str | None = None  # ds whose shards are merged into
    vocabulary_version: int | None = None  # Delta version of the vocabulary before this day
    parent_model: str | None = None  # MLflow version the training starts from
    files: tuple[InputFile, ...] = ()  # log files not consumed by an earlier ds
    catalogue_files: tuple[InputFile, ...] = ()
    sequences_ds: str | None = None  # an earlier ds whose shards serve this one, when today's input was refused
    chosen_model: str | None = None  # MLflow version that serves this ds; written by promote
    chosen_reason: str = ""


@dataclass
class Day:
    """What a stage is given. Engines start on first use and are shared by all stages of the process."""

    config: Config
    ds: dt.date
    workspace: Workspace
    force: bool = False  # run stages even where their output exists
    refresh_inputs: bool = False
    accept_quality: bool = False  # take the day's input in spite of bounds that it breaks
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def calendar(self) -> Calendar:
        """The days of the workspace's time zone, whose lists are requested at the configured hour."""
        return Calendar(self.workspace.spec.timezone, self.config.serving.request_hour)

    @property
    def record_uri(self) -> str:
        """Where the run record is."""
        return storage.join(self.workspace.run(self.ds), "run_record.json")

    @property
    def has_record(self) -> bool:
        """Whether the inputs of this ds are frozen."""
        return storage.exists(self.record_uri)

    @property
    def record(self) -> RunRecord:
        """The run record. InputError if the first stage has not made it."""
        if not self.has_record:
            raise InputError(f"{self.record_uri} is not there: run `fuxi sessionize --ds {self.ds}` first")
        content = storage.read_json(self.record_uri)
        known = {item.name for item in fields(RunRecord)}
        content = {key: value for key, value in content.items() if key in known}
        for key in ("files", "catalogue_files"):
            content[key] = tuple(InputFile(**file) for file in content.get(key, ()))
        return RunRecord(**content)

    @property
    def sequences_ds(self) -> dt.date:
        """The ds whose shards serve this day: its own, or the last good one when its input was refused."""
        served = self.record.sequences_ds
        return dt.date.fromisoformat(served) if served else self.ds

    @property
    def stale_days(self) -> int:
        """How many days old the sequences are that serve this day; 0 on a normal day."""
        return (self.ds - self.sequences_ds).days

    def new_record(self, **values: Any) -> RunRecord:
        """Freeze the inputs of this ds."""
        record = RunRecord(
            ds=str(self.ds),
            run_id=uuid.uuid4().hex,
            created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            config_hash=self.config.hash(),
            **values,
        )
        storage.write_json(self.record_uri, asdict(record))
        return record

    def update_record(self, **values: Any) -> RunRecord:
        """Write values found later (the chosen model) into the run record."""
        record = replace(self.record, **values)
        storage.write_json(self.record_uri, asdict(record))
        return record

    def marker_uri(self, stage: str) -> str:
        """Where a stage notes that it is done."""
        return storage.join(self.workspace.run(self.ds), f"{stage}.json")

    def marker(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage returned, or None if it has not finished under the present run record."""
        if not self.has_record or not storage.exists(self.marker_uri(stage)):
            return None
        content = storage.read_json(self.marker_uri(stage))
        return content["result"] if content["run_id"] == self.record.run_id else None

    def finish(self, stage: str, result: dict[str, Any], seconds: float) -> None:
        """Note that a stage is done; its last act."""
        content = {
            "stage": stage,
            "run_id": self.record.run_id,
            "seconds": round(seconds, 2),
            "finished_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "result": result,
        }
        storage.write_json(self.marker_uri(stage), content)

    def note_failure(self, stage: str, message: str) -> None:
        """Note why a stage did not finish, for whoever looks at the day later."""
        content = {"stage": stage, "run_id": self.record.run_id, "message": message}
        storage.write_json(storage.join(self.workspace.run(self.ds), f"{stage}.failure.json"), content)

    def failure(self, stage: str) -> str | None:
        """Why a stage did not finish under the present run record; None if it did, or if nothing was noted."""
        uri = storage.join(self.workspace.run(self.ds), f"{stage}.failure.json")
        if not self.has_record or not storage.exists(uri) or self.marker(stage) is not None:
            return None
        content = storage.read_json(uri)
        return content["message"] if content["run_id"] == self.record.run_id else None

    def at(self, ds: dt.date) -> "Day":
        """The same deployment on another ds."""
        return replace(self, ds=ds)

    @cached_property
    def tracking_uri(self) -> str:
        """Where MLflow is: as configured, else sqlite beside a local workspace."""
        if self.config.mlflow.tracking_uri:
            return self.config.mlflow.tracking_uri
        if storage.is_s3(self.workspace.uri):
            raise InputError("mlflow.tracking_uri is empty: a workspace on s3:// needs an MLflow server, set its URI")
        return f"sqlite:///{self.workspace.uri}/mlflow.db"


Stage = Callable[[Day], dict[str, Any]]


def open_day(
    config: Config,
    ds: dt.date,
    *,
    force: bool = False,
    refresh_inputs: bool = False,
    accept_quality: bool = False,
    create: bool = True,
) -> Day:
    """Open (or create) the workspace for one serving day. A ds after today is refused: its logs are not complete."""
    sequences = config.sequences
    today = Calendar(sequences.timezone).date_of(int(time.time()))
    if ds > today:
        raise InputError(f"ds {ds} is in the future (today is {today}): give a day whose logs are complete")
    wanted = WorkspaceSpec(
        timezone=sequences.timezone,
        buckets=sequences.buckets,
        user_id_type=sequences.user_id_type,
        item_id_type=sequences.item_id_type,
    )
    workspace = open_workspace(config.workspace, wanted, create=create)
    return Day(config, ds, workspace, force=force, refresh_inputs=refresh_inputs, accept_quality=accept_quality)


def run_stage(day: Day, name: str, stage: Stage) -> dict[str, Any]:
    """Run one stage unless its output for this run record exists; note the time and the result."""
    done = day.marker(name)
    if done is not None and not day.force and not (day.refresh_inputs and name == "sessionize"):
        day.timings[name] = 0.0
        return {**done, "skipped": True}
    with leases.lease(storage.join(day.workspace.run(day.ds), f"{name}.lock"), purpose=f"fuxi {name} --ds {day.ds}"):
        started = time.monotonic()
        result = stage(day)
        day.timings[name] = time.monotonic() - started
        day.finish(name, result, day.timings[name])
    return result
