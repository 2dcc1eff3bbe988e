"""Gives every caller the ready environment of a model, building it at most once.

Everything here blocks, and starts processes: the daemon runs it in a builder of its own.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from envd import lock as locks
from envd import spec as specs
from envd.build import Interpreter, Interpreters, virtualenv
from envd.build.bytecode import Bytecode
from envd.config import Settings
from envd.errors import CacheFullError, EnvdError, RootUnusableError
from envd.events import Event, Line, Note, OnEvent, Stage, ignore
from envd.lock import Lock
from envd.lock.uv import Uv
from envd.model import Model
from envd.spec import Dependencies, Spec
from envd.spec.spec import from_canonical
from envd.store import Attempt, Base, Environment, Manifest, Store, sweep
from envd.store.held import Owner


@dataclass(frozen=True, slots=True)
class Asked:
    """A spec with what is needed to build it and is not part of its key."""

    spec: Spec
    requested_python: str | None
    interpreter: Path
    modules: tuple[str, ...]
    notes: tuple[Note, ...]

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "spec": self.spec.canonical(),
            "requested_python": self.requested_python,
            "interpreter": str(self.interpreter),
            "modules": self.modules,
            "notes": [note.document() for note in self.notes],
        }


def asked_from_document(document: dict[str, Any]) -> Asked:
    """Return what `Asked.document` described."""
    return Asked(
        spec=from_canonical(document["spec"]),
        requested_python=document["requested_python"],
        interpreter=Path(document["interpreter"]),
        modules=tuple(document["modules"]),
        notes=tuple(Note(**note) for note in document["notes"]),
    )


def asked(
    model: Model,
    dependencies: Dependencies,
    interpreter: Interpreter,
    note: Note | None,
    settings: Settings,
) -> Asked:
    """Return what *model* asks for on *interpreter*, which was chosen with *note*."""
    is_mlflow = model.loader_module.split(".")[0] == "mlflow"
    return Asked(
        spec=specs.of(dependencies, interpreter.python, settings.index),
        requested_python=dependencies.python,
        interpreter=interpreter.path,
        modules=("mlflow.pyfunc", model.loader_module) if is_mlflow else (),
        notes=(*dependencies.notes, note) if note else dependencies.notes,
    )


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
        self._uv = Uv(settings)
        self._clock = clock

    def ask(self, model: Model, on_event: OnEvent = ignore) -> Asked:
        """Return what *model* asks for, obtaining the Python it needs.

        Raises:
            ModelInvalidError: its files cannot be used.
            PythonUnavailableError: its Python cannot be had.
            RootUnusableError: the root cannot be made.
        """
        self._create()
        dependencies = specs.read(model)
        interpreter, note = self.interpreters.obtain(dependencies.python, on_event)
        return asked(model, dependencies, interpreter, note, self.settings)

    def find(self, spec: Spec) -> Environment | None:
        """Return the environment of *spec* if it is ready; reads a few files, waits for nothing."""
        lock = self.store.specs.lock(spec.key)
        return self.store.find(lock.env_id(spec.python)) if lock else None

    def ready(self, asked: Asked, on_event: OnEvent = ignore) -> Ready:
        """Return the environment of *asked*, building it if it is missing.

        Raises:
            EnvdError: it could not be locked or built; the metadata's `log` names the log.
        """
        if found := self.find(asked.spec):
            return Ready(found, cached=True)
        self._create()
        sweep.leftovers(self.store)
        with _Log(self.store.layout.log(asked.spec.key), on_event) as log:
            try:
                return self._build(asked, log.event)
            except OSError as error:
                raise _disk_error(error, self.settings.root) from error
            except EnvdError as error:
                error.metadata["log"] = str(self.store.layout.log(asked.spec.key))
                log.event(Line(f"failed: {error.message}"))
                raise

    def _create(self) -> None:
        try:
            self.store.create()
        except OSError as error:
            raise _disk_error(error, self.settings.root) from error

    def _build(self, asked: Asked, on_event: OnEvent) -> Ready:
        started = self._clock()
        lock = self._lock(asked, on_event)
        env_id = lock.env_id(asked.spec.python)
        with self.store.building(env_id, lambda by: on_event(_waiting(by))) as attempt:
            # Another process may have built it while this one waited.
            if found := self.store.find(env_id):
                return Ready(found, cached=True)
            self._install(asked, lock, attempt, on_event)
            on_event(Stage("publishing", "flushing it to disk"))
            seconds = self._clock() - started
            manifest = self._manifest(asked, lock, env_id, attempt, seconds)
            return Ready(self.store.publish(manifest), cached=False)

    def _lock(self, asked: Asked, on_event: OnEvent) -> Lock:
        spec = asked.spec
        with self.store.locking(spec.key, lambda by: on_event(_waiting(by))):
            if found := self.store.specs.lock(spec.key):
                return found
            on_event(Stage("locking", f"resolving {len(spec.requirements)} requirements"))
            lock = locks.resolve(spec, asked.interpreter, self._uv, on_event)
            self.store.specs.keep(spec)
            self.store.specs.keep_lock(spec.key, lock)
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
            virtualenv.install(lock, attempt.prefix, self._uv, writer, on_event)
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
