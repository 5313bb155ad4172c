"""Runs to the text of the report: one chapter for each data set, the paper's numbers beside ours."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jobs.reproduce.comparisons import agreement, conditions, differences
from jobs.reproduce.groups import (
    SANITY,
    WITHOUT_DEPTH,
    Clock,
    Group,
    Listeners,
    by_dataset,
    group,
    in_order,
    label,
    one_each,
)
from jobs.reproduce.markdown import METRICS, column, multiple, seconds, table
from jobs.reproduce.paper import FIVE, TITLES, paper_counts
from jobs.reproduce.runs import Dataset, Ranks, Run
from jobs.reproduce.sections import Section, sections

if TYPE_CHECKING:
    from jobs.reproduce.figures import Drawn

SLICES = {
    "all": "all",
    "same_second": "same second",
    "within_hour": "within an hour",
    "later": "later",
}
_INTRO = """\
# Results

Written from the files of finished runs; what has not been run is not here. Figures are means over seeds ± the standard
deviation between seeds (none for a single seed), the best of a column in bold. † marks models that receive the time of
the event they predict. A row says where it had fewer epochs than the paper's setting. Columns named "paper" repeat
what the paper prints (arXiv 2508.10615). Differences smaller than their interval are no order.
"""
_ALONE = "Measured apart: the systems took turns on a quiet machine."
_IN_PASSING = """\
Medians of the runs themselves, not of a quiet machine: others may have worked beside them. Only times of one machine
are set in proportion."""


@dataclass(frozen=True)
class Chapter:
    """What the tables of one data set are made of."""

    dataset: Dataset
    groups: list[Group]
    clock: Clock
    listeners: Listeners
    sections: list[Section]


def render(
    runs: Sequence[Run],
    timing: Mapping[str, Mapping[str, float]] | None,
    ranks_of: Callable[[Run], Ranks],
    *,
    figures: Sequence["Drawn"] = (),
) -> str:
    """The report in Markdown.

    timing: data set's name -> `groups.timing_key` -> seconds an epoch, measured by turns on a quiet machine;
    data sets without take the runs' own times. ranks_of: a run's ranks (`runs.ranks_in`). figures: as `figures.draw`
    returns them; they are shown from "figures/" beside the report. Raises InputError.
    """
    lines = [_INTRO]
    for (dataset, protocol), mine in by_dataset(runs).items():
        groups = group(mine)
        clock = Clock(groups, (timing or {}).get(dataset.name))
        if protocol != "leave_one_out":
            dataset = replace(dataset, paper="")  # noqa: PLW2901 - the paper has no numbers under it
        chapter = Chapter(dataset, groups, clock, Listeners(ranks_of), sections(groups, dataset.paper))
        lines += _header(dataset, protocol, mine)
        lines += _chapter(chapter, {d.kind: d for d in figures if d.dataset == dataset and d.protocol == protocol})
    return "\n".join(lines).rstrip() + "\n"


def _chapter(chapter: Chapter, figures: Mapping[str, "Drawn"]) -> list[str]:
    lines = []
    for section in chapter.sections:
        lines += [f"### {section.title}", "", *_metric_table(section, chapter)]
        if section.short == "Table 3":
            lines += [*_below_markov(chapter.groups), *_shown(figures, "systems")]
    lines += _shown(figures, "curves")
    if chapter.groups[0].first.protocol != "next_day":  # which has no ranks that tell every listener's metrics
        lines += differences(chapter.sections, chapter.listeners)
        lines += agreement(chapter.sections, chapter.listeners)
        lines += conditions(chapter.groups, chapter.listeners)
    lines += [*_scaling(chapter), *_shown(figures, "depth")]
    lines += _slices(chapter.groups)
    lines += _times(chapter)
    return lines


def _shown(figures: Mapping[str, "Drawn"], kind: str) -> list[str]:
    return [f"![{figures[kind].caption}](figures/{figures[kind].file})", ""] if kind in figures else []


def _header(dataset: Dataset, protocol: str, runs: Sequence[Run]) -> list[str]:
    """What the chapter's numbers were measured on, when, where and with which commands."""
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
    """Whether the paper's numbers are of the same data. Its count of users is one off: MovieLens-1M has 6,040."""
    if not dataset.paper:
        return []
    counts, title = paper_counts(dataset.paper), TITLES[dataset.paper]
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
    """A table of the paper: our mean and spread, and beside each metric what is printed."""
    rows, dataset = section.rows, chapter.dataset.paper
    beside = f"paper ({TITLES[dataset]}{section.paper_depth})" if dataset else ""
    header = ["model", "seeds"]
    columns = [[row.label for row in rows], [str(len(row.group.runs)) for row in rows]]
    for metric in section.metrics:
        header.append(METRICS[metric])
        columns.append(column([r.group.mean(metric) for r in rows], [r.group.spread(metric) for r in rows]))
        if beside:
            header.append(beside)
            columns.append(column([r.published.metrics[metric] if r.published else None for r in rows]))
    if section.baseline:
        header.append(f"time, {label(section.baseline)} = 1")
        columns.append([multiple(_relative(chapter.clock, row.group, section.baseline)) for row in rows])
        if beside:
            header.append(beside)
            columns.append([multiple(row.published.time if row.published else None) for row in rows])
    return table(header, list(zip(*columns, strict=True)))


def _relative(clock: Clock, g: Group, baseline: str) -> float | None:
    return None if g.system in WITHOUT_DEPTH else clock.relative(g, baseline)


def _below_markov(groups: Sequence[Group]) -> list[str]:
    """A sequence model below the Markov row is a sign of a fault, so it is said."""
    markov = next((g.mean("ndcg_10") for g in groups if g.system == "markov" and g.plain), None)
    if markov is None:
        return []
    trained = [g for g in groups if g.plain and g.system not in {*SANITY, "bprmf"}]
    below = [g.label() for g in trained if (g.mean("ndcg_10") or 0) < markov]
    return [f"Below Markov in NDCG@10, which no sequence model should be: {', '.join(below)}.", ""] if below else []


def _scaling(chapter: Chapter) -> list[str]:
    """Metrics against depth, of systems that were trained at more than one."""
    plain = [g for g in chapter.groups if g.plain and g.system not in WITHOUT_DEPTH]
    rows = [g for system in in_order(g.system for g in plain) for g in plain if g.system == system]
    rows = [g for g in rows if len({other.layers for other in rows if other.system == g.system}) > 1]
    if not rows:
        return []
    columns = [[g.label(label(g.system)) for g in rows], *([str(v) for v in c] for c in _sizes(rows))]
    columns += [column([g.mean(m) for g in rows], [g.spread(m) for g in rows]) for m in FIVE]
    header = ["model", "layers", "parameters", "seeds", *(METRICS[m] for m in FIVE)]
    return ["### Depth", "", *table(header, list(zip(*columns, strict=True)))]


def _sizes(rows: Sequence[Group]) -> list[list[str]]:
    return [
        [str(g.layers) for g in rows],
        [f"{g.first.parameters:,}" for g in rows],
        [str(len(g.runs)) for g in rows],
    ]


def _slices(groups: Sequence[Group]) -> list[str]:
    """NDCG@10 by the time between the event that is predicted and the one before."""
    rows = [g for g in groups if g.first.condition == "true"]
    found = {part for g in rows for part in g.first.metrics}
    parts = [*(part for part in SLICES if part in found), *sorted(found - set(SLICES))]
    if len(parts) < 2:
        return []
    counts = {part: next(g.first.listeners[part] for g in rows if part in g.first.listeners) for part in parts}
    parts = [part for part in parts if counts[part]]
    header = ["model", *(f"{SLICES.get(part, part)} ({counts[part]:,})" for part in parts)]
    columns = [[_with_function(g) for g in rows]]
    columns += [column([g.mean("ndcg_10", p) for g in rows], [g.spread("ndcg_10", p) for g in rows]) for p in parts]
    title, text = "By gap", "NDCG@10 by the time since the event before the predicted one; in brackets how many."
    if not found & {"same_second", "later"}:
        title, text = "By listener", "NDCG@10 by kind of listener; in brackets how many."
    return [f"### {title}", "", text, "", *table(header, list(zip(*columns, strict=True)))]


def _with_function(g: Group) -> str:
    plain = g.plain or g.system != "fuxi-beta"
    return g.label() if plain else g.label(f"{g.name}, {g.first.temporal}")


def _times(chapter: Chapter) -> list[str]:
    """Seconds an epoch of every system."""
    clock = chapter.clock
    named: dict[tuple[int, str], Group] = {}
    for layers in sorted({g.layers for g in chapter.groups}):
        here = [g for g in chapter.groups if g.layers == layers and g.plain]
        named |= {(layers, system): g for system, g in one_each(here).items()}
    rows = []
    for (layers, system), g in named.items():
        for where, value in clock.seconds(system, layers).items():
            multiples = multiple(clock.relative(g, "sasrec"))
            rows.append([where, g.name, str(layers), f"{g.first.parameters:,}", seconds(value), multiples])
    if not rows:
        return []
    header = ["model", "layers", "parameters", "seconds an epoch", "SASRec = 1"]
    lines = ["### Seconds an epoch", "", _ALONE if clock.timing is not None else _IN_PASSING, ""]
    if len({row[0] for row in rows}) > 1:
        return [*lines, *table(["machine", *header], rows, left=2)]
    return [*lines, *table(header, [row[1:] for row in rows])]
