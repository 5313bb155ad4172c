"""What the day's lists are like, on the day's page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.day import Day
from jobs.report.charts import Chart, Panel, panel_chart
from jobs.tables.list_quality import (
    AGE_DAYS,
    ARTISTS,
    COVERAGE,
    CUT,
    EMPTY_SHARE,
    GINI,
    NEW_ARTIST_SHARE,
    NOVELTY,
    OVERLAP,
    POPULAR_SHARE,
    SHARES,
    SHORT_SHARE,
    TOP_ARTIST_SHARE,
)
from pipelines.schema import DEFAULT_SEGMENT, DS, EVERY, LISTENERS, METRIC, SEGMENT, VALUE

LABELS = {
    ARTISTS: "Artists per list",
    TOP_ARTIST_SHARE: "Of a list, by its most frequent artist",
    NEW_ARTIST_SHARE: "Of a list, by artists never played",
    OVERLAP: "Of a list, in the listener's list before",
    AGE_DAYS: "Days since a song's release, median",
    NOVELTY: "Novelty of a song, bits",
    COVERAGE: "Eligible songs in any list",
    GINI: "Gini coefficient of lists by song",
    POPULAR_SHARE: "Lists of popular songs",
    SHORT_SHARE: "Lists with fewer songs than asked for",
    EMPTY_SHARE: "Lists without a song",
}
"""Metrics of the table `list_quality` in the page's order; what the rules cut has a table of its own."""
CHARTS = {
    "The songs of a list": {
        ARTISTS: "artists per list",
        NEW_ARTIST_SHARE: "by artists never played, share of a list",
        OVERLAP: "in the list before, share of a list",
        AGE_DAYS: "days since release, median",
    },
    "All lists together": {
        NOVELTY: "novelty of a song, bits",
        COVERAGE: "in any list, share of eligible songs",
        GINI: "Gini coefficient of lists by song",
        SHORT_SHARE: "shorter than asked for, share of lists",
    },
}

Row = Mapping[str, Any]
"""A row of the table `list_quality`."""


@dataclass(frozen=True)
class QualityRow:
    """A line of a table: a value of each segment, None where it was not taken."""

    label: str
    share: bool
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class ListQualitySection:
    """What the page shows; no figures if none were taken for the day."""

    segments: tuple[str, ...]
    lists: tuple[QualityRow, ...]
    cuts: tuple[QualityRow, ...]  # songs that rules kept out, most first; rules that cut none are left out
    sampled: int  # listeners of whom that was counted
    charts: tuple[tuple[str, Chart], ...]
    days: int


def list_quality_section(day: Day, rows: Sequence[Row]) -> ListQualitySection:
    """rows: of the days up to `day.ds` that are drawn."""
    of_day = {(row[SEGMENT], row[METRIC]): row for row in rows if row[DS] == day.ds}
    names = {segment for segment, _ in of_day}
    segments = sorted(names, key=lambda name: (name != EVERY, name != DEFAULT_SEGMENT, name))
    counted = [metric for segment, metric in of_day if segment == EVERY and metric.startswith(CUT)]
    cuts = [metric for metric in counted if of_day[EVERY, metric][VALUE]]
    most_first = sorted(cuts, key=lambda metric: (-of_day[EVERY, metric][VALUE], metric))

    def line(metric: str, label: str) -> QualityRow:
        found = (of_day.get((segment, metric)) for segment in segments)
        return QualityRow(label, metric in SHARES, tuple(None if row is None else row[VALUE] for row in found))

    overall = [row for row in rows if row[SEGMENT] == EVERY]
    charts = ((title, _chart(f"lists-{n}", overall, panels)) for n, (title, panels) in enumerate(CHARTS.items()))
    return ListQualitySection(
        segments=tuple(segments),
        lists=tuple(line(metric, label) for metric, label in LABELS.items()) if segments else (),
        cuts=tuple(line(metric, metric.removeprefix(CUT)) for metric in most_first),
        sampled=of_day[EVERY, cuts[0]][LISTENERS] if cuts else 0,
        charts=tuple((title, chart) for title, chart in charts if chart),
        days=len({row[DS] for row in overall}),
    )


def _chart(name: str, rows: Sequence[Row], titles: Mapping[str, str]) -> Chart | None:
    """A panel a metric over the days."""
    panels = []
    for metric, title in titles.items():
        values = {row[DS]: row[VALUE] for row in rows if row[METRIC] == metric}
        panels.append(Panel(title, values, {}, {}, share=metric in SHARES))
    return panel_chart(panels, name=name)
