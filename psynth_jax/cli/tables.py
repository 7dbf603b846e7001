"""Tables and panels that are never cut: where the terminal is too narrow for one, its cells are written as lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

WIDEST = 10_000  # columns: enough for any table


@dataclasses.dataclass
class NumberTable:
    """A name in the first column and numbers, to the right, in the others."""

    heads: Sequence[str]
    rows: list[Sequence[str]] = dataclasses.field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Add a row: a cell for each head."""
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        table = self._table()
        if Measurement.get(console, options.update(width=WIDEST), table).minimum <= options.max_width:
            yield table
            return
        for name, *numbers in self.rows:
            yield Text(name, style="bold")
            for head, number in zip(self.heads[1:], numbers, strict=True):
                yield Text(f"  {head}: {number}")

    def _table(self) -> Table:
        table = Table(box=box.ROUNDED, border_style="dim")
        for number, head in enumerate(self.heads):
            cells = [head, *(row[number] for row in self.rows)]
            longest = max(cell_len(word) for cell in cells for word in cell.split())  # words are not cut
            table.add_column(Text(head), justify="right" if number else "left", min_width=longest)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


@dataclasses.dataclass
class TitledPanel:
    """A text in a border that holds its title; what does not fit there is a line of the text."""

    text: str | Text
    title: str
    subtitle: str = ""
    border_style: str = "none"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        room = options.max_width - 6  # two corners, and a line and a space at each end
        head, rest = self._split(room)
        lines = Text.assemble(self.text)
        shown: dict[str, Any] = {}
        if cell_len(head) <= room:
            shown["title"] = Text(head)
        else:
            lines = Text.assemble((head, "bold"), "\n", lines)
        if self.subtitle and cell_len(self.subtitle) <= room:
            shown["subtitle"] = Text(self.subtitle)
        elif self.subtitle:
            rest.append(self.subtitle)
        for line in rest:
            lines = Text.assemble(lines, "\n", (line, "dim"))
        yield Panel(lines, title_align="left", border_style=self.border_style, **shown)

    def _split(self, room: int) -> tuple[str, list[str]]:
        """Return the parts of the title that fit into the border, and the others, which come after the text."""
        head, *others = self.title.split(" · ")
        while others and cell_len(f"{head} · {others[0]}") <= room:
            head = f"{head} · {others.pop(0)}"
        return head, [" · ".join(others)] if others else []

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(12, options.max_width), options.max_width)
