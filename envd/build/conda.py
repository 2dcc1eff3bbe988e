"""Installs conda packages into a new prefix.

What is not in the cache is fetched first, each archive by one build at a time: nothing is
fetched twice, and who needs another archive waits for none of that.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

from envd.build.claims import Claims
from envd.build.conda_activation import variables
from envd.build.conda_cache import Looks, PackageCache
from envd.errors import (
    BuildTimedOutError,
    IndexUnreachableError,
    InstallFailedError,
    SettingsInvalidError,
)
from envd.events import Line, OnEvent, Progress
from envd.lock.rattler import Rattler
from envd.scratch import scratch
from envd.secrets import without_token
from envd.spec import channels
from envd.spec.conda_package import CondaPackage
from envd.spec.mirrors import Mirrors

__all__ = ["install", "python_of", "variables"]

_FETCHER = "envd.build.conda_fetcher"
_INSTALLER = "envd.build.conda_installer"
_ROUNDS = 3
_MOST_NAMES = 5
_POLL_S = 0.05
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
        _complete(packages, cache, rattler, on_event)
        damaged = _link(packages, prefix, links, cache, rattler, on_event)
        if not damaged:
            for one in packages:
                on_event(Line(f" + {one.name} {one.version} {one.build} ({_channel(one)})"))
            return
        on_event(Line(f"{_names(damaged)} changed in the cache, and comes from its channel again"))
        for one in damaged:
            cache.distrust(one)
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

    How they stand is looked at while another process starts, and what does not stand as it was
    seen is read while that links: one core each.
    """
    settings = rattler.settings
    with cache.in_use(), scratch(settings.root, "conda") as folder, ThreadPoolExecutor(1) as beside:
        cache.lay_out(packages, folder)
        go, gate = os.pipe()
        request = {
            "packages": [asdict(one) for one in packages],
            "prefix": str(prefix),
            "cache": str(folder),
            "origins": sorted({_origin(one.url) for one in packages}),
            "links": links,
            "go": go,
        }
        looking = beside.submit(_looked, cache, packages, gate)
        try:
            rattler.run(_INSTALLER, request, on_event, inherited=[go])
        except InstallFailedError:
            # What is damaged may not be linked at all.
            if not _damaged(looking.result()):
                raise
        finally:
            os.close(go)
        looks = looking.result()
        cache.see(looks)
    return _damaged(looks)


def _looked(cache: PackageCache, packages: Sequence[CondaPackage], gate: int) -> Looks:
    try:
        looks = cache.looks(packages)
    finally:
        os.close(gate)
    return cache.read(looks)


def _damaged(looks: Looks) -> list[CondaPackage]:
    return [one for one, (_, moment) in looks.items() if moment is None]


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/"


def _complete(
    packages: Sequence[CondaPackage], cache: PackageCache, rattler: Rattler, on_event: OnEvent
) -> None:
    """Bring what the *cache* lacks of *packages* into it, or wait for who does that already."""
    is_told = False
    with closing(Claims(rattler.settings.root / "held" / "conda-packages")) as claims:
        while missing := [one for one in packages if not cache.has(one)]:
            _check_online(missing, rattler)
            if own := [one for one in missing if claims.take(one.sha256)]:
                try:
                    # Another may have fetched it meanwhile.
                    wanted = [one for one in own if not cache.has(one)]
                    _fetch(wanted, packages, cache, rattler, claims, on_event)
                finally:
                    for one in own:
                        claims.give_back(one.sha256)
                continue
            if not is_told:
                on_event(Line(f"waiting for another build, which fetches {_names(missing)}"))
                is_told = True
            rattler.check_time()
            time.sleep(_POLL_S)


def _fetch(
    wanted: Sequence[CondaPackage],
    packages: Sequence[CondaPackage],
    cache: PackageCache,
    rattler: Rattler,
    claims: Claims,
    on_event: OnEvent,
) -> None:
    """Bring those of *packages* that are *wanted* into the *cache*."""
    if not wanted:
        return
    telling = _telling(packages, cache, rattler, on_event)
    with scratch(rattler.settings.root, "conda") as folder:
        request = {
            "root": str(cache.root),
            "scratch": str(folder),
            "packages": [asdict(one) for one in wanted],
            "mirrors": asdict(rattler.mirrors),
            "silence_s": telling.limited().silence_s,
        }
        try:
            telling.run(_FETCHER, request, on_event, inherited=[claims.descriptor])
        except BuildTimedOutError as error:
            rattler.check_time()
            left = [one for one in wanted if not cache.has(one)]
            raise _silent(left, rattler.mirrors) from error


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


def _check_online(missing: Sequence[CondaPackage], rattler: Rattler) -> None:
    """See that *missing* may be fetched.

    Raises:
        IndexUnreachableError: they come from the network, which is off.
    """
    remote = [one for one in missing if not one.url.startswith("file:")]
    if remote and rattler.settings.index.offline:
        message = (
            "envd is offline (`index.offline`), and its cache lacks the conda packages "
            f"{_names(remote)}"
        )
        raise IndexUnreachableError(message, packages=_names(remote))


def _silent(missing: Sequence[CondaPackage], mirrors: Mirrors) -> IndexUnreachableError:
    """Return what it means that nothing moved: only downloads are waited for."""
    urls = (url.rsplit("/", 2)[0] for one in missing for url in mirrors.of_url(one.url))
    places = ", ".join(f"`{one}/`" for one in sorted({without_token(url) for url in urls}))
    message = (
        f"the conda packages {_names(missing)} cannot be fetched from {places}: nothing came for "
        "as long as `build.silence` allows"
    )
    return IndexUnreachableError(message, packages=_names(missing), source=places)


def _names(packages: Sequence[CondaPackage]) -> str:
    shown = ", ".join(f"`{one.stem}`" for one in packages[:_MOST_NAMES])
    more = len(packages) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _channel(package: CondaPackage) -> str:
    try:
        return channels.parse(re.sub(r"/[^/]*$", "", package.url)).name
    except ValueError:
        return "a channel"
