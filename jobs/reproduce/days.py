"""Runs under next_day beside each other: values with intervals, differences to the best baseline, and slices.

A row is a setting, its runs differ by seed. Intervals are 95 % of a bootstrap over listeners, whose days stay together,
and over seeds (`fuxi_beta.evaluation.statistics`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxi_beta.evaluation.metrics import SERVED, metric_title
from fuxi_beta.evaluation.next_days import GAP, GAPS, KIND, KINDS, RECENT, RECENT_DAYS, UNTRAINED
from fuxi_beta.evaluation.statistics import Difference, mean_interval, paired_difference
from jobs.reproduce.groups import SeedGroup, named, names_of
from jobs.reproduce.markdown import NOTHING, signed, table
from jobs.reproduce.runs import ExperimentRun
from jobs.reproduce.systems import CEILINGS, SANITY
from pipelines.errors import InputError
from pipelines.schema import DS, USER_ID

HEADLINE = ("ndcg_30", "hr_30", "recall_30")
COMPARED = HEADLINE[:2]
"""Metrics whose difference to the reference has a column."""
COLD = {RECENT: f"first heard in the last {RECENT_DAYS} days", UNTRAINED: "not heard before training's end"}
SLICES = {
    "all": "all",
    **{name: name for name in KINDS},
    **dict(zip(GAPS, ("gap below a day", "1 to 7 days", "longer", "no play before"), strict=True)),
}
_SEED, _DRAWS = 1, 2000  # of the bootstrap: the same report from the same runs
_TOLERANCE = 1e-3


class CaseMetrics:
    """The metrics of each listener from the cases of runs. All runs must have measured the same cases."""

    def __init__(self, cases_of: Callable[[ExperimentRun], pa.Table]) -> None:
        self._cases_of = cases_of
        self._by_run: dict[str, pa.Table] = {}

    def values(self, g: SeedGroup, metric: str, part: str = "all") -> tuple[np.ndarray, np.ndarray]:
        """A metric of each listener with a case in a slice, mean over these cases: float [S, U]; and how many: [U].

        Raises InputError if runs measured different cases, or cases and run file differ.
        """
        tables = [self._of(run) for run in g.runs]
        column = f"{part}.{metric}" if part in COLD else metric
        members = _members(tables[0], column, part)
        users = tables[0][USER_ID].to_numpy()[members]
        _, row, counts = np.unique(users, return_inverse=True, return_counts=True)
        sums = [
            np.bincount(row, weights=of_run[column].to_numpy()[members], minlength=len(counts)) for of_run in tables
        ]
        return np.stack(sums) / counts, counts

    def has(self, g: SeedGroup, metric: str) -> bool:
        """Whether all runs of a group have a metric, as served for instance."""
        return all(metric in self._of(run).column_names for run in g.runs)

    def _of(self, run: ExperimentRun) -> pa.Table:
        if run.name not in self._by_run:
            cases = self._cases_of(run)
            if self._by_run:
                name, first = next(iter(self._by_run.items()))
                if not all(cases[key].equals(first[key]) for key in (USER_ID, DS)):
                    raise InputError(f"{run.name} and {name} measured different cases: run one again")
            for metric in HEADLINE:
                found, stated = pc.mean(cases[metric]).as_py(), run.metrics["all"][metric]
                if abs(found - stated) > _TOLERANCE:
                    raise InputError(
                        f"{run.name}: its cases give {metric} {found:.4f}, its file {stated:.4f}: run again"
                    )
            self._by_run[run.name] = cases
        return self._by_run[run.name]


def _members(cases: pa.Table, column: str, part: str) -> np.ndarray:
    """The cases of a slice. bool [C]."""
    if part == "all":
        return np.ones(cases.num_rows, bool)
    if part in COLD:
        return ~np.isnan(cases[column].to_numpy())
    return np.asarray(pc.equal(cases[KIND if part in KINDS else GAP], part))


@dataclass(frozen=True)
class DayRuns:
    """The settings that were measured on the same days, and what they are compared with.

    against: the row that differences are to, by one of `names_of`; by default the best baseline of each metric.
    """

    groups: Sequence[SeedGroup]
    cases: CaseMetrics
    against: str | None = None

    @property
    def rows(self) -> list[SeedGroup]:
        """The rows in order, ceilings last."""
        return sorted(self.groups, key=lambda g: g.system in CEILINGS)

    def reference(self, metric: str) -> SeedGroup | None:
        """What differences of a metric are to; None if no baseline was run. Raises InputError for an unknown name."""
        if self.against is None:
            baselines = [g for g in self.groups if g.system in SANITY]
            return max(baselines, key=lambda g: g.mean(metric) or 0.0, default=None)
        return named(self.groups, self.against)

    def difference(self, g: SeedGroup, metric: str, part: str = "all") -> Difference | None:
        """A row less its reference; None for the reference itself, ceilings, and slices without a case."""
        other = self.reference(metric)
        if other is None or g is other or g.system in CEILINGS:
            return None
        (a, counts), (b, _) = (self.cases.values(one, metric, part) for one in (g, other))
        return paired_difference(a, b, seed=_SEED, draws=_DRAWS, cases=counts) if len(counts) else None

    def table(self, prefix: str = "") -> tuple[list[str], list[list[str]]]:
        """Header and rows: seeds, values with half their interval, differences with their interval and ratio.

        prefix: SERVED for lists as served, of the runs that have them; both empty if none has.
        """
        groups = [g for g in self.rows if self.cases.has(g, prefix + HEADLINE[0])]
        if not groups:
            return [], []
        named = self.against if any(self.against in names_of(g) for g in groups) or not prefix else None
        measured = replace(self, groups=groups, against=named)
        references = {metric: measured.reference(prefix + metric) for metric in COMPARED}
        header = ["recommender", "seeds", *map(metric_title, HEADLINE)]
        header += [f"{metric_title(m)} against {g.name if g else 'the best baseline'}" for m, g in references.items()]
        rows = []
        for g in measured.groups:
            cells = [g.label(), str(len(g.runs)), *(self._value(g, prefix + metric) for metric in HEADLINE)]
            rows.append([*cells, *(measured._compared(g, prefix + metric) for metric in COMPARED)])
        return header, rows

    def _value(self, g: SeedGroup, metric: str) -> str:
        values, counts = self.cases.values(g, metric)
        found = mean_interval(values, seed=_SEED, draws=_DRAWS, cases=counts)
        return f"{found.mean:.4f} ± {(found.high - found.low) / 2:.4f}"

    def _compared(self, g: SeedGroup, metric: str) -> str:
        found, other = self.difference(g, metric), self.reference(metric)
        if found is None or other is None:
            return NOTHING
        ratio = (g.mean(metric) or 0.0) / (other.mean(metric) or np.nan)
        text = f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}] {ratio:.2f}×"
        return f"**{text}**" if found.detectable else text

    def sliced(self, metric: str, parts: Sequence[str]) -> list[list[str]]:
        """A metric of each row in each slice, ▲ or ▼ where it differs significantly from the reference."""
        return [[g.label(), *(self._sliced(g, metric, part) for part in parts)] for g in self.rows]

    def _sliced(self, g: SeedGroup, metric: str, part: str) -> str:
        mean, found = g.mean(metric, part), self.difference(g, metric, part)
        mark = "" if found is None or not found.detectable else " ▲" if found.mean > 0 else " ▼"
        return NOTHING if mean is None else f"{mean:.4f}{mark}"


def on_the_same_days(groups: Sequence[SeedGroup]) -> dict[tuple[str, int], list[SeedGroup]]:
    """(ds, days) -> the settings measured on them. Runs of earlier releases kept no cases and are left out."""
    found: dict[tuple[str, int], list[SeedGroup]] = {}
    for g in groups:
        if g.first.protocol == "next_day" and g.first.ds:
            found.setdefault((g.first.ds, g.first.days), []).append(g)
    return dict(sorted(found.items()))


def day_tables(
    groups: Sequence[SeedGroup], cases_of: Callable[[ExperimentRun], pa.Table], *, against: str | None = None
) -> list[str]:
    """The lines of a chapter under next_day: a part for each choice of days.

    against: as of `DayRuns`, on the days that it was measured on.
    """
    lines = []
    for (ds, days), measured in on_the_same_days(groups).items():
        there = any(against in names_of(g) for g in measured)
        runs = DayRuns(measured, CaseMetrics(cases_of), against if there else None)
        counts = measured[0].first.listeners
        lines += [f"### {days} {'day' if days == 1 else 'days'} to {ds}", "", _text(days, counts["all"]), ""]
        header, rows = runs.table()
        lines += table(header, rows)
        served, rows = runs.table(SERVED)
        if rows:
            lines += ["As served, under the list rules:", "", *table(served, rows)]
        parts = [name for name in SLICES if counts.get(name)]
        for metric in COMPARED:
            title = f"{metric_title(metric)} by listener and by the time since the last play that the list knows"
            header = ["recommender", *(f"{SLICES[name]} ({counts[name]:,})" for name in parts)]
            lines += [f"{title}:", "", *table(header, runs.sliced(metric, parts))]
        lines += _cold(runs, {name: counts[name] for name in COLD if counts.get(name)})
    return lines


def _cold(runs: DayRuns, counts: dict[str, int]) -> list[str]:
    """HR and recall of cold songs alone."""
    if not counts:
        return []
    header, columns = ["recommender"], []
    for metric in HEADLINE[1:]:
        header += [f"{metric_title(metric)}, {COLD[name]} ({count:,})" for name, count in counts.items()]
        columns.append(runs.sliced(metric, list(counts)))
    rows = [[first[0], *first[1:], *second[1:]] for first, second in zip(*columns, strict=True)]
    return ["Cold songs alone, in brackets the cases with one in their truth:", "", *table(header, rows)]


def _text(days: int, cases: int) -> str:
    first = "the day" if days == 1 else "the first of the days"
    return (
        f"Learned from targets before {first}; {cases:,} cases, a listener and a day each. ± is half of the 95 % "
        "interval; differences have theirs in brackets, in bold (▲ and ▼ in slices) where it leaves out zero, and × is "
        "the ratio. Bootstrap over listeners, whose days stay together, and over seeds; with one seed it knows nothing "
        "of other seeds, and it is not corrected for the number of comparisons. A ceiling is the best that the process "
        "behind the logs allows."
    )
