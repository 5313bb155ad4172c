"""A day as OpenLineage sees it: a run of the job `daily`, in it a run of each stage, and what a stage reads and writes.

Where events go is told to OpenLineage's client by its own variables and file (OPENLINEAGE_URL and so on). A transport
that fails is one warning, and nobody is told any more of that run: no day waits for it or ends for it.
"""

import contextlib
import datetime as dt
import importlib.util
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from jobs.config import Config
from jobs.day import Day, Stage, StageResult
from jobs.runtime import attempt, log_lines
from pipelines import storage
from pipelines.errors import InputError
from pipelines.redact import redact

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient, event_v2

DAILY = "daily"
_MODEL = "model"
_READS = {
    "sessionize": ("logs", "catalogue", "sequences", "vocabulary"),
    "hits": ("recommendations", "sequences"),
    "train": ("sequences", "catalogue", _MODEL),
    "evaluate": ("sequences", "catalogue", _MODEL),
    "promote": ("metrics", _MODEL),
    "recommend": ("sequences", "catalogue", "song_lists", "feedback", "listeners", _MODEL),
    "report": ("recommendations", "metrics", "quality", "list_quality", "list_hits", "catalogue"),
}
_WRITES = {
    "sessionize": ("sequences", "vocabulary", "quality", "quarantine"),
    "hits": ("list_hits",),
    "train": (_MODEL,),
    "evaluate": ("metrics",),
    "promote": (_MODEL,),
    "recommend": ("recommendations", "list_quality"),
    "report": ("reports",),
}
"""Data sets by the folder of the workspace, the setting that names them, or the model."""
_ROWS = {"sequences": "events", "recommendations": "listeners"}
"""Data set -> the figure of its stage's result that says how many rows were written."""


@dataclass
class _State:
    client: "OpenLineageClient | None" = None
    broken: bool = False
    in_day: bool = False


_state = _State()


def check(config: Config) -> None:
    """InputError where events are asked for and OpenLineage's client is not installed."""
    if config.lineage.openlineage and importlib.util.find_spec("openlineage") is None:
        raise InputError(
            "lineage.openlineage is true, but openlineage-python is not installed: install it, or set it to false"
        )


def traced(name: str, stage: Stage) -> Stage:
    """A stage that tells its start and its end, if that is configured."""

    def run(day: Day) -> StageResult:
        with _told(day, name, begun_before=name in day.begun) as result:
            result.update(stage(day))
        return result

    return run


@contextlib.contextmanager
def day_run(day: Day) -> Iterator[None]:
    """The run of a day, within which stages are told as its parts."""
    _state.in_day = True
    try:
        with _told(day, DAILY, begun_before=bool(day.begun)):
            yield
    finally:
        _state.in_day = False


def tell_deaths(config: Config, run: str, died: Mapping[tuple[str, str], str], *, daily: bool, broke_off: bool) -> None:
    """Tell the ends that nobody else can: of stages that died too often, and of the day if it broke off with one.

    run: `attempt.run`. died: (ds, stage) -> why. daily: the stages are parts of a day's run.
    """
    _state.in_day = daily
    for (ds, stage), why in died.items():
        for name in [*[stage] * bool(stage), *[DAILY] * (daily and broke_off)]:
            _Run(config, name, dt.date.fromisoformat(ds), run).emit("FAIL", error=why)


@contextlib.contextmanager
def _told(day: Day, name: str, *, begun_before: bool) -> Iterator[StageResult]:
    """START, or RUNNING where an earlier attempt has told it; then COMPLETE, FAIL, or ABORT after a signal.

    Yields what is to become the result.
    """
    run, result = _Run(day.config, name, day.ds, attempt.run(), day), dict[str, Any]()
    run.emit("RUNNING" if begun_before else "START")
    try:
        yield result
    except Exception as error:
        run.emit("FAIL", error=f"{type(error).__name__}: {error}")
        raise
    except BaseException:
        run.emit("ABORT")
        raise
    run.emit("COMPLETE", result=result)


@dataclass(frozen=True)
class _Run:
    """A run of a job: of a day or of one of its stages. command: the run of the command (`attempt.run`)."""

    config: Config
    name: str
    ds: dt.date
    command: str
    day: Day | None = None  # None: what it reads and writes is not told

    def emit(self, event: str, *, error: str = "", result: StageResult | None = None) -> None:
        if _state.broken or not self.config.lineage.openlineage:
            return
        try:
            _client().emit(self._event(event, error, result or {}))
        except Exception as failure:
            _state.broken = True
            log_lines.say(
                f"lineage.openlineage: the {event} event of {self.name} was not taken ({type(failure).__name__}: "
                f"{failure}); no more are sent in this run"
            )

    def _event(self, event: str, error: str, result: StageResult) -> "event_v2.RunEvent":
        from openlineage.client import event_v2

        inputs = [event_v2.InputDataset(*name) for name in self._datasets(_READS).values()]
        outputs = [
            event_v2.OutputDataset(*name, outputFacets=_statistics(data, result))
            for data, name in self._datasets(_WRITES).items()
        ]
        return event_v2.RunEvent(
            eventTime=dt.datetime.now(dt.UTC).isoformat(),
            eventType=event_v2.RunState[event],
            run=event_v2.Run(self._id(self.name), self._facets(error)),
            job=event_v2.Job(self.config.lineage.namespace, self.name, _job_facets(self.name)),
            inputs=inputs,
            outputs=outputs,
            producer=_producer(),
        )

    def _id(self, name: str) -> str:
        """Of the run of a job in this command: the same in every attempt."""
        return str(uuid.uuid5(uuid.UUID(self.command), f"{self.ds}/{name}"))

    def _facets(self, error: str) -> dict[str, Any]:
        from openlineage.client.facet_v2 import error_message_run, nominal_time_run, parent_run, tags_run

        zone = ZoneInfo(self.day.workspace.spec.timezone if self.day else self.config.sequences.timezone)
        start = dt.datetime.combine(self.ds, dt.time(), zone).isoformat()
        run_id = self.day.run_id if self.day else ""
        tags = {"ds": str(self.ds), **({"run_id": run_id} if run_id else {})}
        facets: dict[str, Any] = {
            "nominalTime": nominal_time_run.NominalTimeRunFacet(start),
            "tags": tags_run.TagsRunFacet([tags_run.TagsRunFacetFields(*tag, source="FUXI") for tag in tags.items()]),
        }
        if error:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(redact(error), "python")
        if _state.in_day and self.name != DAILY:
            run, job = parent_run.Run(self._id(DAILY)), parent_run.Job(self.config.lineage.namespace, DAILY)
            facets["parent"] = parent_run.ParentRunFacet(run=run, job=job)
        return facets

    def _datasets(self, of: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, str]]:
        """Data set -> namespace and name, of those that there are."""
        if self.day is None:
            return {}
        places = {data: _place(self.day, data) for data in of.get(self.name, ())}
        return {data: _name(uri) for data, uri in places.items() if uri}


def _place(day: Day, data: str) -> str:
    """The URI of a data set; "" of one that is not configured. A model is below MLflow's."""
    config = day.config
    settings = {
        "logs": config.logs.path,
        "catalogue": config.logs.catalogue,
        **{name: getattr(config.rules, name) for name in ("song_lists", "feedback", "listeners")},
    }
    if data in settings:
        return storage.absolute(settings[data]) if settings[data] else ""
    if data == _MODEL:
        registry = day.workspace.registry if day.has_own_registry else day.tracking_uri
        return storage.join(registry, "models", config.mlflow.model_name)
    return storage.join(day.workspace.uri, data)


def _name(uri: str) -> tuple[str, str]:
    """Namespace and name of a data set, as OpenLineage's naming says; of a server, its address and the path."""
    from openlineage.client.naming.dataset import S3, LocalFileSystem

    parts = urlsplit(uri)
    if parts.scheme in ("http", "https", "postgresql", "mysql"):
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}", parts.path.strip("/")
    named = S3(parts.netloc, parts.path.strip("/")) if storage.is_s3(uri) else LocalFileSystem(uri)
    return named.get_namespace(), named.get_name()


def _statistics(data: str, result: StageResult) -> dict[str, Any]:
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    rows = result.get(_ROWS[data]) if data in _ROWS else None
    return {} if rows is None else {"outputStatistics": statistics.OutputStatisticsOutputDatasetFacet(rowCount=rows)}


def _job_facets(name: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import job_type_job

    kind = "DAG" if name == DAILY else "TASK"
    return {"jobType": job_type_job.JobTypeJobFacet("BATCH", "FUXI", kind)}


def _producer() -> str:
    return f"urn:fuxi-daily:{version('fuxi-daily')}"


def _client() -> "OpenLineageClient":
    if _state.client is None:
        from openlineage.client import OpenLineageClient, event_v2

        event_v2.set_producer(_producer())  # of facets
        _state.client = OpenLineageClient()
        if _state.client.transport.kind == "console":
            raise ValueError("no transport is configured: set OPENLINEAGE_URL, or lineage.openlineage to false")
    return _state.client
