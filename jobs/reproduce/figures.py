"""The report's figures: systems beside the paper's numbers (Table 3), depth (Figure 2), functions of time (Figure 3).

PNG on white with a palette of 64 colours, so that a figure is well below 100 KB.
"""

import io
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fuxi_beta.evaluation.metrics import metric_title
from jobs.report.charts import YEAR, elapsed_axis, plain_style
from jobs.reproduce.groups import SeedGroup, by_dataset, group_by_setting, one_each
from jobs.reproduce.paper import TABLES, TITLES
from jobs.reproduce.runs import Dataset, ExperimentRun
from jobs.reproduce.systems import BASE_LAYERS, LARGE_LAYERS, WITHOUT_DEPTH, in_order, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FigureKind = Literal["systems", "depth", "curves"]
Colour = tuple[float, float, float, float]
_WIDTH, _DPI, _COLOURS = 8.0, 120, 64  # inches; 960 pixels, shown at about 800
_TICKS = {1: "1 s", 60: "1 min", 3600: "1 h", 86_400: "1 d", 30 * 86_400: "1 mo", YEAR: "1 y"}
_INK, _GRID, _OURS, _LARGE = "#30343b", "#d9dce1", "#1b6ca8", "#c4551d"
_HOLLOW: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": _INK}  # the paper's values
_LINES = ("#1b6ca8", "#c4551d", "#3a8f4d", "#8a56a8", "#b8860b", "#5b6470", "#c2477f", "#2a9d9d")
_TITLES = {"axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left"}
_STYLE = plain_style(_INK, _GRID, {**_TITLES, "font.size": 10, "grid.linewidth": 0.7, "legend.frameon": False})


@dataclass(frozen=True)
class FigureFile:
    """A written figure: its file's name within the folder, and its caption."""

    dataset: Dataset
    protocol: str
    kind: FigureKind
    file: str
    caption: str


def draw(runs: Sequence[ExperimentRun], folder: str | Path) -> list[FigureFile]:
    """Write the figures that the runs have numbers for into `folder`. The same runs give the same bytes."""
    drawn = []
    for (dataset, protocol), of_dataset in by_dataset(runs).items():
        groups = group_by_setting(of_dataset)
        for kind, make in _KINDS.items():
            name = re.sub(r"[^a-z0-9]+", "-", f"{dataset.name} {protocol} {kind}".lower()).strip("-") + ".png"
            if caption := make(groups, Path(folder, name)):
                drawn.append(FigureFile(dataset, protocol, kind, name, f"{caption}: {dataset.title}"))
    return drawn


def draw_systems(groups: Sequence[SeedGroup], file: Path) -> str:
    """Our NDCG@10 of Table 3's systems with seeds and spread, the paper's hollow. Returns the caption or ""."""
    rows: list[SeedGroup] = []
    for layers in (BASE_LAYERS, LARGE_LAYERS):
        chosen = one_each([g for g in groups if g.plain and g.layers == layers])
        rows += [g for system, g in chosen.items() if system in TABLES[3].rows]
    if not rows:
        return ""
    dataset = rows[0].first.dataset

    def fill(figure: "Figure") -> None:
        axes = figure.subplots()
        for n, g in enumerate(rows):
            colour = _LARGE if g.layers == LARGE_LAYERS else _OURS
            seeds = [run.metrics["all"]["ndcg_10"] for run in g.runs]
            if len(seeds) > 1:
                axes.plot(seeds, [n + 0.3] * len(seeds), "o", color=colour, markersize=2.5, alpha=0.6)
            spread = g.spread("ndcg_10")
            axes.errorbar(statistics.mean(seeds), n, xerr=spread, fmt="o", color=colour, capsize=3, markersize=6)
            if printed := TABLES[3].published(dataset.paper, g.system, layers=g.layers):
                axes.plot(printed.metrics["ndcg_10"], n, "D", **_HOLLOW, markersize=6)
        axes.set_yticks(range(len(rows)), [g.name + g.notes for g in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("NDCG@10; bars: standard deviation over seeds, dots: seeds")
        axes.grid(visible=False, axis="y")
        _systems_legend(figure, axes, rows, dataset)

    _save(file, 1.2 + 0.3 * len(rows), fill)
    return "NDCG@10 of every system" + (f", hollow: the paper on {TITLES[dataset.paper]}" if dataset.paper else "")


def _systems_legend(figure: "Figure", axes: "Axes", rows: Sequence[SeedGroup], dataset: Dataset) -> None:
    for layers, colour, text in [(BASE_LAYERS, _OURS, "ours"), (LARGE_LAYERS, _LARGE, f"ours, {LARGE_LAYERS} layers")]:
        if any(g.layers == layers for g in rows):
            axes.plot([], [], "o", color=colour, label=text)
    if dataset.paper:
        axes.plot([], [], "D", label=f"paper, {TITLES[dataset.paper]}", **_HOLLOW)
    figure.legend(loc="outside upper center", ncols=3)


def draw_depth(groups: Sequence[SeedGroup], file: Path) -> str:
    """NDCG@10 and HR@10 against depth, a point a seed, a line through the means (Figure 2). Returns the caption."""
    plain = [g for g in groups if g.plain and g.system not in WITHOUT_DEPTH]
    lines: dict[str, dict[int, SeedGroup]] = {}
    for layers in sorted({g.layers for g in plain}):
        for system, g in one_each([g for g in plain if g.layers == layers]).items():
            lines.setdefault(system, {})[layers] = g
    lines = {system: lines[system] for system in in_order(lines) if len(lines[system]) > 1}
    if not lines:
        return ""
    depths = sorted({layers for by_depth in lines.values() for layers in by_depth})

    def fill(figure: "Figure") -> None:
        panels = figure.subplots(1, 2)
        for axes, metric in zip(panels, ("ndcg_10", "hr_10"), strict=True):
            for n, (system, by_depth) in enumerate(lines.items()):
                colour = _LINES[n % len(_LINES)]
                means = [g.mean(metric) for g in by_depth.values()]
                axes.plot(list(by_depth), means, color=colour, linewidth=1.8, label=label(system))
                for layers, g in by_depth.items():
                    seeds = [run.metrics["all"][metric] for run in g.runs]
                    axes.plot([layers] * len(seeds), seeds, "o", color=colour, markersize=4.5, alpha=0.6)
            axes.set_xscale("log", base=2)
            axes.set_xticks(depths, [str(layers) for layers in depths])
            axes.set_xticks([], minor=True)
            axes.set(title=metric_title(metric), xlabel="layers")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(lines), 4))

    _save(file, 3.6, fill)
    return "NDCG@10 and HR@10 against the number of layers, a point a seed"


def draw_curves(groups: Sequence[SeedGroup], file: Path) -> str:
    """The learned weight against elapsed time, a panel a function, a line a layer (Figure 3). Returns the caption."""
    chosen = _runs_with_curves(groups)
    if not chosen:
        return ""
    depth = max(run.layers for run in chosen.values())

    def fill(figure: "Figure") -> None:
        from matplotlib import colormaps

        wide = min(3, len(chosen))
        panels = list(figure.subplots(-(-len(chosen) // wide), wide, squeeze=False).flat)
        colours = colormaps["viridis"]
        for axes, (name, run) in zip(panels, chosen.items(), strict=False):
            _draw_functions(axes, name, run, lambda layer: colours(0.92 * layer / max(depth - 1, 1)))
        for axes in panels[len(chosen) :]:
            axes.set_axis_off()
        for axes in panels[max(len(chosen) - wide, 0) : len(chosen)]:
            axes.set_xlabel("time elapsed", fontsize=9)
        for layer in range(depth):
            panels[0].plot([], [], color=colours(0.92 * layer / max(depth - 1, 1)), label=f"layer {layer + 1}")
        where = {"loc": "outside upper center", "ncols": min(depth, 8)}
        spacing = {"handlelength": 1.2, "columnspacing": 1.2, "fontsize": 9}
        figure.legend(*panels[0].get_legend_handles_labels(), **where, **spacing)

    _save(file, 0.9 + 1.9 * -(-len(chosen) // 3), fill)
    seeds = ", ".join(map(str, sorted({run.seed for run in chosen.values()})))
    return f"Learned weight against the time elapsed, a panel a function, a line a layer, seed {seeds}"


def _draw_functions(axes: "Axes", name: str, run: ExperimentRun, colour: Callable[[int], Colour]) -> None:
    assert run.curves is not None
    shown = [n for n, seconds in enumerate(run.curves.seconds) if 1 <= seconds <= YEAR]
    seconds = [run.curves.seconds[n] for n in shown]
    for layer, weights in enumerate(run.curves.weights):
        axes.plot(seconds, [weights[n] for n in shown], color=colour(layer), linewidth=1.5)
    axes.axhline(0, color=_INK, linewidth=0.6, zorder=0)
    if not any(weights[n] for weights in run.curves.weights for n in shown):
        axes.set_ylim(-0.1, 0.1)
    elapsed_axis(axes, _TICKS, fontsize=7.5)
    axes.tick_params(axis="y", labelsize=8)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    axes.yaxis.get_offset_text().set_fontsize(8)
    axes.locator_params(axis="y", nbins=5)
    axes.set_title(name)


def _runs_with_curves(groups: Sequence[SeedGroup]) -> Mapping[str, ExperimentRun]:
    """Function -> FuXi-beta's first seed with curves, of the depth that most functions have, of several the deepest."""
    by_depth: dict[int, dict[str, ExperimentRun]] = {}
    for g in sorted(groups, key=lambda g: g.rank):
        run = next((run for run in g.runs if run.curves and run.curves.weights), None)
        if run and g.system == "fuxi-beta" and run.condition == "true":
            by_depth.setdefault(run.layers, {})[g.variant] = run
    if not by_depth:
        return {}
    depth = max(by_depth, key=lambda layers: (len(by_depth[layers]), layers))
    of_system = by_depth[depth]
    return {of_system[name].temporal: of_system[name] for name in TABLES[6].rows if name in of_system}


def _save(file: Path, height: float, fill: Callable[["Figure"], None]) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        fill(figure)
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=_DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


_KINDS: dict[FigureKind, Callable[[Sequence[SeedGroup], Path], str]] = {
    "systems": draw_systems,
    "depth": draw_depth,
    "curves": draw_curves,
}
