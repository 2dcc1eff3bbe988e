"""Lets the daemon do a verb's work."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import envd_client
import grpc
from envd_client.errors import DaemonUnreachableError
from envd_client.v1 import envd_pb2 as api

from envd.addresses import target
from envd.cli import documents
from envd.cli.engine import Document, Input, Predicted
from envd.errors import EnvdError, from_document
from envd.events import Line, Note, OnEvent, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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

    def predict(self, model: str, given: Input, on_event: OnEvent) -> Predicted:
        """Run *model* on *given*, showing the build if there is one."""
        with self._errors():
            built = self._see_built(self._client.build(model), on_event)
            if built.HasField("failure"):
                # Asking for the prediction would build it once more.
                raise from_document(
                    {
                        "reason": built.failure.reason,
                        "message": built.failure.message,
                        "metadata": {"log": built.log_path or None},
                    }
                )
            answer = self._client.predict(
                model,
                given.payload,
                content_type=given.content_type,
                params=given.params,
            )
        return Predicted(
            answer.payload,
            answer.environment_id,
            answer.worker_origin,
            answer.stage_seconds,
            [Note(one.code, one.message, one.subject) for one in answer.notes],
        )

    def build(self, model: str, on_event: OnEvent) -> Document:
        """Build the environment of *model*."""
        with self._errors():
            return documents.built(self._see_built(self._client.build(model), on_event))

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

    def _see_built(self, message: api.Environment, on_event: OnEvent) -> api.Environment:
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
