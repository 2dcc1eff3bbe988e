"""Locks conda packages: asks the program that solves, and takes its answer apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from envd.config import Settings
from envd.errors import BuildTimedOutError, IndexUnreachableError, SolveFailedError
from envd.events import Note, OnEvent
from envd.lock.rattler import Rattler
from envd.model.texts import shown
from envd.scratch import scratch
from envd.settings.sections import Conda
from envd.spec.conda_package import CondaPackage, conda_package
from envd.spec.mirrors import channel_url

_SOLVER = "envd.lock.conda_solver"
_STEM = re.compile(r"[a-z0-9_][a-z0-9_.-]*-[\w.!+]+-[\w.+]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class CondaQuestion:
    """Which conda packages are asked for, of which channels, for which platforms, and when.

    `channels` are canonical names or URLs, what is first comes first; `packages` are match
    specs, `platforms` conda's subdirs (`linux-64`). Packages that were published from
    `moment` on (RFC 3339) do not exist; it is empty for now. `offline` is only what is cached.
    """

    channels: tuple[str, ...]
    packages: tuple[str, ...]
    platforms: tuple[str, ...]
    moment: str = ""
    offline: bool = False

    @property
    def day(self) -> str:
        """The day of the moment, empty for today."""
        return self.moment[: len("2024-02-01")]


def solve(
    question: CondaQuestion, rattler: Rattler, on_event: OnEvent
) -> Mapping[str, tuple[CondaPackage, ...]]:
    """Return the packages that *question* comes to, sorted, by platform.

    Raises:
        SolveFailedError: there are none; `packages` in its metadata names those that
            conflict or are missing.
        IndexUnreachableError: a channel does not answer, or not as one.
        NotLockedOfflineError: it is offline, and a channel is not cached.
        CacheFullError: the disk is full.
        BuildTimedOutError: it took too long.
        ManagerMissingError, SettingsInvalidError: there is nothing to solve with.
    """
    settings = rattler.settings
    rattler = replace(rattler, limits=rattler.limited())
    with scratch(settings.root, "conda") as folder:
        request = {
            "question": asdict(question),
            "mirrors": asdict(rattler.mirrors),
            "silence_s": rattler.limited().silence_s,
            "cache": str(settings.root / "cache" / "conda" / "repodata"),
            "scratch": str(folder),
            "exe": settings.conda.exe,
        }
        try:
            answer = rattler.run(_SOLVER, request, on_event)
        except BuildTimedOutError as error:
            rattler.check_time()
            raise _silent(question, settings) from error
    found = {platform: map(conda_package, packages) for platform, packages in answer.items()}
    return {
        platform: _checked(packages, platform, question.channels)
        for platform, packages in found.items()
    }


def notes(question: CondaQuestion, settings: Conda) -> tuple[Note, ...]:
    """Return what is worth knowing of an answer to *question*."""
    if not settings.exe or not question.moment:
        return ()
    message = (
        f"`{Path(settings.exe).name}` (`conda.exe`) cannot solve as of a day: these are not the "
        f"packages of {question.day} but today's"
    )
    return (Note("AS_OF_IGNORED", message, question.day),)


def _checked(
    packages: Iterable[CondaPackage], platform: str, channels: Iterable[str]
) -> tuple[CondaPackage, ...]:
    """Return *packages* sorted, each of which lies in one of *channels*.

    rattler takes `../../x` for a build, and directories go by it; and it follows the
    `base_url` of an index to hosts that nobody has allowed.
    """
    homes = tuple(map(channel_url, channels))
    found = tuple(sorted(packages))
    for one in found:
        is_plain = _STEM.fullmatch(one.stem) and one.subdir in {platform, "noarch"}
        url = one.url.removesuffix(".conda").removesuffix(".tar.bz2")
        if not is_plain or url not in {f"{home}{one.subdir}/{one.stem}" for home in homes}:
            name = shown(one.name)
            message = (
                f"its channel says of `{shown(one.url)}` what is true of no package "
                f"(`{shown(one.subdir)}`, `{shown(one.build)}`); take `{name}` from another"
            )
            raise SolveFailedError(message, packages=name, platform=platform)
    return found


def _silent(question: CondaQuestion, settings: Settings) -> IndexUnreachableError:
    """Return what it means that nothing moved: nothing but channels is waited for."""
    names = ", ".join(f"`{one}`" for one in question.channels)
    message = (
        f"the channels {names} did not answer for {settings.build.silence:.0f} s (`build.silence`)"
    )
    return IndexUnreachableError(message, channel=", ".join(question.channels))
