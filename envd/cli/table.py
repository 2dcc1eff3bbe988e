"""Tables without boxes, in color on a terminal only."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

_WIDE = 1000


class Table:
    """A table that is printed at once."""

    def __init__(self) -> None:
        """Begin without columns and rows."""
        self._table = RichTable(box=None, pad_edge=False, header_style="bold")

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

    def show(self) -> None:
        """Print it to standard output."""
        console = Console()
        if not console.is_terminal:
            # Piped, a line must not be cut at a width that nobody sees.
            console = Console(width=_WIDE)
        console.print(self._table)
