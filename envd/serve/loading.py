"""Loads models before anybody asks: those of the settings that say so, and on request."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from envd_client.v1 import envd_pb2 as api

from envd import messages
from envd.errors import (
    Blame,
    BuildCancelledError,
    EnvdError,
    EnvironmentNotFoundError,
    ModelInvalidError,
    ModelNotFoundError,
    PermissionDeniedError,
    RequestInvalidError,
)
from envd.model import Model, example, repository
from envd.run.pool import Pool, Request
from envd.secrets import redact
from envd.serve import status
from envd.serve.models import ReadyModel, ReadyModels, again
from envd.serve.served import Entry, State
from envd.settings import sections
from envd.settings.served import Served, refused_name
from envd.settings.values import ModelUri

log = logging.getLogger(__name__)


class Loading:
    """What is loaded into the workers of one daemon."""

    def __init__(self, models: ReadyModels, pool: Pool, settings: sections.Models) -> None:
        """Load nothing yet."""
        self._folder = settings.repository
        self._is_checked = settings.check
        self._models = models
        self._entries = models.entries
        self._pool = pool
        self._under_way: dict[Entry, asyncio.Task[None]] = {}
        # Else one might know an older state of the folder, and come last.
        self._looking = asyncio.Lock()
        # Whoever loads imports, which takes all of a processor.
        self._at_once = asyncio.Semaphore(os.cpu_count() or 1)

    async def preload(self) -> None:
        """Load the models of the settings that are to be loaded when the daemon starts."""
        await asyncio.gather(*self.begin(self._entries), return_exceptions=True)

    def begin(self, entries: Iterable[Entry]) -> list[asyncio.Task[None]]:
        """Begin to load those of *entries* that are to be loaded before anybody asks."""
        return [self._start(entry) for entry in entries if entry.served.preload]

    async def leave(self, entry: Entry) -> None:
        """Stop the workers of *entry*, and its loading."""
        await self._end(entry)
        if entry.model:
            self._pool.unload(entry.model.path)

    async def _end(self, entry: Entry) -> None:
        if task := self._under_way.get(entry):
            task.cancel()
            await asyncio.wait([task])

    def is_configured(self, name: str) -> bool:
        """Whether the model called *name* is one of the settings."""
        return self._entries.is_configured(self._entries.find(name))

    async def look_again(self, name: str) -> None:
        """Know what the repository folder offers now: what has gone from it is unloaded.

        Not for a *name* that the settings give a model themselves, whatever is in the folder.

        Raises:
            SettingsInvalidError: it cannot be read, or has a model with the name of another.
        """
        if not self._folder or self._entries.is_in_settings(name):
            return
        async with self._looking:
            offered = await asyncio.to_thread(repository.read, Path(self._folder))
            for one in await self._entries.adopt(offered):
                await self.leave(one)

    def check_may(self, model: str, *, is_admin: bool, is_plain: bool = True) -> None:
        """See that whoever asks may have *model* loaded or unloaded, *is_plain* as it is served.

        Raises:
            ModelNotFoundError: it is a name, and no model has it.
            PermissionDeniedError: no admin may do so with other models than those of the settings.
        """
        self._entries.uri_of(model)
        if not is_admin and not (is_plain and self.is_configured(model)):
            message = "here only models of the settings are loaded; ask on the admin socket"
            raise PermissionDeniedError(message, model=model)

    async def load(self, name: str, alias: str, *, wait: bool) -> api.Model:
        """Load the model called *name*, and serve it as *alias* if there is one.

        Raises:
            RequestInvalidError: *alias* is no name, or the settings have it.
            EnvdError: it cannot be loaded; or if not to *wait*, nothing is called so.
        """
        entry = self._aliased(name, alias) if alias else self._found(name)
        if not alias or self._entries.find(alias) is None:
            await self._entries.put(entry)
        task = self._start(entry)
        if wait:
            await self._done(task)
        return _message(entry, self._workers())

    async def unload(self, name: str) -> api.Model:
        """Stop the workers of the model called *name*, and forget a name it was given.

        Forgotten as well is that it was loaded, or was to be, without one.

        Raises:
            ModelNotFoundError: nothing is loaded that is called so.
        """
        entry = self._entries.find(name) or self._entries.listed_as(name)
        if entry is None:
            uri = redact(self._entries.uri_of(name))
            message = f"the model `{uri}` is not loaded; `envctl models list` shows what is"
            raise ModelNotFoundError(message, model=uri)
        # Else nobody could name the others, whose path leads to this one.
        for one in dict.fromkeys([entry, *self._entries.nameless(entry.served.uri)]):
            await self.leave(one)
            await self._entries.change(one, State.UNLOADED)
            await self._entries.drop(one)
        return _message(entry, Counter())

    def get(self, name: str, model: Model) -> api.Model:
        """Return what is known of *model*, which is called *name*."""
        workers = self._workers()
        if entry := self._entries.find(name):
            entry.model = model
            return _message(entry, workers)
        count = workers[str(model.path)]
        state = State.READY if count else State.UNLOADED
        return messages.model(model, uri=name, state=state.value, workers=count)

    def list(self) -> list[api.Model]:
        """Return the models that have a name, were loaded, or have a worker."""
        workers = self._workers()
        known = [_message(entry, workers) for entry in self._entries]
        paths = {one.path for one in known}
        crews = {str(key[0]): queue.crew for key, queue in self._pool.loaded()}
        return known + [
            messages.model(
                crew.model,
                uri=path,
                environment_id=crew.environment.id,
                state=State.READY.value,
                workers=workers[path],
                noted=crew.serving.notes,
            )
            for path, crew in sorted(crews.items())
            if path not in paths and workers[path]
        ]

    def _found(self, name: str) -> Entry:
        uri = ModelUri(self._entries.uri_of(name))
        return self._entries.find(name) or Entry(Served("", uri))

    def _aliased(self, name: str, alias: str) -> Entry:
        if refused := refused_name(alias):
            raise RequestInvalidError(refused, name=alias)
        self._entries.check_free(alias)
        served = dataclasses.replace(self._found(name).served, name=alias)
        found = self._entries.find(alias)
        return found if found and found.served == served else Entry(served)

    async def _end_before(self, entry: Entry) -> None:
        """Load no more what was asked to have the name of *entry* before: it would take it back."""
        before = itertools.takewhile(lambda one: one is not entry, list(self._under_way))
        for other in before:
            if entry.served.name and other.address == entry.address:
                await self._end(other)

    def _start(self, entry: Entry) -> asyncio.Task[None]:
        """Return the loading of *entry* that is under way, or start one."""
        task = self._under_way.get(entry)
        if task is None:
            task = asyncio.create_task(self._load(entry))
            self._under_way[entry] = task
            task.add_done_callback(lambda done: self._over(entry, done))
        return task

    def _over(self, entry: Entry, task: asyncio.Task[None]) -> None:
        del self._under_way[entry]
        # Nobody may be waiting; it was logged.
        _ = task.cancelled() or task.exception()

    async def _done(self, task: asyncio.Task[None]) -> None:
        """Wait for *task*, which goes on when whoever waits has left: others may wait, too."""
        await asyncio.wait([task])
        if task.cancelled():
            message = (
                "the model was unloaded while it was being loaded, or its name given to another"
            )
            raise BuildCancelledError(message)
        task.result()

    async def _load(self, entry: Entry) -> None:
        if entry.state is not State.READY:
            await self._entries.change(entry, State.LOADING)
        try:
            await again(lambda: self._loaded(entry))
            await self._end_before(entry)
            await self._entries.put(entry)
        except Exception as error:
            failure = status.meant(error)
            log.warning("the model %s was not loaded: %s", _called(entry), failure.message)
            await self._entries.change(entry, State.FAILED, failure)
            if failure is error:
                raise
            raise failure from error

    async def _loaded(self, entry: Entry) -> None:
        ready = await self._models.ready_entry(entry)
        try:
            async with self._at_once:
                await self._pool.load(ready.model, ready.environment, ready.serving)
                if self._is_checked if entry.served.check is None else entry.served.check:
                    await self._check(entry, ready)
        except EnvironmentNotFoundError:
            self._models.forget(ready.model)
            raise
        except EnvdError as error:
            raise await self._models.failed(ready, error) from error
        await self._models.succeeded(ready)

    async def _check(self, entry: Entry, ready: ReadyModel) -> None:
        """See that the model of *entry* answers its own input example, if it has one."""
        from envd.mend import gate  # noqa: PLC0415 (few daemons need all that tells why not)

        text = example.read(ready.model)
        if text is None:
            return
        request = Request(text.encode(), "application/json", None)
        model, environment = ready.model, ready.environment
        # Until it has, it is not ready: somebody may ask it meanwhile.
        entry.refused = (model.digest, environment.id)
        try:
            answer = await self._pool.predict(model, environment, request, ready.serving)
            gate.must_be_expected(model, bytes(answer.payload))
            entry.refused = None
        except asyncio.CancelledError:
            # Nobody knows: whoever is answered by it has it ready.
            entry.refused = None
            raise
        except EnvironmentNotFoundError:
            raise
        except EnvdError as error:
            self._pool.unload(model.path)
            if isinstance(error, ModelInvalidError) or error.blame is Blame.TRANSIENT:
                raise
            versions = {one.name: one.version for one in environment.manifest.lock.artifacts}
            python = environment.manifest.python.version
            raise gate.refusal(model, python, versions, error) from error

    def _workers(self) -> Counter[str]:
        """Return how many workers have the model in each path loaded."""
        workers: Counter[str] = Counter()
        for key, queue in self._pool.loaded():
            workers[str(key[0])] += len(queue.crew.workers)
        return workers


def _called(entry: Entry) -> str:
    return entry.served.name or redact(entry.served.uri)


def _message(entry: Entry, workers: Counter[str]) -> api.Model:
    return messages.model(
        entry.model,
        name=entry.served.name,
        uri=entry.served.uri,
        environment_id=entry.environment_id,
        state=entry.state.value,
        workers=workers[str(entry.model.path)] if entry.model else 0,
        noted=entry.notes,
        error=entry.failure,
    )
