"""One table for a terminal, for Markdown and for CSV."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as Terminal

Cell = str | float | int


class Percent(float):
    """A share: read as a percentage, a plain number in CSV and JSON."""


class Points(float):
    """A difference of shares: read in percentage points, a plain number in CSV and JSON."""


class Table(NamedTuple):
    """Floats are rounded for reading (`digits`, a format), and whole in CSV."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    digits: str = ".5g"

    def markdown(self) -> str:
        kinds = ["---" if self._is_text(i) else "---:" for i in range(len(self.columns))]
        lines = [list(self.columns), kinds, *[[self._shown(c) for c in row] for row in self.rows]]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.title}\n\n{body}\n"

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()

    def terminal(self) -> Terminal:
        table = Terminal(title=self.title)
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if self._is_text(i) else "right")
        for row in self.rows:
            table.add_row(*[self._shown(cell) for cell in row])
        return table

    def _is_text(self, column: int) -> bool:
        return all(isinstance(row[column], str) for row in self.rows)

    def _shown(self, cell: Cell) -> str:
        if isinstance(cell, Percent):
            return f"{cell:.1%}"
        if isinstance(cell, Points):
            return f"{100 * cell:+.1f}"
        return format(cell, self.digits) if isinstance(cell, float) else str(cell)
