"""From the name of a model to its ready environment, remembered while nothing changes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from envd.builds import Build, Builds
from envd.environments import Asked
from envd.errors import EnvironmentBuildingError, EnvironmentNotFoundError
from envd.model import Model, Models
from envd.store import Environment, Store


@dataclass(frozen=True, slots=True)
class _Known:
    digest: str
    asked: Asked
    environment: Environment
    inode: int


class ReadyModels:
    """The models asked for so far, with their environments."""

    def __init__(self, store: Store, builds: Builds) -> None:
        """Know none yet."""
        self._store = store
        self._builds = builds
        self._models = Models()
        self._known: dict[Path, _Known] = {}

    async def read(self, name: str) -> Model:
        """Return the model called *name*: a path or a URI.

        Raises:
            EnvdError: there is none, or it cannot be used.
        """
        return self._models.read(await self._builds.locate(name))

    async def environment(self, model: Model, *, wait: bool) -> tuple[Asked, Environment]:
        """Return what *model* asks for and its environment, built if it must be.

        Raises:
            EnvironmentBuildingError: it is not ready and *wait* is false.
            EnvdError: it cannot be built.
        """
        if known := self._remembered(model):
            return known.asked, known.environment
        asked = await self._builds.ask(model)
        found = self._builds.find(asked)
        if found is None:
            found = await self._built(self._builds.start(asked, model.path), wait=wait)
        try:
            inode = self._store.layout.manifest(found.id).stat().st_ino
        except FileNotFoundError as error:
            message = f"the environment {found.id} has been removed"
            raise EnvironmentNotFoundError(message, id=found.id) from error
        self._known[model.path] = _Known(model.digest, asked, found, inode)
        return asked, found

    def forget(self, model: Model) -> None:
        """Look again the next time *model* is asked for."""
        self._known.pop(model.path, None)

    def _remembered(self, model: Model) -> _Known | None:
        known = self._known.get(model.path)
        if known is None or known.digest != model.digest:
            return None
        try:
            # A new manifest is a new file: whoever rebuilt it may have built something else.
            status = self._store.layout.manifest(known.environment.id).stat()
        except FileNotFoundError:
            return None
        is_same = status.st_ino == known.inode and known.environment.manifest.base.is_there()
        return known if is_same else None

    async def _built(self, build: Build, *, wait: bool) -> Environment:
        if not wait:
            message = "the environment is being built; ask again, or with `wait`"
            raise EnvironmentBuildingError(message, spec_key=build.asked.spec.key)
        # Shielded: a caller that leaves never cancels the build.
        return await asyncio.shield(build.done)
