"""Gives every caller the ready environment of a model, building it at most once.

Everything here blocks, and starts processes: the daemon runs it in a builder of its own.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO, TypeVar

from envd import lock as locks
from envd import spec as specs
from envd.asked import Asked
from envd.build import Interpreter, Interpreters, virtualenv
from envd.build.bytecode import Bytecode
from envd.config import Settings
from envd.errors import CacheFullError, EnvdError, RootUnusableError
from envd.events import Event, Line, Note, OnEvent, Stage, ignore
from envd.held import Owner
from envd.lock import Lock, Question, Sources
from envd.lock.uv import Uv
from envd.model import Model
from envd.spec import flavors, policy
from envd.store import Attempt, Base, Environment, Manifest, Store, sweep

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Ready:
    """A ready environment, and whether it was so before it was asked for."""

    environment: Environment
    cached: bool


class Environments:
    """The environments of one root."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        """Use the root and the settings of *settings*; *clock* dates what is built."""
        self.settings = settings
        self.store = Store(settings.root)
        self.interpreters = Interpreters(settings)
        self._policy = policy.of(settings.security)
        self._wheels = locks.Wheels(settings.root)
        self._uv = Uv(settings)
        self._clock = clock

    def ask(
        self,
        model: Model,
        override: Sequence[str] = (),
        on_event: OnEvent = ignore,
        *,
        fresh: bool = False,
    ) -> Asked:
        """Return what *model* asks for with *override*, obtaining the Python it needs.

        With *fresh* a lock that lies in the model is passed over.

        Raises:
            ModelInvalidError: its files cannot be used.
            PolicyDeniedError: the settings do not allow what they ask for.
            PythonUnavailableError: its Python cannot be had.
            RootUnusableError: the root cannot be made.
        """
        self._create()
        dependencies = specs.read(model, self.settings, override, fresh=fresh)
        interpreter, note = self.interpreters.obtain(dependencies.python, on_event)
        return Asked.of(model, dependencies, interpreter, note, self.settings)

    def find(self, asked: Asked) -> Environment | None:
        """Return the environment of *asked* if it is ready; reads a few files, waits for nothing.

        Raises:
            PolicyDeniedError: its lock is made of what the settings do not allow.
        """
        lock = self.kept_lock(asked)
        if lock is None:
            return None
        lock.check(self._policy)
        return self._admitted(self.store.find(lock.env_id(asked.spec.python)))

    def kept_lock(self, asked: Asked) -> Lock | None:
        """Return the lock of *asked* if there is one."""
        return self.store.specs.lock(asked.spec.key, asked.day)

    def notes(self, model: Model, asked: Asked, found: Environment) -> tuple[Note, ...]:
        """Return all that is worth knowing of *found*, the environment *model* asked for."""
        lock = self.kept_lock(asked)
        versions = {one.name: one.version for one in found.manifest.lock.packages}
        return (
            *asked.notes,
            *(lock.notes if lock else ()),
            *flavors.differences(model, versions),
        )

    def ready(self, asked: Asked, on_event: OnEvent = ignore, *, upgrade: bool = False) -> Ready:
        """Return the environment of *asked*, building it if it is missing.

        With *upgrade* it is locked anew; what there is serves until the new one is ready.

        Raises:
            EnvdError: it could not be locked or built; the metadata's `log` names the log.
        """
        if not upgrade and (found := self.find(asked)):
            return Ready(found, cached=True)
        sweep.leftovers(self.store)
        return self._logged(asked, on_event, lambda event: self._build(asked, event, upgrade))

    def lock(self, asked: Asked, on_event: OnEvent = ignore) -> Lock:
        """Return the lock of *asked*, resolving it if that was never done.

        Raises:
            EnvdError: it could not be; the metadata's `log` names the log.
        """
        return self._logged(asked, on_event, lambda event: self._lock(asked, event, keep=True))

    def _logged(
        self, asked: Asked, on_event: OnEvent, work: Callable[[OnEvent], _Result]
    ) -> _Result:
        self._create()
        with _Log(self.store.layout.log(asked.spec.key), on_event) as log:
            try:
                return work(log.event)
            except OSError as error:
                raise _disk_error(error, self.settings.root) from error
            except EnvdError as error:
                error.metadata["log"] = str(self.store.layout.log(asked.spec.key))
                log.event(Line(f"failed: {error.message}"))
                raise

    def _admitted(self, found: Environment | None) -> Environment | None:
        """Return *found* unless it was built under a laxer profile; it is built again then."""
        return found if found and self._policy.admits(found.manifest.profile) else None

    def _create(self) -> None:
        try:
            self.store.create()
        except OSError as error:
            raise _disk_error(error, self.settings.root) from error

    def _build(self, asked: Asked, on_event: OnEvent, upgrade: bool) -> Ready:  # noqa: FBT001
        started = self._clock()
        lock = self._lock(asked, on_event, keep=not upgrade)
        env_id = lock.env_id(asked.spec.python)
        with self.store.building(env_id, lambda by: on_event(_waiting(by))) as attempt:
            # Another process may have built it while this one waited.
            found = self._admitted(self.store.find(env_id))
            if found is None:
                self._install(asked, lock, attempt, on_event)
                on_event(Stage("publishing", "flushing it to disk"))
                seconds = self._clock() - started
                manifest = self._manifest(asked, lock, env_id, attempt, seconds)
                ready = Ready(self.store.publish(manifest), cached=False)
            else:
                ready = Ready(found, cached=True)
        if upgrade:
            self.store.specs.keep_lock(asked.spec.key, lock, asked.day)
        return ready

    def _lock(self, asked: Asked, on_event: OnEvent, *, keep: bool) -> Lock:
        """Return the lock of *asked*; without *keep* a new one, which is not kept yet."""
        spec = asked.spec
        with self.store.locking(spec.key, lambda by: on_event(_waiting(by))) as held:
            found = self.kept_lock(asked) if keep else None
            if found and self._wheels.has_all(found):
                found.check(self._policy)
                return found
            on_event(Stage("locking", f"resolving {len(spec.requirements)} requirements"))
            question = Question(spec, asked.interpreter, asked.model, asked.day, refresh=not keep)
            lock = locks.resolve(question, self._uv.held_by(held), on_event)
            self.store.specs.keep(spec)
            if keep:
                self.store.specs.keep_lock(spec.key, lock, asked.day)
            return lock

    def _install(self, asked: Asked, lock: Lock, attempt: Attempt, on_event: OnEvent) -> None:
        writer = virtualenv.Writer([attempt.held.descriptor], attempt.held.names_installer)
        interpreter = Interpreter(asked.interpreter, asked.spec.python)
        cache = self.settings.root / "cache" / "bytecode"
        bytecode = Bytecode(cache, asked.spec.python, self.settings.build.link_mode)
        on_event(Stage("installing", f"installing {len(lock.packages)} packages"))
        virtualenv.create(interpreter, attempt.prefix, self._uv, writer, on_event)
        # uv links the sources with one core; the other links their bytecode meanwhile.
        with ThreadPoolExecutor(1) as beside:
            placing = beside.submit(bytecode.place, lock.packages, attempt.prefix)
            sources = Sources(asked.spec.indexes)
            virtualenv.install(lock, sources, attempt.prefix, self._uv, writer, on_event)
        if fresh := bytecode.fresh(lock.packages, placing.result()):
            names = {one.name for one in asked.spec.requirements}
            direct = virtualenv.modules_of(attempt.prefix, names)
            modules, scratch = [*asked.modules, *direct], self.store.scratch()
            try:
                virtualenv.warm(attempt.prefix, modules, scratch, writer, on_event)
                bytecode.keep(fresh, attempt.prefix, scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _manifest(
        self, asked: Asked, lock: Lock, env_id: str, attempt: Attempt, seconds: float
    ) -> Manifest:
        return Manifest(
            env_id=env_id,
            attempt=attempt.name,
            spec_key=asked.spec.key,
            manager=asked.spec.manager,
            python=asked.spec.python,
            python_requested=asked.requested_python,
            base=Base(asked.interpreter, asked.interpreter.stat().st_mtime_ns),
            lock=lock,
            notes=asked.notes,
            created=self._clock(),
            seconds=round(seconds, 3),
            link_mode=self.settings.build.link_mode,
            profile=self._policy.profile,
        )


class _Log:
    """Writes what happens into a build's log and passes it on."""

    def __init__(self, path: Path, on_event: OnEvent) -> None:
        self._path, self._on_event = path, on_event

    def __enter__(self) -> Self:
        self._file: TextIO | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def event(self, event: Event) -> None:
        # Whoever waits writes nothing: the log is that of the builder it waits for.
        if not (isinstance(event, Stage) and event.name == "waiting"):
            text = f"== {event.name}: {event.message}" if isinstance(event, Stage) else event.text
            self._write(f"{text}\n")
        self._on_event(event)

    def _write(self, text: str) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("")
            self._file = self._path.open("a")
        self._file.write(text)
        self._file.flush()


def _waiting(owner: Owner | None) -> Stage:
    who = f" started by pid {owner.pid} on host {owner.host}" if owner else ""
    return Stage("waiting", f"waiting for the build{who}")


def _disk_error(error: OSError, root: Path) -> EnvdError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        message = f"the disk of `{root}` is full; free some of it"
        return CacheFullError(message, root=root)
    message = f"cannot work in `{root}`: {error}; give another with `--root` or ENVD_ROOT"
    return RootUnusableError(message, root=root)
