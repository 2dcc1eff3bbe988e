"""What does a verb's work: a daemon, or this process. Both give the same documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from envd.events import Note, OnEvent

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Predicted:
    """An answer: its bytes, and how it came about."""

    payload: bytes
    environment_id: str
    origin: str
    stage_seconds: dict[str, float]
    notes: Sequence[Note]


@dataclass(frozen=True, slots=True)
class Input:
    """What is sent to a model."""

    payload: bytes
    content_type: str
    params: dict[str, object] | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The environment of a model, with requirements put in the place of its own.

    With `upgrade` it is locked anew, and a lock that lies in the model is passed over.
    """

    model: str
    override: Sequence[str] = ()
    upgrade: bool = False


class Engine(Protocol):
    """The verbs' view of envd. Every method may raise EnvdError."""

    def predict(self, wanted: Wanted, given: Input, on_event: OnEvent) -> Predicted:
        """Run a model on *given*."""

    def build(self, wanted: Wanted, on_event: OnEvent) -> Document:
        """Build an environment and see it through; failures are in the document."""

    def explain(self, wanted: Wanted) -> Document:
        """Return the canonical spec of a model, its keys and its notes."""

    def lock(self, wanted: Wanted, on_event: OnEvent) -> str:
        """Return the lock of a model as a `pylock.toml`."""

    def list(self) -> list[Document]:
        """Return the published environments, by id."""

    def show(self, environment_id: str) -> Document:
        """Return everything about one environment."""

    def remove(self, environment_id: str) -> Document:
        """Remove one environment and return what it was."""
