"""The report's questions of order: which differences are there at all, and is the order of systems the paper's?"""

import math
from collections.abc import Sequence

from fuxi_beta.evaluation.statistics import Difference, order_agreement, paired_difference
from jobs.reproduce.groups import Group, Listeners
from jobs.reproduce.markdown import METRICS, NOTHING, column, signed, table
from jobs.reproduce.sections import Row, Section

CONDITIONS = {
    "true": "(a) true time",
    "previous": "(b) previous event's",
    "permuted": "(c) gaps permuted",
    "fixed-hour": "(d) fixed hour",
}
_SEED = 1  # of the bootstrap: the same report from the same runs
_COMPARE = (
    "Bootstrap over listeners and over seeds, 95 % each, not corrected for their number; with one seed on a side the "
    "interval knows nothing of that side's other seeds."
)


def differences(sections: Sequence[Section], listeners: Listeners) -> list[str]:
    """The pairs that the tables are about."""
    rows = []
    for section in sections:
        for one, other in section.pairs:
            a, b = section.row(one), section.row(other)
            if a and b:
                found = _compare(a.group, b.group, section.headline, listeners)
                printed = signed(_printed(a, section.headline, b))
                metric = METRICS[section.headline]
                rows.append([section.short, f"{a.label} against {b.label}", metric, *_cells(found), printed])
    if not rows:
        return []
    header = ["table", "pair", "metric", "difference", "95 % interval", "p", "told apart", "seeds", "paper"]
    return ["### Differences", "", _COMPARE, "", *table(header, rows, left=3)]


def agreement(sections: Sequence[Section], listeners: Listeners) -> list[str]:
    """Kendall's tau between our order and the paper's, and the pairs that are the other way round."""
    summary, pairs = [], []
    for section in sections:
        for short, rows in _orders(section):
            if len(rows) < 3:
                continue
            metric = section.headline
            ours = {row.key: listeners.values(row.group, metric) for row in rows}
            labels = {row.key: row.label for row in rows}
            printed = {row.key: row.published.metrics[metric] for row in rows if row.published}
            found = order_agreement(ours, printed, seed=_SEED)
            apart = sum(pair.ours.detectable for pair in found.discordant)
            tau = NOTHING if math.isnan(found.tau) else f"{found.tau:+.2f}".replace("-", "−")
            counts = [len(rows), found.pairs, len(found.discordant), apart]
            summary.append([short, METRICS[metric], tau, *map(str, counts)])
            for pair in found.discordant:
                cells = [short, f"{labels[pair.above]} above {labels[pair.below]}", signed(pair.paper)]
                pairs.append([*cells, *_cells(pair.ours)])
    if not summary:
        return []
    header = ["table", "metric", "Kendall's tau", "systems", "pairs", "the other way round", "of these told apart"]
    lines = ["### Agreement of order", "", *table(header, summary, left=2)]
    if pairs:
        header = ["table", "order of the paper", "paper", "ours", "95 % interval", "p", "told apart", "seeds"]
        lines += ["Pairs the other way round:", "", *table(header, pairs, left=2)]
    return lines


def conditions(groups: Sequence[Group], listeners: Listeners) -> list[str]:
    """What the time of the predicted event is worth: (a) - (b); what daily serving gets: (d)."""
    settings: dict[tuple, dict[str, Group]] = {}
    for g in groups:
        key = (g.system, g.layers, g.first.temporal, g.first.hidden, g.first.epochs, g.first.validation)
        settings.setdefault(key, {})[g.first.condition] = g
    found = [by for by in settings.values() if len(by) > 1]
    if not found:
        return []
    labels = [next(iter(by.values())) for by in found]
    columns = [[g.label() if g.plain or g.first.condition != "true" else _function(g) for g in labels]]
    for condition in CONDITIONS:
        here = [by.get(condition) for by in found]
        means = [g.mean("ndcg_10") if g else None for g in here]
        spreads = [g.spread("ndcg_10") if g else None for g in here]
        columns.append([cell.replace("**", "") for cell in column(means, spreads)])
    worth = [
        _cells(_compare(by["true"], by["previous"], "ndcg_10", listeners))
        if {"true", "previous"} <= set(by)
        else [NOTHING] * 5
        for by in found
    ]
    header = ["model", *CONDITIONS.values(), "a − b", "95 % interval", "p", "told apart", "seeds"]
    text = (
        "NDCG@10 where t of the predicted event is (a) the true one, (b) that of the event before, in training too, "
        "(c) another listener's gap, with the weights of (a), (d) the next fixed hour, in training too. a − b is the "
        "value of knowing when; (d) is what daily serving gets."
    )
    rows = [[*cells, *more] for cells, more in zip(zip(*columns, strict=True), worth, strict=True)]
    return ["### Time of the predicted event", "", text, "", *table(header, rows)]


def _orders(section: Section) -> list[tuple[str, list[Row]]]:
    """The rows to put in order, one for each key that the paper has too; base and Large models apart."""
    keys = list(dict.fromkeys(row.key for row in section.rows))
    rows = [row for row in map(section.row, keys) if row and row.published]
    depths = sorted({row.group.layers for row in rows})
    if len(depths) < 2:
        return [(section.short, rows)]
    return [(f"{section.short}, {depth} layers", [r for r in rows if r.group.layers == depth]) for depth in depths]


def _function(g: Group) -> str:
    return g.label(f"{g.name}, {g.first.temporal}")


def _compare(a: Group, b: Group, metric: str, listeners: Listeners) -> Difference:
    return paired_difference(listeners.values(a, metric), listeners.values(b, metric), seed=_SEED)


def _cells(found: Difference) -> list[str]:
    """Difference, interval, p, whether told apart, seeds."""
    p = "< .001" if found.p < 0.001 else f"{found.p:.3f}"
    apart = "yes" if found.detectable else "no"
    interval = f"{signed(found.low)} to {signed(found.high)}"
    return [signed(found.mean), interval, p, apart, f"{found.seeds[0]}, {found.seeds[1]}"]


def _printed(a: Row, metric: str, b: Row) -> float | None:
    if not (a.published and b.published):
        return None
    return a.published.metrics[metric] - b.published.metrics[metric]
