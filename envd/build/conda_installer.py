"""The program that installs conda packages: links what is in the cache into a new prefix.

Its request is what `envd.build.conda` makes. It never uses the network.
"""

from __future__ import annotations

import os

from envd.answering import answer, machine_fault
from envd.native import finished, load

# Importing typing takes as long as json.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

native = load()


class _Record:
    """What rattler looks for its own record in."""

    def __init__(self, package: dict[str, Any]) -> None:
        """Describe *package*, a `CondaPackage` as JSON has it."""
        url, subdir, version = package["url"], package["subdir"], package["version"]
        channel, _, name = url.rpartition(f"/{subdir}/")
        processor, system = _platform(subdir)
        record = native.PyRecord.create(
            name=native.PyPackageName(package["name"]),
            version=(native.PyVersion(version), version),
            build=native.PyBuildString(package["build"]),
            build_number=package["build_number"],
            subdir=subdir,
            arch=processor,
            platform=system,
            noarch=getattr(native.PyNoArchType, package["noarch"] or "none")(),
            python_site_packages_path=package["site_packages"] or None,
        )
        record.depends, record.constrains = package["depends"], package["constrains"]
        record.sha256 = bytes.fromhex(package["sha256"])
        if package["md5"]:
            record.md5 = bytes.fromhex(package["md5"])
        if package["size"]:
            record.size = package["size"]
        self._record = native.PyRecord.create_repodata_record(record, name, url, channel)


def _platform(subdir: str) -> tuple[str | None, str | None]:
    """Return the processor and the system that *subdir* is for, as a record has them."""
    try:
        found = native.PySubdir(subdir)
    except native.ParseSubdirError:
        return None, None
    processor = found.arch()
    return processor and processor.as_str(), found.only_platform


def install(request: dict[str, Any]) -> None:
    """Link the packages of *request* into its prefix.

    Raises:
        InstallFailedError: one of them cannot be linked, or is not in the cache.
        CacheFullError: the disk is full.
    """
    try:
        finished(lambda: _installing(request))
    except native.InstallerError as error:
        raise _failure(str(error)) from error


def _failure(said: str) -> Exception:
    from envd.errors import InstallFailedError  # noqa: PLC0415

    why = said.replace(".\nCaused by", "").replace("\nCaused by", "")
    message = f"the conda packages could not be installed: {why}"
    return machine_fault(said) or InstallFailedError(message)


def _installing(request: dict[str, Any]) -> object:
    # How the packages stand is looked at before links are made: it ends when that is over.
    os.read(request["go"], 1)
    # Every package is in the cache: who asks for one gets none, as all mirrors are dead.
    nowhere = native.PyMirrorMiddleware({origin: [] for origin in request["origins"]})
    # What is in the cache is looked at meanwhile, and more closely than rattler does.
    unchecked = native.PyValidationMode.skip()
    config, _ = native.PyConfig.from_toml(request["links"])
    return native.py_install(
        records=[_Record(one) for one in request["packages"]],
        target_prefix=request["prefix"],
        installed_packages=[],
        client=native.PyClientWithMiddleware([nowhere]),
        execute_link_scripts=False,
        config=config,
        package_cache=native.PyPackageCache.new_layered(
            [request["cache"]], validation_mode=unchecked
        ),
    )


if __name__ == "__main__":
    answer(install)
