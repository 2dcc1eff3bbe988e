"""The program that installs conda packages: links what is in the cache into a new prefix.

Its request is what `envd.build.conda` makes. It never uses the network.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import urlsplit

import rattler
from rattler.exceptions import InstallerError
from rattler.networking import Client, MirrorMiddleware
from rattler.package_cache import PackageCache, ValidationMode

from envd.answering import answer, machine_fault
from envd.errors import InstallFailedError

_NOARCH = {
    "": rattler.NoArchType(None),
    "generic": rattler.NoArchType("generic"),
    "python": rattler.NoArchType("python"),
}


def install(request: dict[str, Any]) -> None:
    """Link the packages of *request* into its prefix.

    Raises:
        InstallFailedError: one of them cannot be linked, or is not in the cache.
        CacheFullError: the disk is full.
    """
    try:
        asyncio.run(_install(request))
    except InstallerError as error:
        said = str(error)
        if fault := machine_fault(said):
            raise fault from error
        why = re.sub(r"\.?\nCaused by", "", said)
        message = f"the conda packages could not be installed: {why}"
        raise InstallFailedError(message) from error


async def _install(request: dict[str, Any]) -> None:
    packages = request["packages"]
    # Every package is in the cache: who asks for one gets none, as all mirrors are dead.
    nowhere = MirrorMiddleware({_origin(one["url"]): [] for one in packages})
    # What is in the cache is looked at meanwhile, and more closely than rattler does.
    cache = PackageCache.new_layered([request["cache"]], validation_mode=ValidationMode.skip())
    await rattler.install(
        [_record(one) for one in packages],
        request["prefix"],
        installed_packages=[],
        client=Client([nowhere]),
        execute_link_scripts=False,
        show_progress=False,
        config=rattler.Config.from_toml(request["links"]),
        package_cache=cache,
    )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/"


def _record(package: dict[str, Any]) -> rattler.RepoDataRecord:
    """Return what rattler calls the *package*, a `CondaPackage` as JSON has it."""
    url, subdir = package["url"], package["subdir"]
    channel, _, name = url.rpartition(f"/{subdir}/")
    record = rattler.PackageRecord(
        name=package["name"],
        version=package["version"],
        build=rattler.BuildString(package["build"]),
        build_number=package["build_number"],
        subdir=subdir,
        noarch=_NOARCH[package["noarch"]],
        depends=package["depends"],
        constrains=package["constrains"],
        sha256=bytes.fromhex(package["sha256"]),
        md5=bytes.fromhex(package["md5"]) or None,
        size=package["size"] or None,
        python_site_packages_path=package["site_packages"] or None,
    )
    return rattler.RepoDataRecord(record, name, url, channel)


if __name__ == "__main__":
    answer(install)
