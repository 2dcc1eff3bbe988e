"""Lets the daemon do a verb's work."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import envd_client
import grpc
from envd_client import connection
from envd_client.errors import DaemonUnreachableError
from envd_client.v1 import envd_pb2 as api

from envd import addresses
from envd.cli import documents
from envd.cli.engine import (
    Document,
    Input,
    OnItem,
    Order,
    Predicted,
    Purge,
    UnreachableError,
)
from envd.environments.waiting import written
from envd.errors import EnvdError, EnvironmentNotFoundError, from_document
from envd.events import Event, Line, Note, OnEvent, Progress, Stage
from envd.model.mlmodel import check_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envd_client import Answer
    from envd_client.connection import Connection

_DAY_S = 86400.0
_CONNECT_S = 5.0


class Remote:
    """The verbs, asked of the daemon behind two sockets."""

    def __init__(self, predict: str, admin: str | None, **options: Any) -> None:
        """Connect to the daemon with what *options* of the client say besides.

        Raises:
            UnreachableError: it does not answer, though its process may be there.
            SettingsInvalidError: the files of the options cannot be used.
        """
        self._is_here = not addresses.is_address(predict)
        with self._errors():
            _greet(predict, connection.connection(
                predict, admin_target=admin, timeout_s=_DAY_S, retries=0, **options
            ))  # fmt: skip
            self._client = envd_client.Client(
                predict, admin_target=admin, timeout_s=_DAY_S, **options
            )

    def predict(self, order: Order, given: Input, on_event: OnEvent) -> Predicted:
        """Run a model on *given*, showing the build if there is one."""
        with self._errors():
            self._have_built(order, on_event)
            answer = self._client.predict(order.model, given.payload, **_asked_with(order, given))
        return _predicted(answer)

    def predict_stream(
        self, order: Order, given: Input, on_event: OnEvent, on_item: OnItem
    ) -> Predicted:
        """Run the `predict_stream` of a model on *given*, showing the build if there is one."""
        with self._errors():
            self._have_built(order, on_event)
            with self._client.predict_stream(
                order.model, given.payload, **_asked_with(order, given)
            ) as stream:
                for item in stream.payloads():
                    on_item(item)
                return _predicted(stream.answer)

    def _have_built(self, order: Order, on_event: OnEvent) -> None:
        built = self._built(order, on_event)
        if built.HasField("failure"):
            # Asking for the prediction would build it once more.
            raise _failure(built)

    def build(self, order: Order, on_event: OnEvent) -> Document:
        """Build an environment."""
        with self._errors():
            return documents.built(self._built(order, on_event))

    def explain(self, order: Order) -> Document:
        """Return the canonical spec of a model."""
        with self._errors():
            return documents.resolved(self._resolved(order, lock=False))

    def lock(self, order: Order, platforms: Sequence[str], on_event: OnEvent) -> tuple[str, str]:
        """Return the lock of a model."""
        with self._errors():
            if order.upgrade and (built := self._built(order, on_event)).HasField("failure"):
                raise _failure(built)
            found = self._resolved(order, lock=True, platforms=platforms)
            return found.lock_file, found.lock_text

    def _resolved(
        self, order: Order, *, lock: bool, platforms: Sequence[str] = ()
    ) -> api.ResolvedSpec:
        check_path(Path(order.model))
        return self._client.resolve(
            order.model,
            pip_requirements_override=order.override,
            env_manager=order.env_manager,
            lock=lock,
            upgrade=order.upgrade,
            platforms=platforms,
        )

    def cancel(self, build_id: str) -> Document:
        """End a build."""
        with self._errors():
            return documents.built(self._client.cancel(build_id))

    def list(self, *, show_all: bool = False) -> list[Document]:
        """Return the published environments; with *show_all* builds and failures too."""
        with self._errors():
            return [documents.listed(one) for one in self._client.list(show_all=show_all)]

    def show(self, environment_id: str) -> Document:
        """Return everything about one environment."""
        with self._errors():
            return documents.shown(self._client.get(environment_id, full=True))

    def log(self, environment_id: str, *, follow: bool) -> Iterator[str]:
        """Yield the lines of a build's log, as the build goes on if there is one to *follow*."""
        with self._errors():
            found = self._client.get(environment_id, full=True)
            if follow and found.state == api.Environment.BUILDING:
                for event in self._client.watch(found.spec_key):
                    if event.HasField("stage"):
                        yield written(Stage(event.stage.name, event.stage.message))
                    elif event.HasField("log_line"):
                        yield event.log_line
                return
        yield from _lines(found, is_here=self._is_here)

    def remove(self, environment_id: str, *, force: bool = False) -> Document:
        """Remove one environment; *force* waits for its users."""
        with self._errors():
            return documents.listed(self._client.delete(environment_id, force=force))

    def pin(self, environment_id: str) -> Document:
        """Keep an environment from gc."""
        with self._errors():
            return documents.listed(self._client.pin(environment_id))

    def unpin(self, environment_id: str) -> Document:
        """Let gc have an environment again."""
        with self._errors():
            return documents.listed(self._client.unpin(environment_id))

    def purge(self, asked: Purge) -> Document:
        """Remove what is not worth its place, or say what would be removed."""
        with self._errors():
            message = self._client.purge(
                force=not asked.dry_run,
                max_age_s=asked.max_age,
                unused_for_s=asked.unused_for,
                max_size_bytes=asked.max_size,
                min_free=asked.min_free,
                keep=asked.keep,
            )
        return documents.purged(message, dry_run=asked.dry_run)

    def verify(self, environment_id: str, on_event: OnEvent, *, repair: bool) -> Document:
        """Compare an environment with the record of its publication."""
        on_event(Stage("verifying", f"comparing the files of {environment_id}"))
        with self._errors():
            return documents.verified(self._client.verify(environment_id, repair=repair))

    def load_model(self, model: str, name: str, *, wait: bool) -> Document:
        """Have a model loaded, and served as *name* if there is one."""
        with self._errors():
            return documents.model(self._client.load_model(model, name=name, wait=wait))

    def unload_model(self, model: str) -> Document:
        """Have the workers of a model stopped."""
        with self._errors():
            return documents.model(self._client.unload_model(model))

    def list_models(self) -> Sequence[Document]:
        """Return the models that have a name, were loaded, or have a worker."""
        with self._errors():
            return [documents.model(one) for one in self._client.list_models()]

    def list_workers(self) -> Sequence[Document]:
        """Return the processes that have a model loaded."""
        with self._errors():
            return [documents.worker(one) for one in self._client.list_workers()]

    def restart_worker(self, pid: int) -> Document:
        """Have a worker started in the place of another."""
        with self._errors():
            return documents.worker(self._client.restart_worker(pid))

    def show_model(self, model: str) -> Document:
        """Return what a model says of itself."""
        check_path(Path(model))
        with self._errors():
            return documents.model_shown(self._client.get_model(model))

    def _built(self, order: Order, on_event: OnEvent) -> api.Environment:
        """Start a build and see it through."""
        check_path(Path(order.model))
        message = self._seen(self._asked_for(order), on_event)
        if order.upgrade or message.cached or message.state != api.Environment.READY:
            return message
        # Whoever joined the build of another model has seen that one's notes.
        again = self._seen(self._asked_for(order), on_event)
        again.cached = False
        again.build_duration.CopyFrom(message.build_duration)
        return again

    def _asked_for(self, order: Order) -> api.Environment:
        return self._client.build(
            order.model,
            pip_requirements_override=order.override,
            env_manager=order.env_manager,
            upgrade=order.upgrade,
            retry=order.retry,
        )

    def _seen(self, message: api.Environment, on_event: OnEvent) -> api.Environment:
        """Follow the build of *message*, if it is one, to its end."""
        if message.state != api.Environment.BUILDING:
            return message
        for event in self._client.watch(message.spec_key):
            if event.HasField("environment"):
                message = event.environment
            else:
                on_event(_event(event))
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


def _asked_with(order: Order, given: Input) -> dict[str, Any]:
    return {
        "content_type": given.content_type,
        "params": given.params,
        "model_config": given.model_config,
        "pip_requirements_override": order.override,
        "env_manager": order.env_manager,
    }


def _predicted(answer: Answer) -> Predicted:
    return Predicted(
        answer.payload,
        answer.environment_id,
        answer.worker_origin,
        answer.worker_reason,
        answer.stage_seconds,
        [Note(one.code, one.message, one.subject) for one in answer.notes],
    )


def _event(message: api.EnvironmentEvent) -> Event:
    if message.HasField("stage"):
        return Stage(message.stage.name, message.stage.message)
    if message.HasField("progress"):
        far = message.progress
        return Progress(far.packages_done, far.packages_total, far.bytes_written)
    return Line(message.log_line)


def _lines(found: api.Environment, *, is_here: bool) -> Iterator[str]:
    try:
        with Path(found.log_path).open(errors="replace") as file:
            yield from (line.removesuffix("\n") for line in file)
    except (FileNotFoundError, IsADirectoryError) as error:
        where = "" if is_here else f" here; it is {found.log_path} where the daemon runs"
        message = f"no log is kept of {found.id or found.spec_key}{where}"
        raise EnvironmentNotFoundError(message, id=found.id or found.spec_key) from error


def _failure(built: api.Environment) -> EnvdError:
    return from_document(
        {
            "reason": built.failure.reason,
            "message": built.failure.message,
            "metadata": {"log": built.log_path or None},
        }
    )


def _greet(target: str, how: Connection) -> None:
    """See that a daemon speaks at *target*: a stopped one would be waited for."""
    with how.channel(how.target) as channel:
        # A future of the channel's readiness costs a fifth of a second when it is let go.
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )
        try:
            # Over a network, what is wrong with a certificate is only said at once.
            check(b"", timeout=_CONNECT_S, wait_for_ready=how.target.startswith("unix:"))
        except grpc.RpcError as error:
            why = "" if how.target.startswith("unix:") else f" ({error.details()})"
            message = (
                f"the daemon at `{target}` does not answer{why}; see whether it runs, "
                "or start `envd`"
            )
            raise UnreachableError(message, socket=target) from error
