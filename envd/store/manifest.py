"""The manifest: what makes an environment ready, and how it came to be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envd.events import Note
from envd.lock import Lock
from envd.lock.lock import from_document as lock_from_document
from envd.spec import Python

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Base:
    """The interpreter an environment is built on; without it the environment is broken."""

    path: Path
    mtime_ns: int

    def is_there(self) -> bool:
        """Whether it is still the file it was."""
        try:
            return self.path.stat().st_mtime_ns == self.mtime_ns
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of one ready environment. Times are seconds since 1970.

    `profile` is the security profile it was built under: policy is in no key.
    """

    env_id: str
    attempt: str
    spec_key: str
    manager: str
    python: Python
    python_requested: str | None
    base: Base
    lock: Lock
    notes: tuple[Note, ...]
    created: float
    seconds: float
    link_mode: str
    profile: str

    def document(self) -> dict[str, Any]:
        """Return the manifest as JSON values."""
        return asdict(self) | {
            "format": FORMAT,
            "python": self.python.document(),
            "base": {"path": str(self.base.path), "mtime_ns": self.base.mtime_ns},
            "lock": self.lock.document(),
            "notes": [note.document() for note in self.notes],
        }


def from_document(document: dict[str, Any]) -> Manifest:
    """Return the manifest that `Manifest.document` described.

    Raises:
        KeyError, TypeError, ValueError: it is damaged, or of a newer format.
    """
    fields = dict(document)
    if fields.pop("format") != FORMAT:
        message = f"manifest format {document['format']} is newer than this envd"
        raise ValueError(message)
    fields.setdefault("profile", "dev")
    fields["python"] = Python(**fields["python"])
    fields["base"] = Base(Path(fields["base"]["path"]), int(fields["base"]["mtime_ns"]))
    fields["lock"] = lock_from_document(fields["lock"])
    fields["notes"] = tuple(Note(**note) for note in fields["notes"])
    return Manifest(**fields)
