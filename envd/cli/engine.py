"""What does a verb's work: a daemon, or this process. Both give the same documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from envd.errors import EnvdError
from envd.events import Note, OnEvent

Document = dict[str, Any]
# Takes an item of an answer, JSON, when it is there.
OnItem = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Predicted:
    """An answer: its bytes, and how it came about."""

    payload: bytes
    environment_id: str
    origin: str
    why: str
    stage_seconds: dict[str, float]
    notes: Sequence[Note]


@dataclass(frozen=True, slots=True)
class Input:
    """What is sent to a model, and what it is loaded with."""

    payload: bytes
    content_type: str
    params: dict[str, object] | None
    model_config: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What is ordered: the environment of a model, with requirements in the place of its own.

    What makes it is `env_manager`, empty for what the settings say.
    With `upgrade` it is locked anew, and a lock that lies in the model is passed over.
    With `retry` it is tried although it failed a short time ago.
    """

    model: str
    override: Sequence[str] = ()
    env_manager: str = ""
    upgrade: bool = False
    retry: bool = False


@dataclass(frozen=True, slots=True)
class Purge:
    """What gc is told: limits as they were given, None for what the settings say.

    Ages are seconds, sizes bytes; `min_free` is bytes or a percentage.
    """

    max_age: float | None = None
    unused_for: float | None = None
    max_size: int | None = None
    min_free: str | None = None
    keep: int | None = None
    dry_run: bool = False


class UnreachableError(EnvdError):
    """No daemon answers."""

    code, reason = "UNAVAILABLE", "DAEMON_UNREACHABLE"


class Engine(Protocol):
    """The verbs' view of envd. Every method may raise EnvdError."""

    def predict(self, order: Order, given: Input, on_event: OnEvent) -> Predicted:
        """Run a model on *given*."""

    def predict_stream(
        self, order: Order, given: Input, on_event: OnEvent, on_item: OnItem
    ) -> Predicted:
        """Run the `predict_stream` of a model on *given*; what is returned has no payload."""

    def build(self, order: Order, on_event: OnEvent) -> Document:
        """Build an environment and see it through; failures are in the document."""

    def explain(self, order: Order) -> Document:
        """Return the canonical spec of a model, its keys and its notes."""

    def lock(self, order: Order, platforms: Sequence[str], on_event: OnEvent) -> tuple[str, str]:
        """Return the lock of a model, for *platforms* besides this machine's: a name and a text."""

    def cancel(self, build_id: str) -> Document:
        """End a build and return what it was."""

    def list(self, *, show_all: bool = False) -> list[Document]:
        """Return the published environments, by id; with *show_all* builds and failures too."""

    def show(self, environment_id: str) -> Document:
        """Return everything about one environment, build or failure."""

    def log(self, environment_id: str, *, follow: bool) -> Iterator[str]:
        """Yield the lines of a build's log; with *follow* until the build is over."""

    def remove(self, environment_id: str, *, force: bool = False) -> Document:
        """Remove one environment and return what it was; *force* waits for its users."""

    def pin(self, environment_id: str) -> Document:
        """Keep an environment from gc."""

    def unpin(self, environment_id: str) -> Document:
        """Let gc have an environment again."""

    def purge(self, asked: Purge) -> Document:
        """Remove what is not worth its place, or say what would be removed."""

    def verify(self, environment_id: str, on_event: OnEvent, *, repair: bool) -> Document:
        """Compare an environment with the record of its publication."""

    def load_model(self, model: str, name: str, *, wait: bool) -> Document:
        """Have a model loaded by the daemon, and served as *name* if there is one."""

    def unload_model(self, model: str) -> Document:
        """Have the daemon's workers of a model stopped."""

    def list_models(self) -> Sequence[Document]:
        """Return the models that have a name, were loaded, or have a worker."""

    def list_workers(self) -> Sequence[Document]:
        """Return the processes that have a model loaded."""

    def restart_worker(self, pid: int) -> Document:
        """Have a worker started in the place of another, and return what that was."""

    def show_model(self, model: str) -> Document:
        """Return what a model says of itself."""
