"""The screens of commands: on standard output, within the columns of the terminal, and nothing is cut."""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from pipelines.redact import visible

if TYPE_CHECKING:
    from rich.console import Console

LEAST_WRAPPED = 16
"""Columns of a table that wrap are not made narrower than their longest word, or this."""

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Screen:
    """A console for results. wraps: texts are wrapped at its width; a pipe gets each of them as one line."""

    console: "Console"
    wraps: bool

    def say(self, text: str, *, style: str = "", indent: int = 0) -> None:
        """Print a text, its further lines indented. A word longer than the line, a path for example, stays whole."""
        from rich.text import Text

        for line in _wrapped(text, self.console.width, indent) if self.wraps else [text]:
            self.console.print(Text(line, style=style), soft_wrap=True)

    def table(
        self,
        names: Sequence[str],
        rows: Rows,
        *,
        right: Collection[str] = (),
        wrapped: Collection[str] = (),
        title: str = "",
        bold: Collection[int] = (),
    ) -> None:
        """Print rows below the names of their columns; where they do not fit, each row as a list of its own.

        right: columns of numbers. wrapped: columns of texts. bold: numbers of rows.
        """
        if title:
            self.say(title, style="bold")
        cells = [["\n".join(map(visible, cell.split("\n"))) for cell in row] for row in rows]
        least, most = _widths(names, cells, wrapped)
        spaces = {gap: self.console.width - gap * (len(names) - 1) for gap in (2, 1)}
        tries = [(gap, space) for widths in (most, least) for gap, space in spaces.items() if sum(widths) <= space]
        if not tries:
            self._print_records(names, cells)
            return
        gap, space = tries[0]
        self._print_table(names, cells, _fitted(least, most, space), gap, right, bold)

    def _print_table(
        self,
        names: Sequence[str],
        rows: Rows,
        widths: Sequence[int],
        gap: int,
        right: Collection[str],
        bold: Collection[int],
    ) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Column, Table
        from rich.text import Text

        columns = [
            Column(name, justify="right" if name in right else "left", width=width, overflow="fold")
            for name, width in zip(names, widths, strict=True)
        ]
        table = Table(*columns, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
        for number, row in enumerate(rows):
            table.add_row(*map(Text, row), style="bold" if number in bold else None)
        self.console.print(table)

    def _print_records(self, names: Sequence[str], rows: Rows) -> None:
        for row in rows:
            for number, (name, cell) in enumerate(zip(names, row, strict=True)):
                mark = "- " if number == 0 else "  "
                self.say(f"{mark}{name}: {cell}" if name else f"{mark}{cell}", indent=4)


def screen(file: TextIO | None = None, *, width: int | None = None) -> Screen:
    """Standard output. width: in place of the terminal's, or of the environment variable COLUMNS."""
    from rich.console import Console

    console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)
    return Screen(console, wraps=console.is_terminal or width is not None or "COLUMNS" in os.environ)


def _widths(names: Sequence[str], rows: Rows, wrapped: Collection[str]) -> tuple[list[int], list[int]]:
    """The least and the full width of each column; of one that does not wrap they are the same."""
    from rich.cells import cell_len

    def width(number: int, *, words: bool) -> int:
        cells = [names[number], *(row[number] for row in rows)]
        pieces = [piece for cell in cells for piece in (cell.split() if words else cell.split("\n"))]
        return max((cell_len(piece) for piece in pieces), default=0)

    most = [width(number, words=False) for number in range(len(names))]
    least = [
        min(width(number, words=True), LEAST_WRAPPED) if name in wrapped else most[number]
        for number, name in enumerate(names)
    ]
    return least, most


def _fitted(least: Sequence[int], most: Sequence[int], space: int) -> list[int]:
    """Widths between the least and the full ones that fit: the widest columns give way first."""
    widths = list(most)
    while sum(widths) > space:
        giving = max((n for n in range(len(widths)) if widths[n] > least[n]), key=widths.__getitem__)
        widths[giving] -= 1
    return widths


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    """The lines of a text within a width, broken between words; all but the first of a paragraph are indented."""
    from rich.cells import cell_len

    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in re.findall(r"\s*\S+", paragraph):
            if line.strip() and cell_len(line + word) > width:
                lines.append(line)
                line = " " * indent + word.lstrip()
            else:
                line += word
        lines.append(line)
    return lines
