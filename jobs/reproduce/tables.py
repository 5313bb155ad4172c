"""The report of runs in Markdown: a chapter for each data set and protocol, the paper's numbers beside ours."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from fuxi_beta.evaluation.metrics import metric_title
from jobs.reproduce.comparisons import agreement, conditions, differences
from jobs.reproduce.days import day_tables
from jobs.reproduce.groups import EpochTimes, ListenerMetrics, SeedGroup, by_dataset, group_by_setting, one_each
from jobs.reproduce.markdown import column, multiple, table, table_of
from jobs.reproduce.paper import COUNTS, PAPER_METRICS, TITLES
from jobs.reproduce.runs import Dataset, ExperimentRun, Ranks, further_metrics
from jobs.reproduce.sections import Section, metric_cells, sections
from jobs.reproduce.systems import NOT_TRAINED_BY_STEPS, WITHOUT_DEPTH, in_order, label

if TYPE_CHECKING:
    from jobs.reproduce.figures import FigureFile

SLICES = {"all": "all", "same_second": "same second", "within_hour": "within an hour", "later": "later"}
_INTRO = """\
# Results

Written from the files of finished runs; what has not been run is not here. Figures are means over seeds ± the standard
deviation between seeds (none for a single seed), the best of a column in bold. † marks models that receive the time of
the event they predict. A row says where it had fewer epochs than the paper's setting. Columns named "paper" repeat
what the paper prints (arXiv 2508.10615). Differences smaller than their interval are no order.
"""
_MEASURED_APART = "Measured apart: the systems took turns on a quiet machine."
_MEASURED_BY_RUNS = """\
Medians of the runs themselves, not of a quiet machine: others may have worked beside them. Only times of one machine
are set in proportion."""


@dataclass(frozen=True)
class Chapter:
    """The runs of one data set and protocol, grouped, with their times, metrics of listeners and tables."""

    dataset: Dataset
    protocol: str
    groups: list[SeedGroup]
    times: EpochTimes
    listeners: ListenerMetrics
    sections: list[Section]


def render(
    runs: Sequence[ExperimentRun],
    timing: Mapping[str, Mapping[str, float]] | None,
    ranks_of: Callable[[ExperimentRun], Ranks],
    *,
    cases_of: Callable[[ExperimentRun], pa.Table] | None = None,
    figures: Sequence["FigureFile"] = (),
    against: str | None = None,
) -> str:
    """The report in Markdown.

    timing: data set's name -> `systems.timing_key` -> seconds an epoch, measured by turns on a quiet machine;
    data sets without take the runs' own times. ranks_of: a run's ranks (`runs.ranks_in`). cases_of: its cases
    (`runs.cases_in`), of which the tables of next_day are made. figures: as `figures.draw` returns them; they are
    shown from "figures/" beside the report. against: what the tables of next_day compare with, by one of `names_of`; by
    default the best baseline. Raises InputError.
    """
    lines = [_INTRO]
    for (dataset, protocol), in_chapter in by_dataset(runs).items():
        groups = group_by_setting(in_chapter)
        times = EpochTimes(groups, (timing or {}).get(dataset.name))
        if protocol != "leave_one_out":
            dataset = replace(dataset, paper="")  # noqa: PLW2901 - the paper has no numbers under it
        days = day_tables(groups, cases_of, against=against) if cases_of else []
        tables = [] if days else sections(groups, dataset.paper)
        chapter = Chapter(dataset, protocol, groups, times, ListenerMetrics(ranks_of), tables)
        lines += [*_header(dataset, protocol, in_chapter), *days]
        lines += _chapter(chapter, {f.kind: f for f in figures if f.dataset == dataset and f.protocol == protocol})
    return "\n".join(lines).rstrip() + "\n"


def _chapter(chapter: Chapter, figures: Mapping[str, "FigureFile"]) -> list[str]:
    lines = []
    for section in chapter.sections:
        lines += [f"### {section.title}", "", *_metric_table(section, chapter)]
        if section.table.number == 3:
            lines += [*_below_markov(chapter.groups), *_image(figures, "systems")]
    lines += _image(figures, "curves")
    if chapter.protocol != "next_day":  # which stores no ranks, so there are no metrics of each listener
        lines += differences(chapter.sections, chapter.listeners)
        lines += agreement(chapter.sections, chapter.listeners)
        lines += conditions(chapter.groups, chapter.listeners)
    lines += [*_scaling(chapter), *_image(figures, "depth")]
    if not any(g.first.protocol == "next_day" and g.first.ds for g in chapter.groups):  # `days` has these
        lines += _slices(chapter.groups)
    lines += _seconds_an_epoch(chapter)
    return lines


def _image(figures: Mapping[str, "FigureFile"], kind: str) -> list[str]:
    return [f"![{figures[kind].caption}](figures/{figures[kind].file})", ""] if kind in figures else []


def _header(dataset: Dataset, protocol: str, runs: Sequence[ExperimentRun]) -> list[str]:
    """The chapter's data set, machines, dates and commands."""
    dates = sorted({run.date for run in runs})
    machines = sorted({f"{run.machine}; kernels {run.kernels}" for run in runs})
    commands = Counter(run.command for run in runs)
    width = max(map(len, commands))
    title = dataset.title[:1].upper() + dataset.title[1:]
    title += "" if protocol == "leave_one_out" else f", protocol {protocol}"
    return [
        f"## {title}",
        "",
        f"- {dataset.listeners:,} listeners, {dataset.songs:,} songs, {dataset.events:,} events; protocol `{protocol}`",
        *(f"- {machine}" for machine in machines),
        f"- {len(runs)} runs, {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}",
        *_compared_with_table_2(dataset),
        "",
        "```",
        *(f"{command:<{width}}  # {n} {'run' if n == 1 else 'runs'}" for command, n in sorted(commands.items())),
        "```",
        "",
    ]


def _compared_with_table_2(dataset: Dataset) -> list[str]:
    """A line if the counts are not the paper's. Its number of users is one off: MovieLens-1M has 6,040."""
    if not dataset.paper:
        return []
    counts, title = COUNTS[dataset.paper], TITLES[dataset.paper]
    if (dataset.listeners, dataset.songs, dataset.events) == (counts.users, counts.items, counts.interactions):
        return []
    printed = f"{counts.users:,} users, {counts.items:,} items and {counts.interactions:,} interactions"
    if dataset.events == counts.interactions and abs(dataset.listeners - counts.users) <= 1:
        return [f"- the paper's Table 2 counts {printed} in {title}; its items are the rated ones"]
    return [
        f"- **the paper's columns are of the whole {title}** ({printed}): not comparable with ours in level, "
        "only in order"
    ]


def _metric_table(section: Section, chapter: Chapter) -> list[str]:
    """A table of the paper: our means and spreads, and beside each the printed value."""
    rows, dataset, baseline = section.rows, chapter.dataset.paper, section.table.baseline
    beside = f"paper ({TITLES[dataset]}{section.paper_depth})" if dataset else ""
    groups = [row.group for row in rows]
    columns = [("model", [row.label for row in rows]), ("seeds", [str(len(g.runs)) for g in groups])]
    further = further_metrics([run for g in groups for run in g.runs]) if section.table.number == 3 else []
    for metric in [*section.table.metrics, *further]:
        columns.append((metric_title(metric), metric_cells(groups, metric)))
        if beside and metric in PAPER_METRICS:
            columns.append((beside, column([r.published.metrics[metric] if r.published else None for r in rows])))
    if baseline:
        relative = [None if g.system in WITHOUT_DEPTH else chapter.times.relative(g, baseline) for g in groups]
        columns.append((f"time, {label(baseline)} = 1", [multiple(time) for time in relative]))
        if beside:
            columns.append((beside, [multiple(row.published.time if row.published else None) for row in rows]))
    return table_of(columns)


def _below_markov(groups: Sequence[SeedGroup]) -> list[str]:
    """A line that names the sequence models below the Markov row: a sign of a fault."""
    markov = next((g.mean("ndcg_10") for g in groups if g.system == "markov" and g.plain), None)
    if markov is None:
        return []
    trained = [g for g in groups if g.plain and g.system not in NOT_TRAINED_BY_STEPS]
    below = [g.label() for g in trained if (g.mean("ndcg_10") or 0) < markov]
    return [f"Below Markov in NDCG@10, which no sequence model should be: {', '.join(below)}.", ""] if below else []


def _scaling(chapter: Chapter) -> list[str]:
    """Metrics against depth, of systems that were trained at several depths."""
    plain = [g for g in chapter.groups if g.plain and g.system not in WITHOUT_DEPTH]
    rows = [g for system in in_order(g.system for g in plain) for g in plain if g.system == system]
    rows = [g for g in rows if len({other.layers for other in rows if other.system == g.system}) > 1]
    if not rows:
        return []
    columns = [
        ("model", [g.label(label(g.system)) for g in rows]),
        ("layers", [str(g.layers) for g in rows]),
        ("parameters", [f"{g.first.parameters:,}" for g in rows]),
        ("seeds", [str(len(g.runs)) for g in rows]),
        *((metric_title(metric), metric_cells(rows, metric)) for metric in PAPER_METRICS),
    ]
    return ["### Depth", "", *table_of(columns)]


def _slices(groups: Sequence[SeedGroup]) -> list[str]:
    """NDCG@10 by slice: by the time since the event before the predicted one, or by kind of listener."""
    rows = [g for g in groups if g.first.condition == "true"]
    measured = {name for g in rows for name in g.first.metrics}
    names = [*(name for name in SLICES if name in measured), *sorted(measured - set(SLICES))]
    if len(names) < 2:
        return []
    counts = {name: next(g.first.listeners[name] for g in rows if name in g.first.listeners) for name in names}
    names = [name for name in names if counts[name]]
    columns = [("model", [g.label_with_function for g in rows])]
    columns += [(f"{SLICES.get(n, n)} ({counts[n]:,})", metric_cells(rows, "ndcg_10", n)) for n in names]
    title, text = "By gap", "NDCG@10 by the time since the event before the predicted one; in brackets how many."
    if not measured & {"same_second", "later"}:
        title, text = "By listener", "NDCG@10 by kind of listener; in brackets how many."
    return [f"### {title}", "", text, "", *table_of(columns)]


def _seconds_an_epoch(chapter: Chapter) -> list[str]:
    times, rows = chapter.times, []
    for layers in sorted({g.layers for g in chapter.groups}):
        for system, g in one_each([g for g in chapter.groups if g.layers == layers and g.plain]).items():
            for where, value in times.seconds(system, layers).items():
                relative = multiple(times.relative(g, "sasrec"))
                seconds = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
                rows.append([where, g.name, str(layers), f"{g.first.parameters:,}", seconds, relative])
    if not rows:
        return []
    header = ["model", "layers", "parameters", "seconds an epoch", "SASRec = 1"]
    lines = ["### Seconds an epoch", "", _MEASURED_APART if times.timing is not None else _MEASURED_BY_RUNS, ""]
    if len({row[0] for row in rows}) > 1:
        return [*lines, *table(["machine", *header], rows, left=2)]
    return [*lines, *table(header, [row[1:] for row in rows])]
