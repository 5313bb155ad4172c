"""One serving day: its run record (the frozen inputs), its stages and what each of them returned."""

import contextlib
import datetime as dt
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, NotRequired, TypedDict

from pydantic import TypeAdapter

from jobs.config import Config
from jobs.places import located, portable
from jobs.stage_inputs import STAGE_INPUTS, differences, settings_of
from pipelines import leases, leftovers, progress, storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest, read_manifest
from pipelines.logs.files import LogFile
from pipelines.logs.formats.base import LogSpec
from pipelines.redact import redact, redacted
from pipelines.workspace import Workspace, WorkspaceSpec, open_workspace

STAGES = tuple(STAGE_INPUTS)
"""Every stage of a day, in order."""

LEASE = "daily.lock"
"""The lease of a ds, in its run folder: a run that reads or writes the ds holds it."""

StageResult = dict[str, Any]
"""What a stage returns: figures that fit in JSON."""


class MarkerInputs(TypedDict):
    """What a stage was made from, beside the run record."""

    settings: dict[str, Any]  # "section.key": value
    stages: dict[str, str | None]  # a stage before it: the digest of its marker then, None if it had not finished


class StageMarker(TypedDict):
    """The file that says that a stage has finished."""

    stage: str
    run_id: str  # of the run record under which it finished
    seconds: float
    finished_at: str  # ISO, UTC
    result: StageResult
    inputs: NotRequired[MarkerInputs]  # markers of releases before 0.3 lack them, and the digest
    digest: NotRequired[str]  # of inputs and result, without what the stage took
    withdrawn: NotRequired[bool]  # the stage runs again, or was to


@dataclass(frozen=True)
class StageState:
    """Whether a stage has finished under the run record, and what has changed since of what it was made from."""

    finished: bool
    stages: tuple[str, ...] = ()  # that ran again, or did not finish again
    settings: tuple[str, ...] = ()  # "key: old -> new"


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
    known_files: tuple[LogFile, ...] = ()  # of a table: all their rows are in files that are consumed
    catalogue_files: tuple[LogFile, ...] = ()  # without landing days
    sequences_ds: str | None = None  # an earlier ds whose shards serve this one, when today's input was refused
    chosen_model: str | None = None  # MLflow version that serves this ds; written by promote
    full_retrain: str | None = None  # why training starts from nothing in spite of a champion; None: not decided
    chosen_baseline: str | None = None  # baseline that serves this ds in place of the chosen model; written by promote
    chosen_reason: str = ""
    logs_path: str = ""  # where the logs were; `logs.path` of the configuration says where they are


_RECORD = TypeAdapter(RunRecord)  # ignores keys of other releases


Wait = Callable[[str], contextlib.AbstractContextManager[leases.Waiting]]
"""Shows that something is waited for, which is called what it is given (`console.waiting`)."""


@dataclass
class Day:
    """The one argument of every stage: configuration, workspace, and files of the run folder."""

    config: Config
    ds: dt.date
    workspace: Workspace
    force: bool = False  # run stages even where their output exists
    refresh_inputs: bool = False
    accept_quality: bool = False  # take the day's input in spite of bounds that it breaks
    wait: Wait | None = None  # wait for another run instead of refusing; shows what is waited for
    leased: bool = False  # the lease of the ds is held
    begun: frozenset[str] = frozenset()  # stages that an earlier attempt of this command began, with these flags
    timings: dict[str, float] = field(default_factory=dict)
    run_id: str = ""  # of the run record, once it was read or written

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
        with storage.reading(self.record_uri):
            record = _RECORD.validate_python(located(storage.read_json(self.record_uri), self.places))
        self.run_id = record.run_id
        return record

    @cached_property
    def places(self) -> dict[str, str]:
        """What is stored by its name in place of its URI (`jobs.places`)."""
        uris = {"logs.path": self.config.logs.path, "logs.catalogue": self.config.logs.catalogue}
        return {"workspace": self.workspace.uri} | {name: storage.absolute(uri) for name, uri in uris.items() if uri}

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
            logs_path=self.config.logs.path and storage.absolute(self.config.logs.path),
            **values,
        )
        self._write_record(record)
        return record

    def update_record(self, **values: str | None) -> None:
        """Write values that are decided later (the chosen model) into the run record."""
        self._write_record(replace(self.record, **values))

    def _write_record(self, record: RunRecord) -> None:
        content = portable(asdict(record), self.places)
        in_workspace = content["logs_path"].startswith("{workspace}")
        leases.publish_json(self.record_uri, content if in_workspace else content | {"logs_path": record.logs_path})
        self.run_id = record.run_id

    def marker(self, stage: str) -> StageMarker | None:
        """The marker of a stage, None if it has not finished under the present run record."""
        return located(self._stored_marker(stage), self.places)

    def _stored_marker(self, stage: str) -> StageMarker | None:
        """The same as it is stored, the names of places standing for their URIs."""
        marker = self._of_this_record(self.path(f"{stage}.json"))
        return None if marker is None or marker.get("withdrawn") else marker

    def has_finished_before(self, stage: str) -> bool:
        """Whether a stage has a marker of the present run record, be it withdrawn."""
        return self._of_this_record(self.path(f"{stage}.json")) is not None

    def withdraw(self, stage: str, *, withdrawn: bool = True) -> None:
        """Say that a stage is not finished any more, because it runs again or what it was made from is gone.

        withdrawn: False takes that back.
        """
        uri = self.path(f"{stage}.json")
        if marker := self._of_this_record(uri):
            leases.publish_json(uri, {**marker, "withdrawn": withdrawn})

    def inputs(self, stage: str) -> MarkerInputs:
        """What a stage would be made from now."""
        spec = STAGE_INPUTS[stage]
        stages = {name: self._digest(name, failures=spec.failures) for name in spec.after}
        return {"settings": settings_of(stage, self.config), "stages": stages}

    def state(self, stage: str) -> StageState:
        """Whether a stage has finished, and whether what it was made from is still what it would be made from now.

        A marker of a release before 0.3 names no inputs: what finished after it has changed since, and its settings
        count as the present ones.
        """
        marker = self.marker(stage)
        if marker is None:
            return StageState(finished=False)
        then, now = marker.get("inputs"), self.inputs(stage)
        if then is None:
            markers = {name: self.marker(name) for name in now["stages"]}
            later = [name for name, other in markers.items() if other and other["finished_at"] > marker["finished_at"]]
            return StageState(True, stages=tuple(later))
        changed = tuple(name for name, digest in now["stages"].items() if then["stages"].get(name) != digest)
        return StageState(True, changed, differences(then["settings"], now["settings"]))

    def must_run(self, stage: str) -> bool:
        """Whether a stage has not finished, or is stale.

        Settings make it stale only while the lists of the day are not published: what was published does not change
        because the configuration did.
        """
        state = self.state(stage)
        return not state.finished or bool(state.stages) or bool(state.settings and not self.marker("recommend"))

    def _digest(self, stage: str, *, failures: bool = False) -> str | None:
        """Digest of what a stage was made from and what it returned; None if it has not finished.

        failures: in place of None the digest of why it did not finish, if that was noted.
        """
        if marker := self._stored_marker(stage):
            return marker.get("digest") or digest(marker["result"])
        noted = self._stored_failure(stage) if failures else None
        return digest(noted) if noted else None

    @property
    def is_built(self) -> bool:
        """Whether anything was published under the present run record: shards, or what a later stage makes."""
        if any(map(self.marker, STAGES)):
            return True
        manifest = storage.join(self.workspace.sequences(self.ds), "_manifest.json")
        with storage.reading(manifest):
            return storage.exists(manifest) and storage.read_json(manifest)["run_id"] == self.record.run_id

    def result(self, stage: str) -> StageResult | None:
        """What a stage returned, None if it has not finished under the present run record."""
        marker = self.marker(stage)
        return marker["result"] if marker else None

    def finish(self, stage: str, result: StageResult, seconds: float, *, inputs: MarkerInputs | None = None) -> None:
        """Write the marker of a stage: the last write of every stage. inputs: as they were when it began."""
        stored, inputs = portable(result, self.places), inputs or self.inputs(stage)
        made = {key: value for key, value in stored.items() if key not in STAGE_INPUTS[stage].took}
        marker = StageMarker(
            stage=stage,
            run_id=self.record.run_id,
            seconds=round(seconds, 2),
            finished_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            result=redacted(stored),
            inputs=inputs,
            digest=digest([stage, self.record.run_id, inputs, made]),
        )
        leases.publish_json(self.path(f"{stage}.json"), marker)

    def note_failure(self, stage: str, message: str) -> None:
        """Note why a stage did not finish; the day's report says it."""
        content = {"stage": stage, "run_id": self.record.run_id, "message": portable(redact(message), self.places)}
        leases.publish_json(self.path(f"{stage}.failure.json"), content)

    def failure(self, stage: str) -> str | None:
        """Why a stage did not finish under the present run record; None if it did, or if nothing was noted."""
        return located(self._stored_failure(stage), self.places)

    def _stored_failure(self, stage: str) -> str | None:
        failure = self._of_this_record(self.path(f"{stage}.failure.json"))
        return failure["message"] if failure and not self._stored_marker(stage) else None

    def _of_this_record(self, uri: str) -> Any:
        """The content of a JSON file that names its run record; None if it is not there or of another record."""
        if not self.has_record or not storage.exists(uri):
            return None
        record, content = self.record, storage.read_json(uri)
        with storage.reading(uri):
            if content["run_id"] != record.run_id:
                return None
            _check_shape(content)
        return content

    def at(self, ds: dt.date) -> "Day":
        """The same deployment on another ds."""
        return replace(self, ds=ds, leased=False, run_id="")

    @property
    def has_own_registry(self) -> bool:
        """Whether MLflow is a database beside the workspace, and no server."""
        return not self.config.mlflow.tracking_uri and not storage.is_s3(self.workspace.uri)

    @cached_property
    def tracking_uri(self) -> str:
        """Where MLflow is: as configured, else sqlite beside a local workspace."""
        if self.config.mlflow.tracking_uri:
            return self.config.mlflow.tracking_uri
        if storage.is_s3(self.workspace.uri):
            raise InputError("mlflow.tracking_uri is empty: a workspace on s3:// needs an MLflow server, set its URI")
        from sqlalchemy.engine import URL, make_url

        database = self.workspace.registry
        plain = f"sqlite:///{database}"
        if make_url(plain) == URL.create("sqlite", database=database):
            return plain
        return URL.create("sqlite", database=database).render_as_string(hide_password=False)  # ? and % are encoded


def _check_shape(content: Any) -> None:
    """TypeError, ValueError or KeyError if a marker, or a note of a failure, has not the parts that are read."""
    if "message" not in content:
        dict(content["result"])
        dt.datetime.fromisoformat(content["finished_at"])
        float(content["seconds"])


def log_spec(day: Day) -> LogSpec:
    """Where this deployment's play logs are and how to read them."""
    fixed = day.workspace.spec
    return day.config.logs.spec(user_id_type=fixed.user_id_type, item_id_type=fixed.item_id_type)


Stage = Callable[[Day], StageResult]


def open_day(
    config: Config,
    ds: dt.date,
    *,
    force: bool = False,
    refresh_inputs: bool = False,
    accept_quality: bool = False,
    wait: Wait | None = None,
    create: bool = True,
) -> Day:
    """Open (or create) the workspace for one serving day. A ds after today is refused: its logs are not complete."""
    today = Calendar(config.sequences.timezone).date_of(int(time.time()))
    if ds > today:
        raise InputError(f"ds {ds} is in the future (today is {today}): give a day whose logs are complete")
    fixed = config.sequences.model_dump(include={"timezone", "buckets", "user_id_type", "item_id_type"})
    workspace = open_workspace(config.workspace, WorkspaceSpec(**fixed), create=create)
    flags = {"force": force, "refresh_inputs": refresh_inputs, "accept_quality": accept_quality, "wait": wait}
    return Day(config, ds, workspace, **flags)


def lease_uri(workspace: Workspace, ds: dt.date) -> str:
    """The lock file of a ds."""
    return storage.join(workspace.run(ds), LEASE)


def running(
    workspace: Workspace, days: Iterable[dt.date] | None = None, *, besides: Collection[str] = ()
) -> tuple[str, str] | None:
    """A lease that a run of any of some days (all) holds at this moment, and its holder; None if none runs.

    besides: leases that do not count, because the caller holds them.
    """
    found = workspace.days("runs") if days is None else days
    locks = [uri for uri in (lease_uri(workspace, ds) for ds in found) if uri not in besides]
    with ThreadPoolExecutor(16) as pool:
        for uri, holder in zip(locks, pool.map(leases.lease_holder, locks), strict=True):
            if holder:
                return uri, holder
    return None


@contextlib.contextmanager
def day_lease(day: Day, purpose: str) -> Iterator[None]:
    """Hold the lease of the ds while the block runs, unless the caller does already.

    What killed runs of the ds left is removed first.
    """
    if day.leased:
        yield
        return
    uri, purpose = lease_uri(day.workspace, day.ds), f"fuxi {purpose} --ds {day.ds}"
    with contextlib.ExitStack() as stack:
        wait = stack.enter_context(day.wait(f"wait for {uri}")) if day.wait else None
        begun = storage.exists(uri)
        stack.enter_context(leases.lease(uri, purpose=purpose, wait=wait))
        storage.abort_uploads(day.workspace.uri, own=f"/ds={day.ds}/")
        if begun and any(map(day.must_run, STAGES)):
            leftovers.remove(day.workspace, day.ds, alone=lambda: _is_alone(day.workspace, uri))
        day.leased = True
        try:
            yield
        finally:
            day.leased = False


def _is_alone(workspace: Workspace, uri: str) -> bool:
    """Whether neither a run of another day than that of the lease nor `fuxi forget` or maintenance works."""
    return not running(workspace, besides=[uri]) and not leases.lease_holder(workspace.forget_lock)


@contextlib.contextmanager
def noting_at_stop(note: Callable[[], str]) -> Iterator[None]:
    """Note on an interruption how far the work came. note: says so; called only then."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(note())
        raise


def run_stage(day: Day, name: str, stage: Stage) -> StageResult:
    """Run one stage unless it has finished from the same inputs (`Day.must_run`); note the time and the result."""
    done = day.result(name)
    forced = (day.force or (day.refresh_inputs and name == "sessionize")) and name not in day.begun
    if done is not None and not forced and not day.must_run(name):
        day.timings[name] = 0.0
        return {**done, "skipped": True}
    with day_lease(day, name), noting_at_stop(lambda: f"{name} of {day.ds} did not finish"):
        started, inputs = time.monotonic(), day.inputs(name)
        up_to_date = done is not None and not day.must_run(name)
        record = storage.read_json(day.record_uri) if up_to_date else None
        day.withdraw(name)
        progress.begun(name)
        try:
            result = stage(day)
        except InputError:
            if up_to_date:  # it was forced, and what it published before is still there, under the record of then
                leases.publish_json(day.record_uri, record)
                day.withdraw(name, withdrawn=False)
            raise
        day.timings[name] = time.monotonic() - started
        day.finish(name, result, day.timings[name], inputs=inputs)
        progress.finished(name)
    return result


def digest(content: Any) -> str:
    """A number that tells contents apart that fit in JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
