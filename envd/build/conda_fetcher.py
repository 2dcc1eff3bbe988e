"""The program that fetches conda packages: downloads, checks, unpacks and seals them.

Its request is what `envd.build.conda` makes of the packages that are not in the cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import rattler.exceptions
from rattler.networking import Client
from rattler.package import PathsJson
from rattler.package_streaming import download_and_extract, download_to_path

from envd.build.conda_cache import PackageCache
from envd.errors import IndexUnreachableError, InstallFailedError
from envd.lock.rattler_program import answer, client, machine_fault
from envd.spec.conda_package import CondaPackage, conda_package

_AT_ONCE = 16
_TRIES = 4
_PAUSE_S = 0.25
_STATUS = re.compile(r"HTTP status \w+ error \((\d+[^)]*)\)")
_BROKEN_OFF = "error decoding response body"


def fetch(request: dict[str, Any]) -> None:
    """Bring all packages of *request* into the cache; those that were fetched stay there.

    Raises:
        IndexUnreachableError: one of them cannot be had.
        InstallFailedError: one of them is not what was locked, or cannot be unpacked.
        CacheFullError, OSError: the disk is full, for one.
    """
    packages = [(conda_package(one), source) for one, source in request["packages"]]
    cache = PackageCache(Path(request["root"]))
    found = client(request["mirrors"], (one.url for one, _ in packages))
    asyncio.run(_fetch_all(packages, _Fetcher(cache, found)))


async def _fetch_all(packages: Iterable[tuple[CondaPackage, str]], fetcher: _Fetcher) -> None:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def fetch_one(package: CondaPackage, source: str) -> None:
        async with slots:
            await fetcher.fetch(package, source)

    await asyncio.gather(*(fetch_one(*one) for one in packages))


@dataclass(frozen=True, slots=True)
class _Fetcher:
    cache: PackageCache
    client: Client

    async def fetch(self, package: CondaPackage, source: str) -> None:
        """Bring *package* into the cache from *source*, which is what to call that."""
        suffix = ".tar.bz2" if package.url.endswith(".tar.bz2") else ".conda"
        archive = self.cache.fetching / f"{package.stem}{suffix}"
        unpacked = self.cache.fetching / package.stem
        await self._download(package, source, archive)
        # Before it is unpacked: rattler checks nothing by itself.
        await asyncio.to_thread(_check_content, package, source, archive)
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

    async def _download(self, package: CondaPackage, source: str, archive: Path) -> None:
        try:
            if package.url.startswith("file:"):
                path = unquote(urlsplit(package.url).path)
                await asyncio.to_thread(shutil.copyfile, path, archive)
            else:
                await self._download_in_tries(package.url, archive)
        except (FileNotFoundError, RuntimeError) as error:
            raise _unreachable(package, source, _why(str(error))) from error
        except OSError as error:
            if _BROKEN_OFF not in str(error):
                raise machine_fault(str(error)) or error from error
            raise _unreachable(package, source, "the connection broke off") from error

    async def _download_in_tries(self, url: str, archive: Path) -> None:
        """Download *url*; an answer that breaks off is asked for again, as what is none was."""
        for done in range(1, _TRIES):
            try:
                return await download_to_path(self.client, url, archive)
            except OSError as error:
                if _BROKEN_OFF not in str(error):
                    raise
            await asyncio.sleep(_PAUSE_S * done)
        return await download_to_path(self.client, url, archive)


def _why(said: str) -> str:
    """Return why there is no archive by what rattler *said*, without its URL."""
    if found := _STATUS.search(said):
        advice = "; is it in `conda.auth_file`?" if found[1].startswith(("401", "403")) else ""
        return f"it answers {found[1]}{advice}"
    return "it is not there" if "No such file" in said else "it does not answer"


def _unreachable(package: CondaPackage, source: str, why: str) -> IndexUnreachableError:
    message = f"the conda package `{package.stem}` cannot be fetched from {source}: {why}"
    return IndexUnreachableError(message, package=package.stem, source=source)


def _check_content(package: CondaPackage, source: str, archive: Path) -> None:
    """See that *archive* is that which was locked."""
    with archive.open("rb", buffering=0) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != package.sha256:
        message = (
            f"the archive of the conda package `{package.stem}` from {source} is not the one that "
            f"was locked: its SHA-256 is {sha256}, and {package.sha256} is expected; somebody has "
            "changed it there, so have it put right, or lock anew with `envctl lock --upgrade`"
        )
        raise InstallFailedError(
            message, package=package.stem, source=source, sha256=sha256, expected=package.sha256
        )


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
