"""The program that solves conda packages: conda-lock, with rattler or another solver in it.

Its request is what `envd.lock.conda.solve` makes; the answer is the packages by platform.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import rattler
from rattler.exceptions import GatewayError, InvalidMatchSpecError, SolverError

from envd.errors import EnvdError, IndexUnreachableError, NotLockedOfflineError, SolveFailedError
from envd.lock import conda_executable, conda_lock_api, conda_repodata
from envd.lock.conda import CondaQuestion
from envd.lock.conda_explanation import Explanation, cut, explain
from envd.lock.conda_lock_api import Action, Virtual
from envd.lock.rattler_program import advice_on, answer, machine_fault
from envd.secrets import without_token
from envd.spec.conda_package import CondaPackage
from envd.spec.mirrors import Mirrors, channel_url

_MOST_VERSIONS = 5


def solve(request: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the packages that are asked for, by platform."""
    question = CondaQuestion(**request["question"])
    mirrors = Mirrors.from_document(request["mirrors"])
    tempfile.tempdir = request["scratch"]
    places = conda_repodata.places(question, mirrors, request["silence_s"])
    solver: Callable[[str, Virtual], list[CondaPackage]]
    if request["exe"]:
        solver = partial(conda_executable.solve, request["exe"], question, places)
    else:
        solver = _Resolver(question, places, Path(request["cache"])).solve
    virtual = conda_lock_api.virtual_packages(str(rattler.Subdir.current()), _detected())
    found: dict[str, list[CondaPackage]] = {}

    def actions(platform: str) -> list[Action]:
        found[platform] = solver(platform, virtual)
        return [conda_lock_api.action(one) for one in found[platform]]

    conda_lock_api.lock(question, actions, virtual)
    return {platform: [asdict(one) for one in packages] for platform, packages in found.items()}


def _detected() -> dict[str, str]:
    """Return the virtual packages of this machine, as `CONDA_OVERRIDE_...` would have them."""
    overrides = rattler.VirtualPackageOverrides.from_env()
    found = [one.into_generic() for one in rattler.VirtualPackage.detect(overrides)]
    return {one.name.normalized: f"{one.version} {one.build_string}" for one in found}


class _Resolver:
    """Solves with rattler, for one platform after the other."""

    def __init__(
        self, question: CondaQuestion, places: Mapping[str, Sequence[str]], cache: Path
    ) -> None:
        self._question = question
        self._places = places
        self._asked = {one: _match_spec(one) for one in question.packages}
        self._names = sorted({_name(one) for one in self._asked.values()})
        self._channels = [rattler.Channel(channel_url(one)) for one in question.channels]
        self._gateway = rattler.Gateway(
            cache_dir=cache,
            client=conda_repodata.reader(places),
            default_config=rattler.SourceConfig(
                cache_action="force-cache-only" if question.offline else "cache-or-fetch"
            ),
        )

    def solve(self, platform: str, virtual: Virtual) -> list[CondaPackage]:
        """Return the packages for *platform*, which has the *virtual* ones."""
        try:
            return [_package(one) for one in asyncio.run(self._solve(platform, virtual))]
        except SolverError as error:
            has = {name: version for name, version, _ in conda_lock_api.of(virtual, platform)}
            raise self._unsolvable(platform, str(error), has) from error
        except GatewayError as error:
            raise self._unread(str(error)) from error

    async def _solve(self, platform: str, virtual: Virtual) -> list[rattler.RepoDataRecord]:
        return await rattler.solve(
            self._channels,
            # Of a package that is asked for, rattler loads what fits, and would take it from
            # any channel; only with all of it, it knows which channel has it first.
            [*self._asked.values(), *self._names],
            gateway=self._gateway,
            platforms=[platform, "noarch"],  # type: ignore[list-item]
            virtual_packages=[_virtual(*one) for one in conda_lock_api.of(virtual, platform)],
            exclude_newer=_last_moment(self._question.moment),
            # Dates, those of builds, came with conda-build 3 in 2017 (conda/conda#5017): what
            # has none is older, or of a channel that dates nothing and would be left empty.
            timestamp_policy="allow-missing",
            # A channel could lead to others, which nobody has allowed.
            channel_relations="disabled",
        )

    def _unsolvable(self, platform: str, drawing: str, has: dict[str, str]) -> EnvdError:
        why = asyncio.run(self._missing(platform)) or explain(drawing, has)
        of = f" as of {self._question.day}" if self._question.moment else ""
        message = (
            f"no set of conda packages{of} satisfies what is asked for on {platform}: {why.text}"
        )
        return SolveFailedError(message, packages=", ".join(why.names), platform=platform)

    async def _missing(self, platform: str) -> Explanation | None:
        """Say which of the packages that are asked for no channel has."""
        try:
            found = await self._gateway.query(
                self._channels,
                [platform, "noarch"],  # type: ignore[list-item]
                self._names,
                recursive=False,
                channel_relations="disabled",
            )
        except GatewayError:
            return None
        records = [one for part in found for one in part]
        missing = {
            text: [one for one in records if one.name.normalized == _name(spec)]
            for text, spec in self._asked.items()
            # What begins so is of the machine, and no channel has it.
            if not text.startswith("__") and not any(spec.matches(one) for one in records)
        }
        if not missing:
            return None
        where = ", ".join(self._question.channels)
        said = [f"`{text}`{_instead(self._asked[text], there)}" for text, there in missing.items()]
        names = sorted({_name(self._asked[text]) for text in missing})
        return Explanation(cut(f"there is no {', no '.join(said)} in {where}"), tuple(names))

    def _unread(self, text: str) -> EnvdError:
        """Return what it means that a channel could not be read."""
        if fault := machine_fault(text):
            return fault
        shown = cut(without_token(text.replace("\nCaused by", "")))
        named = [one for one in self._question.channels if self._is_in(one, shown)]
        channel = max(named, key=len, default="") or ", ".join(
            dict.fromkeys(self._question.channels)
        )
        if self._question.offline:
            message = (
                f"envd is offline (`index.offline`), and the channel `{channel}` is not cached, or "
                f"not as far as needed: {shown}"
            )
            return NotLockedOfflineError(message, channel=channel)
        message = f"the channel `{channel}` cannot be read: {shown}{advice_on(text)}"
        return IndexUnreachableError(message, channel=channel)

    def _is_in(self, channel: str, text: str) -> bool:
        """Whether *text* names the URL of *channel*, or one that it is fetched from."""
        url = channel_url(channel)
        places = (one for of, each in self._places.items() if of.startswith(url) for one in each)
        return url in text or any(without_token(one) in text for one in places)


def _match_spec(text: str) -> rattler.MatchSpec:
    try:
        return rattler.MatchSpec(text, strict=True)
    except InvalidMatchSpecError as error:
        message = f"`{text}` does not say which conda package is meant: {error}"
        raise SolveFailedError(message, packages=text) from error


def _name(spec: rattler.MatchSpec) -> str:
    return spec.name.normalized


def _virtual(name: str, version: str, build: str) -> rattler.GenericVirtualPackage:
    return rattler.GenericVirtualPackage(
        rattler.PackageName(name), rattler.Version(version), rattler.BuildString(build)
    )


def _last_moment(moment: str) -> dt.datetime | None:
    """Return the last moment before *moment*: rattler takes what is of that one as well."""
    if not moment:
        return None
    return dt.datetime.fromisoformat(moment).astimezone(dt.UTC) - dt.timedelta(milliseconds=1)


def _instead(asked: rattler.MatchSpec, records: Iterable[rattler.RepoDataRecord]) -> str:
    """Say what there is instead of what was *asked* for, the newest of it."""
    by_build = asked.build is not None or asked.build_number is not None
    found = sorted({(one.version, one.build_number, str(one.build)) for one in records})
    names = list(dict.fromkeys(
        f"{version} {build}" if by_build else str(version) for version, _, build in found
    ))  # fmt: skip
    if not names:
        return ""
    shown = ", ".join(names[-_MOST_VERSIONS:])
    return f" (there is {'... ' if len(names) > _MOST_VERSIONS else ''}{shown})"


def _package(record: rattler.RepoDataRecord) -> CondaPackage:
    if record.sha256 is None:
        name = record.name.normalized
        message = f"the channel of `{record.url}` has no sha256 of it; take `{name}` from another"
        raise SolveFailedError(message, packages=name)
    noarch = record.noarch
    return CondaPackage(
        name=record.name.normalized,
        version=str(record.version),
        build=str(record.build),
        build_number=record.build_number,
        subdir=record.subdir,
        url=record.url,
        sha256=record.sha256.hex(),
        md5=record.md5.hex() if record.md5 else "",
        size=record.size or 0,
        noarch="python" if noarch.python else "generic" if noarch.generic else "",
        depends=tuple(record.depends),
        constrains=tuple(record.constrains),
        site_packages=record.python_site_packages_path or "",
    )


if __name__ == "__main__":
    answer(solve)
