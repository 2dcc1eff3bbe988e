"""Locks a conda spec: its conda packages, then its pip section on the Python they bring.

The packages are installed into a scratch prefix from the cache they will come from again,
which takes a tenth of a second where they are cached: only there is known what they
provide, and only their own Python can build what has no wheel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

from envd import lock as locks
from envd.build import conda as conda_build
from envd.environments.asked import Asked
from envd.errors import ModelInvalidError, RequestInvalidError, SolveFailedError
from envd.events import Note, OnEvent, Stage
from envd.lock import Lock, Package, Question, conda, conda_lock_file, provided
from envd.lock.conda import CondaQuestion
from envd.lock.provided import Provided
from envd.lock.rattler import Rattler
from envd.lock.rungs import Rung, rungs
from envd.lock.uv import Uv
from envd.model.texts import shown
from envd.scratch import scratch
from envd.secrets import without_login
from envd.spec import Python, Spec, conda_lock, conda_python, match_spec
from envd.spec.conda_lock import PipPackage
from envd.spec.conda_package import CondaPackage
from envd.spec.python import conda_subdir, elsewhere, uv_platform


@dataclass(frozen=True, slots=True)
class Locker:
    """What locks conda specs below one root; uv is for the pip section."""

    rattler: Rattler
    uv: Uv

    def lock(self, asked: Asked, on_event: OnEvent, *, refresh: bool = False) -> Lock:
        """Return the lock of *asked*, whose manager is conda.

        Raises:
            SolveFailedError: no set of packages satisfies it.
            ModelInvalidError: its packages bring no Python.
            EnvdError: as `envd.lock.conda.solve` and `envd.lock.resolve`.
        """
        if asked.locked:
            found = Lock((), conda=_with_python(asked.locked), variables=asked.spec.variables)
        else:
            found = self._conda(asked, conda_subdir(asked.spec.python), on_event)
        if not asked.spec.requirements:
            return found
        on_event(Stage("locking", f"resolving {len(asked.spec.requirements)} pip requirements"))
        with scratch(self.uv.settings.root, "conda") as folder:
            prefix = folder / "prefix"
            conda_build.install(found.conda, prefix, self.rattler, on_event)
            question = Question(
                _pip_spec(asked.spec, found.python(asked.spec.python)),
                prefix / "bin" / "python",
                asked.model,
                asked.day,
                refresh,
                provided.installed(found.conda, prefix),
            )
            pip = locks.resolve(question, self.uv, on_event)
        return replace(
            found,
            packages=pip.packages,
            notes=tuple(dict.fromkeys((*found.notes, *pip.notes))),
            day=found.day or pip.day,
        )

    def text(self, asked: Asked, lock: Lock, platforms: Sequence[str], on_event: OnEvent) -> str:
        """Return *lock*, that of *asked*, as a `conda-lock.yml`, for *platforms* as well.

        Raises:
            RequestInvalidError: there is no such platform.
            ModelInvalidError: a lock that lies in the model has nothing for one.
            EnvdError: as `lock`; and what envd built itself cannot stand in such a file.
        """
        own = conda_subdir(asked.spec.python)
        packages, pip = {own: lock.conda}, list[PipPackage]()
        for platform in sorted({*platforms} - {own}):
            packages[platform], more = self._elsewhere(asked, platform, on_event)
            pip += more
        pip += [_in_file(one, own) for one in lock.packages]
        question = CondaQuestion(asked.spec.channels, asked.spec.packages, tuple(packages))
        return conda_lock_file.text(question, packages, pip, self.rattler, on_event)

    def _elsewhere(
        self, asked: Asked, platform: str, on_event: OnEvent
    ) -> tuple[tuple[CondaPackage, ...], Iterable[PipPackage]]:
        """Return the packages of *asked* for another platform, conda's and pip's."""
        try:
            python = elsewhere(asked.spec.python, platform)
        except KeyError as error:
            message = f"`{shown(platform)}` is no platform that is locked for"
            raise RequestInvalidError(message, platform=shown(platform)) from error
        if asked.locked:
            return _held(asked, platform)
        if asked.spec.requirements and uv_platform(python) is None:
            message = (
                f"the pip section of the model cannot be locked for {platform}, which uv does not "
                "know; name its packages as conda's"
            )
            raise RequestInvalidError(message, platform=platform)
        on_event(Stage("locking", f"resolving for {platform}"))
        found = self._conda(asked, platform, on_event)
        return found.conda, self._pip_elsewhere(asked, found, platform, on_event)

    def _pip_elsewhere(
        self, asked: Asked, found: Lock, platform: str, on_event: OnEvent
    ) -> Iterable[PipPackage]:
        """Lock a pip section for a Python on which nothing can be looked at or built."""
        if not asked.spec.requirements:
            return ()
        python = elsewhere(found.python(asked.spec.python), platform)
        spec, there = _pip_spec(asked.spec, python), provided.expected(found.conda)
        _refuse_extras(spec, there, platform)
        question = Question(spec, Path(sys.executable), asked.model, asked.day, provided=there)
        packages = locks.resolve(question, self.uv, on_event).packages
        return [_in_file(one, platform) for one in packages]

    def _conda(self, asked: Asked, platform: str, on_event: OnEvent) -> Lock:
        failed: SolveFailedError | None = None
        for rung, packages, noted in _tries(asked, self.uv.settings.python.match):
            question = CondaQuestion(
                channels=asked.spec.channels,
                packages=packages,
                platforms=(platform,),
                moment=rung.moment,
                offline=self.uv.settings.index.offline,
            )
            try:
                solved = conda.solve(question, self.rattler, on_event)[platform]
            except SolveFailedError as error:
                # The first says what the model's own files ask for.
                failed = failed or error
                continue
            notes = (*rung.notes, *noted, *conda.notes(question, self.uv.settings.conda))
            day = (asked.day or "") if rung.of_day else ""
            return Lock((), rung.day, notes, day, _with_python(solved), asked.spec.variables)
        assert failed is not None  # noqa: S101 - there is at least one try
        if asked.spec.as_of:
            failed.message += (
                ' (`resolve.as_of = "now"`, ENVD_RESOLVE__AS_OF=now, takes today\'s packages)'
            )
        raise failed


def _tries(asked: Asked, match: str) -> Iterator[tuple[Rung, tuple[str, ...], tuple[Note, ...]]]:
    """Yield what is tried, one after the other: as of when, which packages, and what to note.

    A patch release of Python may never have been built for a channel: the newest of the same
    minor is as good, where the settings do not forbid it.
    """
    packages = asked.spec.packages
    near = tuple(conda_python.near(match_spec.parse(one)).text for one in packages)
    # Bounds are for the pip section.
    for rung in rungs(replace(asked.spec, bounds=()), asked.day):
        yield rung, packages, ()
        if near != packages and match != "exact":
            message = (
                f"the model asks for Python {asked.requested_python}, which its channels do not "
                "have; another patch release is used"
            )
            note = Note("PYTHON_PATCH_DIFFERS", message, asked.requested_python or "")
            yield rung, near, (note,)


def _held(asked: Asked, platform: str) -> tuple[tuple[CondaPackage, ...], tuple[PipPackage, ...]]:
    """Return what the lock that lies in the model has for another platform."""
    if not asked.spec.closed:
        message = (
            f"`{conda_lock.FILE}` of the model says what is installed on {platform}, and nothing "
            "can take the place of its requirements there; lock it without overrides, or anew "
            "with `envctl lock --upgrade`"
        )
        raise RequestInvalidError(message, platform=platform)
    lock = conda_lock.read(asked.model, conda_lock.FILE, platform)
    return lock.packages, lock.pip


def _with_python(found: tuple[CondaPackage, ...]) -> tuple[CondaPackage, ...]:
    if not any(one.name == "python" for one in found):
        message = "the conda packages of the model bring no Python; add `python` to its conda.yaml"
        raise ModelInvalidError(message)
    return found


def _pip_spec(spec: Spec, python: Python) -> Spec:
    """Return the spec of the pip section on *python*."""
    return replace(
        spec, manager="virtualenv", python=python, channels=(), packages=(), variables=()
    )


def _refuse_extras(spec: Spec, there: Iterable[Provided], platform: str) -> None:
    """Refuse extras of what conda will bring: only what is installed says what they need."""
    names = {one.name for one in there}
    for one in spec.requirements:
        if one.name in names and "[" in one.text.partition("; ")[0]:
            message = (
                f"what `{one.text}` needs on {platform} cannot be known here, because conda brings "
                f"`{one.name}`; name the packages of its extras in the pip section"
            )
            raise SolveFailedError(message, packages=one.name, platform=platform)


def _in_file(one: Package, platform: str) -> PipPackage:
    """Return *one* as a `conda-lock.yml` has it: where it was fetched from, with its hash."""
    url, sha256 = one.url, one.sha256
    if one.origin == "kept":
        url, _, fragment = one.made_from.partition("#")
        sha256 = dict(parse_qsl(fragment)).get("sha256", "")
    if not (sha256 and url.startswith(("http://", "https://"))):
        message = (
            f"`{one.name}` is made from `{one.made_from or one.filename}`, which cannot stand in a "
            "`conda-lock.yml`"
        )
        raise SolveFailedError(message, packages=one.name)
    return PipPackage(one.name, one.version, without_login(url), sha256, platform)
