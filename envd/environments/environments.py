"""Gives every caller the ready environment of a model, building it at most once.

Everything here blocks, and starts processes: the daemon runs it in a builder of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from envd import config, plain
from envd import lock as locks
from envd import spec as specs
from envd.build import Interpreters
from envd.config import Settings
from envd.environments.asked import Asked
from envd.environments.installing import Content, Filled, Installer
from envd.environments.locking import Locker
from envd.environments.work import Work
from envd.errors import EnvdError, RequestInvalidError, from_os
from envd.events import Line, Locked, Note, OnEvent, Stage, ignore
from envd.lock import Artifact, Lock, Package, Question, pylock
from envd.lock.rattler import Rattler
from envd.lock.uv import Uv
from envd.model import Model
from envd.sandbox import tiers
from envd.spec import Terms, conda_python, flavors, match_spec, policy
from envd.spec.conda_names import pypi_name
from envd.store import Attempt, Environment, Manifest, Store

_DEFAULT = Terms()


@dataclass(frozen=True, slots=True)
class Ready:
    """A ready environment, and whether it was so before it was asked for."""

    environment: Environment
    cached: bool


class Environments:
    """The environments of one root."""

    def __init__(self, settings: Settings) -> None:
        """Use the root and the settings of *settings*."""
        self.settings = settings
        self.store = Store(settings.root)
        self.interpreters = Interpreters(settings)
        self._policy = policy.of(settings.security)
        self._wheels = locks.Wheels(settings.root)
        self._uv = Uv(settings)
        self._installer = Installer(settings, self.store)
        self._settings_digest = config.digest(settings)

    def ask(
        self,
        model: Model,
        terms: Terms = _DEFAULT,
        on_event: OnEvent = ignore,
    ) -> Asked:
        """Return what *model* asks for on *terms*, obtaining the Python it needs.

        Raises:
            ModelInvalidError: its files cannot be used.
            PolicyDeniedError: the settings do not allow what they ask for.
            PythonUnavailableError: its Python cannot be had.
            RootUnusableError: the root cannot be made.
        """
        self._create()
        dependencies = specs.read(model, self.settings, terms)
        if dependencies.manager == "conda":
            return Asked.of(model, dependencies, None, None, self.settings)
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
        """Return the lock of *asked* if there is one, and it has the Python that it has to have."""
        lock = self.store.specs.lock(asked.spec.key, asked.day)
        return lock if lock and self._admits_python(asked, lock) else None

    def _admits_python(self, asked: Asked, lock: Lock) -> bool:
        """Whether `python.match` takes the Python of *lock*: it may have been another setting."""
        if self.settings.python.match != "exact" or not lock.conda:
            return True
        packages = map(match_spec.parse, asked.spec.packages)
        return conda_python.is_asked_for(packages, lock.python(asked.spec.python).version)

    def notes(self, model: Model, asked: Asked, found: Environment) -> tuple[Note, ...]:
        """Return all that is worth knowing of *found*, the environment *model* asked for."""
        lock = self.kept_lock(asked)
        versions = {_of_pypi(one): one.version for one in found.manifest.lock.artifacts}
        return (
            *asked.notes,
            *(lock.notes if lock else ()),
            *flavors.differences(model, versions),
        )

    def remembered(self, asked: Asked) -> EnvdError | None:
        """Return how the last build of *asked* failed, if it must not be tried again yet."""
        failure = self.store.failures.get(asked.spec.key, asked.day)
        # With other settings it may come out otherwise.
        if failure is None or failure.about.get("settings") != self._settings_digest:
            return None
        error = failure.error
        wait = plain.age(error.retry_after_s or 0.0)
        error.message += (
            f" (it failed so before; tried again in {wait}, or at once by `envctl build --retry`)"
        )
        return error

    def ready(
        self,
        asked: Asked,
        on_event: OnEvent = ignore,
        *,
        upgrade: bool = False,
        retry: bool = False,
    ) -> Ready:
        """Return the environment of *asked*, building it if it is missing.

        With *upgrade* it is locked anew; what there is serves until the new one is ready.
        With *retry* it is tried although it has failed before.

        Raises:
            EnvdError: it could not be locked or built; the metadata's `log` names the log.
        """
        if not upgrade and (found := self.find(asked)):
            return Ready(found, cached=True)
        if retry or upgrade:
            self.store.failures.forget(asked.spec.key, asked.day)
        with self._work(asked, on_event) as work:
            return self._build(asked, work, upgrade=upgrade)

    def lock(self, asked: Asked, on_event: OnEvent = ignore) -> Lock:
        """Return the lock of *asked*, resolving it if that was never done.

        Raises:
            EnvdError: it could not be; the metadata's `log` names the log.
        """
        with self._work(asked, on_event) as work:
            return self._lock(asked, work, keep=True)

    def lock_file(
        self, asked: Asked, platforms: Sequence[str] = (), on_event: OnEvent = ignore
    ) -> tuple[str, str]:
        """Return the lock of *asked* as a file: its name and its text.

        A conda environment is locked for *platforms* as well, as conda calls them.

        Raises:
            RequestInvalidError: there are platforms, and it is no conda environment.
            EnvdError: it could not be locked; the metadata's `log` names the log.
        """
        if platforms and asked.interpreter is not None:
            message = (
                "only a conda environment is locked for other platforms, and this one is "
                "virtualenv's; give `--env-manager conda` too, or no `--platform`"
            )
            raise RequestInvalidError(message, platforms=", ".join(platforms))
        lock = self.lock(asked, on_event)
        if asked.interpreter is not None:
            return "pylock.toml", pylock.text(lock, asked.spec.python)
        with self._work(asked, on_event) as work, work.going_on() as limits:
            locker = self._locker(replace(self._uv, limits=limits))
            return "conda-lock.yml", locker.text(asked, lock, platforms, on_event)

    def _locker(self, uv: Uv) -> Locker:
        return Locker(Rattler(self.settings, uv.held, uv.limits), uv)

    @contextlib.contextmanager
    def _work(self, asked: Asked, on_event: OnEvent) -> Iterator[Work]:
        self._create()
        self._refuse_remembered(asked)
        work = Work(self.settings, self.store, asked.spec.key, on_event)
        with contextlib.closing(work):
            try:
                yield work
            except OSError as error:
                raise from_os(error, self.settings.root) from error
        self.store.failures.forget(asked.spec.key, asked.day)

    def _refuse_remembered(self, asked: Asked) -> None:
        if error := self.remembered(asked):
            raise error

    @contextlib.contextmanager
    def _trying(self, asked: Asked, work: Work, *, upgrade: bool) -> Iterator[None]:
        """Try what has not just failed, and remember it if it does.

        Before anybody else holds the same: who waited for it must not try it once more. An
        upgrade that fails costs nothing but itself.
        """
        self._refuse_remembered(asked)
        try:
            work.begin()
            work.note(asked.notes)
            yield
        except (EnvdError, OSError) as raised:
            error = from_os(raised, self.settings.root) if isinstance(raised, OSError) else raised
            # Whoever asked must hear of this, not of a disk on which it cannot be written.
            with contextlib.suppress(OSError):
                work.log(Line(f"failed: {error.message}"))
                error.metadata["log"] = str(work.log_path)
                if not upgrade:
                    shown = replace(asked, variables=())
                    about = {"asked": shown.document(), "settings": self._settings_digest}
                    self.store.failures.remember(asked.spec.key, asked.day, error, about)
            raise error from raised

    def _admitted(self, found: Environment | None) -> Environment | None:
        """Return *found* unless it was built under laxer rules; it is built again then."""
        if found is None or not self._policy.admits(found.manifest.profile):
            return None
        return found if found.manifest.sandbox >= tiers.of(self.settings).tier else None

    def _create(self) -> None:
        try:
            self.store.create()
        except OSError as error:
            raise from_os(error, self.settings.root) from error

    def _build(self, asked: Asked, work: Work, *, upgrade: bool) -> Ready:
        started = time.monotonic()
        lock = self._lock(asked, work, keep=not upgrade)
        env_id = lock.env_id(asked.spec.python)
        work.on_event(Locked(env_id))
        with self.store.building(env_id, work.log_path, work.waiting) as attempt:
            # Another process may have built it while this one waited, or tried to.
            found = self._admitted(self.store.find(env_id))
            if found:
                ready = Ready(found, cached=True)
            else:
                with self._trying(asked, work, upgrade=upgrade):
                    work.note(lock.notes)
                    found = self._install(asked, lock, attempt, work, started)
                ready = Ready(found, cached=False)
        if upgrade:
            self.store.specs.keep(asked.spec)
            self.store.specs.keep_lock(asked.spec.key, lock, asked.day)
        return ready

    def _lock(self, asked: Asked, work: Work, *, keep: bool) -> Lock:
        """Return the lock of *asked*; without *keep* a new one, which is not kept yet."""
        spec = asked.spec
        with self.store.locking(spec.key, work.waiting) as held:
            found = self.kept_lock(asked) if keep else None
            if found and self._wheels.has_all(found):
                found.check(self._policy)
                # So that gc leaves it to whoever is about to install it.
                self.store.specs.keep(spec)
                return found
            with self._trying(asked, work, upgrade=not keep), work.going_on() as limits:
                lock = self._resolved(asked, self._uv.within(held, limits), work, refresh=not keep)
                work.note(lock.notes)
            self.store.specs.keep(spec)
            if keep:
                self.store.specs.keep_lock(spec.key, lock, asked.day)
            return lock

    def _resolved(self, asked: Asked, uv: Uv, work: Work, *, refresh: bool) -> Lock:
        spec = asked.spec
        count = len(spec.packages) or len(spec.requirements)
        work.log(Stage("locking", f"resolving {count} requirements"))
        if asked.interpreter is None:
            return self._locker(uv).lock(asked, work.log, refresh=refresh)
        question = Question(spec, asked.interpreter, asked.model, asked.day, refresh=refresh)
        return locks.resolve(question, uv, work.log)

    def _install(
        self, asked: Asked, lock: Lock, attempt: Attempt, work: Work, started: float
    ) -> Environment:
        content = Content(
            lock=lock,
            python=lock.python(asked.spec.python),
            interpreter=asked.interpreter,
            variables=asked.variables,
            indexes=asked.spec.indexes,
            modules=asked.modules,
            direct=_direct(asked),
        )
        with work.going_on() as limits:
            uv = self._uv.within(attempt.held, limits)
            filled = self._installer.install(content, attempt, uv, work.log)
            manifest = self._manifest(asked, lock, filled)
            return self._installer.publish(manifest, attempt, started, work.log)

    def _manifest(self, asked: Asked, lock: Lock, filled: Filled) -> Manifest:
        return Manifest(
            env_id=lock.env_id(asked.spec.python),
            attempt="",
            spec_key=asked.spec.key,
            manager=asked.spec.manager,
            python=lock.python(asked.spec.python),
            python_requested=asked.requested_python,
            base=filled.base,
            lock=lock,
            notes=asked.notes,
            created=0.0,
            seconds=0.0,
            link_mode=self.settings.build.link_mode,
            profile=self._policy.profile,
            sandbox=tiers.of(self.settings).tier,
            modules=filled.modules,
            variables=filled.variables,
        )


def _of_pypi(one: Artifact) -> str:
    """Return what PyPI calls an artifact."""
    return one.name if isinstance(one, Package) else pypi_name(one.name) or one.name


def _direct(asked: Asked) -> set[str]:
    """Return the distributions that are *asked* for, conda's packages by what PyPI calls them."""
    spec, locked = asked.spec, {one.name for one in asked.locked}
    of_conda = locked or {match_spec.parse(text).name for text in spec.packages}
    return {one.name for one in spec.requirements} | {pypi_name(one) or one for one in of_conda}
