"""Lets the daemon do a verb's work."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import envd_client
import grpc
from envd_client.errors import DaemonUnreachableError
from envd_client.v1 import envd_pb2 as api

from envd.addresses import target
from envd.cli import documents
from envd.cli.engine import Document, Input, Predicted, Wanted
from envd.errors import EnvdError, from_document
from envd.events import Line, Note, OnEvent, Stage
from envd.model.mlmodel import check_path

if TYPE_CHECKING:
    from collections.abc import Iterator

_DAY_S = 86400.0
_CONNECT_S = 5.0


class UnreachableError(EnvdError):
    """No daemon answers."""

    code, reason = "UNAVAILABLE", "DAEMON_UNREACHABLE"


class Remote:
    """The verbs, asked of the daemon behind two sockets."""

    def __init__(self, predict: Path, admin: Path) -> None:
        """Connect to the daemon.

        Raises:
            UnreachableError: it does not answer, though its process may be there.
        """
        _greet(predict)
        self._client = envd_client.Client(predict, admin_target=admin, timeout_s=_DAY_S)

    def predict(self, wanted: Wanted, given: Input, on_event: OnEvent) -> Predicted:
        """Run a model on *given*, showing the build if there is one."""
        with self._errors():
            built = self._built(wanted, on_event)
            if built.HasField("failure"):
                # Asking for the prediction would build it once more.
                raise _failure(built)
            answer = self._client.predict(
                wanted.model,
                given.payload,
                content_type=given.content_type,
                params=given.params,
                pip_requirements_override=wanted.override,
            )
        return Predicted(
            answer.payload,
            answer.environment_id,
            answer.worker_origin,
            answer.stage_seconds,
            [Note(one.code, one.message, one.subject) for one in answer.notes],
        )

    def build(self, wanted: Wanted, on_event: OnEvent) -> Document:
        """Build an environment."""
        with self._errors():
            return documents.built(self._built(wanted, on_event))

    def explain(self, wanted: Wanted) -> Document:
        """Return the canonical spec of a model."""
        with self._errors():
            return documents.resolved(self._resolved(wanted, lock=False))

    def lock(self, wanted: Wanted, on_event: OnEvent) -> str:
        """Return the lock of a model."""
        with self._errors():
            if wanted.upgrade and (built := self._built(wanted, on_event)).HasField("failure"):
                raise _failure(built)
            return self._resolved(wanted, lock=True).lock_toml

    def _resolved(self, wanted: Wanted, *, lock: bool) -> api.ResolvedSpec:
        check_path(Path(wanted.model))
        return self._client.resolve(
            wanted.model,
            pip_requirements_override=wanted.override,
            lock=lock,
            upgrade=wanted.upgrade,
        )

    def list(self) -> list[Document]:
        """Return the ready environments."""
        with self._errors():
            return [documents.listed(one) for one in self._client.list()]

    def show(self, environment_id: str) -> Document:
        """Return everything about one environment."""
        with self._errors():
            return documents.shown(self._client.get(environment_id, full=True))

    def remove(self, environment_id: str) -> Document:
        """Remove one environment."""
        with self._errors():
            return documents.listed(self._client.delete(environment_id))

    def _built(self, wanted: Wanted, on_event: OnEvent) -> api.Environment:
        """Start a build and see it through."""
        check_path(Path(wanted.model))
        message = self._seen(self._asked_for(wanted), on_event)
        if wanted.upgrade or message.cached or message.state != api.Environment.READY:
            return message
        # Whoever joined the build of another model has seen that one's notes.
        again = self._seen(self._asked_for(wanted), on_event)
        again.cached = False
        again.build_duration.CopyFrom(message.build_duration)
        return again

    def _asked_for(self, wanted: Wanted) -> api.Environment:
        return self._client.build(
            wanted.model, pip_requirements_override=wanted.override, upgrade=wanted.upgrade
        )

    def _seen(self, message: api.Environment, on_event: OnEvent) -> api.Environment:
        """Follow the build of *message*, if it is one, to its end."""
        if message.state != api.Environment.BUILDING:
            return message
        for event in self._client.watch(message.spec_key):
            if event.HasField("environment"):
                message = event.environment
            elif event.HasField("stage"):
                on_event(Stage(event.stage.name, event.stage.message))
            else:
                on_event(Line(event.log_line))
        return message

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise the daemon's errors as this process would."""
        try:
            yield
        except DaemonUnreachableError as error:
            message = f"the daemon has gone: {error.message}"
            raise UnreachableError(message) from error
        except envd_client.EnvdError as error:
            document: dict[str, object] = {
                "reason": error.reason, "message": error.message, "metadata": error.metadata,
            }  # fmt: skip
            raise from_document(document) from error


def _failure(built: api.Environment) -> EnvdError:
    return from_document(
        {
            "reason": built.failure.reason,
            "message": built.failure.message,
            "metadata": {"log": built.log_path or None},
        }
    )


def _greet(path: Path) -> None:
    """See that a daemon speaks on the socket *path*: a stopped one would be waited for."""
    with grpc.insecure_channel(target(path)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_S)
        except grpc.FutureTimeoutError as error:
            message = (
                f"the daemon at `{path}` does not answer; see whether it runs, or start `envd`"
            )
            raise UnreachableError(message, socket=path) from error
