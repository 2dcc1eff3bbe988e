"""Keeps the bytecode that importing wrote, per artifact, and puts it into new environments.

Importing mlflow for the first time compiles 1,200 files and takes seconds, in every
environment anew; linking the compiled files of an artifact that was imported before takes
milliseconds, and no further disk.

    <cache>/<cache tag>/<artifact's sha256>/<path in site-packages>.pyc.<time>-<size>

Time and size are those of the source the bytecode was made from.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from envd import durable
from envd.lock import Artifact, CondaPackage, conda_meta, wheel_records
from envd.spec import Python

# PEP 552: magic, flags, then the source's modification time and size.
_HEADER = struct.Struct("<4sIII")


# By package: each file's place, and what it was compiled from.
Placed = dict[Artifact, list[tuple[str, str]]]


class Bytecode:
    """The kept bytecode of one root, for one kind of Python."""

    def __init__(self, cache: Path, python: Python, link_mode: str) -> None:
        """Keep it below *cache*; *link_mode* is as for packages."""
        self._tag = "-".join(python.abi.split("-")[:2]).rstrip("m")
        self._home = cache / self._tag
        self._link = shutil.copy2 if link_mode == "copy" else os.link

    def place(self, packages: Iterable[Artifact], prefix: Path) -> Placed:
        """Put what is kept of *packages* into *prefix*, whose sources need not be there yet."""
        site = _site(prefix)
        return {
            one: self._place_all(self._home / one.sha256, site)
            for one in packages
            if (self._home / one.sha256).is_dir()
        }

    def fresh(self, packages: Iterable[Artifact], placed: Placed) -> list[Artifact]:
        """Return the packages nothing was kept of, or nothing that fits what is there now."""
        return [one for one in packages if one not in placed or self._misfits(placed[one])]

    def folders(self, packages: Iterable[Artifact], prefix: Path) -> list[Path]:
        """Make the folders that bytecode of *packages* is written into, and return them.

        What is there already of other packages is linked to what other environments have.
        """
        site = _site(prefix)
        found = {
            (site / compiled).parent
            for _, names in self._sources(packages, prefix, site)
            for compiled in names
            if (site / compiled).parent.parent.is_dir()
        }
        for one in found:
            one.mkdir(exist_ok=True)
        return sorted(found)

    def _sources(
        self, packages: Iterable[Artifact], prefix: Path, site: Path
    ) -> Iterator[tuple[Artifact, Iterator[str]]]:
        """Yield each of *packages*, and where the bytecode of its sources goes."""
        records = wheel_records.records(site)
        for one in packages:
            if isinstance(one, CondaPackage):
                yield one, map(self._compiled, _of_conda(one, prefix, site))
            elif record := records.get(one.name):
                yield one, map(self._compiled, _of_wheel(record))

    def keep(self, packages: Iterable[Artifact], prefix: Path, scratch: Path) -> None:
        """Keep the bytecode that *packages* have in *prefix*; it is gathered in *scratch*."""
        site = _site(prefix)
        for one, names in self._sources(packages, prefix, site):
            self._keep(one, site, names, scratch)

    def _place_all(self, home: Path, site: Path) -> list[tuple[str, str]]:
        """Link every kept file, and return where, with what it was compiled from."""
        placed = []
        for folder, _, names in os.walk(home):
            target = site / Path(folder).relative_to(home)
            if names:
                target.mkdir(parents=True, exist_ok=True)
            for name in names:
                compiled, _, source = name.rpartition(".")
                # A wheel may bring the file itself, and another build replace what is kept.
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    self._link(f"{folder}/{name}", f"{target}/{compiled}")
                placed.append((f"{target}/{compiled}", source))
        return placed

    def _misfits(self, placed: Iterable[tuple[str, str]]) -> bool:
        """Take back what Python would not take: it would be compiled again at every start."""
        misfits = [one for one, source in placed if _identity(self._source(one)) != source]
        for one in misfits:
            Path(one).unlink(missing_ok=True)
        return bool(misfits)

    def _source(self, compiled: str) -> str:
        folder, _, name = compiled.rpartition("/__pycache__/")
        return f"{folder}/{name.removesuffix(f'.{self._tag}.pyc')}.py"

    def _compiled(self, source: str) -> str:
        folder, _, file = source.rpartition("/")
        return f"{folder}/__pycache__/{file[:-3]}.{self._tag}.pyc".lstrip("/")

    def _keep(self, package: Artifact, site: Path, names: Iterable[str], scratch: Path) -> None:
        home = self._home / package.sha256
        beside = scratch / package.sha256
        beside.mkdir()
        home.parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            of = _identity(self._source(f"{site}/{name}"))
            # Some wheels bring bytecode of their own, which Python does not take.
            if of and of == _compiled_from(f"{site}/{name}"):
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                self._link(f"{site}/{name}", f"{beside}/{name}.{of}")
        # Another build may have kept the same; either will do.
        durable.remove_tree(home, scratch)
        try:
            beside.rename(home)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)


def _site(prefix: Path) -> Path:
    return next(prefix.glob("lib/python*/site-packages"))


def _of_wheel(record: Path) -> Iterator[str]:
    """Yield the sources of a distribution, by its RECORD, below site-packages."""
    for name in wheel_records.files(record):
        if name.endswith(".py") and not name.startswith(("/", "..")):
            yield name


def _of_conda(package: CondaPackage, prefix: Path, site: Path) -> Iterator[str]:
    """Yield the sources of *package* that are below site-packages."""
    above = f"{site.relative_to(prefix)}/"
    for name in conda_meta.files(prefix, package):
        if name.startswith(above) and name.endswith(".py"):
            yield name.removeprefix(above)


def _identity(source: str) -> str | None:
    """Return what bytecode says of the source it was made from: its time and its size."""
    try:
        status = os.stat(source)  # noqa: PTH116
    except OSError:
        return None
    return f"{int(status.st_mtime) & 0xFFFFFFFF}-{status.st_size}"


def _compiled_from(compiled: str) -> str | None:
    try:
        with open(compiled, "rb") as file:  # noqa: PTH123
            _, flags, mtime, size = _HEADER.unpack(file.read(_HEADER.size))
    except (OSError, struct.error):
        return None
    return f"{mtime}-{size}" if flags == 0 else None
