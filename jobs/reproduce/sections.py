"""Which settings make the rows of which table of the paper, and what the paper prints beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.reproduce import paper
from jobs.reproduce.groups import LABELS, SANITY, WITHOUT_DEPTH, Group, in_order, named
from jobs.reproduce.paper import BASE_LAYERS, FIVE, LARGE_LAYERS, Published

FUNCTIONS = ("linear", "log", "exp", "sin", "mixed", "nn", "zero", "bucket", "pow")
_TABLE_3 = (
    *SANITY,
    *("bprmf", "gru4rec", "narm", "flash", "retnet", "sasrec", "sasrec-gap", "llama", "llama-gap", "hstu"),
    *("fuxi-alpha", "fuxi-beta"),
)
_TABLE_5 = ("fuxi-alpha", "fuxi-beta-frab", "fuxi-beta-aftm", "fuxi-beta")
_TABLE_7 = {
    "fuxi-beta-frab": "FuXi-β-FRAB",
    "fuxi-beta": "− query-key attention map (FuXi-β)",
    "fuxi-beta-frab-no-position": "− positional attention map",
    "fuxi-beta-frab-no-time": "− temporal attention map",
}
_TABLE_8 = ("llama", "llama-beta", "hstu", "hstu-beta", "fuxi-alpha", "fuxi-beta")


@dataclass(frozen=True)
class Row:
    """Ours and the paper's. key: what the row is called in an order of systems."""

    key: str
    label: str
    group: Group
    published: Published | None


@dataclass(frozen=True)
class Section:
    """One table of the report. baseline: of relative times, "" without; headline: the metric by which rows are ordered.

    pairs: rows (by key) whose difference matters, the supposedly better first.
    """

    title: str
    short: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    headline: str
    baseline: str
    paper_depth: str
    pairs: tuple[tuple[str, str], ...]

    def row(self, key: str) -> Row | None:
        """The row that stands for a key (`Group.rank`)."""
        return max((row for row in self.rows if row.key == key), key=lambda row: row.group.rank, default=None)


def sections(groups: Sequence[Group], dataset: str) -> list[Section]:
    """Tables 3, 5, 6, 7 and 8 as far as there are runs. dataset: whose printed numbers to set beside, "" for none."""
    depths = sorted({g.layers for g in groups})
    found = [_table_3(groups, dataset), _table_5(groups, dataset)]
    for number in (_table_6, _table_7, _table_8):
        found += [number([g for g in groups if g.layers == layers], dataset, layers) for layers in depths]
    return [section for section in found if section]


def _rows(
    groups: Sequence[Group], systems: Sequence[str], table: paper.Table, dataset: str, *, large: bool
) -> list[Row]:
    """Rows of the plain groups in the order of `systems`. large: the paper's row where depths differ."""
    printed = table.get(dataset, {})
    return [
        Row(g.name, g.label(), g, printed.get((system, large)))
        for system in systems
        for g in groups
        if g.system == system and g.plain
    ]


def _table_3(groups: Sequence[Group], dataset: str) -> Section | None:
    base, large = ([g for g in groups if g.layers == depth] for depth in (BASE_LAYERS, LARGE_LAYERS))
    systems = (*_TABLE_3, *(s for s in in_order(g.system for g in groups) if s not in LABELS))  # yours come last
    rows = _rows(base, systems, paper.TABLE_3, dataset, large=False)
    rows += _rows(large, systems, paper.TABLE_3, dataset, large=True)
    pairs = []
    for depth in (BASE_LAYERS, LARGE_LAYERS):
        others = [s for s in systems if s != "fuxi-beta" and not (depth == LARGE_LAYERS and s in WITHOUT_DEPTH)]
        pairs += [(named("fuxi-beta", depth), named(system, depth)) for system in others]
    pairs.append((named("fuxi-beta", LARGE_LAYERS), named("fuxi-beta", BASE_LAYERS)))
    if not rows:
        return None
    title = "Table 3: all systems"
    return Section(title, "Table 3", tuple(rows), FIVE, "ndcg_10", "sasrec", "", tuple(pairs))


def _table_5(groups: Sequence[Group], dataset: str) -> Section | None:
    rows = []
    for depth in (BASE_LAYERS, LARGE_LAYERS):
        here = [g for g in groups if g.layers == depth and g.plain]
        if {g.system for g in here} & {"fuxi-beta-frab", "fuxi-beta-aftm"}:
            rows += _rows(here, _TABLE_5, paper.TABLE_5, dataset, large=depth == LARGE_LAYERS)
    if len(rows) < 2:
        return None
    pairs = tuple(
        (named(other, depth), named("fuxi-alpha", depth))
        for depth in (BASE_LAYERS, LARGE_LAYERS)
        for other in _TABLE_5[1:3]
    )
    title = "Table 5: from FuXi-α to FuXi-β"
    return Section(title, "Table 5", tuple(rows), FIVE, "ndcg_10", "fuxi-alpha", "", pairs)


def _table_6(groups: Sequence[Group], dataset: str, layers: int) -> Section | None:
    printed = paper.TABLE_6.get(dataset, {})
    rows = [
        Row(name, f"{name}{g.notes}", g, printed.get(name))
        for name in FUNCTIONS
        for g in groups
        if g.system == "fuxi-beta" and g.first.condition == "true" and g.first.temporal == name
    ]
    if len({row.key for row in rows}) < 2:
        return None
    pairs = tuple(("pow", name) for name in FUNCTIONS if name != "pow")
    title, short = f"Table 6: functions of elapsed time, FuXi-β with {layers} layers", f"Table 6, {layers} layers"
    return Section(title, short, tuple(rows), ("ndcg_50", "hr_50", "mrr"), "ndcg_50", "", _depth(layers), pairs)


def _table_7(groups: Sequence[Group], dataset: str, layers: int) -> Section | None:
    rows = _rows(groups, tuple(_TABLE_7), paper.TABLE_7, dataset, large=True)
    if len(rows) < 2 or not {row.group.system for row in rows} & {*tuple(_TABLE_7)[2:]}:
        return None
    rows = [Row(row.key, row.group.label(_TABLE_7[row.group.system]), row.group, row.published) for row in rows]
    names = {row.group.system: row.key for row in rows}
    pairs = tuple((name, names["fuxi-beta-frab"]) for s, name in names.items() if s != "fuxi-beta-frab" in names)
    title, short = f"Table 7: without one attention map, {layers} layers", f"Table 7, {layers} layers"
    return Section(title, short, tuple(rows), FIVE, "ndcg_10", "fuxi-beta-frab", _depth(layers), pairs)


def _table_8(groups: Sequence[Group], dataset: str, layers: int) -> Section | None:
    rows = _rows(groups, _TABLE_8, paper.TABLE_8, dataset, large=True)
    names = {row.group.system: row.key for row in rows}
    if len(rows) < 2 or not {"llama-beta", "hstu-beta"} & set(names):
        return None
    ladder = [("llama-beta", "llama"), ("hstu-beta", "hstu")]
    pairs = tuple((names[new], names[old]) for new, old in ladder if new in names and old in names)
    title, short = f"Table 8: the same framework in other models, {layers} layers", f"Table 8, {layers} layers"
    return Section(title, short, tuple(rows), ("ndcg_50", "hr_50"), "ndcg_50", "sasrec", _depth(layers), pairs)


def _depth(layers: int) -> str:
    """What to add to the paper's column when its rows are deeper or shallower than ours."""
    return "" if layers == LARGE_LAYERS else f", {LARGE_LAYERS} layers"
