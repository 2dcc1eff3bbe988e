"""Locks a virtualenv spec with uv: one wheel per distribution, as of the model's month.

Build dependencies are resolved first and their versions preferred afterwards, as
MLflow's two installs in a row do: a bare `setuptools` among the requirements keeps the
version that the build dependencies pin.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path

from envd import process
from envd.errors import (
    EnvdError,
    IndexUnreachableError,
    InstallFailedError,
    NotLockedOfflineError,
    SolveFailedError,
)
from envd.events import OnEvent
from envd.lock.artifacts import choose
from envd.lock.compile import Compiler, Entry, Question
from envd.lock.lock import Lock, Package
from envd.lock.own import OwnPackages
from envd.lock.rungs import Rung, rungs
from envd.lock.sources import Sources
from envd.lock.undated import Undated
from envd.lock.uv import Uv
from envd.lock.wheels import Builder, Wheels
from envd.scratch import scratch
from envd.spec import Requirement, policy

_BUILDS_AT_ONCE, _POLL_S = 4, 0.1


def resolve(question: Question, uv: Uv, on_event: OnEvent) -> Lock:
    """Resolve the spec of *question*.

    Raises:
        SolveFailedError: no set of versions satisfies the spec.
        InstallFailedError: a source could not be built.
        PolicyDeniedError: it needs what the settings do not allow.
        IndexUnreachableError: an index did not answer.
        NotLockedOfflineError: the network is off and what is cached does not suffice.
        CacheFullError: the disk is full.
    """
    with scratch(uv.settings.root, "lock") as folder:
        try:
            return _by_rungs(question, uv.in_rooms(folder), folder, on_event)
        except IndexUnreachableError as error:
            if not uv.settings.index.offline:
                raise
            raise _offline(error) from error


def _by_rungs(question: Question, uv: Uv, work: Path, on_event: OnEvent) -> Lock:
    failed: list[tuple[str, EnvdError]] = []
    wheels_only = policy.of(uv.settings.security).wheels_only
    for rung in rungs(question.spec, question.day):
        # A bound yields to the date, not to a build that fails or is not allowed.
        if rung.drops_bound and (wheels_only or isinstance(failed[-1][1], InstallFailedError)):
            continue
        try:
            lock = _Resolution(question, uv, work, rung, on_event).lock()
        except (SolveFailedError, InstallFailedError) as error:
            failed.append((rung.day, error))
            continue
        day = question.day if rung.of_day else None
        return replace(lock, notes=(*lock.notes, *rung.notes), day=day or "")
    raise _unanswered(failed)


def _unanswered(failed: list[tuple[str, EnvdError]]) -> EnvdError:
    # The later rung had more to choose from: its reason is the one left.
    days, error = list(dict.fromkeys(day for day, _ in failed if day)), failed[-1][1]
    if not days or not isinstance(error, SolveFailedError):
        return error
    message = (
        f"{error.message} (resolved as of {' and of '.join(days)}, when the model was logged; "
        '`resolve.as_of = "now"`, ENVD_RESOLVE__AS_OF=now, takes today\'s packages)'
    )
    return type(error)(message, **error.metadata)


def _offline(error: IndexUnreachableError) -> NotLockedOfflineError:
    message = (
        "the model is not locked yet and envd is offline (`index.offline`): what is cached does "
        f"not suffice. Lock it where there is a network, with `envctl lock`. {error.message}"
    )
    return NotLockedOfflineError(message, **error.metadata)


class _Resolution:
    """One spec, as of one day."""

    def __init__(
        self, question: Question, uv: Uv, work: Path, rung: Rung, on_event: OnEvent
    ) -> None:
        self._question, self._spec, self._rung = question, question.spec, rung
        self._uv, self._on_event = uv, on_event
        self._policy = policy.of(uv.settings.security)
        self._own = OwnPackages(question.model, Wheels(uv.settings.root), self._policy, work)
        sources = Sources(self._spec.indexes, self._own.copied_links(self._spec.indexes))
        self._undated = Undated(uv, question.interpreter, sources, rung.moment, work)
        self._compiler = Compiler(uv, question, self._undated, rung, work, on_event)

    def lock(self) -> Lock:
        """Return the lock."""
        build = [self._line(one) for one in self._spec.build]
        asked = [self._line(one) for one in self._spec.requirements]
        chosen = self._compiler.compile(build) | self._compiler.compile(asked)
        packages = self._packages(chosen.values())
        return Lock(tuple(sorted(packages)), self._rung.day, self._undated.notes)

    def _packages(self, chosen: Iterable[Entry]) -> list[Package]:
        with ThreadPoolExecutor(_BUILDS_AT_ONCE) as pool:
            under_way = [pool.submit(self._package, one) for one in chosen]
            try:
                ended = wait(under_way, return_when=FIRST_EXCEPTION).done
                return [one.result() for one in sorted(ended, key=under_way.index)]
            except BaseException:
                self._end(under_way)
                raise

    def _end(self, under_way: Collection[Future[Package]]) -> None:
        """End what is made for others: one has failed, or all are cancelled."""
        for one in under_way:
            one.cancel()
        while self._uv.held and wait(under_way, timeout=_POLL_S).not_done:
            # Whoever was between two children has begun the next.
            process.end_work(self._uv.held.token)

    def _line(self, one: Requirement) -> str:
        """Return the line for *one*; what comes from a source is made a wheel first."""
        return self._own.line(one, self._builder()) if one.source else one.text

    def _builder(self) -> Builder:
        return Builder(
            uv=self._uv,
            interpreter=self._question.interpreter,
            python=self._spec.python,
            undated=self._undated,
            options=tuple(self._compiler.build_options),
            rules=(
                self._rung.moment,
                *self._spec.build_constraints,
                json.dumps(asdict(self._spec.indexes), sort_keys=True),
            ),
            on_event=self._on_event,
        )

    def _package(self, entry: Entry) -> Package:
        name = entry["name"]
        artifact = choose(
            entry,
            self._spec.python,
            self._allowed(name),
            from_source=bool({name, ":all:"} & set(self._spec.no_binary)),
        )
        return self._own.package(artifact, is_direct="archive" in entry, builder=self._builder())

    def _allowed(self, name: str) -> tuple[str, ...]:
        # One name may stand there several times, each time under another marker.
        everything = (*self._spec.build, *self._spec.requirements, *self._spec.constraints)
        return tuple(
            found for one in everything if one.name == name and not one.source
            for found in one.hashes
        )  # fmt: skip
