"""What a build says of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth knowing that is not an error: a change or a choice of envd's."""

    code: str
    message: str
    subject: str = ""

    def document(self) -> dict[str, str]:
        """Return the note as JSON values."""
        return {"code": self.code, "message": self.message, "subject": self.subject}


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a build begins: waiting, python, locking, installing, warming, publishing."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the build log."""

    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an installation is: packages that are here, of how many, and bytes written."""

    done: int
    total: int
    bytes: int

    @property
    def text(self) -> str:
        """The same as a line."""
        return f"{self.done} of {self.total} packages, {self.bytes / 1e6:.1f} MB written"


@dataclass(frozen=True, slots=True)
class Locked:
    """The spec is locked: its environment has an id."""

    env_id: str


Event = Stage | Line | Progress | Locked
OnEvent = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Take an event and do nothing with it."""
