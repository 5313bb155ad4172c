"""The report's charts: matplotlib figures as inline SVG that takes its colours and its font from the page.

Figures are drawn in placeholder colours, which are then replaced by the page's CSS variables, so one SVG is readable in
light and dark mode. The same values give the same bytes.
"""

import datetime as dt
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

INK, GRID = "#0a0a01", "#0a0a02"
SERIES = tuple(f"#0a0b{n:02x}" for n in range(1, 7))
STROKES = ("solid", "dashed", "dotted")
YEAR = 365 * 86_400
TIME_TICKS = {1: "1 s", 60: "1 min", 3600: "1 h", 86_400: "1 d", 604_800: "1 w", YEAR: "1 y"}
_VARIABLES = {INK: "var(--muted)", GRID: "var(--line)"} | {c: f"var(--s{n})" for n, c in enumerate(SERIES, start=1)}
_SIZE = (4.2, 2.5)  # inches; half of the page's width, so that text keeps its size where two stand side by side


@dataclass(frozen=True)
class Line:
    """A line of a chart and its legend: `series` 1 to 6 is the colour, `stroke` a CSS border style, band or point."""

    label: str
    series: int
    stroke: str = "solid"


@dataclass(frozen=True)
class Panel:
    """A number over days with its bounds on each day; one of several charts above each other."""

    title: str
    values: Mapping[dt.date, float]
    lower: Mapping[dt.date, float]
    upper: Mapping[dt.date, float]
    broken: frozenset[dt.date] = frozenset()  # days whose value is outside its bounds
    share: bool = True  # of 1, shown as per cent


@dataclass(frozen=True)
class Chart:
    """What the page shows: the SVG (trusted markup), and the legend's lines."""

    svg: Markup
    legend: tuple[Line, ...] = ()


def loss_chart(curve: Sequence[Sequence[float]], *, epochs: int | None = None) -> Chart | None:
    """Training loss against the step, raw and smoothed. curve: [[step, loss], ...]; None without a finite loss."""
    points = [(step, loss) for step, loss in curve if _finite(loss)]
    if not points:
        return None
    steps, losses = zip(*points, strict=True)

    def draw(axes: "Axes") -> None:
        last = steps[-1]
        for epoch in range(1, epochs or 1):
            axes.axvline(last * epoch / (epochs or 1), color=GRID, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.plot(steps, losses, color=SERIES[0], linewidth=1, alpha=0.35, marker="o", markersize=1.5)
        axes.plot(steps, _smoothed(losses), color=SERIES[0], linewidth=2)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")

    label = f"Training loss from {losses[0]:.3f} at step {steps[0]} to {losses[-1]:.3f} at step {steps[-1]}"
    return Chart(_svg("loss", label, draw))


def trend_chart(
    trend: Mapping[str, Mapping[dt.date, float]], *, labels: Mapping[str, str], name: str = "trend"
) -> Chart | None:
    """A metric over days, a line a recommender. trend: name -> ds -> value; None without a finite value.

    labels: name -> what the legend says; its order fixes colours, so a missing recommender shifts none. name: of the
    chart, one of its own for each on a page.
    """
    days = sorted({ds for values in trend.values() for ds, value in values.items() if _finite(value)})
    if not days:
        return None
    lines = {
        key: Line(label, n % 6 + 1, STROKES[(n + n // 6) % 3])
        for n, (key, label) in enumerate(labels.items())
        if key in trend
    }
    every_day = range(days[0].toordinal(), days[-1].toordinal() + 1)

    def draw(axes: "Axes") -> None:
        for key, line in reversed(lines.items()):  # the first name's line lies on top
            values = [trend[key].get(dt.date.fromordinal(day), math.nan) for day in every_day]
            _draw_line(axes, every_day, values, line, marker="o")
        _day_axis(axes, every_day)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))

    newest = "; ".join(
        f"{line.label} {trend[key][days[-1]]:.3f}" for key, line in lines.items() if days[-1] in trend[key]
    )
    label = f"{len(days)} days from {days[0]} to {days[-1]}; on the last: {newest}"
    return Chart(_svg(name, label, draw), tuple(lines.values()))


def position_chart(hits: Mapping[int, float], skips: Mapping[int, float]) -> Chart | None:
    """Hits and skips at each position of the lists, side by side. None if there are neither.

    hits, skips: position, 1 is the first -> count.
    """
    positions = sorted(hits.keys() | skips.keys())
    if not any((*hits.values(), *skips.values())):
        return None
    bars = {Line("hits", 1): (hits, -0.2), Line("skips", 2): (skips, 0.2)}

    def draw(axes: "Axes") -> None:
        for line, (counts, shift) in bars.items():
            places = [position + shift for position in positions]
            axes.bar(places, [counts.get(position, 0) for position in positions], 0.4, color=SERIES[line.series - 1])
        axes.locator_params(integer=True)
        axes.set_xlim(positions[0] - 0.7, positions[-1] + 0.7)
        axes.set_xlabel("position in the list")

    totals = ", ".join(f"{sum(counts.values()):,.0f} {line.label}" for line, (counts, _) in bars.items())
    label = f"{totals} at positions {positions[0]} to {positions[-1]}; {hits.get(1, 0):,.0f} hits at the first"
    return Chart(_svg("positions", label, draw), tuple(bars))


def panel_chart(panels: Sequence[Panel], *, name: str = "panels") -> Chart | None:
    """Panels over the same days above each other; those without a value are left out. None if none has a value.

    name: of the chart, one of its own for each on a page.
    """
    panels = [panel for panel in panels if panel.values]
    if not panels:
        return None
    days = sorted({ds for panel in panels for ds in panel.values})
    every_day = range(days[0].toordinal(), days[-1].toordinal() + 1)

    def draw(*all_axes: "Axes") -> None:
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw_panel(axes, panel, every_day)
        _day_axis(all_axes[-1], every_day)

    newest = "; ".join(
        f"{panel.title} {_panel_number(panel, panel.values[days[-1]])}" for panel in panels if days[-1] in panel.values
    )
    label = f"{len(days)} days from {days[0]} to {days[-1]}; on the last: {newest}"
    legend = [Line("the day", 1)]
    legend += [Line("allowed", 4, "band")] if any(panel.lower or panel.upper for panel in panels) else []
    legend += [Line("beyond its bound", 6, "point")] if any(panel.broken for panel in panels) else []
    size = (_SIZE[0], 0.4 + 1.15 * len(panels))
    return Chart(_svg(name, label, draw, size=size, panels=len(panels)), tuple(legend))


def _draw_panel(axes: "Axes", panel: Panel, every_day: range) -> None:
    def over(numbers: Mapping[dt.date, float], default: float = math.nan) -> list[float]:
        return [numbers.get(dt.date.fromordinal(day), default) for day in every_day]

    values, upper = over(panel.values), over(panel.upper)
    lower = over(panel.lower, 0.0)  # where there is no upper bound nothing is filled
    axes.fill_between(every_day, lower, upper, color=SERIES[3], alpha=0.22, linewidth=0, step="mid")
    _draw_line(axes, every_day, values, Line("", 1), marker="o")
    beyond = [(ds.toordinal(), panel.values[ds]) for ds in sorted(panel.broken & panel.values.keys())]
    if beyond:
        axes.plot(*zip(*beyond, strict=True), color=SERIES[5], linestyle="", marker="o", markersize=6)
    axes.set_ylim(0, max(1.3 * max(panel.values.values()), 0.01 if panel.share else 1))
    axes.set_title(panel.title, loc="left", fontsize=8.8)
    axes.yaxis.set_major_formatter(lambda number, _: _panel_number(panel, number))


def _panel_number(panel: Panel, number: float) -> str:
    if panel.share:
        return f"{100 * number:.3g}%"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _day_axis(axes: "Axes", every_day: range) -> None:
    """Dates below a chart whose x is ordinals of days."""
    ticks = _spread(list(every_day), 6)
    axes.set_xticks(ticks, [f"{dt.date.fromordinal(day):%b} {dt.date.fromordinal(day).day}" for day in ticks])
    axes.set_xlim(every_day[0] - 0.5, every_day[-1] + 0.5)


def temporal_chart(layers: Sequence[Mapping[str, float]]) -> Chart | None:
    """The learned curves a (1 + x)^(-b) of every layer from 1 s to 1 year (the paper's figure 3).

    layers: [{"layer", "a", "b"}, ...] in order; None if there are none or they hold no numbers.
    """
    import numpy as np

    layers = [layer for layer in layers if _finite(layer.get("a")) and _finite(layer.get("b"))]
    if not layers:
        return None
    elapsed = np.geomspace(1, YEAR, 160)
    lines = [
        (layer, Line(f"layer {layer['layer']}: a {layer['a']:.3f}, b {layer['b']:.3f}", n % 6 + 1, STROKES[n % 3]))
        for n, layer in enumerate(layers)
    ]

    def draw(axes: "Axes") -> None:
        for layer, line in lines:
            _draw_line(axes, elapsed, layer["a"] * (1 + elapsed) ** -layer["b"], line)
        axes.axhline(0, color=GRID, linewidth=1)
        elapsed_axis(axes, TIME_TICKS)
        axes.set_xlabel("time since the play")
        axes.set_ylabel("weight")

    label = "Learned weight of a play against the time since: " + "; ".join(line.label for _, line in lines)
    return Chart(_svg("temporal", label, draw), tuple(line for _, line in lines))


def _draw_line(axes: "Axes", x: "ArrayLike", y: "ArrayLike", line: Line, *, marker: str = "") -> None:
    dashes = {"solid": "-", "dashed": (0, (4, 2)), "dotted": (0, (1.2, 1.6))}[line.stroke]
    axes.plot(x, y, color=SERIES[line.series - 1], linewidth=1.8, linestyle=dashes, markersize=3.5, marker=marker)


def plain_style(ink: str, grid: str, more: Mapping[str, Any]) -> dict[Any, Any]:
    """matplotlib settings of every figure here and in `jobs.reproduce`: text in one colour, no frame, a faint grid."""
    return {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), grid),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
        **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
        **{"xtick.major.size": 3, "ytick.major.size": 0},
        **more,
    }


def elapsed_axis(axes: "Axes", ticks: Mapping[int, str], **text: Any) -> None:
    """A logarithmic x axis from 1 s to 1 year. ticks: seconds -> label."""
    axes.set_xscale("log")
    axes.set_xlim(1, YEAR)
    axes.set_xticks(list(ticks), list(ticks.values()), **text)
    axes.set_xticks([], minor=True)


def _svg(
    name: str, label: str, draw: "Callable[..., None]", *, size: tuple[float, float] = _SIZE, panels: int = 1
) -> Markup:
    """Draw on a new figure and turn it into an inline element; `name` keeps its ids apart from other charts'.

    size: inches. draw is called with the axes of each panel, from top to bottom.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8.8}
    style = plain_style(INK, GRID, {**text, "axes.grid.axis": "y", "axes.spines.left": False})
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = [row[0] for row in figure.subplots(panels, 1, sharex=True, squeeze=False)]
        draw(*axes)
        for panel in axes:
            panel.locator_params(axis="y", nbins=6 if panels == 1 else 3)
        figure.draw_without_rendering()  # the first layout may change the ticks, the second makes room for them
        sink = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(sink, format="svg", transparent=True, metadata=nothing)
    return _inline(sink.getvalue().decode(), name, label, size)


def _inline(document: str, name: str, label: str, size: tuple[float, float]) -> Markup:
    """An SVG document as an element of an HTML page: no prologue, no namespaces, no style sheet, ids of its own."""
    body = document[document.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.S)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    width, height = (round(72 * side, 1) for side in size)
    start = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">').format(label, width, height)
    return start + Markup(re.sub(r"\n\s*", "\n", body))  # drawn from numbers and our own labels only


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a window of about a tenth of the points around each, narrower towards the ends."""
    reach = len(values) // 20
    around = [min(reach, n, len(values) - 1 - n) for n in range(len(values))]
    return [sum(values[n - r : n + r + 1]) / (2 * r + 1) for n, r in enumerate(around)]


def _spread(values: list[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spaced, ending with the last."""
    step = math.ceil(len(values) / most)
    return values[::-1][::step][::-1]
