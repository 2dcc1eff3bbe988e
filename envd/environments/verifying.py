"""Compares an environment with the list of its files, and builds it anew where they differ."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from envd.config import Settings
from envd.environments.installing import Content, Installer
from envd.environments.work import Work
from envd.errors import BuildTimedOutError, EnvironmentNotFoundError, InstallFailedError
from envd.events import Line, OnEvent, Stage, ignore
from envd.lock.uv import Uv
from envd.sandbox import tiers
from envd.spec.spec import Indexes
from envd.store import Attempt, Environment, Store, contents, sweep
from envd.store.caches import Caches, Download
from envd.store.contents import Fault
from envd.store.trees import Inode

_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Verified:
    """What is wrong with an environment, and which others hold a file that was changed."""

    env_id: str
    faults: tuple[Fault, ...]
    also_affected: tuple[str, ...]
    is_repaired: bool


def from_document(document: dict[str, Any]) -> Verified:
    """Return what `dataclasses.asdict` made of a Verified, and JSON of that."""
    faults = tuple(Fault(**(one | {"identity": None})) for one in document["faults"])
    others = tuple(document["also_affected"])
    return Verified(document["env_id"], faults, others, document["is_repaired"])


class Verifier:
    """Verifies the environments of one root."""

    def __init__(self, settings: Settings, store: Store) -> None:
        """Verify those of *store*, and repair them as *settings* say."""
        self._settings = settings
        self._store = store

    def verify(self, env_id: str, on_event: OnEvent = ignore, *, repair: bool = False) -> Verified:
        """Compare *env_id* with its list; with *repair* build it anew where they differ.

        Raises:
            EnvironmentNotFoundError: it is not ready, or was removed before it could be repaired.
            EnvdError: it could not be built anew.
        """
        leased = self._store.lease(env_id)
        if leased is None:
            self._store.look_again(env_id)
            raise _absent(env_id)
        environment, lease = leased
        with contextlib.closing(lease):
            found = self._faults(environment)
            others = self._sharing(environment, found)
        if found and repair:
            # Without the lease: who removes it by force waits for that, and keeps builders out.
            self._repair(environment, found, on_event)
        sweep.replaced(self._store, env_id)
        return Verified(env_id, tuple(found), tuple(others), is_repaired=bool(found and repair))

    def _faults(self, environment: Environment) -> list[Fault]:
        manifest = environment.manifest
        record = self._store.layout.files(environment.id, manifest.attempt)
        return contents.faults(environment.prefix, record, manifest.files)

    def _sharing(self, environment: Environment, found: Iterable[Fault]) -> list[str]:
        """Return the other environments that hold a changed file."""
        # There may be thousands of others, and mostly there is nothing to look for.
        if not any(one.identity for one in found):
            return []
        prefixes = {}
        for env_id in self._store.ids():
            if env_id != environment.id and (other := self._store.read(env_id)):
                prefixes[env_id] = other.prefix
        return sorted(contents.sharing(prefixes, found))

    def _repair(self, environment: Environment, found: Iterable[Fault], on_event: OnEvent) -> None:
        """Let *environment*, in which *found* was seen, be built anew, unless it has been since."""
        work = Work(self._settings, self._store, environment.manifest.spec_key, on_event)
        with (
            contextlib.closing(work),
            self._store.building(environment.id, work.log_path, work.waiting) as attempt,
        ):
            ready = self._store.find(environment.id)
            if ready is None:
                raise _absent(environment.id)
            if ready.prefix == environment.prefix:
                ready = self._built_anew(environment, found, attempt, work)
            # Held: nobody removes it meanwhile.
            left = self._faults(ready)
        if left:
            message = (
                f"`{left[0].path}` of the environment {environment.id} is wrong again after it "
                "was built anew; remove it with `envctl rm --force`, and `envctl gc --max-size 0`"
            )
            raise InstallFailedError(message, id=environment.id)

    def _built_anew(
        self, environment: Environment, found: Iterable[Fault], attempt: Attempt, work: Work
    ) -> Environment:
        """Build *environment* anew in *attempt*, of what is not the changed files."""
        manifest, started = environment.manifest, time.monotonic()
        work.log(Stage("repairing", "removing what was changed from the download cache"))
        for one in found:
            work.log(Line(f"{one.kind} {one.path}: {one.detail}"))
        self._evict({one.identity for one in found if one.identity}, work)
        content = Content(
            lock=manifest.lock,
            python=manifest.python,
            variables=manifest.of_model(),
            interpreter=None if manifest.lock.conda else manifest.base.path,
            indexes=self._indexes(environment),
            modules=manifest.modules,
            direct=(),
        )
        installer = Installer(self._settings, self._store)
        with work.going_on() as limits:
            uv = Uv(self._settings).within(attempt.held, limits)
            filled = installer.install(content, attempt, uv, work.log)
            manifest = replace(
                manifest,
                base=filled.base,
                variables=filled.variables,
                sandbox=tiers.of(self._settings).tier,
            )
            return installer.publish(manifest, attempt, started, work.log)

    def _evict(self, changed: Collection[Inode], work: Work) -> None:
        """Take what holds a file of *changed* out of the caches, however long installers use it.

        Raises:
            BuildTimedOutError: they have used it for as long as a build may take.
        """
        caches, is_told = Caches(self._store.layout), False
        deadline = time.monotonic() + self._settings.build.timeout
        # Found anew each time: what was linked meanwhile has to go nevertheless.
        while changed and caches.evict(_unsealed(caches.holding(changed))).left:
            if time.monotonic() >= deadline:
                message = "the download cache is in use by other builds; repair it again later"
                raise BuildTimedOutError(message)
            if not is_told:
                work.on_event(Stage("waiting", "waiting for those who use the download cache"))
                is_told = True
            time.sleep(_PAUSE_S)

    def _indexes(self, environment: Environment) -> Indexes:
        spec = self._store.specs.spec(environment.manifest.spec_key)
        return spec.indexes if spec else Indexes(urls=self._settings.index.urls)


def _absent(env_id: str) -> EnvironmentNotFoundError:
    message = f"the environment {env_id} is not ready; the next use builds it"
    return EnvironmentNotFoundError(message, id=env_id)


def _unsealed(downloads: Iterable[Download]) -> list[Download]:
    """Return those of *downloads* that would be used although they were changed.

    Conda packages are sealed: who installs one sees that it was changed, and keeps it until
    there is another to take its place.
    """
    return [one for one in downloads if one.kind != "conda"]
