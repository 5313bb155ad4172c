"""The metrics of the day's page: values beside each other, differences with their intervals, and what is below what."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuxi_beta.evaluation.metrics import SERVED, metric_order, metric_title
from jobs.serving.baselines import BASELINES, LABELS
from jobs.tables.metrics import CHALLENGER, CHAMPION, REFERENCE

RECOMMENDERS = {
    CHALLENGER: "Challenger",
    CHAMPION: "Champion",
    REFERENCE: "Last full retrain",
    **LABELS,
}
SLICES = {"all": "All listeners", "new": "New listeners", "light": "Light listeners", "heavy": "Heavy listeners"}
MAX_COLUMNS = 8


@dataclass(frozen=True)
class Lead:
    """How far one recommender is above another one, on the same listeners, and the 95 % interval of that."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Better or worse where the interval excludes zero, else empty."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else ""


@dataclass(frozen=True)
class Below:
    """The best baseline above a model. lead: of the baseline; None where no interval was stored."""

    baseline: str
    lead: Lead | None


@dataclass(frozen=True)
class Row:
    """A recommender in a group of listeners. values: by column, None where there is none."""

    name: str
    values: tuple[float | None, ...]
    lead: Lead | None  # over what serves
    below: Below | None


def headline_metric(wanted: str, metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The metric of the gates if it was measured, else the first that was (under another protocol)."""
    measured = {name for slices in metrics.values() for values in slices.values() for name in values}
    return wanted if wanted in measured or not measured else min(measured, key=metric_order)


def lead_of(measured: Mapping[str, Any], metric: str, part: str, name: str, over: str) -> Lead | None:
    """The stored lead of a recommender over another one in a slice; None if it was not stored for the metric."""
    for one in measured.get("differences", ()):
        if one["slice"] == part and one["metric"] == metric and {one["of"], one["less"]} == {name, over}:
            mean, low, high = one["mean"], one["low"], one["high"]
            return Lead(mean, low, high) if one["of"] == name else Lead(-mean, -high, -low)
    return None


def below_baseline(measured: Mapping[str, Any], metric: str, part: str, name: str) -> Below | None:
    """The best baseline above a model in a slice; None if none is, or of a baseline."""
    metrics = measured.get("metrics", {})
    own = metrics.get(name, {}).get(part, {}).get(metric)
    values = {one: metrics[one].get(part, {}).get(metric) for one in BASELINES if one in metrics}
    above = {one: value for one, value in values.items() if _finite(value) and _finite(own) and value > own}
    if name in BASELINES or not above:
        return None
    best = max(above, key=above.__getitem__)
    return Below(best, lead_of(measured, metric, part, best, name))


def metric_tables(measured: Mapping[str, Any], headline: str, served: str = "") -> list[dict[str, Any]]:
    """The tables of metrics of raw lists, and of lists as served where they were measured.

    With more than eight columns there are two of each, the second with other cut-offs than the headline's. Each has a
    title, columns (titles of metrics) and groups, one a slice with listeners: title, listeners, and rows (`Row`). Leads
    are over `served`, in the headline's table alone.
    """
    metrics = measured.get("metrics", {})
    names = {name for slices in metrics.values() for values in slices.values() for name in values}
    raw = sorted((n for n in names if not n.startswith(SERVED)), key=lambda n: (n != headline, metric_order(n)))
    as_served = sorted(names - set(raw), key=lambda n: (n != f"{SERVED}{headline}", metric_order(n)))
    at = headline.partition("_")[2]
    tables = []
    for kind, columns in (("", raw), (", as served under the list rules", as_served)):
        plain = {name: name.removeprefix(SERVED) for name in columns}
        few = len(columns) <= MAX_COLUMNS
        first = [name for name, metric in plain.items() if few or metric.partition("_")[2] in (at, "")]
        rest = [name for name in columns if name not in first]
        titled = ((f"Metrics{kind}", first), (f"Metrics at other cut-offs{kind}", rest))
        tables += [{"title": title} | _metric_table(measured, some, headline, served) for title, some in titled if some]
    return tables


def _metric_table(measured: Mapping[str, Any], columns: list[str], headline: str, served: str) -> dict[str, Any]:
    metrics = measured["metrics"]
    recommenders = sorted(metrics, key=lambda name: [*RECOMMENDERS, name].index(name))
    slices = {name for values in metrics.values() for name in values}
    compares, groups = headline in columns, []
    for part in sorted(slices, key=lambda name: ([*SLICES, name].index(name), name)):
        listeners = measured.get("slices", {}).get(part)
        rows = [
            Row(
                name,
                tuple(metrics[name].get(part, {}).get(column) for column in columns),
                lead_of(measured, headline, part, name, served) if compares and name != served else None,
                _flagged(below_baseline(measured, headline, part, name), part) if compares else None,
            )
            for name in recommenders
        ]
        if listeners != 0 and any(_finite(value) for row in rows for value in row.values):
            groups.append({"title": SLICES.get(part, part), "listeners": listeners, "rows": rows})
    compares = any(row.lead for group in groups for row in group["rows"])
    return {"columns": [metric_title(column) for column in columns], "groups": groups, "compares": compares}


def _flagged(below: Below | None, part: str) -> Below | None:
    """Of a group of some listeners only what is significant: one of them has a few."""
    return below if below and (part == "all" or (below.lead and below.lead.verdict)) else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
