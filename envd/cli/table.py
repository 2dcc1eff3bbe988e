"""Tables without boxes, in color on a terminal only."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

_WIDE = 1000
# What is left between two columns, and what a column of long texts has at least.
_BETWEEN, _LEAST = 2, 20


class Table:
    """A table that is printed at once."""

    def __init__(self) -> None:
        """Begin without columns and rows."""
        self._table = RichTable(box=None, pad_edge=False, header_style="bold")
        self._widths: list[int] = []

    def columns(self, *titles: str) -> None:
        """Add columns of short texts."""
        for title in titles:
            self._table.add_column(title, no_wrap=True)

    def numbers(self, *titles: str) -> None:
        """Add columns of numbers."""
        for title in titles:
            self._table.add_column(title, no_wrap=True, justify="right")

    def text(self, title: str) -> None:
        """Add a column of long texts."""
        self._table.add_column(title, overflow="fold")

    def row(self, *values: str) -> None:
        """Add a row."""
        # A path may hold what looks like markup.
        self._table.add_row(*(Text(value) for value in values))
        lengths = [max(map(cell_len, value.split("\n"))) for value in values]
        self._widths = [*map(max, self._widths or lengths, lengths)]

    def show(self) -> None:
        """Print it to standard output."""
        console = Console()
        if not console.is_terminal or console.width < self._least():
            # A line must not be cut at a width that nobody sees; and where there is no room, one
            # that goes on below is better than half of an id, and no models.
            console = Console(width=_WIDE)
        console.print(self._table)

    def _least(self) -> int:
        """Return the width in which all but long texts is whole."""
        least = _BETWEEN * (len(self._widths) - 1)
        for column, width in zip(self._table.columns, self._widths, strict=True):
            whole = max(width, cell_len(str(column.header)))
            least += whole if column.no_wrap else min(whole, _LEAST)
        return least
