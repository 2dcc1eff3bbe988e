"""From what a model is called to its ready environment, remembered while nothing changes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from envd.access import exposure
from envd.builds.builds import Builds, RemovedAtOnceError
from envd.builds.following import Build
from envd.config import Settings
from envd.environments.asked import Asked
from envd.errors import (
    EnvdError,
    EnvironmentBuildingError,
    EnvironmentNotFoundError,
    ModelMovedError,
)
from envd.events import Note
from envd.model import Model, Models, look, roots
from envd.model.roots import Roots
from envd.run.serving import Serving, Servings
from envd.serve import calls
from envd.serve.served import Entries, Entry, State
from envd.spec import Terms
from envd.spec.dependencies import MLFLOWS
from envd.store import Environment, Store

_Result = TypeVar("_Result")
DEFAULT = Terms()
# A directory on its way to the trash may take its time on a disk with much to do.
_PAUSES_S = (0.0, 0.1, 0.5)
_MAX_KNOWN = 10_000
# Looking at the files of a model and its environment takes as long as half of what envd does for
# a request. Under load it is done 500 times a second, and a change counts 2 ms later.
_GLANCE_S, _MAX_SEEN = 0.002, 1000


@dataclass(frozen=True, slots=True)
class _Known:
    digest: str
    environment: Environment
    notes: tuple[Note, ...]
    places: tuple[str, ...]
    states: look.States


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A model that a worker may be asked for: all that this takes.

    The `entry` is what it stands under among the models that have a name, if it does.
    """

    model: Model
    serving: Serving
    environment: Environment
    notes: tuple[Note, ...]
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class _Seen:
    ready: ReadyModel
    until: float
    generation: int


class ReadyModels:
    """The models asked for so far, with their environments."""

    def __init__(self, settings: Settings, store: Store, builds: Builds, entries: Entries) -> None:
        """Know none yet but the *entries*."""
        self.entries = entries
        self._store = store
        self._builds = builds
        self._models = Models()
        self._roots = _roots(settings)
        self._steady: dict[Path, Model] = {}
        self._servings = Servings(settings)
        self._known: dict[tuple[Path, Terms], _Known] = {}
        self._seen: dict[tuple[str, Terms], _Seen] = {}

    def heed(self, settings: Settings) -> None:
        """Run from now on by *settings* what is not said of single models."""
        self._roots = _roots(settings)
        self._servings = Servings(settings)
        self._seen.clear()

    async def read(self, name: str) -> Model:
        """Return the model called *name*: the name it is served by, a path or a URI.

        Raises:
            PermissionDeniedError: callers may not name it so.
            EnvdError: there is none, or it cannot be used.
        """
        entry = self.entries.find(name)
        if entry and self.entries.is_configured(entry):
            # Not what the caller wrote: with `..` after a link that may lead elsewhere.
            return self._models.read(await self._builds.locate(entry.served.uri))
        uri = self.entries.uri_of(name)
        if path := self._roots.judge(uri):
            return await self._read_held(path)
        return self._models.read(await self._builds.locate(uri))

    async def _read_held(self, path: Path) -> Model:
        held = self._roots.held(path)
        known = self._models.unchanged(held.path)
        if known and known is self._steady.get(held.path) and known.directory == held.directory:
            return known

        async def read(found: Path) -> Model:
            self._models.forget(found)
            return self._models.read(found)

        model = await roots.unmoved(lambda: self._roots.held(path), read)
        # Not what was read of one that moved.
        self._steady[model.path] = model
        return model

    async def ask(self, model: Model, terms: Terms = DEFAULT) -> Asked:
        """Return what *model* asks for on *terms*, as `Builds.ask` does.

        Raises:
            ModelMovedError: it was replaced meanwhile.
            EnvdError: as that.
        """
        # The settings may name a path that a link below a root leads out of it.
        ours = self.entries.find(str(model.path))
        if self.entries.is_configured(ours) or not self._roots.cover(model.path):
            return await self._builds.ask(model, terms)
        return await roots.unmoved(
            lambda: self._roots.held(model.path), lambda _: self._builds.ask(model, terms)
        )

    async def ready(
        self,
        name: str,
        terms: Terms = DEFAULT,
        model_config: Mapping[str, object] | None = None,
        *,
        wait: bool = True,
    ) -> ReadyModel:
        """Return the model called *name* with its environment on *terms*, built if it must be.

        As they are, or were a moment ago.

        Raises:
            EnvironmentBuildingError: it is not ready and *wait* is false.
            EnvdError: there is no such model, or it cannot be built.
        """
        if model_config:
            return await self._looked(name, terms, model_config, wait=wait)
        now, generation = time.perf_counter(), self.entries.generation
        seen = self._seen.get((name, terms))
        if seen and now < seen.until and generation == seen.generation:
            return seen.ready
        ready = await self._looked(name, terms, None, wait=wait)
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen[name, terms] = _Seen(ready, now + _GLANCE_S, generation)
        return ready

    async def _looked(
        self, name: str, terms: Terms, model_config: Mapping[str, object] | None, *, wait: bool
    ) -> ReadyModel:
        entry = self.entries.find(name)
        # What it is asked for on terms of the caller's says nothing of others.
        is_plain = terms == DEFAULT and not model_config
        if entry and is_plain:
            return await self.ready_entry(entry, wait=wait)
        model = await self.read(name)
        serving = self._servings.of(model, entry.served if entry else None, model_config)
        environment, notes = await self.environment(model, terms, wait=wait)
        return ReadyModel(model, serving, environment, (*notes, *serving.notes), None)

    async def ready_entry(self, entry: Entry, *, wait: bool = True) -> ReadyModel:
        """Return the model of *entry* with its environment, and keep what is found out of it.

        Raises:
            EnvdError: as `ready`.
        """
        try:
            entry.model = model = await self.read(entry.served.uri)
            serving = self._servings.of(model, entry.served)
            environment, notes = await self.environment(model, DEFAULT, wait=wait)
        except (EnvironmentBuildingError, EnvironmentNotFoundError, ModelMovedError):
            # It is to be asked for again.
            raise
        except EnvdError as error:
            await self.entries.change(entry, State.FAILED, error)
            raise
        return ReadyModel(model, serving, environment, (*notes, *serving.notes), entry)

    async def succeeded(self, ready: ReadyModel) -> None:
        """Say that a worker has *ready* loaded."""
        entry = ready.entry
        if entry is None or (entry.state is State.READY and entry.serving is ready.serving):
            return
        if entry.refused == (ready.model.digest, ready.environment.id):
            return
        entry.serving, entry.notes = ready.serving, ready.notes
        entry.environment_id = ready.environment.id
        entry.mlflow_version = _mlflow_of(ready.environment)
        await self.entries.change(entry, State.READY)

    async def failed(self, ready: ReadyModel, error: EnvdError) -> EnvdError:
        """Return what *error*, which came of running *ready*, is to the caller."""
        explained = ready.serving.explained(error)
        if ready.entry and error.metadata.get("stage") == "load":
            await self.entries.change(ready.entry, State.FAILED, explained)
        return explained

    async def environment(
        self, model: Model, terms: Terms, *, wait: bool
    ) -> tuple[Environment, tuple[Note, ...]]:
        """Return the environment of *model* on *terms*, built if it must be, and its notes.

        Raises:
            EnvironmentBuildingError: it is not ready and *wait* is false.
            EnvdError: it cannot be built.
        """
        if known := self._remembered(model, terms):
            return known.environment, known.notes
        asked = await self.ask(model, terms)
        found = self._builds.find(asked)
        if found is None:
            found = await self._built(self._builds.start(asked, model), wait=wait)
        # Whoever locks or builds anew writes new files.
        lock = self._store.specs.lock_path(asked.spec.key, asked.day)
        manifest = self._store.layout.manifest(found.id)
        places = (str(lock), str(manifest), str(found.manifest.base.path))
        states = look.states(places)
        # What was found before its files were looked at may be out of date by now.
        found = self._builds.find(asked) if None not in states else None
        if found is None:
            message = "the environment was removed as soon as it was ready; try again"
            raise EnvironmentNotFoundError(message, spec_key=asked.spec.key)
        notes = self._builds.notes(model, asked, found)
        if len(self._known) >= _MAX_KNOWN:
            # Terms are the caller's: what it was asked with must not be kept for ever.
            self._known.clear()
        self._known[model.path, terms] = _Known(model.digest, found, notes, places, states)
        return found, notes

    def forget(self, model: Model, terms: Terms = DEFAULT) -> None:
        """Look again the next time *model* is asked for on *terms*."""
        self._known.pop((model.path, terms), None)
        self._seen.clear()

    def _remembered(self, model: Model, terms: Terms) -> _Known | None:
        known = self._known.get((model.path, terms))
        if known is None or known.digest != model.digest:
            return None
        return known if known.states == look.states(known.places) else None

    async def _built(self, build: Build, *, wait: bool) -> Environment:
        calls.missed()
        if not wait:
            message = "the environment is being built; ask again, or with `wait`"
            raise EnvironmentBuildingError(message, spec_key=build.asked.spec.key)
        # Shielded: a caller that leaves never cancels the build.
        return await asyncio.shield(build.done)


def _roots(settings: Settings) -> Roots:
    """Return where models lie that callers may name: for the owner alone, anywhere."""
    return Roots(settings.models.roots, anywhere=not exposure.is_for_others(settings))


def _mlflow_of(environment: Environment) -> str:
    """Return the version of the mlflow in *environment*, empty if there is none."""
    versions = {one.name: one.version for one in environment.manifest.lock.artifacts}
    return next((versions[one] for one in MLFLOWS if one in versions), "")


async def again(attempt: Callable[[], Awaitable[_Result]]) -> _Result:
    """Return what *attempt* does, made again where what was found is not there any more.

    An environment may be removed after it was found: then it is looked for, and built, again.
    So may a model be replaced.
    """
    for pause in _PAUSES_S:
        with contextlib.suppress(EnvironmentNotFoundError, RemovedAtOnceError, ModelMovedError):
            return await attempt()
        await asyncio.sleep(pause)
    return await attempt()
