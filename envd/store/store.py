"""The environments of one root: found, built once, published, leased, removed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from envd import durable, failpoint, held, scratch
from envd.errors import OUT_OF
from envd.held import Held, Owner
from envd.scratch import Scratch
from envd.store import leases, root
from envd.store import manifest as manifests
from envd.store.clock import Clock
from envd.store.failures import Failures
from envd.store.index import Index, Row
from envd.store.layout import IN_MEMORY, Layout
from envd.store.leases import Holders, Lease
from envd.store.manifest import Manifest
from envd.store.record import Record
from envd.store.specs import Specs
from envd.store.uses import Uses

_GONE = "its files are gone"
_DAMAGED = "its manifest is damaged, or of another envd"


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment that exists on this machine and may be used."""

    manifest: Manifest
    prefix: Path

    @property
    def id(self) -> str:
        """Its id, 32 hexadecimal digits."""
        return self.manifest.env_id

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.prefix / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        """What is set for whatever runs in it, but for PATH."""
        kind = "CONDA_PREFIX" if self.manifest.lock.conda else "VIRTUAL_ENV"
        return dict(self.manifest.variables) | {kind: str(self.prefix)}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A build under way: its own directory, and the held file that keeps others out."""

    name: str
    prefix: Path
    held: Held


OnWait = Callable[[Owner | None], None]


class Store:
    """The cache below one root."""

    def __init__(self, home: Path) -> None:
        """Name the root; nothing is made before it is needed."""
        self.layout = Layout(home)
        self.clock = Clock(home)
        self.specs = Specs(self.layout)
        self.failures = Failures(self.layout, self.clock)
        self.uses = Uses(self.layout, self.clock)
        self._index = Index(self.layout)

    def create(self) -> None:
        """Make the root, or see that it can be used; as `envd.store.root.create`."""
        root.create(self.layout)

    def read(self, env_id: str) -> Environment | None:
        """Return the environment *env_id* if it has been published and is undamaged.

        Raises:
            OSError: it cannot be read, which does not say that it is not there.
        """
        manifest = manifests.find(self.layout.manifest(env_id))
        if manifest is None:
            return None
        return Environment(manifest, self.layout.environment(env_id) / manifest.attempt)

    def find(self, env_id: str) -> Environment | None:
        """Return the environment *env_id* if it is ready: published, its interpreters there."""
        found = self.read(env_id)
        is_whole = found and found.manifest.base.is_there() and os.path.lexists(found.python)
        return found if is_whole else None

    def ids(self) -> list[str]:
        """Return the ids of all published environments, sorted."""
        return sorted(one.parent.name for one in self.layout.environments.glob("*/ready.json"))

    def check(self) -> None:
        """See that nobody else can change what is here; as `envd.store.root.check`."""
        root.check(self.layout)

    def check_format(self) -> None:
        """See that this envd may change what is here; as `envd.store.root.check_format`."""
        root.check_format(self.layout)

    def records(self) -> list[Record]:
        """Return what is known of every published environment that can be read, by id.

        Raises:
            OSError: their directory cannot be read, or this process may not have more.
        """
        if root.is_newer(self.layout):
            # Its index is for the newer envd to write.
            rows = [row for one in self.ids() if (row := self._row(one))]
            return [self._index.record(row) for row in rows]
        return self._index.records(self._row)

    def look_again(self, env_id: str) -> None:
        """Let the next list read *env_id* again: it is not what it was, and no date says so."""
        if not root.is_newer(self.layout):
            with contextlib.suppress(OSError):
                os.utime(self.layout.environment(env_id))

    def deleting(self) -> list[Record]:
        """Return what is known of every environment that goes as soon as nobody uses it."""
        found = []
        for path in self.layout.environments.glob(f"*/{self.layout.doomed('any').name}"):
            if manifest := manifests.find(path):
                models = self.uses.models(manifest.env_id)
                record = self._index.record(Row.of(manifest, models))
                found.append(record._replace(is_going=True))
        return found

    def record(self, found: Environment) -> Record:
        """Return what is known of *found*."""
        return self._index.record(Row.of(found.manifest, self.uses.models(found.id)))

    def told(self, env_id: str) -> Record | None:
        """Return what is known of *env_id*, or None where nothing is published under that name."""
        row = self._row(env_id)
        # A directory under another name than its environment's is none.
        return self._index.record(row) if row and row.id == env_id else None

    def _row(self, env_id: str) -> Row | None:
        home, damage = self.layout.environment(env_id), _DAMAGED
        try:
            if found := self.read(env_id):
                row = Row.of(found.manifest, self.uses.models(env_id))
                return row if os.path.lexists(found.python) else row._replace(damage=_GONE)
        except OSError as error:
            if error.errno in OUT_OF:
                raise
            damage = f"it cannot be read: {error.strerror}"
        # It may be removed meanwhile, or be something else.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.layout.manifest(env_id).lstat()
            return Row.damaged(home, damage)
        return None

    @contextlib.contextmanager
    def locking(self, spec_key: str, on_wait: OnWait) -> Iterator[Held]:
        """Let nobody else lock the spec *spec_key* meanwhile; yield what holds it."""
        log = self.layout.log(spec_key)
        with held.exclusively(self.layout.held(f"spec-{spec_key}"), on_wait, log) as found:
            yield found

    @contextlib.contextmanager
    def building(self, env_id: str, log: Path, on_wait: OnWait) -> Iterator[Attempt]:
        """Let nobody else build *env_id* meanwhile, and give an empty attempt to build in.

        What stands in the environment's directory and is not ready is removed first. An
        attempt that was not published when this is left is removed too. Whoever waits is
        told to read *log*.
        """
        with held.exclusively(self.layout.building(env_id), on_wait, log) as file:
            failpoint.reach("build.locked")
            home = self.layout.environment(env_id)
            if self.find(env_id) is None:
                self._clear(env_id)
            attempt = Attempt(name := secrets.token_hex(4), home / name, file)
            try:
                failpoint.reach("build.begun")
                yield attempt
            finally:
                self._end_attempt(env_id, attempt)

    def _end_attempt(self, env_id: str, attempt: Attempt) -> None:
        found = self.read(env_id)
        if found is None or found.manifest.attempt != attempt.name:
            self.layout.files(env_id, attempt.name).unlink(missing_ok=True)
            durable.remove_tree(attempt.prefix, self.layout.trash)
        if found is None:
            # Somebody may still use what was to be removed by one that has died.
            with self.unused(env_id) as is_unused:
                if is_unused:
                    durable.remove_tree(self.layout.environment(env_id), self.layout.trash)

    def _clear(self, env_id: str) -> None:
        """Remove the attempts there are, unless somebody holds a lease.

        A worker may still run in an attempt whose base interpreter has changed.
        """
        self.layout.doomed(env_id).unlink(missing_ok=True)
        doomed: list[Path] = []
        with self.unused(env_id) as is_unused:
            if is_unused:
                # It must not name what is gone, should its base interpreter come back.
                self.layout.manifest(env_id).unlink(missing_ok=True)
                doomed = self.discard_attempts(env_id, but=None)
        for one in doomed:
            shutil.rmtree(one, ignore_errors=True)

    def attempts(self, env_id: str) -> list[str]:
        """Return the names of the attempts at *env_id*, the ready one among them."""
        names = {one.name for one in self.layout.environment(env_id).glob("*/")}
        return sorted(names - {self.layout.used_by(env_id).name})

    def discard_attempts(self, env_id: str, *, but: str | None) -> list[Path]:
        """Send every attempt at *env_id* but one to the trash, and return where they are there.

        The caller holds it as a builder does, and knows that nobody uses them.
        """
        doomed = []
        for name in self.attempts(env_id):
            if name != but:
                home = self.layout.environment(env_id)
                # First: without its attempt nobody would find it.
                self.layout.files(env_id, name).unlink(missing_ok=True)
                doomed.append(durable.discard(home / name, self.layout.trash))
        return [one for one in doomed if one]

    def unused(self, env_id: str) -> AbstractContextManager[bool]:
        """Say whether nobody holds a lease on *env_id*, and let nobody take one meanwhile."""
        return held.if_free(self.layout.leased(env_id))

    def unbuilt(self, env_id: str) -> AbstractContextManager[bool]:
        """Say whether nobody builds *env_id*, and let nobody begin to meanwhile."""
        return held.if_free(self.layout.building(env_id))

    def publish(self, manifest: Manifest) -> Environment:
        """Make an attempt ready: flush its files, then write its manifest, the last of all.

        Raises:
            OSError: flushing or writing failed; the attempt is not ready.
        """
        home = self.layout.environment(manifest.env_id)
        self.uses.begin(manifest.env_id)
        failpoint.reach("publish.flush")
        durable.sync_filesystem(home)
        failpoint.reach("publish.manifest")
        manifests.write(self.layout.manifest(manifest.env_id), manifest)
        durable.sync_directory(self.layout.environments)
        failpoint.reach("publish.done")
        return Environment(manifest, home / manifest.attempt)

    def lease(self, env_id: str) -> tuple[Environment, Lease] | None:
        """Take a lease on *env_id*, or return None where it is not ready (any more)."""
        lease = leases.take(self.layout.leased(env_id))
        if lease is None:
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(lease.close)
            failpoint.reach("lease.taken")
            # It may have been removed between being found and being leased.
            if found := self.find(env_id):
                undo.pop_all()
                return found, lease
        return None

    def holders(self) -> Holders:
        """Return who holds what below this root just now."""
        return Holders(self.layout)

    def pin(self, env_id: str) -> None:
        """Keep *env_id* from gc until it is unpinned."""
        durable.write_text(self.layout.pin(env_id), "")

    def unpin(self, env_id: str) -> None:
        """Let gc have *env_id* again."""
        self.layout.pin(env_id).unlink(missing_ok=True)

    def is_pinned(self, env_id: str) -> bool:
        """Whether gc must keep *env_id*."""
        return self.layout.pin(env_id).exists()

    def scratch(self) -> Scratch:
        """Return a new directory for a worker of this process to write in."""
        return scratch.begin(self.layout.scratch)

    def scratch_in_memory(self) -> Scratch:
        """Return such a directory that needs no room on the disk."""
        return scratch.begin(*IN_MEMORY)
