"""Fills an attempt with a lock, and publishes it."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from envd import failpoint
from envd.build import conda, virtualenv
from envd.build.bytecode import Bytecode
from envd.config import Settings
from envd.events import OnEvent, Stage
from envd.lock import Lock, Sources
from envd.lock.rattler import Rattler
from envd.lock.uv import Uv
from envd.scratch import scratch
from envd.spec import Python
from envd.spec.spec import Indexes
from envd.store import Attempt, Base, Environment, Manifest, Store, contents


@dataclass(frozen=True, slots=True)
class Content:
    """What an environment is made of.

    It has that `python`: its own where it is a conda environment, else that of the
    `interpreter`; the `variables` are set for whatever runs in it. `modules` are imported
    once when it is there, and so are those of the
    distributions called `direct`.
    """

    lock: Lock
    python: Python
    interpreter: Path | None
    variables: tuple[tuple[str, str], ...]
    indexes: Indexes
    modules: Sequence[str]
    direct: Collection[str]


@dataclass(frozen=True, slots=True)
class Filled:
    """What an attempt has become, as the manifest keeps it."""

    base: Base
    modules: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]


class Installer:
    """Installs below one root."""

    def __init__(self, settings: Settings, store: Store) -> None:
        """Install as *settings* say, into the environments of *store*."""
        self._settings = settings
        self._store = store

    def install(self, content: Content, attempt: Attempt, uv: Uv, on_event: OnEvent) -> Filled:
        """Fill *attempt* with *content*.

        Raises:
            EnvdError: it could not be done.
        """
        lock, prefix = content.lock, attempt.prefix
        bytecode = Bytecode(
            self._store.layout.downloads / "bytecode",
            content.python,
            self._settings.build.link_mode,
        )
        on_event(Stage("installing", f"installing {len(lock.artifacts)} packages"))
        base, variables = self._begun(content, prefix, uv, on_event)
        # uv links the sources with one core; the other links their bytecode meanwhile.
        with ThreadPoolExecutor(1) as beside:
            placing = beside.submit(bytecode.place, lock.artifacts, prefix)
            if lock.packages:
                virtualenv.install(lock, Sources(content.indexes), prefix, uv, on_event)
        modules = (*content.modules, *virtualenv.modules_of(prefix, content.direct))
        if fresh := bytecode.fresh(lock.artifacts, placing.result()):
            with scratch(self._settings.root, "bytecode") as folder:
                written = bytecode.folders(fresh, prefix)
                virtualenv.warm(prefix, modules, folder, written, uv, on_event)
                bytecode.keep(fresh, prefix, folder)
        failpoint.reach("build.filled")
        return Filled(base, tuple(dict.fromkeys(modules)), variables)

    def _begun(
        self, content: Content, prefix: Path, uv: Uv, on_event: OnEvent
    ) -> tuple[Base, tuple[tuple[str, str], ...]]:
        """Make *prefix* with all that is not installed by uv; return its base and variables."""
        if content.interpreter:
            # Looked at before: where it changes meanwhile, this is not built on the new one.
            base = Base.of(content.interpreter)
            virtualenv.create(content.interpreter, prefix, uv, on_event)
            return base, ()
        rattler = Rattler(self._settings, uv.held, uv.limits)
        conda.install(content.lock.conda, prefix, rattler, on_event)
        variables = conda.variables(prefix, rattler, on_event) | dict(content.variables)
        return Base.of(conda.python_of(prefix)), tuple(sorted(variables.items()))

    def publish(
        self, manifest: Manifest, attempt: Attempt, started: float, on_event: OnEvent
    ) -> Environment:
        """Publish *attempt*, begun at *started*, as *manifest* describes it.

        Raises:
            OSError: it could not be written; it is not ready.
        """
        on_event(Stage("publishing", "flushing it to disk"))
        found = contents.record(
            attempt.prefix,
            manifest.lock.artifacts,
            self._store.layout.files(manifest.env_id, attempt.name),
            self._store.layout.downloads / "digests",
        )
        now = self._store.clock.now()
        return self._store.publish(
            replace(
                manifest,
                attempt=attempt.name,
                created=now,
                seconds=round(time.monotonic() - started, 3),
                sizes=found.sizes,
                shares=found.shares,
                files=found.digest,
            )
        )
