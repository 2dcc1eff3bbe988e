"""What `envctl check` tries a model with: the daemon, or this process."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from envd.cli.engine import Engine, Input, Order
from envd.cli.progress import Progress
from envd.config import Settings
from envd.errors import from_document
from envd.lock import offered
from envd.lock.uv import Uv
from envd.mend import installed
from envd.mend.checking import Built
from envd.spec import options, spec
from envd.store import Store


class Trial:
    """Builds and asks by the daemon, or in this process."""

    def __init__(self, engine: Engine, model: str, env_manager: str, settings: Settings) -> None:
        """Ask *engine*, in this root, for *model* by *env_manager*."""
        self._engine, self._model, self._env_manager = engine, model, env_manager
        self._settings = settings
        self._prefix = Path()

    def build(self, override: Sequence[str]) -> Built:
        """Build the environment of the model with *override*."""
        order = Order(self._model, list(override), self._env_manager)
        with Progress() as progress:
            built = self._engine.build(order, progress)
        if failure := built["failure"]:
            raise from_document(failure)
        shown = self._engine.show(built["id"])
        asked = (shown["spec"] or {}).get("requirements", ())
        self._prefix = Path(shown["prefix"])
        return Built(
            built["id"],
            self._prefix,
            built["python"]["actual"] or "",
            {one["name"]: one["version"] for one in shown["packages"]},
            tuple(one["text"] for one in asked),
        )

    def ask(self, override: Sequence[str], payload: bytes, content_type: str) -> bytes:
        """Return what the model answers with *override*."""
        order = Order(self._model, list(override), self._env_manager)
        with Progress() as progress:
            given = Input(payload, content_type, None)
            return self._engine.predict(order, given, progress).payload

    def bringing(self, module: str) -> tuple[str, ...]:
        """Return the distributions in this root's environments that bring *module*."""
        store = Store(self._settings.root)
        found: dict[str, None] = {}
        # They may go meanwhile, or be another user's.
        with contextlib.suppress(OSError):
            for one in filter(None, map(store.read, store.ids())):
                found |= dict.fromkeys(installed.bringing(one.prefix, module))
        return tuple(found)

    def offered(self, module: str) -> tuple[str, ...]:
        """Return the distribution that the index has under its name, if it brings *module*."""
        indexes = spec.indexes(options.NO_OPTIONS, self._settings.index)
        python = self._prefix / "bin" / "python"
        found = offered.look(Uv(self._settings), python, indexes, module)
        return (found.name,) if found and module in found.modules else ()
