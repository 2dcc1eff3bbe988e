"""Shows a build while it runs: live on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Self

import click

from envd.events import Event, Stage

if TYPE_CHECKING:
    from types import TracebackType

_MAX_WIDTH = 60


class Progress:
    """Takes the events of one piece of work."""

    def __init__(self) -> None:
        """Show nothing before the first event: most calls find everything ready."""
        self._status: Any = None
        self._stage = Stage("starting", "starting")
        self._began = time.monotonic()

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
        if self._status:
            self._status.stop()

    def __call__(self, event: Event) -> None:
        """Show *event*."""
        if isinstance(event, Stage):
            self._stage = event
            if not sys.stderr.isatty():
                click.echo(f"{event.name}: {event.message}", err=True)
        if sys.stderr.isatty():
            self._show(event)

    def _show(self, event: Event) -> None:
        from rich.markup import escape  # noqa: PLC0415

        detail = "" if isinstance(event, Stage) else event.text.strip()[:_MAX_WIDTH]
        seconds = time.monotonic() - self._began
        text = f"{self._stage.message} [dim]{seconds:.0f} s  {escape(detail)}[/dim]"
        if self._status is None:
            from rich.console import Console  # noqa: PLC0415

            self._status = Console(stderr=True).status(text)
            self._status.start()
        self._status.update(text)
