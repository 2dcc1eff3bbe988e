"""Tells whoever waits what the process it waits for is doing: who it is, its log, how far."""

from __future__ import annotations

from envd.environments.tail import Tail
from envd.events import Event, Line, OnEvent, Progress, Stage
from envd.held import Owner

_STAGE = "== "


def written(stage: Stage) -> str:
    """Return the line of a build's log that says that *stage* begins."""
    return f"{_STAGE}{stage.name}: {stage.message}"


def read(line: str) -> Event:
    """Return what a line of a build's log tells."""
    name, colon, message = line.removeprefix(_STAGE).partition(": ")
    return Stage(name, message) if line.startswith(_STAGE) and colon else Line(line)


class Waiting:
    """Follows the log of one process after the other, as they hold what is waited for."""

    def __init__(self, on_event: OnEvent) -> None:
        """Tell *on_event*, once for each process, and then each line of its log."""
        self._on_event = on_event
        self._told: str | None = None
        self._owner: Owner | None = None
        self._progress: Progress | None = None
        self._tail: Tail | None = None

    def __call__(self, owner: Owner | None) -> None:
        """Look at what *owner* has been doing since the last time."""
        if owner is None:
            self._tell(self._told or "waiting for the build")
        elif self._owner is None or (self._owner.pid, self._owner.log) != (owner.pid, owner.log):
            self._tell(_reason(owner))
            self._open(owner)
        if owner and owner.progress and owner.progress != self._progress:
            self._progress = owner.progress
            self._on_event(owner.progress)
        self._read()

    def close(self) -> None:
        """Let go of the log."""
        if self._tail:
            self._tail.close()
            self._tail = None

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            self._on_event(Stage("waiting", reason))
        self._told = reason

    def _open(self, owner: Owner) -> None:
        self.close()
        self._owner = owner
        self._tail = Tail(owner.log) if owner.log else None

    def _read(self) -> None:
        while self._tail and (lines := self._tail.read()):
            for line in lines:
                self._on_event(read(line))


def _reason(owner: Owner) -> str:
    # Only builders have a log.
    if owner.log is None:
        who = f"pid {owner.pid} on host {owner.host}"
        return f"waiting until {who} has removed it, when nobody uses it any more"
    return f"waiting for the build started by pid {owner.pid} on host {owner.host}"
