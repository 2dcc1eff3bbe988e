"""Installs conda packages into a new prefix.

What is not in the cache is fetched first, by one process at a time: nothing is fetched twice,
and packages of one name that are not the same do not drive each other out. Whoever finds
all it needs waits for no download; rattler's own lock is only held while it links.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

from envd import held
from envd.build.conda_activation import variables
from envd.build.conda_cache import PackageCache
from envd.errors import (
    BuildTimedOutError,
    IndexUnreachableError,
    InstallFailedError,
    SettingsInvalidError,
)
from envd.events import Line, OnEvent, Progress
from envd.held import Owner
from envd.lock.rattler import Rattler
from envd.spec import channels
from envd.spec.conda_package import CondaPackage
from envd.spec.mirrors import mirrors

__all__ = ["install", "python_of", "variables"]

_FETCHER = "envd.build.conda_fetcher"
_INSTALLER = "envd.build.conda_installer"
_ROUNDS = 3
_MOST_NAMES = 5
_HERE = "this machine"
# What rattler may do besides copying, by `build.link_mode`.
_LINKS = {"hardlink": "hard", "clone": "ref", "copy": ""}


def install(
    packages: Sequence[CondaPackage], prefix: Path, rattler: Rattler, on_event: OnEvent
) -> None:
    """Install *packages* and nothing else into the new directory *prefix*.

    While some are fetched, it is told about twice a second how far that is, to whoever waits
    as well. No script of a package is run.

    Raises:
        InstallFailedError: a package could not be installed, or is not the one locked.
        IndexUnreachableError: a package cannot be fetched, or may not be (`index.offline`).
        CacheFullError: the disk is full.
        BuildTimedOutError: it took too long.
        BuildInterruptedError: it was killed.
        SettingsInvalidError: `build.link_mode` or a mirror is none for conda packages.
    """
    links = _links(rattler.settings.build.link_mode)
    cache = PackageCache(rattler.settings.root)
    _check(packages)
    damaged: list[CondaPackage] = []
    for _ in range(_ROUNDS):
        missing = [one for one in packages if one in damaged or not cache.has(one)]
        with contextlib.ExitStack() as stack:
            if missing:
                stack.enter_context(_fetched(missing, packages, cache, rattler, on_event))
            damaged = _link(packages, prefix, links, cache, rattler, on_event)
        if not damaged:
            for one in packages:
                on_event(Line(f" + {one.name} {one.version} {one.build} ({_channel(one)})"))
            return
        on_event(Line(f"{_names(damaged)} changed in the cache, and comes from its channel again"))
        shutil.rmtree(prefix, ignore_errors=True)
    message = f"{_names(damaged)} changes in the cache while it is installed; who writes there?"
    raise InstallFailedError(message, packages=_names(damaged))


def python_of(prefix: Path) -> Path:
    """Return the interpreter of *prefix*, which is a file of its own.

    Raises:
        InstallFailedError: it has none.
    """
    found = (prefix / "bin" / "python").resolve()
    if not found.is_relative_to(prefix.resolve()) or not os.access(found, os.X_OK):
        message = "the conda packages bring no Python; add `python` to the model's conda.yaml"
        raise InstallFailedError(message)
    return found


def _check(packages: Sequence[CondaPackage]) -> None:
    """See that *packages* name no place outside of their prefix."""
    for one in packages:
        if one.site_packages.startswith("/") or ".." in one.site_packages.split("/"):
            message = (
                f"`{one.stem}` has its packages in `{one.site_packages}`, which leads elsewhere"
            )
            raise InstallFailedError(message, package=one.stem)


def _links(mode: str) -> str:
    """Return the configuration by which rattler gets files into a prefix as *mode* says."""
    if mode not in _LINKS:
        message = (
            f"`build.link_mode` = `{mode}` is not for conda environments: a Python that is a link "
            "looks for its packages where that leads; set `hardlink`, `clone` or `copy`"
        )
        raise SettingsInvalidError(message, setting="build.link_mode")
    allowed = (("hard", "hard-links"), ("ref", "ref-links"))
    return "".join(
        f"allow-{name} = {str(kind == _LINKS[mode]).lower()}\n" for kind, name in allowed
    )


def _link(
    packages: Sequence[CondaPackage],
    prefix: Path,
    links: str,
    cache: PackageCache,
    rattler: Rattler,
    on_event: OnEvent,
) -> list[CondaPackage]:
    """Fill *prefix*, and return the packages that are damaged: then it is good for nothing.

    Their files are read while another process starts and links them: one core each.
    """
    request = {
        "packages": [asdict(one) for one in packages],
        "prefix": str(prefix),
        "cache": str(cache.packages),
        "links": links,
    }
    with cache.in_use(), ThreadPoolExecutor(1) as beside:
        looking = beside.submit(cache.damaged, packages)
        try:
            rattler.run(_INSTALLER, request, on_event)
        except InstallFailedError:
            # What is damaged may not be linked at all.
            if not looking.result():
                raise
        return looking.result()


@contextlib.contextmanager
def _fetched(
    wanted: Sequence[CondaPackage],
    packages: Sequence[CondaPackage],
    cache: PackageCache,
    rattler: Rattler,
    on_event: OnEvent,
) -> Iterator[None]:
    """Have *wanted* of *packages* in the *cache*; nobody else fetches anything meanwhile."""
    waits: list[str] = []

    def wait(owner: Owner | None) -> None:
        rattler.check_time()
        if not waits:
            waits.append(f"pid {owner.pid}" if owner else "another")
            on_event(Line(f"waiting for {waits[0]}, which fetches conda packages"))

    path = rattler.settings.root / "held" / "conda-packages"
    with held.exclusively(path, wait, within=rattler.held) as holder:
        # Another may have fetched it meanwhile.
        if missing := [one for one in wanted if not cache.is_intact(one)]:
            telling = _telling(packages, cache, rattler, on_event)
            _fetch(missing, cache, telling.within(holder), on_event)
        yield


def _fetch(
    missing: Sequence[CondaPackage], cache: PackageCache, rattler: Rattler, on_event: OnEvent
) -> None:
    sources = _sources(missing, rattler)
    request = {
        "root": str(cache.root),
        "packages": [(asdict(one), sources[one]) for one in missing],
        "mirrors": mirrors(rattler.settings.conda),
    }
    try:
        with cache.unpacking():
            rattler.run(_FETCHER, request, on_event)
    except BuildTimedOutError as error:
        rattler.check_time()
        raise _silent([one for one in missing if not cache.has(one)], sources) from error


def _telling(
    packages: Sequence[CondaPackage], cache: PackageCache, rattler: Rattler, on_event: OnEvent
) -> Rattler:
    """Return *rattler* that tells how many of *packages* are in *cache* while it runs."""
    limits = rattler.limited()

    def watch(size: int) -> None:
        limits.watch(size)
        progress = Progress(sum(map(cache.has, packages)), len(packages), size)
        if rattler.held:
            rattler.held.tell(progress)
        on_event(progress)

    return replace(rattler, limits=replace(limits, watch=watch))


def _sources(missing: Sequence[CondaPackage], rattler: Rattler) -> dict[CondaPackage, str]:
    """Return where each of *missing* comes from, as it may be shown.

    Raises:
        IndexUnreachableError: that is the network, which is off.
    """
    remote = [one for one in missing if not one.url.startswith("file:")]
    if remote and rattler.settings.index.offline:
        message = (
            "envd is offline (`index.offline`), and its cache lacks the conda packages "
            f"{_names(remote)}"
        )
        raise IndexUnreachableError(message, packages=_names(remote))
    by_channel = mirrors(rattler.settings.conda)
    return {one: _source(one.url, by_channel) for one in missing}


def _source(url: str, by_channel: dict[str, list[str]]) -> str:
    fits = max((one for one in by_channel if url.startswith(one)), key=len, default="")
    hosts = (urlsplit(one).netloc.rpartition("@")[2] for one in by_channel.get(fits, [url]))
    return " or ".join(f"`{one}`" if one else _HERE for one in hosts)


def _silent(
    missing: Sequence[CondaPackage], sources: dict[CondaPackage, str]
) -> IndexUnreachableError:
    """Return what it means that nothing moved: only downloads are waited for."""
    hosts = ", ".join(sorted({sources[one] for one in missing}))
    message = (
        f"the conda packages {_names(missing)} cannot be fetched from {hosts}: nothing came for as "
        "long as `build.silence` allows"
    )
    return IndexUnreachableError(message, packages=_names(missing), source=hosts)


def _names(packages: Sequence[CondaPackage]) -> str:
    shown = ", ".join(f"`{one.stem}`" for one in packages[:_MOST_NAMES])
    more = len(packages) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _channel(package: CondaPackage) -> str:
    try:
        return channels.parse(re.sub(r"/[^/]*$", "", package.url)).name
    except ValueError:
        return "a channel"
