"""Does a verb's work in this process, where no daemon runs on the root."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from envd import messages
from envd.asked import Asked
from envd.cli import documents
from envd.cli.engine import Document, Input, Predicted, Wanted
from envd.environments import Environments
from envd.errors import EnvdError, EnvironmentNotFoundError
from envd.events import Note, OnEvent, ignore
from envd.lock import pylock
from envd.model import Model, read
from envd.model.location import locate
from envd.run.pool import Pool, Prediction, Request
from envd.run.processes import Processes

if TYPE_CHECKING:
    from envd.config import Settings
    from envd.store import Environment

_ATTEMPTS = 3


class Local:
    """The verbs on one root, with nothing else running."""

    def __init__(self, settings: Settings) -> None:
        """Work on the root of *settings*."""
        self._settings = settings
        self._environments = Environments(settings)
        self._store = self._environments.store

    def predict(self, wanted: Wanted, given: Input, on_event: OnEvent) -> Predicted:
        """Run a model on *given*, in a worker that ends with this command."""
        for _ in range(_ATTEMPTS - 1):
            # Another process may remove an environment after it was found.
            with contextlib.suppress(EnvironmentNotFoundError):
                return self._predict(wanted, given, on_event)
        return self._predict(wanted, given, on_event)

    def _predict(self, wanted: Wanted, given: Input, on_event: OnEvent) -> Predicted:
        found = self._read(wanted.model)
        started = time.perf_counter()
        asked = self._environments.ask(found, wanted.override, on_event)
        environment = self._environments.ready(asked, on_event).environment
        build_seconds = time.perf_counter() - started
        request = Request(given.payload, given.content_type, given.params)
        answer = asyncio.run(self._ask_worker(found, environment, request))
        return Predicted(
            answer.payload,
            environment.id,
            answer.origin,
            {
                "build": build_seconds,
                "start": answer.start_seconds,
                "predict": answer.predict_seconds,
            },
            [
                *self._environments.notes(found, asked, environment),
                *(Note(**note) for note in answer.notes),
            ],
        )

    def build(self, wanted: Wanted, on_event: OnEvent) -> Document:
        """Build an environment."""
        found, asked = self._asked(wanted, on_event)
        started = time.monotonic()
        try:
            ready = self._environments.ready(asked, on_event, upgrade=wanted.upgrade)
        except EnvdError as error:
            message = messages.unready(asked, time.monotonic() - started, error)
            return documents.built(message)
        self._store.record_model(ready.environment, found.path)
        noted = self._environments.notes(found, asked, ready.environment)
        message = messages.asked_for(
            self._store, ready.environment, asked, noted, cached=ready.cached
        )
        return documents.built(message)

    def explain(self, wanted: Wanted) -> Document:
        """Return the canonical spec of a model."""
        _, asked = self._asked(wanted, ignore)
        return documents.resolved(messages.resolved(asked, self._environments.kept_lock(asked)))

    def lock(self, wanted: Wanted, on_event: OnEvent) -> str:
        """Return the lock of a model."""
        found, asked = self._asked(wanted, on_event)
        if wanted.upgrade:
            ready = self._environments.ready(asked, on_event, upgrade=True)
            self._store.record_model(ready.environment, found.path)
        return pylock.text(self._environments.lock(asked, on_event), asked.spec.python)

    def list(self) -> list[Document]:
        """Return the published environments."""
        holders = self._store.holders()
        return [
            documents.listed(messages.published(self._store, one, holders))
            for one in self._store.records()
        ]

    def show(self, environment_id: str) -> Document:
        """Return everything about one environment."""
        found = self._store.resolve(environment_id)
        message = messages.published(self._store, found, self._store.holders(), full=True)
        return documents.shown(message)

    def remove(self, environment_id: str) -> Document:
        """Remove one environment."""
        found = self._store.resolve(environment_id)
        message = messages.published(self._store, found, self._store.holders())
        self._store.remove(found.id)
        return documents.listed(message)

    def _asked(self, wanted: Wanted, on_event: OnEvent) -> tuple[Model, Asked]:
        found = self._read(wanted.model)
        fresh = wanted.upgrade
        return found, self._environments.ask(found, wanted.override, on_event, fresh=fresh)

    def _read(self, model: str) -> Model:
        return read(locate(model, self._settings))

    async def _ask_worker(
        self, model: Model, environment: Environment, request: Request
    ) -> Prediction:
        processes = Processes.create()
        try:
            processes.attach()
            pool = Pool(self._settings, self._store, processes)
            try:
                return await pool.predict(model, environment, request)
            finally:
                await pool.close()
        finally:
            processes.close()
