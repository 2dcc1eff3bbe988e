"""Does a verb's work in this process, where no daemon runs on the root."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING

from envd import messages
from envd.builds import elsewhere
from envd.cli import documents
from envd.cli.engine import Document, Input, OnItem, Order, Predicted, Purge, UnreachableError
from envd.environments.asked import Asked
from envd.environments.environments import Environments, Ready
from envd.environments.verifying import Verifier
from envd.errors import EnvdError, EnvironmentNotFoundError, from_os
from envd.events import Note, OnEvent, ignore
from envd.model import Model, naming, read, repository
from envd.model.location import locate
from envd.run.pool import Function, Pool, Prediction, Request
from envd.run.processes import Processes
from envd.run.serving import Serving, Servings
from envd.run.stream import Stream
from envd.sandbox import tiers
from envd.snapshots import Snapshots
from envd.spec import Terms
from envd.store import collecting, prefixes, removal, sweep, trash
from envd.store.collecting import Criteria

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envd.config import Settings
    from envd.store import Environment

_ATTEMPTS = 3
_POLL_S = 0.1


class Local:
    """The verbs on one root, with nothing else running."""

    def __init__(self, settings: Settings) -> None:
        """Work on the root of *settings*."""
        self._settings = repository.with_newest(settings)
        self._environments = Environments(settings)
        self._store = self._environments.store
        self._snapshots = Snapshots(self._store)
        self._store.check()

    def predict(self, order: Order, given: Input, on_event: OnEvent) -> Predicted:
        """Run a model on *given*, in a worker that ends with this command."""
        return self._predict_again(order, given, on_event, None)

    def predict_stream(
        self, order: Order, given: Input, on_event: OnEvent, on_item: OnItem
    ) -> Predicted:
        """Run the `predict_stream` of a model on *given*, likewise."""
        return self._predict_again(order, given, on_event, on_item)

    def _predict_again(
        self, order: Order, given: Input, on_event: OnEvent, on_item: OnItem | None
    ) -> Predicted:
        for _ in range(_ATTEMPTS - 1):
            # Another process may remove an environment after it was found.
            with contextlib.suppress(EnvironmentNotFoundError):
                return self._predict(order, given, on_event, on_item)
        return self._predict(order, given, on_event, on_item)

    def _predict(
        self, order: Order, given: Input, on_event: OnEvent, on_item: OnItem | None
    ) -> Predicted:
        found = self._read(order.model)
        served = naming.find(order.model, self._settings.served)
        serving = Servings(self._settings).of(found, served, given.model_config)
        started = time.perf_counter()
        asked = self._environments.ask(found, _terms(order), on_event)
        ready = self._environments.ready(asked, on_event)
        environment = ready.environment
        build_seconds = time.perf_counter() - started
        request = Request(given.payload, given.content_type, given.params)
        try:
            answer = asyncio.run(self._ask_worker(found, environment, serving, request, on_item))
        except EnvdError as error:
            raise serving.explained(error) from error
        self._tidy(ready)
        return Predicted(
            bytes(answer.payload),
            environment.id,
            answer.origin,
            answer.why,
            {
                "build": build_seconds,
                "start": answer.start_seconds,
                "queue": answer.queue_seconds,
                "predict": answer.predict_seconds,
                "model": answer.model_seconds,
            },
            [
                *self._environments.notes(found, asked, environment),
                *serving.notes,
                *(Note(**note) for note in answer.notes),
            ],
        )

    def build(self, order: Order, on_event: OnEvent) -> Document:
        """Build an environment."""
        found, asked = self._asked(order, on_event)
        started = time.monotonic()
        try:
            ready = self._environments.ready(
                asked, on_event, upgrade=order.upgrade, retry=order.retry
            )
            self._tidy(ready)
        except EnvdError as error:
            message = messages.unready(asked, time.monotonic() - started, error)
            return documents.built(message)
        self._store.uses.record_model(ready.environment.id, found.path)
        noted = self._environments.notes(found, asked, ready.environment)
        message = messages.asked_for(
            self._store, ready.environment, asked, noted, cached=ready.cached
        )
        return documents.built(message)

    def explain(self, order: Order) -> Document:
        """Return the canonical spec of a model."""
        _, asked = self._asked(order, ignore)
        return documents.resolved(messages.resolved(asked, self._environments.kept_lock(asked)))

    def lock(self, order: Order, platforms: Sequence[str], on_event: OnEvent) -> tuple[str, str]:
        """Return the lock of a model."""
        found, asked = self._asked(order, on_event)
        if order.upgrade:
            ready = self._environments.ready(asked, on_event, upgrade=True)
            self._store.uses.record_model(ready.environment.id, found.path)
        return self._environments.lock_file(asked, platforms, on_event)

    def cancel(self, build_id: str) -> Document:
        """End a build that another process does."""
        self._store.check_format()
        prefixes.check(build_id)
        cancelled = elsewhere.cancel(self._store, build_id)
        return documents.built(messages.cancelled(self._store, cancelled))

    def list(self, *, show_all: bool = False) -> list[Document]:
        """Return the published environments; with *show_all* what is not ready too."""
        found = [messages.listed(one) for one in self._store.records()]
        others = self._snapshots.others() if show_all else []
        return [documents.listed(one) for one in found + others]

    def show(self, environment_id: str) -> Document:
        """Return everything about one environment, build or failure."""
        return documents.shown(self._snapshots.any(environment_id, full=True))

    def log(self, environment_id: str, *, follow: bool) -> Iterator[str]:
        """Yield the lines of a build's log."""
        prefixes.check(environment_id)
        yield from elsewhere.log_lines(self._store, self._spec_key(environment_id), follow=follow)

    def _spec_key(self, prefix: str) -> str:
        """Return the key of the one spec that was built, or that an environment begun so has."""
        if build := elsewhere.find(self._store, prefix):
            return build.spec_key
        logs = [path.stem for path in self._store.layout.logs.glob(f"{prefix}*.log")]
        return logs[0] if len(logs) == 1 else prefixes.resolve(self._store, prefix).spec_key

    def remove(self, environment_id: str, *, force: bool = False) -> Document:
        """Remove one environment."""
        self._store.check_format()
        with self._writing():
            found = prefixes.resolve(self._store, environment_id)
            document = documents.listed(messages.listed(found))
            if force:
                removal.by_force(self._store, found.id, lambda: time.sleep(_POLL_S))
            else:
                removal.remove(self._store, found.id)
            trash.empty(self._store.layout.trash)
            return document

    def pin(self, environment_id: str) -> Document:
        """Keep an environment from gc."""
        self._store.check_format()
        with self._writing():
            found = prefixes.resolve(self._store, environment_id)
            self._store.pin(found.id)
            return documents.listed(self._snapshots.published(found.id))

    def unpin(self, environment_id: str) -> Document:
        """Let gc have an environment again."""
        self._store.check_format()
        with self._writing():
            found = prefixes.resolve(self._store, environment_id)
            self._store.unpin(found.id)
            return documents.listed(self._snapshots.published(found.id))

    def purge(self, asked: Purge) -> Document:
        """Remove what is not worth its place, or say what that is."""
        limits = dataclasses.asdict(asked)
        criteria = Criteria(force=not limits.pop("dry_run"), **limits)
        if criteria.force:
            self._store.check_format()
        with self._writing():
            found = collecting.collect(self._store, self._settings.gc, criteria)
            if criteria.force:
                trash.empty(self._store.layout.trash)
        return documents.purged(messages.purged(found), dry_run=asked.dry_run)

    def verify(self, environment_id: str, on_event: OnEvent, *, repair: bool) -> Document:
        """Compare an environment with the record of its publication."""
        if repair:
            self._store.check_format()
        # Without that, too: whoever looks holds it meanwhile.
        with self._writing():
            found = prefixes.resolve(self._store, environment_id)
            verifier = Verifier(self._settings, self._store)
            verified = verifier.verify(found.id, on_event, repair=repair)
            now = self._snapshots.published(found.id)
            return documents.verified(messages.verified(verified, now))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Say what to do where nothing can be written."""
        try:
            yield
        except OSError as error:
            raise from_os(error, self._settings.root) from error

    def load_model(self, model: str, name: str, *, wait: bool) -> Document:
        """Say that nobody is there to have a model loaded."""
        del name, wait
        raise self._alone(model)

    def unload_model(self, model: str) -> Document:
        """Say that nobody is there to have a model loaded."""
        raise self._alone(model)

    def _alone(self, model: str) -> UnreachableError:
        message = (
            f"no daemon runs on `{self._settings.root}`, and models stay loaded in one only; "
            "start `envd`"
        )
        return UnreachableError(message, model=model, root=self._settings.root)

    def list_models(self) -> Sequence[Document]:
        """Return the models that have a name."""
        served = sorted(self._settings.served, key=lambda one: one.name)
        return [documents.model(messages.model(None, uri=one.uri, name=one.name)) for one in served]

    def list_workers(self) -> Sequence[Document]:
        """Return no worker: none outlives a command."""
        return []

    def restart_worker(self, pid: int) -> Document:
        """Say that no worker is there to be restarted."""
        raise self._alone(str(pid))

    def show_model(self, model: str) -> Document:
        """Return what a model says of itself."""
        found = self._read(model)
        served = naming.find(model, self._settings.served)
        message = messages.model(
            found, uri=served.uri if served else model, name=served.name if served else ""
        )
        return documents.model_shown(messages.with_details(message, found))

    def _tidy(self, ready: Ready) -> None:
        """Clear away what others left when something was built, which is seldom."""
        if not ready.cached:
            sweep.leftovers(self._store)
            trash.empty(self._store.layout.trash)

    def _asked(self, order: Order, on_event: OnEvent) -> tuple[Model, Asked]:
        found = self._read(order.model)
        return found, self._environments.ask(found, _terms(order), on_event)

    def _read(self, model: str) -> Model:
        # A model that is downloaded is written, too.
        self._store.check_format()
        return read(locate(model, self._settings))

    async def _ask_worker(
        self,
        model: Model,
        environment: Environment,
        serving: Serving,
        request: Request,
        on_item: OnItem | None,
    ) -> Prediction:
        is_large = len(request.payload) > self._settings.daemon.max_message
        processes = Processes.create()
        try:
            processes.attach()
            pool = Pool(self._settings, self._store, processes, sandbox=tiers.of(self._settings))
            try:
                if on_item is None and not is_large:
                    return await pool.predict(model, environment, request, serving)
                function: Function = "predict_stream" if on_item else "predict"
                stream = await pool.stream(model, environment, request, function, serving)
                with contextlib.closing(stream):
                    item = await _taken(stream, on_item)
                answer = pool.ended(stream, model, environment)
                return dataclasses.replace(answer, payload=b"" if on_item else item)
            finally:
                await pool.close()
        finally:
            processes.close()


async def _taken(stream: Stream, on_item: OnItem | None) -> bytes:
    """Return the last item of *stream*; *on_item* gets each."""
    parts, item = bytearray(), b""
    async for part in stream:
        parts += part.payload
        if part.ends:
            item = bytes(parts)
            parts.clear()
            if on_item:
                on_item(item)
    return item


def _terms(order: Order) -> Terms:
    return Terms(tuple(order.override), order.env_manager, order.upgrade)
