"""The program that fetches conda packages: downloads, checks, unpacks and seals them.

Its request is what `envd.build.conda` makes of the packages that are not in the cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import rattler.exceptions
from rattler.networking import AuthenticationMiddleware, Client
from rattler.package import PathsJson
from rattler.package_streaming import download_and_extract, download_to_path

from envd.build.conda_cache import PackageCache
from envd.errors import IndexUnreachableError, InstallFailedError
from envd.lock.rattler_program import (
    Failure,
    Reached,
    answer,
    client,
    failure_of,
    first_of,
    machine_fault,
    patience,
)
from envd.secrets import without_token
from envd.spec.conda_package import CondaPackage, conda_package
from envd.spec.mirrors import Mirrors

_AT_ONCE = 16
_BROKEN_OFF = "error decoding response body"


def fetch(request: dict[str, Any]) -> None:
    """Bring all packages of *request* into the cache; those that were fetched stay there.

    Raises:
        IndexUnreachableError: one of them cannot be had.
        InstallFailedError: one of them is not what was locked, or cannot be unpacked.
        SettingsInvalidError: there are credentials that cannot be read.
        CacheFullError, OSError: the disk is full, for one.
    """
    fetcher = _Fetcher(
        PackageCache(Path(request["root"])),
        Path(request["scratch"]),
        Mirrors.from_document(request["mirrors"]),
        client(AuthenticationMiddleware()),
        request["silence_s"],
    )
    asyncio.run(_fetch_all(map(conda_package, request["packages"]), fetcher))


async def _fetch_all(packages: Iterable[CondaPackage], fetcher: _Fetcher) -> None:
    # Others wait for what is fetched here, and without envd nothing would end it.
    parent = os.pidfd_open(os.getppid())
    asyncio.get_running_loop().add_reader(parent, os._exit, 1)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def fetch_one(package: CondaPackage) -> None:
        async with slots:
            await fetcher.fetch(package)

    await asyncio.gather(*map(fetch_one, packages))


@dataclass(frozen=True, slots=True)
class _Fetcher:
    """What fetches packages; `slow` are the places from which nothing has come for long."""

    cache: PackageCache
    folder: Path
    mirrors: Mirrors
    client: Client
    silence_s: float
    slow: set[str] = field(default_factory=set)

    async def fetch(self, package: CondaPackage) -> None:
        """Bring *package* into the cache."""
        suffix = ".tar.bz2" if package.url.endswith(".tar.bz2") else ".conda"
        archive = self.folder / f"{package.cached_as}{suffix}"
        unpacked = self.folder / package.cached_as
        await self._download(package, archive)
        try:
            await download_and_extract(self.client, archive.as_uri(), unpacked)
        except OSError as error:
            message = f"the archive of `{package.stem}` cannot be unpacked: {error}"
            raise machine_fault(str(error)) or InstallFailedError(
                message, package=package.stem
            ) from error
        archive.unlink()
        _check_paths(package, unpacked)
        await asyncio.to_thread(self.cache.put, unpacked, package)

    async def _download(self, package: CondaPackage, archive: Path) -> None:
        """Make *archive* that of *package*, from the first place that has it."""
        file = "/".join(package.url.rsplit("/", 2)[1:])
        places = [one.removesuffix(file) for one in self.mirrors.of_url(package.url)]
        places.sort(key=self.slow.__contains__)

        async def attempt(place: str) -> Failure | None:
            coming = asyncio.ensure_future(self._transfer(f"{place}{file}", archive))
            patience_s = patience(place, places, self.silence_s)
            if await _stalls(coming, archive, patience_s):
                self.slow.add(place)
                return Failure(f"sends nothing for {patience_s:.0f} s")
            # Before it is unpacked: rattler checks nothing by itself.
            return coming.result() or await asyncio.to_thread(_wrong, package, place, archive)

        found = await first_of(places, attempt)
        if not found.place:
            wrong = [one.error for one in found.failures.values() if one.error]
            raise wrong[0] if wrong else _unreachable(package, found)

    async def _transfer(self, url: str, archive: Path) -> Failure | None:
        try:
            if url.startswith("file:"):
                await asyncio.to_thread(shutil.copyfile, unquote(urlsplit(url).path), archive)
            else:
                await download_to_path(self.client, url, archive)
        except FileNotFoundError:
            return Failure("does not have it")
        except RuntimeError as error:
            return failure_of(str(error))
        except OSError as error:
            if _BROKEN_OFF not in str(error):
                raise machine_fault(str(error)) or error from error
            return Failure("breaks off the connection", may_pass=True)
        return None


async def _stalls(coming: asyncio.Future[Any], archive: Path, patience_s: float) -> bool:
    """Wait for *coming*; end it, and say so, if *archive* does not grow for *patience_s*."""
    size = -1
    while not coming.done():
        before, size = size, _size(archive)
        if before == size:
            coming.cancel()
            return True
        await asyncio.wait({coming}, timeout=patience_s)
    return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(package: CondaPackage, found: Reached) -> IndexUnreachableError:
    message = f"the conda package `{package.stem}` cannot be fetched: {found.text}"
    source = ", ".join(map(without_token, found.failures))
    return IndexUnreachableError(message, package=package.stem, source=source)


def _wrong(package: CondaPackage, place: str, archive: Path) -> Failure | None:
    """Return what is wrong with *archive*, if it is not the one that was locked."""
    with archive.open("rb", buffering=0) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 == package.sha256:
        return None
    source = without_token(place)
    message = (
        f"the archive of the conda package `{package.stem}` from `{source}` is not the one that "
        f"was locked: its SHA-256 is {sha256}, and {package.sha256} is expected; somebody has "
        "changed it there, so have it put right, or lock anew with `envctl lock --upgrade`"
    )
    # Worth knowing, too, where another place has the right one.
    sys.stdout.write(f"{message}\n")
    error = InstallFailedError(
        message, package=package.stem, source=source, sha256=sha256, expected=package.sha256
    )
    return Failure("has another archive", error=error)


def _check_paths(package: CondaPackage, unpacked: Path) -> None:
    """See that the files of *package* stay in its environment: rattler does not.

    It wrote `../../victim` where it was told to, and was aborted by `/victim`.
    """
    try:
        found = PathsJson.from_package_directory_with_deprecated_fallback(unpacked).paths
    except rattler.exceptions.IoError as error:
        message = f"the conda package `{package.stem}` does not say which files it has: {error}"
        raise InstallFailedError(message, package=package.stem) from error
    for one in found:
        path = PurePosixPath(one.relative_path)
        if path.is_absolute() or ".." in path.parts:
            message = (
                f"the conda package `{package.stem}` has a file outside of its environment, "
                f"`{path}`; it is not installed"
            )
            raise InstallFailedError(message, package=package.stem)


if __name__ == "__main__":
    answer(fetch)
