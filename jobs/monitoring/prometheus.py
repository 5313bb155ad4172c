"""A day in Prometheus's metrics: a file for node_exporter's textfile collector, and a push gateway (`metrics`).

They describe the newest day of the workspace, and the last run of `fuxi daily`. Nothing is served here, and nothing
that goes wrong here changes how a day ends.
"""

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, push_to_gateway, pushadd_to_gateway, write_to_textfile
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from jobs.config import Config
from jobs.day import STAGES, Day, StageResult
from jobs.runtime import log_lines
from jobs.serving.serving_baseline import finite
from jobs.status import day_figures
from pipelines import delta_tables
from pipelines.logs.validate import REASONS
from pipelines.schema import METRIC, VALUE
from pipelines.workspace import open_workspace

PUSH_S = 10.0
READ_S = 30.0
"""A workspace that cannot be read within it is left out: its store may be what the day ended for."""
_EXIT_CODE, _RUN_END, _RUN_DAY = "fuxi_exit_code", "fuxi_run_timestamp_seconds", "fuxi_run_day_timestamp_seconds"
_OF_RUNS = (_EXIT_CODE, _RUN_END, _RUN_DAY)

Families = list[Metric]


def export_end(config: Config, ds: dt.date, code: int) -> None:
    """Tell that `fuxi daily` of a ds has ended with an exit code. What fails is one warning each."""
    ended, figures = _run_ended(config, ds, code), _figures_in_time(config)
    if file := config.metrics.prometheus_file:
        with _warning(f"metrics.prometheus_file: {file} was not written"):
            write_file(file, ended + (_kept(file, besides=_OF_RUNS) if figures is None else figures))
    if gateway := config.metrics.push_gateway:
        with _warning(f"metrics.push_gateway: {gateway} did not take the metrics"):
            put = pushadd_to_gateway if figures is None else push_to_gateway  # the latter removes what is not pushed
            registry = _Families([*ended, *(figures or [])]).registry()
            put(gateway, job=config.metrics.job, registry=registry, timeout=PUSH_S)


def export_status(config: Config, file: str) -> None:
    """Write the newest day of a workspace to a file, which keeps what it says of the last run."""
    write_file(file, _kept(file, only=_OF_RUNS) + list(figures(config)))


def write_file(file: str, families: Families) -> None:
    """Replace a file by an atomic rename. Its folder is made if it is not there."""
    path = Path(file).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), _Families(families).registry())


def figures(config: Config) -> Iterable[Metric]:
    """The newest list of a workspace, and what is known of its newest day."""
    workspace = open_workspace(config.workspace)
    days = [Day(config, ds, workspace) for ds in workspace.days("runs")]
    if not days:
        return
    published = next(((day, marker) for day in reversed(days) if (marker := day.marker("recommend"))), None)
    if published:
        at = dt.datetime.fromisoformat(published[1]["finished_at"]).timestamp()
        yield _gauge("fuxi_newest_list_timestamp_seconds", "When the newest day's lists were published.", at)
        text = "00:00 of the newest day with lists, in the workspace's time zone."
        yield _gauge("fuxi_newest_list_day_timestamp_seconds", text, _start(published[0]))
    yield from _of_day(days[-1])


def _of_day(day: Day) -> Iterable[Metric]:
    found = day_figures(day)
    results = {name: day.result(name) or {} for name in STAGES}
    yield _gauge("fuxi_day_timestamp_seconds", "00:00 of the day that the metrics of a day are of.", _start(day))
    published = day.marker("recommend") is not None
    yield _gauge("fuxi_day_published", "1 if the day has lists.", int(published))
    if day.has_record:
        yield _gauge("fuxi_stale_days", "Age in days of the histories that serve the day.", day.stale_days)
    yield _labelled("fuxi_stage_duration_seconds", "Time that a stage took.", ("stage",), found.seconds)
    yield from _rows(day, results["sessionize"])
    if (loss := results["train"].get("final_loss")) is not None:
        yield _gauge("fuxi_train_loss", "Loss of the last training steps.", loss)
    yield from _quality(day, results)
    if found.listeners is not None:
        yield _gauge("fuxi_lists", "Lists that were published.", found.listeners)
    if found.value is not None:
        served = {(found.metric,): found.value}
        yield _labelled("fuxi_served_metric", "Metric of the gates, of what serves the day.", ("metric",), served)
    if published:
        lists = results["recommend"]
        served_by = (str(lists.get("model_version") or ""), str(lists.get("source") or found.served_by))
        text = "1 for the model version and the source of the day's lists."
        yield _labelled("fuxi_served_info", text, ("model_version", "source"), {served_by: 1})


def _rows(day: Day, sessionized: StageResult) -> Iterable[Metric]:
    """Of a refused day as the table `quality` has them."""
    if sessionized:
        counts = {"rows_read": sessionized.get("rows_read"), "accepted": sessionized.get("accepted")}
        rejected = sessionized.get("rejected", {})
    else:
        rows = delta_tables.read_days(day.workspace.quality, since=day.ds, before=day.ds + dt.timedelta(1))
        counts = {row[METRIC]: row[VALUE] for row in rows}
        rejected = {reason: counts.get(f"rejected_{reason}", 0) for reason in REASONS} if rows else {}
    for name, key, text in (
        ("fuxi_rows_read", "rows_read", "Rows of the day's logs."),
        ("fuxi_rows_accepted", "accepted", "Rows that are valid plays."),
    ):
        if (value := counts.get(key)) is not None:
            yield _gauge(name, text, value)
    if counts.get("rows_read") is not None:
        every = {reason: rejected.get(reason, 0) for reason in REASONS}
        yield _labelled("fuxi_rows_rejected", "Rows that were rejected.", ("reason",), every)


def _quality(day: Day, results: Mapping[str, StageResult]) -> Iterable[Metric]:
    values: dict[tuple[str, ...], float] = {}
    for recommender, slices in results["evaluate"].get("metrics", {}).items():
        values |= {(recommender, name): value for name, value in finite(slices.get("all", {})).items()}
    if values:
        text = "Metrics of evaluate, over all listeners that were measured."
        yield _labelled("fuxi_metric", text, ("recommender", "metric"), values)


def _run_ended(config: Config, ds: dt.date, code: int) -> Families:
    from pipelines.calendar import Calendar

    start = Calendar(config.sequences.timezone).day_start(ds)
    return [
        _gauge(_EXIT_CODE, "Exit code of the last run of fuxi daily.", code),
        _gauge(_RUN_END, "When the last run of fuxi daily ended.", time.time()),
        _gauge(_RUN_DAY, "00:00 of the day of the last run of fuxi daily.", start),
    ]


def _figures_in_time(config: Config) -> Families | None:
    found: list[Families] = []

    def read() -> None:
        with _warning("metrics: the workspace was not read"):
            found.append(list(figures(config)))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(READ_S)
    return found[0] if found else None


def _kept(file: str, *, only: tuple[str, ...] = (), besides: tuple[str, ...] = ()) -> Families:
    """The metrics of an earlier run in a file; none if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        kept = text_string_to_metric_families(Path(file).read_text())
        return [one for one in kept if one.name not in besides and (not only or one.name in only)]
    return []


class _Families:
    """A collector of metrics that are known already."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Families:
        return self._families

    def registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(self)  # type: ignore[arg-type]
        return registry


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key if isinstance(key, tuple) else (key,), value)
    return family


def _start(day: Day) -> int:
    return day.calendar.day_start(day.ds)


@contextlib.contextmanager
def _warning(what: str) -> Any:
    try:
        yield
    except Exception as error:
        log_lines.say(f"{what} ({type(error).__name__}: {error}); the day is as it was")
