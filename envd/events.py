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


Event = Stage | Line
OnEvent = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Take an event and do nothing with it."""
