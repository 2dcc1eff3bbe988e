"""From the name of a model to its ready environment, remembered while nothing changes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from envd.builds import Builds
from envd.errors import EnvironmentBuildingError, EnvironmentNotFoundError
from envd.events import Note
from envd.following import Build
from envd.model import Model, Models
from envd.spec import Terms
from envd.store import Environment, Store

_MAX_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class _Known:
    digest: str
    lock: Path
    environment: Environment
    notes: tuple[Note, ...]
    files: tuple[tuple[int, int], ...]


class ReadyModels:
    """The models asked for so far, with their environments."""

    def __init__(self, store: Store, builds: Builds) -> None:
        """Know none yet."""
        self._store = store
        self._builds = builds
        self._models = Models()
        self._known: dict[tuple[Path, Terms], _Known] = {}

    async def read(self, name: str) -> Model:
        """Return the model called *name*: a path or a URI.

        Raises:
            EnvdError: there is none, or it cannot be used.
        """
        return self._models.read(await self._builds.locate(name))

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
        asked = await self._builds.ask(model, terms)
        found = self._builds.find(asked)
        if found is None:
            found = await self._built(self._builds.start(asked, model), wait=wait)
        lock = self._store.specs.lock_path(asked.spec.key, asked.day)
        files = self._files(lock, found)
        # What was found before its files were looked at may be out of date by now.
        found = self._builds.find(asked) if files else None
        if found is None or files is None:
            message = "the environment was removed as soon as it was ready; try again"
            raise EnvironmentNotFoundError(message, spec_key=asked.spec.key)
        notes = self._builds.notes(model, asked, found)
        if len(self._known) >= _MAX_KNOWN:
            # Terms are the caller's: what it was asked with must not be kept for ever.
            self._known.clear()
        self._known[model.path, terms] = _Known(model.digest, lock, found, notes, files)
        return found, notes

    def forget(self, model: Model, terms: Terms) -> None:
        """Look again the next time *model* is asked for on *terms*."""
        self._known.pop((model.path, terms), None)

    def _remembered(self, model: Model, terms: Terms) -> _Known | None:
        known = self._known.get((model.path, terms))
        if known is None or known.digest != model.digest:
            return None
        is_same = known.files == self._files(known.lock, known.environment)
        return known if is_same and known.environment.manifest.base.is_there() else None

    def _files(self, lock: Path, found: Environment) -> tuple[tuple[int, int], ...] | None:
        """Return which files *lock* and the manifest are, None where one is not there.

        Whoever locks or builds anew writes a new file.
        """
        try:
            both = [lock.stat(), self._store.layout.manifest(found.id).stat()]
        except FileNotFoundError:
            return None
        return tuple((one.st_ino, one.st_mtime_ns) for one in both)

    async def _built(self, build: Build, *, wait: bool) -> Environment:
        if not wait:
            message = "the environment is being built; ask again, or with `wait`"
            raise EnvironmentBuildingError(message, spec_key=build.asked.spec.key)
        # Shielded: a caller that leaves never cancels the build.
        return await asyncio.shield(build.done)
