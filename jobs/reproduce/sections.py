"""Our runs as rows of the paper's tables, with the printed numbers beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.reproduce.groups import SeedGroup
from jobs.reproduce.markdown import column
from jobs.reproduce.paper import EVERY_OTHER, TABLES, PaperTable, Published
from jobs.reproduce.systems import BASE_LAYERS, LABELS, LARGE_LAYERS, in_order


@dataclass(frozen=True)
class TableRow:
    """The runs of one setting, what the table calls them, and the paper's row."""

    label: str
    group: SeedGroup
    published: Published | None

    @property
    def key(self) -> tuple[str, int]:
        """System and depth, which several settings may share (other epochs, say)."""
        return self.group.variant, self.group.layers


@dataclass(frozen=True)
class Section:
    """A table of the paper in the report. depth: of a table of one depth, None where base and Large models share it."""

    table: PaperTable
    rows: tuple[TableRow, ...]
    depth: int | None

    @property
    def title(self) -> str:
        """The heading."""
        return f"Table {self.table.number}: {self.table.title.format(layers=self.depth)}"

    @property
    def short(self) -> str:
        """The heading's short form, for rows of other tables."""
        return f"Table {self.table.number}" + (f", {self.depth} layers" if self.depth else "")

    @property
    def headline(self) -> str:
        """The metric by which systems are ordered."""
        return self.table.metrics[0]

    @property
    def paper_depth(self) -> str:
        """An addition to the heading of the paper's columns where its models are of another depth than ours."""
        return f", {LARGE_LAYERS} layers" if self.depth not in {None, LARGE_LAYERS} else ""

    def standing(self) -> dict[tuple[str, int], TableRow]:
        """Key -> the row that stands for it (`SeedGroup.rank`), in the order of the rows."""
        best: dict[tuple[str, int], TableRow] = {}
        for row in self.rows:
            if row.key not in best or row.group.rank > best[row.key].group.rank:
                best[row.key] = row
        return best

    def pairs(self) -> list[tuple[TableRow, TableRow]]:
        """The rows whose difference the table is about, the supposedly better first; Large against base at the end."""
        rows, keys = self.standing(), []
        for depth in dict.fromkeys(layers for _, layers in rows):
            names = [name for name, layers in rows if layers == depth]
            for pair in self.table.pairs:
                for name in names if EVERY_OTHER in pair else [""]:
                    better, other = (name if system == EVERY_OTHER else system for system in pair)
                    keys += [((better, depth), (other, depth))] if better != other else []
        if self.table.number == 3:
            keys.append((("fuxi-beta", LARGE_LAYERS), ("fuxi-beta", BASE_LAYERS)))
        return [(rows[better], rows[other]) for better, other in keys if better in rows and other in rows]


def metric_cells(groups: Sequence[SeedGroup | None], metric: str, slice_name: str = "all") -> list[str]:
    """A metric's cells: mean and spread over the seeds of each group."""
    means = [g.mean(metric, slice_name) if g else None for g in groups]
    return column(means, [g.spread(metric, slice_name) if g else None for g in groups])


def sections(groups: Sequence[SeedGroup], dataset: str) -> list[Section]:
    """The paper's tables as far as there are runs. dataset: whose printed numbers to set beside, "" for none."""
    depths = sorted({g.layers for g in groups})
    shown = [(table, None) for table in TABLES.values() if not table.one_depth]
    shown += [(table, depth) for table in TABLES.values() if table.one_depth for depth in depths]
    made = [_section(table, groups, dataset, depth) for table, depth in shown]
    return [section for section in made if section]


def _section(table: PaperTable, groups: Sequence[SeedGroup], dataset: str, depth: int | None) -> Section | None:
    rows: list[TableRow] = []
    for layers in [depth] if depth else [BASE_LAYERS, LARGE_LAYERS]:
        at_depth = [g for g in groups if g.layers == layers and g.first.condition == "true"]
        if table.own and len(table.own & {g.variant for g in at_depth}) < table.needs:
            continue
        foreign = [name for name in in_order(g.system for g in at_depth) if name not in LABELS]
        for system in [*table.rows, *(foreign if table.number == 3 else [])]:  # Table 3 has systems of others, too
            published = table.published(dataset, system, layers=layers)
            rows += [TableRow(_label(table, g), g, published) for g in at_depth if g.variant == system]
    return Section(table, tuple(rows), depth) if len(rows) > bool(table.own) else None


def _label(table: PaperTable, group: SeedGroup) -> str:
    """A row's first cell. Table 6 marks no model: all its rows are FuXi-beta's."""
    name = table.labels.get(group.variant)
    return f"{name}{group.notes}" if table.number == 6 and name else group.label(name)
