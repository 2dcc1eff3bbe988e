"""Walks a tree: what each file, directory and link is, and how its path is written."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CHUNK = 1 << 20
_BATCH = 256

# By path below the prefix.
Tree = dict[str, os.DirEntry[str]]
OnError = Callable[[str, OSError], None]


def walk(prefix: Path, on_error: OnError) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield all that is below *prefix*, in no order."""
    top = str(prefix)
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield entry.path[len(top) + 1 :], entry
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError as error:
            on_error(folder[len(top) + 1 :] or ".", error)


def described(tree: Tree, on_error: OnError) -> Iterator[tuple[str, str]]:
    """Yield what each of *tree* is, as in a record; files are read by every core."""
    paths = list(tree)
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]

    def describe(batch: list[str]) -> list[tuple[str, str | OSError]]:
        return [(path, _what(tree[path])) for path in batch]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in pool.map(describe, batches):
            for path, what in batch:
                if isinstance(what, OSError):
                    on_error(path, what)
                else:
                    yield path, what


def _what(entry: os.DirEntry[str]) -> str | OSError:
    try:
        found = status(entry)
        mode = f"{stat.S_IMODE(found.st_mode):o}"
        if stat.S_ISDIR(found.st_mode):
            return f"dir {mode} 0"
        if stat.S_ISLNK(found.st_mode):
            target = os.fsencode(os.readlink(entry.path))  # noqa: PTH115
            return f"link:{hashlib.sha256(target).hexdigest()} {mode} 0"
        if stat.S_ISREG(found.st_mode):
            return f"{_sha256(entry.path)} {mode} {found.st_size}"
    except OSError as error:
        return error
    return f"other {mode} 0"


def _sha256(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # Most files are small: a buffered file would cost more than what it reads.
        content = os.read(descriptor, _CHUNK)
        digest = hashlib.sha256(content)
        while content := os.read(descriptor, _CHUNK):
            digest.update(content)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def site(prefix: Path) -> str:
    """Return where packages lie below *prefix*, with a slash; empty where nothing is."""
    found = next(prefix.glob("lib/python*/site-packages"), None)
    return f"{found.relative_to(prefix)}/" if found else ""


def status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of *entry* itself, not of what it points to."""
    return entry.stat(follow_symlinks=False)


def is_shared(found: os.stat_result) -> bool:
    """Whether it is a file with another name."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink > 1


def escaped(path: str) -> str:
    """Return *path* in one printable line; what has a backslash then is all ASCII."""
    if path.isprintable() and "\\" not in path:
        return path
    return path.encode("unicode_escape").decode()


def all_escaped(paths: list[str]) -> list[str]:
    """Return each of *paths* as `escaped` does."""
    joined = "".join(paths)
    return paths if escaped(joined) == joined else [escaped(path) for path in paths]


def unescaped(path: str) -> str:
    """Return the path that `escaped` was given."""
    return path.encode().decode("unicode_escape") if "\\" in path else path
