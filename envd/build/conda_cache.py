"""The unpacked conda packages of one root, whose files its environments share.

    pkgs/<name>-<version>-<build>-<digits>/   a package: its files, in `info` what rattler reads
    pkgs/<name>-.../info/envd-seal            the SHA-256 of its archive, and of all in that

An environment's file is the package's: whoever writes into one changes the other, and all
environments to come. rattler, told to validate packages in full, takes for good a link that
leads elsewhere, a permission that is lost, and a lost `info/link.json`, which costs the
package its commands. The seal covers every file, name, permission and link.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from envd import held
from envd.errors import InstallFailedError
from envd.spec.conda_package import CondaPackage

_SEAL = "info/envd-seal"
_AT_ONCE = 2


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
        return _seal_of(self.path(package)).startswith(package.sha256)

    def distrust(self, package: CondaPackage) -> None:
        """Let the cache not have *package* until it is put there again; its files stay."""
        with contextlib.suppress(OSError):
            (self.path(package) / _SEAL).unlink()

    def is_intact(self, package: CondaPackage) -> bool:
        """Whether *package* is there, with nothing changed since it was unpacked."""
        path = self.path(package)
        with contextlib.suppress(OSError):
            return self.has(package) and _seal_of(path) == _seal(path, package.sha256)
        return False

    def damaged(self, packages: Sequence[CondaPackage]) -> list[CondaPackage]:
        """Return those of *packages* that are not intact; reads every file of them."""
        # The largest first, so that none is left to a single thread at the end.
        largest = sorted(packages, key=lambda one: -one.size)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = zip(largest, threads.map(self.is_intact, largest), strict=True)
            return [one for one, is_intact in found if not is_intact]

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
        (unpacked / _SEAL).write_text(_seal(unpacked, package.sha256))
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


def _seal_of(path: Path) -> str:
    try:
        return (path / _SEAL).read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _seal(path: Path, sha256: str) -> str:
    """Return what seals the package in *path*, unpacked from the archive with that *sha256*."""
    digest = hashlib.sha256()
    for name, entry in sorted(_below(str(path), "")):
        if name != _SEAL:
            mode = entry.stat(follow_symlinks=False).st_mode
            digest.update(os.fsencode(f"{name}\0{mode:o}\0"))
            digest.update(_content(entry.path, mode))
    return f"{sha256} {digest.hexdigest()}\n"


def _below(folder: str, above: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as found:
        for entry in found:
            yield f"{above}{entry.name}", entry
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, f"{above}{entry.name}/")


def _content(path: str, mode: int) -> bytes:
    """Return as many bytes for every file: what stands in it, or where a link leads."""
    if stat.S_ISLNK(mode):
        return hashlib.sha256(os.fsencode(os.readlink(path))).digest()  # noqa: PTH115
    if not stat.S_ISREG(mode):
        return hashlib.sha256().digest()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").digest()
