"""Tables in Markdown, and the text of their cells."""

from collections.abc import Sequence

NOTHING = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """The lines of a table, and an empty line. The first `left` columns are text, the others numbers."""
    rule = [" --- " if n < left else " ---: " for n in range(len(header))]
    lines = [_line(header), "|" + "|".join(rule) + "|"]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(header)}: {row}")
        lines.append(_line(row))
    return [*lines, ""]


def table_of(columns: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """`table` of columns, each a header and its cells."""
    header, cells = zip(*columns, strict=True)
    return table(header, list(zip(*cells, strict=True)))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def column(values: Sequence[float | None], spreads: Sequence[float | None] | None = None) -> list[str]:
    """A metric's cells: four digits, the largest in bold, and ± the spread where there is one."""
    texts = [None if value is None else f"{value:.4f}" for value in values]
    best = max((text for text in texts if text), default=None)
    cells = []
    for text, spread in zip(texts, spreads or [None] * len(texts), strict=True):
        cell = NOTHING if text is None else f"**{text}**" if text == best and len(texts) > 1 else text
        cells.append(cell if spread is None or text is None else f"{cell} ± {spread:.4f}")
    return cells


def multiple(value: float | None) -> str:
    """A relative time, three decimals."""
    return NOTHING if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference with its sign, four decimals."""
    return NOTHING if value is None else f"{value:+.4f}".replace("-", "−")
