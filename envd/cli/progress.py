"""Shows a build while it runs: live on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

import click

from envd import events, plain
from envd.events import Event, Line, Stage

if TYPE_CHECKING:
    from types import TracebackType

_MAX_WIDTH = 60


class Progress:
    """Takes the events of one piece of work."""

    def __init__(self) -> None:
        """Show nothing before the first event: most calls find everything ready."""
        self._live: Any = None
        self._stage = ""

    def __enter__(self) -> Self:
        """Return what takes the events."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clear the live line."""
        self.clear()

    def clear(self) -> None:
        """Leave the terminal to what else is written, until there is an event."""
        if self._live:
            self._live.stop()
            self._live = None

    def __call__(self, event: Event) -> None:
        """Show *event*."""
        if sys.stderr.isatty():
            self._show(event)
        elif isinstance(event, Stage):
            click.echo(f"{event.name}: {event.message}", err=True)

    def _show(self, event: Event) -> None:
        if self._live is None:
            self._live = _live()
            self._live.start()
        if isinstance(event, Stage):
            self._stage = event.message
        self._live.update(0, description=self._stage, detail=_detail(event))


def _detail(event: Event) -> str:
    if isinstance(event, events.Progress):
        return f"{event.done} of {event.total}, {plain.size(event.bytes)}"
    return event.text.strip()[:_MAX_WIDTH] if isinstance(event, Line) else ""


def _live() -> Any:
    from rich import progress  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    live = progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[detail]}", style="dim", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    live.add_task("", total=None, detail="")
    return live
