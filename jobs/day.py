"""One serving day: its run record (the frozen inputs), its stages and what each of them returned."""

import datetime as dt
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, TypedDict

from pydantic import TypeAdapter

from jobs.config import Config
from pipelines import leases, storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest, read_manifest
from pipelines.logs.files import LogFile
from pipelines.workspace import Workspace, WorkspaceSpec, open_workspace

STAGES = ("sessionize", "hits", "train", "evaluate", "promote", "recommend", "report")
"""Every stage of a day, in order: `jobs/stages/NAME.py` each."""

LEASES = ("daily", *STAGES)
"""Leases of a ds; a run that reads or writes the ds holds at least one of them."""

StageResult = dict[str, Any]
"""What a stage returns: figures that fit in JSON."""


class StageMarker(TypedDict):
    """The file that says that a stage has finished."""

    stage: str
    run_id: str  # of the run record under which it finished
    seconds: float
    finished_at: str  # ISO, UTC
    result: StageResult


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
    files: tuple[LogFile, ...] = ()  # not consumed by an earlier ds
    catalogue_files: tuple[LogFile, ...] = ()  # without landing days
    sequences_ds: str | None = None  # an earlier ds whose shards serve this one, when today's input was refused
    chosen_model: str | None = None  # MLflow version that serves this ds; written by promote
    chosen_reason: str = ""


_RECORD = TypeAdapter(RunRecord)  # ignores keys of other releases


@dataclass
class Day:
    """The one argument of every stage: configuration, workspace, and files of the run folder."""

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

    def manifest(self, ds: dt.date) -> Manifest:
        """The shards of a ds, compared with their digests as `sequences.check_digests` says."""
        return read_manifest(self.workspace.sequences(ds), check_digests=self.config.sequences.check_digests)

    def path(self, name: str) -> str:
        """A file or folder in the run folder of this ds."""
        return storage.join(self.workspace.run(self.ds), name)

    @property
    def record_uri(self) -> str:
        """Where the run record is."""
        return self.path("run_record.json")

    @property
    def has_record(self) -> bool:
        """Whether the inputs of this ds are frozen."""
        return storage.exists(self.record_uri)

    @property
    def record(self) -> RunRecord:
        """The run record. InputError if the first stage has not made it."""
        if not self.has_record:
            raise InputError(f"{self.record_uri} is not there: run `fuxi sessionize --ds {self.ds}` first")
        return _RECORD.validate_python(storage.read_json(self.record_uri))

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
        """Freeze the inputs of this ds. values: fields of RunRecord."""
        record = RunRecord(
            ds=str(self.ds),
            run_id=uuid.uuid4().hex,
            created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            config_hash=self.config.hash(),
            **values,
        )
        storage.write_json(self.record_uri, asdict(record))
        return record

    def update_record(self, **values: str | None) -> None:
        """Write values that are decided later (the chosen model) into the run record."""
        storage.write_json(self.record_uri, asdict(replace(self.record, **values)))

    def marker(self, stage: str) -> StageMarker | None:
        """The marker of a stage, None if it has not finished under the present run record."""
        return self._of_this_record(self.path(f"{stage}.json"))

    def result(self, stage: str) -> StageResult | None:
        """What a stage returned, None if it has not finished under the present run record."""
        marker = self.marker(stage)
        return marker["result"] if marker else None

    def finish(self, stage: str, result: StageResult, seconds: float) -> None:
        """Write the marker of a stage: the last write of every stage."""
        marker = StageMarker(
            stage=stage,
            run_id=self.record.run_id,
            seconds=round(seconds, 2),
            finished_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            result=result,
        )
        storage.write_json(self.path(f"{stage}.json"), marker)

    def note_failure(self, stage: str, message: str) -> None:
        """Note why a stage did not finish; the day's report says it."""
        content = {"stage": stage, "run_id": self.record.run_id, "message": message}
        storage.write_json(self.path(f"{stage}.failure.json"), content)

    def failure(self, stage: str) -> str | None:
        """Why a stage did not finish under the present run record; None if it did, or if nothing was noted."""
        failure = self._of_this_record(self.path(f"{stage}.failure.json"))
        return failure["message"] if failure and not self.marker(stage) else None

    def _of_this_record(self, uri: str) -> Any:
        """The content of a JSON file that names its run record; None if it is not there or of another record."""
        if not self.has_record or not storage.exists(uri):
            return None
        content = storage.read_json(uri)
        return content if content["run_id"] == self.record.run_id else None

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


Stage = Callable[[Day], StageResult]


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
    today = Calendar(config.sequences.timezone).date_of(int(time.time()))
    if ds > today:
        raise InputError(f"ds {ds} is in the future (today is {today}): give a day whose logs are complete")
    fixed = config.sequences.model_dump(include={"timezone", "buckets", "user_id_type", "item_id_type"})
    workspace = open_workspace(config.workspace, WorkspaceSpec(**fixed), create=create)
    return Day(config, ds, workspace, force=force, refresh_inputs=refresh_inputs, accept_quality=accept_quality)


def lease_uris(workspace: Workspace, ds: dt.date) -> list[str]:
    """The lock files of a ds."""
    return [storage.join(workspace.run(ds), f"{name}.lock") for name in LEASES]


def running(workspace: Workspace, *, besides: str = "") -> tuple[str, str] | None:
    """A lease that a run of any day holds at this moment, and its holder; None if no day runs.

    besides: a lease that does not count, because the caller holds it.
    """
    locks = [uri for ds in workspace.days("runs") for uri in lease_uris(workspace, ds) if uri != besides]
    with ThreadPoolExecutor(16) as pool:
        for uri, holder in zip(locks, pool.map(leases.lease_holder, locks), strict=True):
            if holder:
                return uri, holder
    return None


def run_stage(day: Day, name: str, stage: Stage) -> StageResult:
    """Run one stage unless it has finished under this run record; note the time and the result."""
    done = day.result(name)
    if done is not None and not day.force and not (day.refresh_inputs and name == "sessionize"):
        day.timings[name] = 0.0
        return {**done, "skipped": True}
    with leases.lease(day.path(f"{name}.lock"), purpose=f"fuxi {name} --ds {day.ds}"):
        started = time.monotonic()
        result = stage(day)
        day.timings[name] = time.monotonic() - started
        day.finish(name, result, day.timings[name])
    return result
