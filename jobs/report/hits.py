"""What listeners did with the lists of the days before, on the day's page."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fuxi_beta.evaluation.metrics import metric_title
from fuxi_beta.evaluation.served import RANKING
from jobs.day import Day
from jobs.report.charts import Chart, position_chart, trend_chart
from jobs.serving.baselines import LABELS
from jobs.tables.list_hits import read_list_hits
from jobs.tables.recommendations import published_days
from pipelines.delta_tables import Row
from pipelines.schema import (
    DEFAULT_SEGMENT,
    DS,
    EVERY,
    MEASURED_DS,
    METRIC,
    POSITION,
    SEGMENT,
    SOURCE,
    SOURCE_DEFAULT,
    SOURCE_MODEL,
    SOURCE_POPULAR,
    VALUE,
)

SOURCES = {
    EVERY: "All lists",
    SOURCE_MODEL: "From the model",
    **{name: f"From {label}" for name, label in LABELS.items()},
    SOURCE_POPULAR: "Popular songs",
    SOURCE_DEFAULT: "Default list, no list of their own",
}


@dataclass(frozen=True)
class HitsOfDay:
    """The newest lists that are measured. Values are by metric; a share of nothing is missing."""

    ds: dt.date
    k: int  # the longest cut-off
    titles: dict[str, str]  # of the ranking metrics at k, in the page's order
    groups: tuple[tuple[str, dict[str, float]], ...]  # lists by source, then by segment; the first are all
    positions: Chart | None
    trend: Chart | None
    days: int  # measured, of the trend


@dataclass(frozen=True)
class HitsSection:
    """missing: why the lists of the day before are not shown, empty if they are."""

    newest: HitsOfDay | None
    missing: str


def hits_section(day: Day, *, days: int) -> HitsSection:
    """Lists of the last `days` days before `day.ds`, as far as they were measured by then."""
    before = day.ds - dt.timedelta(days=1)
    rows = read_list_hits(day.workspace, since=day.ds - dt.timedelta(days=days), before=day.ds)
    rows = [row for row in rows if row[MEASURED_DS] <= day.ds]
    newest = _newest(rows) if rows else None
    if newest and newest.ds == before:
        return HitsSection(newest, "")
    if before not in published_days(day.workspace):
        return HitsSection(newest, "No lists were published for the day before.")
    return HitsSection(
        newest,
        "The lists of the day before are not measured: none of its plays are there, or the stage hits did not finish.",
    )


def _newest(rows: Sequence[Row]) -> HitsOfDay:
    ds = max(row[DS] for row in rows)
    of_day = [row for row in rows if row[DS] == ds]
    of_lists = [row for row in of_day if row[POSITION] is None]
    k = max((int(row[METRIC].partition("_")[2]) for row in of_lists if row[METRIC].startswith("hr_")), default=0)
    overall = [row for row in rows if row[POSITION] is None and row[SEGMENT] == row[SOURCE] == EVERY]
    labels = {f"hr_{k}": "listeners with a hit", f"recall_{k}": f"recall@{k}", "play_share": "plays of listed songs"}
    trend = {name: {row[DS]: row[VALUE] for row in overall if row[METRIC] == name} for name in labels}
    return HitsOfDay(
        ds=ds,
        k=k,
        titles={f"{name}_{k}": metric_title(f"{name}_{k}") for name in RANKING},
        groups=tuple((label, _values(of_lists, *group)) for group, label in _groups(of_lists).items()),
        positions=_positions(of_day),
        trend=trend_chart(trend, labels=labels, name="hits-trend"),
        days=len({row[DS] for row in overall}),
    )


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """(segment, source) -> label of the groups that a day has."""
    groups = {(EVERY, source): label for source, label in SOURCES.items()}
    segments = sorted({row[SEGMENT] for row in rows} - {EVERY}, key=lambda name: (name != DEFAULT_SEGMENT, name))
    groups |= {(name, EVERY): f"Segment {name}" for name in segments}
    there = {(row[SEGMENT], row[SOURCE]) for row in rows}
    return {group: label for group, label in groups.items() if group in there}


def _values(rows: Sequence[Row], segment: str, source: str) -> dict[str, float]:
    return {row[METRIC]: row[VALUE] for row in rows if (row[SEGMENT], row[SOURCE]) == (segment, source)}


def _positions(rows: Sequence[Row]) -> Chart | None:
    counts: dict[str, Mapping[int, float]] = {
        name: {
            row[POSITION]: row[VALUE]
            for row in rows
            if row[METRIC] == name and row[POSITION] is not None and row[SEGMENT] == row[SOURCE] == EVERY
        }
        for name in ("hits", "skips")
    }
    return position_chart(counts["hits"], counts["skips"])
