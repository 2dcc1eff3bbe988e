"""Whether a package in a cache is what it was: by all that is in it, or by how its files stand.

    info/envd-seal   the SHA-256 of its archive, and of all names, permissions, links, contents
    info/envd-seen   when that was compared last, and the SHA-256 of how all stands (`Look`)

Whoever writes into a file moves the time of its last writing, which can be put back, and that
of its last change, which nobody can set. So what stands as it was seen need not be read. Making
or removing a link of a file moves the second time as well, and environments are made of links:
whoever makes or removes them looks before and after, and what differs in nothing but that time
is seen anew. A change that hides in just that moment, its date put back, is found when all is
read again, at the latest a day later.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_SEAL, _SEEN = "info/envd-seal", "info/envd-seen"
_TRUSTED_S = 86400.0
_SECOND_NS = 1_000_000_000


class Look(NamedTuple):
    """How the files of a package stand: but for the times of their last change, and with them.

    Without `is_fine` those times are in whole seconds, which tell too little.
    """

    still: str
    whole: str
    is_fine: bool


def sealed(path: Path) -> str:
    """Return the SHA-256 of the archive that the package in *path* is of, or nothing."""
    return _read(path / _SEAL).partition(" ")[0]


def seal(path: Path, sha256: str) -> None:
    """Take the package in *path*, unpacked from the archive with that *sha256*, for right.

    Raises:
        OSError: it cannot be read, or the seal not written.
    """
    (path / _SEAL).write_text(_content(path, sha256))
    see(path, look(path), time.time())


def remove(path: Path) -> None:
    """Take the package in *path* for none any more; its files stay."""
    with contextlib.suppress(OSError):
        (path / _SEAL).unlink()


def is_whole(path: Path) -> bool:
    """Whether nothing in the package in *path* has changed since it was sealed; reads it all."""
    with contextlib.suppress(OSError):
        return _read(path / _SEAL) == _content(path, sealed(path))
    return False


def look(path: Path) -> Look | None:
    """Return how the files of the package in *path* stand, None where they cannot be asked."""
    names, times = [], []
    try:
        for name, entry in _all(path):
            found = entry.stat(follow_symlinks=False)
            names.append(f"{name}\0{found.st_mode:o}")
            # What stands in a directory is told by the names.
            if not stat.S_ISDIR(found.st_mode):
                names.append(f"{found.st_ino} {found.st_size} {found.st_mtime_ns}")
                times.append(found.st_ctime_ns)
    except OSError:
        return None
    digest = hashlib.sha256(os.fsencode("\n".join(names)))
    still = digest.hexdigest()
    digest.update(repr(times).encode())
    return Look(still, digest.hexdigest(), any(one % _SECOND_NS for one in times))


def read_at(path: Path, now: Look | None) -> float | None:
    """Return when the package in *path*, which stands as *now*, was right, None if it is unknown.

    So long ago that it is to be read again is unknown, too.
    """
    moment, _, whole = _read(path / _SEEN).partition(" ")
    if now is None or whole != now.whole:
        return None
    return float(moment) if 0 <= time.time() - float(moment) < _TRUSTED_S else None


def see(path: Path, before: Look | None, moment: float) -> None:
    """Keep that the package in *path*, as it stood *before*, was right at that *moment*.

    Unless it stands otherwise now, in more than the times of the last change.
    """
    now = look(path)
    if before and now and now.still == before.still and now.is_fine:
        # Without it, or with a part of it, all is read the next time.
        with contextlib.suppress(OSError):
            (path / _SEEN).write_text(f"{moment} {now.whole}")


@contextlib.contextmanager
def unlinking(paths: Iterable[Path]) -> Iterator[None]:
    """Remove links of the files of packages meanwhile; what was right in *paths* stays so."""
    looks = [(path, look(path)) for path in paths]
    known = [(path, one, moment) for path, one in looks if (moment := read_at(path, one))]
    yield
    for path, before, moment in known:
        see(path, before, moment)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _content(path: Path, sha256: str) -> str:
    """Return what seals the package in *path*, unpacked from the archive with that *sha256*."""
    digest = hashlib.sha256()
    for name, entry in _all(path):
        mode = entry.stat(follow_symlinks=False).st_mode
        digest.update(os.fsencode(f"{name}\0{mode:o}\0"))
        digest.update(_digest(entry.path, mode))
    return f"{sha256} {digest.hexdigest()}\n"


def _all(path: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """Return everything in *path* but what stands there for us, by its name, in order."""
    return sorted(one for one in _below(str(path), "") if one[0] not in {_SEAL, _SEEN})


def _below(folder: str, above: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as found:
        for entry in found:
            yield f"{above}{entry.name}", entry
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, f"{above}{entry.name}/")


def _digest(path: str, mode: int) -> bytes:
    """Return as many bytes for every file: what stands in it, or where a link leads."""
    if stat.S_ISLNK(mode):
        return hashlib.sha256(os.fsencode(os.readlink(path))).digest()  # noqa: PTH115
    if not stat.S_ISREG(mode):
        return hashlib.sha256().digest()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").digest()
