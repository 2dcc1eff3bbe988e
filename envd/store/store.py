"""The environments of one root: found, built once, published, leased, listed, removed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from envd import durable, held, process
from envd.errors import (
    EnvironmentInUseError,
    EnvironmentNotFoundError,
    RequestInvalidError,
)
from envd.held import Held, Owner
from envd.store import leases
from envd.store import manifest as manifests
from envd.store.layout import Layout
from envd.store.leases import Holders, Lease
from envd.store.manifest import Manifest
from envd.store.sizes import Sizes, measure
from envd.store.specs import Specs

log = logging.getLogger(__name__)
_MIN_PREFIX = 4
_DIGITS = re.compile(r"[0-9a-f]+")
_README = """This directory belongs to envd: it holds the environments of models and the packages
they are made of. `envctl list` shows what is here, `envctl rm` removes it. Do not edit.
"""


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


@dataclass(frozen=True, slots=True)
class Attempt:
    """A build under way: its own directory, and the held file that keeps others out."""

    name: str
    prefix: Path
    held: Held


class Store:
    """The cache below one root."""

    def __init__(self, root: Path) -> None:
        """Name the root; nothing is made before it is needed."""
        self.layout = Layout(root)
        self.specs = Specs(self.layout)

    def create(self) -> None:
        """Make the root, readable by its owner only.

        Raises:
            OSError: it cannot be made.
        """
        self.layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        readme = self.layout.root / "README"
        if not readme.exists():
            readme.write_text(_README)

    def read(self, env_id: str) -> Environment | None:
        """Return the environment *env_id* if it has been published and is undamaged.

        Raises:
            OSError: it cannot be read, which does not say that it is not there.
        """
        try:
            text = self.layout.manifest(env_id).read_text()
            manifest = manifests.from_document(json.loads(text))
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        return Environment(manifest, self.layout.environment(env_id) / manifest.attempt)

    def find(self, env_id: str) -> Environment | None:
        """Return the environment *env_id* if it is ready: published, its interpreter there."""
        found = self.read(env_id)
        return found if found and found.manifest.base.is_there() else None

    def ids(self) -> list[str]:
        """Return the ids of all published environments, sorted."""
        return sorted(one.parent.name for one in self.layout.environments.glob("*/ready.json"))

    def records(self) -> list[Environment]:
        """Return every published environment, by id."""
        return [one for env_id in self.ids() if (one := self.read(env_id))]

    def resolve(self, prefix: str) -> Environment:
        """Return the one published environment whose id or spec_key begins with *prefix*.

        Raises:
            RequestInvalidError: the prefix is too short or fits several.
            EnvironmentNotFoundError: it fits none.
        """
        if len(prefix) < _MIN_PREFIX:
            message = f"`{prefix}` is too short; give at least {_MIN_PREFIX} digits of the id"
            raise RequestInvalidError(message, id=prefix)
        if not _DIGITS.fullmatch(prefix):
            message = f"`{prefix}` is no id: ids are made of the digits 0-9 and a-f"
            raise RequestInvalidError(message, id=prefix)
        lock, spec = self.specs.lock(prefix), self.specs.spec(prefix)
        if lock and spec and (found := self.read(lock.env_id(spec.python))):
            return found
        fitting = [
            one
            for one in self.records()
            if one.id.startswith(prefix) or one.manifest.spec_key.startswith(prefix)
        ]
        if not fitting:
            message = f"no environment's id begins with `{prefix}`; see `envctl list`"
            raise EnvironmentNotFoundError(message, id=prefix)
        if len(fitting) > 1:
            message = f"`{prefix}` fits {len(fitting)} environments; give more digits"
            raise RequestInvalidError(message, id=prefix)
        return fitting[0]

    @contextlib.contextmanager
    def locking(self, spec_key: str, on_wait: Callable[[Owner | None], None]) -> Iterator[Held]:
        """Let nobody else lock the spec *spec_key* meanwhile; yield what holds it."""
        with held.exclusively(self.layout.held(f"spec-{spec_key}"), on_wait) as found:
            yield found

    @contextlib.contextmanager
    def building(self, env_id: str, on_wait: Callable[[Owner | None], None]) -> Iterator[Attempt]:
        """Let nobody else build *env_id* meanwhile, and give an empty attempt to build in.

        What stands in the environment's directory and is not ready is removed first. An
        attempt that was not published when this is left is removed too.
        """
        with held.exclusively(self.layout.held(f"build-{env_id}"), on_wait) as file:
            home = self.layout.environment(env_id)
            if self.find(env_id) is None:
                self._clear(env_id)
            attempt = Attempt(name := secrets.token_hex(4), home / name, file)
            try:
                yield attempt
            finally:
                found = self.read(env_id)
                if found is None or found.manifest.attempt != attempt.name:
                    durable.remove_tree(attempt.prefix, self.layout.trash)
                if found is None:
                    durable.remove_tree(home, self.layout.trash)

    def _clear(self, env_id: str) -> None:
        """Remove the attempts there are, unless somebody holds a lease.

        A worker may still run in an attempt whose base interpreter has changed.
        """
        with self.unused(env_id) as is_unused:
            if is_unused:
                self.remove_attempts(env_id, but=None)

    def remove_attempts(self, env_id: str, *, but: str | None) -> None:
        """Remove every attempt at *env_id* but one; the caller holds it and knows it unused."""
        for folder in self.layout.environment(env_id).glob("*/"):
            if folder.name not in {but, self.layout.used_by(env_id).name}:
                durable.remove_tree(folder, self.layout.trash)

    def unused(self, env_id: str) -> AbstractContextManager[bool]:
        """Say whether nobody holds a lease on *env_id*, and let nobody take one meanwhile."""
        return held.if_free(self.layout.held(f"lease-{env_id}"))

    def unbuilt(self, env_id: str) -> AbstractContextManager[bool]:
        """Say whether nobody builds *env_id*, and let nobody begin to meanwhile."""
        return held.if_free(self.layout.held(f"build-{env_id}"))

    def publish(self, manifest: Manifest) -> Environment:
        """Make an attempt ready: flush its files, then write its manifest, the last of all.

        Raises:
            OSError: flushing or writing failed; the attempt is not ready.
        """
        home = self.layout.environment(manifest.env_id)
        durable.sync_filesystem(home)
        durable.write_json(self.layout.manifest(manifest.env_id), manifest.document())
        durable.sync_directory(self.layout.environments)
        return Environment(manifest, home / manifest.attempt)

    def lease(self, env_id: str) -> tuple[Environment, Lease] | None:
        """Take a lease on *env_id*, or return None where it is not ready (any more)."""
        lease = leases.take(self.layout.held(f"lease-{env_id}"))
        if lease is None:
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(lease.close)
            # It may have been removed between being found and being leased.
            if found := self.find(env_id):
                undo.pop_all()
                return found, lease
        return None

    def holders(self) -> Holders:
        """Return who holds what below this root just now."""
        return Holders(self.layout)

    def record_use(self, environment: Environment, model: Path) -> None:
        """Remember that *model* used *environment* just now: the manifest's mtime."""
        with contextlib.suppress(OSError):
            os.utime(self.layout.manifest(environment.id))
        self.record_model(environment, model)

    def record_model(self, environment: Environment, model: Path) -> None:
        """Remember that *environment* is what *model* asks for."""
        name = hashlib.sha256(os.fsencode(model)).hexdigest()[:16]
        mark = self.layout.used_by(environment.id) / name
        if mark.exists():
            return
        try:
            mark.parent.mkdir(exist_ok=True)
            beside = mark.with_name(f".{name}.{secrets.token_hex(4)}")
            beside.write_bytes(os.fsencode(model))
            beside.replace(mark)
        except OSError as error:
            # Bookkeeping must not cost anybody an answer.
            log.warning("the model of an environment could not be recorded: %s", error)

    def last_used(self, environment: Environment) -> float:
        """Return when *environment* was last used, in seconds since 1970."""
        try:
            return self.layout.manifest(environment.id).stat().st_mtime
        except FileNotFoundError:
            return environment.manifest.created

    def sizes(self, environment: Environment) -> Sizes:
        """Return how large *environment* is; measured once, after it is ready."""
        path = environment.prefix.with_suffix(".sizes")
        try:
            found = json.loads(path.read_text())
            return Sizes(found["total"], found["exclusive"])
        except (OSError, ValueError, KeyError, TypeError):
            measured = measure(environment.prefix)
        beside = path.with_suffix(f".{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps(asdict(measured)))
            beside.replace(path)
        return measured

    def models(self, env_id: str) -> tuple[str, ...]:
        """Return the models that have used *env_id*, by path, as what can be shown."""
        found = []
        for mark in self.layout.used_by(env_id).glob("[!.]*"):
            # The environment may be removed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                found.append(mark.read_bytes().decode(errors="replace"))
        return tuple(sorted(found))

    def remove(self, env_id: str) -> None:
        """Remove the environment *env_id*.

        Raises:
            EnvironmentInUseError: somebody holds a lease on it, or builds it.
        """

        def refuse(owner: Owner | None) -> None:
            who = f"process {owner.pid}" if owner else "another process"
            message = f"the environment {env_id} is being built by {who}"
            raise EnvironmentInUseError(message, id=env_id)

        # Held as a builder holds it: nobody may start an attempt in what goes to the trash.
        with (
            held.exclusively(self.layout.held(f"build-{env_id}"), refuse),
            self.unused(env_id) as is_unused,
        ):
            if not is_unused:
                users = ", ".join(str(one) for one in self.holders().of(env_id))
                message = f"the environment {env_id} is in use by {users}; stop that first"
                raise EnvironmentInUseError(message, id=env_id, users=users)
            doomed = durable.discard(self.layout.environment(env_id), self.layout.trash)
        if doomed:
            shutil.rmtree(doomed, ignore_errors=True)

    def scratch(self) -> Path:
        """Return a new directory for a worker of this process to write in."""
        folder = self.layout.scratch / f"{process.stamp()}.{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700, parents=True)
        return folder
