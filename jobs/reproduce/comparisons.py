"""The report's comparisons: which differences are significant, and whether the order of systems is the paper's."""

import math
from collections.abc import Sequence

from fuxi_beta.evaluation.metrics import metric_title
from fuxi_beta.evaluation.statistics import Difference, order_agreement, paired_difference
from jobs.reproduce.groups import ListenerMetrics, SeedGroup, named
from jobs.reproduce.markdown import NOTHING, signed, table
from jobs.reproduce.sections import Section, TableRow, metric_cells

CONDITIONS = {
    "true": "(a) true time",
    "previous": "(b) previous event's",
    "permuted": "(c) gaps permuted",
    "fixed-hour": "(d) fixed hour",
}
AGAINST = ("ndcg_10", "hr_10")
"""Metrics that `--against` compares under leave_one_out."""
_SEED = 1  # of the bootstrap: the same report from the same runs
_METHOD = (
    "Bootstrap over listeners and over seeds, 95 % each, not corrected for their number; with one seed on a side the "
    "interval knows nothing of that side's other seeds."
)


def differences(sections: Sequence[Section], listeners: ListenerMetrics) -> list[str]:
    """The pairs that the tables are about."""
    rows = []
    for section in sections:
        metric = section.headline
        for a, b in section.pairs():
            compared = _comparison(a.group, b.group, metric, listeners)
            printed = a.published.metrics[metric] - b.published.metrics[metric] if a.published and b.published else None
            pair = [section.short, f"{a.label} against {b.label}", metric_title(metric)]
            rows.append([*pair, *compared, signed(printed)])
    if not rows:
        return []
    header = ["table", "pair", "metric", "difference", "95 % interval", "p", "significant", "seeds", "paper"]
    return ["### Differences", "", _METHOD, "", *table(header, rows, left=3)]


def against(groups: Sequence[SeedGroup], name: str, listeners: ListenerMetrics) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each setting less the one that `name` means (`names_of`), paired over listeners and seeds.

    Raises InputError if no setting, or several, are called so.
    """
    other, rows = named(groups, name), []
    for g in groups:
        if g is not other:
            compared = (_comparison(g, other, metric, listeners) for metric in AGAINST)
            rows += [
                [_with_condition(g), metric_title(metric), *cells]
                for metric, cells in zip(AGAINST, compared, strict=True)
            ]
    header = ["run", "metric", f"less {_with_condition(other)}", "95 % interval", "p", "significant", "seeds"]
    return header, rows


def _with_condition(g: SeedGroup) -> str:
    condition = g.first.condition
    return g.label_with_function + (f" {CONDITIONS[condition]}" if condition != "true" else "")


def agreement(sections: Sequence[Section], listeners: ListenerMetrics) -> list[str]:
    """Kendall's tau between our order and the paper's, and the discordant pairs."""
    summary, pairs = [], []
    for section in sections:
        for short, rows in _orders(section):
            if len(rows) < 3:
                continue
            metric = section.headline
            labels = {row.group.variant: row.label for row in rows}
            ours = {row.group.variant: listeners.values(row.group, metric) for row in rows}
            printed = {row.group.variant: row.published.metrics[metric] for row in rows if row.published}
            order = order_agreement(ours, printed, seed=_SEED)
            apart = sum(pair.ours.detectable for pair in order.discordant)
            tau = NOTHING if math.isnan(order.tau) else f"{order.tau:+.2f}".replace("-", "−")
            counts = [len(rows), order.pairs, len(order.discordant), apart]
            summary.append([short, metric_title(metric), tau, *map(str, counts)])
            for pair in order.discordant:
                cells = [short, f"{labels[pair.above]} above {labels[pair.below]}", signed(pair.paper)]
                pairs.append([*cells, *_cells(pair.ours)])
    if not summary:
        return []
    header = ["table", "metric", "Kendall's tau", "systems", "pairs", "in the other order", "of these significant"]
    lines = ["### Agreement of order", "", *table(header, summary, left=2)]
    if pairs:
        header = ["table", "order of the paper", "paper", "ours", "95 % interval", "p", "significant", "seeds"]
        lines += ["Pairs in the other order than in the paper:", "", *table(header, pairs, left=2)]
    return lines


def conditions(groups: Sequence[SeedGroup], listeners: ListenerMetrics) -> list[str]:
    """NDCG@10 by time condition; (a) - (b) is the value of the time of the predicted event."""
    settings: dict[tuple, dict[str, SeedGroup]] = {}
    for g in groups:
        run = g.first
        key = (g.system, g.layers, run.temporal, run.hidden, run.epochs, run.validation, run.label)
        settings.setdefault(key, {})[g.first.condition] = g
    measured = [by_condition for by_condition in settings.values() if len(by_condition) > 1]
    if not measured:
        return []
    named = [next(iter(by_condition.values())) for by_condition in measured]
    columns = [[g.label() if g.first.condition != "true" else g.label_with_function for g in named]]
    for condition in CONDITIONS:
        cells = metric_cells([by_condition.get(condition) for by_condition in measured], "ndcg_10")
        columns.append([cell.replace("**", "") for cell in cells])
    worth = [
        _comparison(by_condition["true"], by_condition["previous"], "ndcg_10", listeners)
        if {"true", "previous"} <= set(by_condition)
        else [NOTHING] * 5
        for by_condition in measured
    ]
    header = ["model", *CONDITIONS.values(), "a − b", "95 % interval", "p", "significant", "seeds"]
    text = (
        "NDCG@10 where t of the predicted event is (a) the true one, (b) that of the event before, in training too, "
        "(c) another listener's gap, with the weights of (a), (d) the next fixed hour, in training too. a − b is the "
        "value of knowing when; (d) is what daily serving gets."
    )
    rows = [[*cells, *more] for cells, more in zip(zip(*columns, strict=True), worth, strict=True)]
    return ["### Time of the predicted event", "", text, "", *table(header, rows)]


def _orders(section: Section) -> list[tuple[str, list[TableRow]]]:
    """The rows whose order is compared: one for each system that the paper has too, base and Large models apart."""
    rows = [row for row in section.standing().values() if row.published]
    depths = sorted({row.group.layers for row in rows})
    if len(depths) < 2:
        return [(section.short, rows)]
    return [(f"{section.short}, {depth} layers", [r for r in rows if r.group.layers == depth]) for depth in depths]


def _comparison(a: SeedGroup, b: SeedGroup, metric: str, listeners: ListenerMetrics) -> list[str]:
    return _cells(paired_difference(listeners.values(a, metric), listeners.values(b, metric), seed=_SEED))


def _cells(difference: Difference) -> list[str]:
    """Difference, interval, p, whether it is significant, seeds."""
    p = "< .001" if difference.p < 0.001 else f"{difference.p:.3f}"
    apart = "yes" if difference.detectable else "no"
    interval = f"{signed(difference.low)} to {signed(difference.high)}"
    return [signed(difference.mean), interval, p, apart, f"{difference.seeds[0]}, {difference.seeds[1]}"]
