"""The quality of the day's input on its page: each number with its bounds, and the days before."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from jobs.report.charts import Chart, Panel, panel_chart
from pipelines.logs.quality import (
    ACCEPTED,
    DUPLICATE_SHARE,
    NEWEST_PLAY_AGE_S,
    NULL_SHARE,
    PLAYS_PER_LANDING_DAY,
    REJECTED_SHARE,
    UNKNOWN_SONG_SHARE,
)
from pipelines.schema import (
    ACCEPTED_OVERRIDE,
    DS,
    LOWER,
    METRIC,
    OPTIONAL_COLUMNS,
    PASSED,
    REQUIRED_COLUMNS,
    UPPER,
    VALUE,
)

LABELS = {
    ACCEPTED: "Plays",
    REJECTED_SHARE: "Rejected rows",
    PLAYS_PER_LANDING_DAY: "Plays per landing day",
    UNKNOWN_SONG_SHARE: "Plays of unknown songs",
    NEWEST_PLAY_AGE_S: "Newest play, age",
    DUPLICATE_SHARE: "Duplicates",
}
"""Metrics of the table `quality` in the page's order; those of null shares come before the last."""

PANELS = {
    PLAYS_PER_LANDING_DAY: "plays per landing day",
    REJECTED_SHARE: "rejected, share of rows",
    UNKNOWN_SONG_SHARE: "unknown songs, share of plays",
}

WEEK = 7

Row = Mapping[str, Any]
"""A row of the table `quality`."""


@dataclass(frozen=True)
class QualityLine:
    """A line of the page's table. verdict: pass, fail, accepted (in spite of a broken bound) or empty (not judged)."""

    label: str
    verdict: str
    found: str
    allowed: str


def quality_lines(rows: Sequence[Row], ds: dt.date) -> list[QualityLine]:
    """The judgement of the input of `ds`, in the page's order; none if it was never judged."""
    by_metric = {row[METRIC]: row for row in rows if row[DS] == ds}
    *first, last = LABELS
    ordered = (*first, *(f"{NULL_SHARE}{column}" for column in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)), last)
    return [_line(by_metric[metric]) for metric in ordered if metric in by_metric]


def trailing_chart(rows: Sequence[Row]) -> Chart | None:
    """Plays a landing day, rejected rows and unknown songs over the days, with refused days."""
    panels = []
    for name, title in PANELS.items():
        of_days = {row[DS]: row for row in rows if row[METRIC] == name}
        values, lower, upper = (
            {ds: row[column] for ds, row in of_days.items() if row[column] is not None}
            for column in (VALUE, LOWER, UPPER)
        )
        broken = frozenset(ds for ds, row in of_days.items() if row[PASSED] is False)
        panels.append(Panel(title, values, lower, upper, broken, share=name != PLAYS_PER_LANDING_DAY))
    return panel_chart(panels)


@dataclass(frozen=True)
class LikeDays:
    """Earlier days that a day's counts are compared with. label: which they are; empty if there are none."""

    label: str
    medians: Mapping[str, float]  # metric -> over them


def like_days(rows: Sequence[Row], ds: dt.date) -> LikeDays:
    """The same weekdays of the weeks before; with fewer than two of them, the seven days before.

    Days count that read logs of as many landing days, and whose input was not refused: neither a first build nor a bad
    day says what is usual. rows: of the table `quality`, of some weeks up to `ds`.
    """
    values: dict[dt.date, dict[str, float]] = {}
    refused = {row[DS] for row in rows if row[PASSED] is False and not row[ACCEPTED_OVERRIDE]}
    for row in rows:
        values.setdefault(row[DS], {})[row[METRIC]] = row[VALUE]
    landing_days = values.get(ds, {}).get("landing_days")
    like = [
        day
        for day, found in sorted(values.items())
        if day < ds and day not in refused and found.get("landing_days") == landing_days
    ]
    same = [day for day in like if day.weekday() == ds.weekday()]
    week = [day for day in like if (ds - day).days <= WEEK]
    days, what = (same, f"{ds:%A}") if len(same) > 1 else (week, "day")
    if not days:
        return LikeDays("", {})
    names = {name for day in days for name in values[day]}
    medians = {name: median(values[day][name] for day in days if name in values[day]) for name in names}
    plural = f"the {len(days)} {what}s before, median" if len(days) > 1 else f"the {what} before"
    return LikeDays(plural, medians)


def _line(row: Row) -> QualityLine:
    name, lower, upper = row[METRIC], row[LOWER], row[UPPER]
    label = LABELS.get(name, f"No {name.removeprefix(NULL_SHARE)}")
    verdict = "accepted" if row[ACCEPTED_OVERRIDE] else {None: "", True: "pass", False: "fail"}[row[PASSED]]
    bounds = [_number(name, bound) for bound in (lower, upper) if bound is not None]
    if lower is not None and upper is not None:
        allowed = f"{bounds[0]} to {bounds[1]}"
    else:
        allowed = f"{'≥' if upper is None else '≤'} {bounds[0]}" if bounds else ""
    return QualityLine(label, verdict, _number(name, row[VALUE]), allowed)


def _number(name: str, value: float) -> str:
    if name == NEWEST_PLAY_AGE_S:
        return f"{value / 3600:.1f} h" if value >= 3600 else f"{value / 60:.0f} min"
    if name.startswith(NULL_SHARE) or name in (REJECTED_SHARE, UNKNOWN_SONG_SHARE, DUPLICATE_SHARE):
        return "<0.01%" if 0 < value < 0.00005 else f"{round(100 * value, 2):g}%"
    return f"{value:,.0f}"
