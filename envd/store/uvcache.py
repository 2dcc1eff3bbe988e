"""What uv keeps in its cache, and how to take things out that uv does not miss.

    .lock                                   flock: shared by every uv that runs, for good
    archive-v*/<id>/                        an unpacked wheel; environments link its files
    wheels-v*/**/<stem>                     symlink to its archive
    wheels-v*/**/<stem>.rev, <stem>.http    records of it, which name the archive as well
    sdists-v*/**/<dir with a .lock>/        a source, and the wheel built of it
    git-v*/db/<digest>, checkouts/<digest>  repositories
    builds-v*/*, **/.tmp*                   what a killed uv left

A record in a `.rev` file that names an archive which is gone is never mended: every later
installation of that wheel fails, with an index or without. Records therefore go before
their archive does. Of all the rest uv fetches, builds or clones again what is missing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from packaging.utils import canonicalize_name, canonicalize_version

_RECORDS = (".rev", ".http")
_TEMPORARY = ".tmp"
_ByLength = Mapping[int, Collection[bytes]]


class UvCache:
    """The cache that uv has in one directory."""

    def __init__(self, home: Path) -> None:
        """Look in *home*, which need not be there."""
        self._home = home

    def archives(self) -> list[Path]:
        """Return the unpacked wheels."""
        return [one for bucket in self._buckets("archive") for one in entries(bucket)]

    def rest(self) -> Iterator[Path]:
        """Yield what else can go by itself: sources, repositories, what a killed uv left."""
        for bucket in self._buckets("sdists"):
            yield from _locked(bucket)
        for bucket in self._buckets("git"):
            yield from entries(bucket / "db")
            yield from entries(bucket / "checkouts")
        for bucket in self._buckets("builds"):
            yield from entries(bucket)
        for folder in (self._home, *self._buckets("wheels"), *self._buckets("sdists")):
            yield from (one for one in entries(folder) if one.name.startswith(_TEMPORARY))

    @property
    def lock(self) -> Path:
        """The file that every uv holds shared while it runs."""
        return self._home / ".lock"

    def forget(self, doomed: Collection[Path]) -> None:
        """Remove what refers to an archive of *doomed*, or to none; its `lock` must be held."""
        stay = _by_length({one.name for one in self.archives()} - {one.name for one in doomed})
        for bucket in self._buckets("wheels"):
            for folder, folders, files in os.walk(bucket):
                for name in (*folders, *files):
                    with contextlib.suppress(OSError):
                        _forget(Path(folder, name), stay)

    def _buckets(self, kind: str) -> list[Path]:
        return [one for one in entries(self._home) if one.name.startswith(f"{kind}-v")]


def release(archive: Path) -> str:
    """Return the release that *archive* is of, as `release_of` writes it, or nothing."""
    for one in entries(archive):
        if one.suffix == ".dist-info":
            name, _, version = one.stem.partition("-")
            return release_of(name, version)
    return ""


def release_of(name: str, version: str) -> str:
    """Write a release so that every spelling of it is the same."""
    return f"{canonicalize_name(name)}=={canonicalize_version(version)}"


def names_of(archive: Path) -> int:
    """Return how many names a file of *archive* has, which each environment links."""
    for one in entries(archive):
        if one.suffix == ".dist-info":
            with contextlib.suppress(OSError):
                return (one / "METADATA").lstat().st_nlink
    return 0


def entries(folder: Path) -> list[Path]:
    """Return what is in *folder*, sorted; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _locked(folder: Path) -> Iterator[Path]:
    """Yield the directories below *folder* that uv locks for themselves."""
    for home, folders, files in os.walk(folder):
        folders[:] = [] if ".lock" in files else _lasting(folders)
        if ".lock" in files:
            yield Path(home)


def _lasting(names: Collection[str]) -> list[str]:
    return [name for name in names if not name.startswith(_TEMPORARY)]


def _by_length(names: Iterable[str]) -> _ByLength:
    found: dict[int, set[bytes]] = {}
    for name in map(os.fsencode, names):
        found.setdefault(len(name), set()).add(name)
    return found


def _forget(path: Path, stay: _ByLength) -> None:
    """Remove the reference *path* unless it is to an archive of those that *stay*."""
    if path.is_symlink():
        name = os.fsencode(path.readlink().name)
        if name not in stay.get(len(name), ()):
            path.unlink()
    elif path.suffix in _RECORDS and not _is_named(path.read_bytes(), stay):
        path.unlink()


def _is_named(content: bytes, names: _ByLength) -> bool:
    """Whether one of *names* stands anywhere in *content*, however many there are."""
    return any(
        content[at : at + length] in those
        for length, those in names.items()
        for at in range(len(content) - length + 1)
    )
