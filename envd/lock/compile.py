"""Resolves requirements with `uv pip compile`, as of a day, into the entries of a `pylock.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envd.child import Finished
from envd.errors import EnvdError, InstallFailedError, SolveFailedError
from envd.events import Line, OnEvent
from envd.lock import provided
from envd.lock.provided import Provided
from envd.lock.rungs import SIBLINGS, Rung
from envd.lock.sources import Sources
from envd.lock.undated import Undated
from envd.lock.uv import Uv, explanation
from envd.spec import Spec, policy
from envd.spec.python import is_here, uv_platform

_BUILD_TOOLS = {"cython", "setuptools", "wheel"}

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A spec to be locked, and what that needs besides: where, when, and for which model.

    `day` is the day the model was logged (`2024-02-14`), for where its month gives no
    answer. With `refresh` the indexes are asked again, whatever is cached of them. What is
    `provided` is there already.
    """

    spec: Spec
    interpreter: Path
    model: Path
    day: str | None
    refresh: bool = False
    provided: tuple[Provided, ...] = ()


class Compiler:
    """Resolves the parts of one spec, each preferring what those before it chose."""

    def __init__(
        self,
        uv: Uv,
        question: Question,
        undated: Undated,
        rung: Rung,
        work: Path,
        on_event: OnEvent,
    ) -> None:
        """Write into the directory *work*."""
        self._uv = uv
        self._question = question
        self._undated = undated
        self._spec = spec = question.spec
        self._rung = rung
        self._work = work
        self._on_event = on_event
        _write(work / "build-constraints.txt", spec.build_constraints)
        self._limits = [
            *(one.text for one in spec.constraints),
            *rung.limits,
            *provided.constraints(question.provided, work / "provided"),
        ]
        _write(work / "constraints.txt", self._limits)

    @property
    def build_options(self) -> list[str]:
        """What holds for building source archives: limits, and the month for all they need."""
        file, moment = self._work / "build-constraints.txt", self._rung.moment
        options = ["--build-constraints", str(file)] if self._spec.build_constraints else []
        return options + (["--exclude-newer", moment] if moment else [])

    def _exempt_pins(self) -> list[str]:
        """Exempt from the date what the model pinned: it was there."""
        if not self._rung.moment:
            return []
        spec = self._spec
        pins = {one.name for one in (*spec.requirements, *spec.constraints, *spec.build) if one.pin}
        pins |= {sibling for name in pins for sibling in SIBLINGS.get(name, ())}
        # uv exempts a package where it builds others with it as well, and old sources do
        # not build with today's tools.
        until = {name: self._rung.logged if name in _BUILD_TOOLS else "false" for name in pins}
        until |= dict.fromkeys(self._rung.exempt, self._rung.logged)
        return [
            f"--exclude-newer-package={name}={moment}" for name, moment in sorted(until.items())
        ]

    def compile(self, lines: Sequence[str]) -> dict[str, Entry]:
        """Resolve the requirement *lines*; the entries are by name, without what is provided.

        Raises:
            SolveFailedError: no set of versions satisfies them.
            InstallFailedError: a source could not be asked for its metadata.
        """
        if not lines:
            return {}
        _write(self._work / "requirements.txt", lines)
        # What stands in the output is preferred; uv takes no empty one.
        output = self._work / "pylock.toml"
        before = output.read_text() if output.exists() else None

        def ask(sources: Sources) -> Finished:
            output.unlink(missing_ok=True)
            if before is not None:
                output.write_text(before)
            return self._run(output, sources)

        finished = self._undated.run(ask)
        if finished.status != 0:
            raise self._failure(finished, lines)
        entries = tomllib.loads(output.read_text()).get("packages", [])
        there = {one.name for one in self._question.provided}
        return {one["name"]: one for one in entries if one["name"] not in there}

    def _failure(self, finished: Finished, lines: Sequence[str]) -> EnvdError:
        why, asked = explanation(finished), ", ".join(lines)
        if "No solution found" in why or "conflicting URLs" in why:
            everything = (*self._spec.requirements, *self._spec.constraints)
            if found := provided.conflict(self._question.provided, everything, why):
                return found
        if "building from source is disabled for all packages" in why:
            message = (
                "no set of wheels satisfies the model's requirements, and "
                f'`security.profile = "strict"` takes wheels only. {why}'
            )
            return SolveFailedError(message, requirements=asked, setting="security.profile")
        if "No solution found" in why or "not found in the" in why:
            message = f"no set of packages satisfies the model's requirements. {why}"
            return SolveFailedError(message, requirements=asked)
        message = f"the model's requirements could not be resolved. {why}"
        return InstallFailedError(message, requirements=asked)

    def _run(self, output: Path, sources: Sources) -> Finished:
        spec = self._spec
        options = [*self.build_options, *self._exempt_pins()]
        # uv warns of an empty file.
        options += ["--constraints", str(self._work / "constraints.txt")] if self._limits else []
        options += self._forms()
        options += ["--no-deps"] if spec.closed else []
        is_asked_again = self._question.refresh and not self._uv.settings.index.offline
        options += ["--refresh"] if is_asked_again else []
        options += ["--prerelease=allow"] if spec.prereleases else []
        return self._uv.run(
            [
                "pip", "compile", str(self._work / "requirements.txt"),
                "--python", str(self._question.interpreter),
                "--format", "pylock.toml", "--output-file", str(output), *options,
                *self._elsewhere(),
            ],
            on_line=_without_output(self._on_event),
            sources=sources,
        )  # fmt: skip

    def _elsewhere(self) -> list[str]:
        """Say for which Python on which platform, where that is not this machine's."""
        python = self._spec.python
        if is_here(python):
            return []
        platform = uv_platform(python)
        assert platform is not None  # noqa: S101 - nobody asks for one that uv does not know
        return ["--python-version", python.version, "--python-platform", platform]

    def _forms(self) -> list[str]:
        """Say which packages are taken as wheels, and which as sources."""
        if not is_here(self._spec.python):
            # Nothing can be built for it.
            return ["--only-binary=:all:"]
        if policy.of(self._uv.settings.security).wheels_only:
            return ["--only-binary=:all:"]
        only = [f"--only-binary={name}" for name in self._spec.only_binary]
        return only + [f"--no-binary={name}" for name in self._spec.no_binary]


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _without_output(on_event: OnEvent) -> Callable[[str], None]:
    """Return what passes lines on until the lock itself begins, which uv prints as well."""
    is_over = False

    def on_line(text: str) -> None:
        nonlocal is_over
        is_over = is_over or text.startswith("# This file was autogenerated")
        if not is_over:
            on_event(Line(text))

    return on_line
