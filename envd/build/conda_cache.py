"""The unpacked conda packages of one root, whose files its environments share.

    pkgs/<name>-<version>-<build>-<digits>/   a package: its files, and in `info` what rattler
                                              reads and the seal of it all (`envd.seals`)

An environment's file is the package's: whoever writes into one changes the other, and all
environments to come. rattler, told to validate packages in full, takes for good a link that
leads elsewhere, a permission that is lost, and a lost `info/link.json`, which costs the
package its commands. The seal covers every file, name, permission and link.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from envd import held, seals
from envd.errors import InstallFailedError
from envd.seals import Look
from envd.spec.conda_package import CondaPackage

_AT_ONCE = 2
# How each package stands, and when it was right as it does; None if that is unknown.
Looks: TypeAlias = "dict[CondaPackage, tuple[Look | None, float | None]]"


@dataclass(frozen=True, slots=True)
class PackageCache:
    """The unpacked packages below *root*."""

    root: Path

    @property
    def packages(self) -> Path:
        """Where they lie."""
        return self.root / "cache" / "conda" / "pkgs"

    def path(self, package: CondaPackage) -> Path:
        """Return where *package* lies, or would.

        Raises:
            InstallFailedError: its name leads elsewhere.
        """
        if "/" in package.stem or package.stem.startswith("."):
            message = f"`{package.stem}` is no name of a conda package"
            raise InstallFailedError(message, package=package.stem)
        return self.packages / package.cached_as

    def has(self, package: CondaPackage) -> bool:
        """Whether *package* is there; its files are not looked at."""
        return seals.sealed(self.path(package)) == package.sha256

    def distrust(self, package: CondaPackage) -> None:
        """Let the cache not have *package* until it is put there again; its files stay."""
        seals.remove(self.path(package))

    def is_intact(self, package: CondaPackage) -> bool:
        """Whether *package* is there, with nothing changed since it was unpacked; reads it all."""
        return self.has(package) and seals.is_whole(self.path(package))

    def looks(self, packages: Iterable[CondaPackage]) -> Looks:
        """Return how each of *packages* stands, and when it was right as it does."""
        return {one: self._look(one) for one in packages}

    def _look(self, package: CondaPackage) -> tuple[Look | None, float | None]:
        path = self.path(package)
        found = seals.look(path)
        return found, seals.read_at(path, found) if self.has(package) else None

    def read(self, looks: Looks) -> Looks:
        """Return *looks* after reading every file of what was not known to be right."""
        # The largest first, so that none is left to a single thread at the end.
        unknown = sorted((one for one, look in looks.items() if not look[1]),
                         key=lambda one: -one.size)  # fmt: skip
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            are_intact = dict(zip(unknown, threads.map(self.is_intact, unknown), strict=True))
        now = time.time()
        return looks | {one: (looks[one][0], now if are_intact[one] else None) for one in unknown}

    def see(self, looks: Looks) -> None:
        """Keep *looks*, after links have been made of all: nothing else may have changed."""
        for one, (before, moment) in looks.items():
            if moment:
                seals.see(self.path(one), before, moment)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Let no package go or be replaced meanwhile."""
        with self._locked(fcntl.LOCK_SH):
            yield

    def lay_out(self, packages: Iterable[CondaPackage], folder: Path) -> None:
        """Fill *folder* with links to *packages*, by the names that rattler looks for.

        Raises:
            InstallFailedError: the name of one leads elsewhere.
        """
        for one in packages:
            path = self.path(one)
            (folder / one.stem).symlink_to(path)

    def put(self, unpacked: Path, package: CondaPackage) -> None:
        """Seal *unpacked*, and let it be *package* from now on.

        What was there in its place ends beside *unpacked*.

        Raises:
            OSError: it could not be written.
        """
        path = self.path(package)
        seals.seal(unpacked, package.sha256)
        self.packages.mkdir(parents=True, exist_ok=True)
        with self._locked(fcntl.LOCK_EX):
            with contextlib.suppress(FileNotFoundError):
                path.rename(unpacked.with_name(f"{unpacked.name}.replaced"))
            unpacked.rename(path)

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        descriptor = held.open_file(self.root / "held" / "conda-cache")
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)
