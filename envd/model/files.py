"""Reads the files of a model directory, and nothing outside it.

A model's files are hostile input: a name in them may be absolute, climb out with `..`,
or lead out through a symbolic link, and a file may be a pipe or have no end.
"""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from envd.errors import ModelInvalidError
from envd.model.texts import shown

MAX_METADATA_BYTES = 1 << 20
_MAX_DEPTH = 100
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def inside(model: Path, name: str) -> Path:
    """Return the path of *name* in *model*.

    Raises:
        ModelInvalidError: the name leads out of the model, or there is nothing there.
    """
    if "\0" in name or Path(name).is_absolute():
        message = f"`{shown(name)}` in `{model}` is not a relative path"
        raise ModelInvalidError(message, model=model, path=shown(name))
    try:
        path = (model / name).resolve(strict=True)
        home = model.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise_shortage(error)
        message = f"`{shown(name)}` {_why_not(model, name, error)}"
        raise ModelInvalidError(message, model=model, path=shown(name)) from error
    if not path.is_relative_to(home):
        why = "a model may only name its own files"
        message = f"`{shown(name)}` leads out of the model `{model}`; {why}"
        raise ModelInvalidError(message, model=model, path=shown(name))
    return path


def _why_not(model: Path, name: str, error: OSError | RuntimeError) -> str:
    """Return what *error* says of *name* in *model*, which leads nowhere."""
    # A RuntimeError before Python 3.13.
    if isinstance(error, RuntimeError) or error.errno == errno.ELOOP:
        return (
            f"in the model `{model}` is a link in a circle, which leads to no file; put one there"
        )
    if os.path.islink(model / name):  # noqa: PTH114
        return f"in the model `{model}` is a link to what is not there; put the file itself there"
    return f"is not in the model `{model}`, which names it"


def exists(model: Path, name: str) -> bool:
    """Say whether *model* has anything called *name*.

    A name that leads out of it is not looked for: `inside` refuses it.
    """
    leads_out = posixpath.normpath(name).startswith(("/", "../")) or name == ".."
    return leads_out or os.path.lexists(model / name)


def read_text(model: Path, name: str, *, limit: int = MAX_METADATA_BYTES) -> str:
    """Return the text of the file *name* of *model*, without a byte order mark.

    Raises:
        ModelInvalidError: it is not a regular UTF-8 file of the model, or over *limit* bytes.
    """
    path = inside(model, name)
    try:
        with open(path, "rb", opener=opener) as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(limit + 1) if is_regular else b""
    except OSError as error:
        raise_shortage(error)
        message = f"`{name}` of the model `{model}` cannot be read: {error.strerror}"
        raise ModelInvalidError(message, model=model, path=name) from error
    if not is_regular:
        message = f"`{name}` of the model `{model}` is not a regular file"
        raise ModelInvalidError(message, model=model, path=name)
    if len(content) > limit:
        message = f"`{name}` of the model `{model}` is over {limit} bytes"
        raise ModelInvalidError(message, model=model, path=name)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"`{name}` of the model `{model}` is not UTF-8: {error}"
        raise ModelInvalidError(message, model=model, path=name) from error


def opener(path: str, flags: int) -> int:
    """Open for reading without following a link or waiting for a pipe."""
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def walk(
    model: Path, folder: Path, limit: int, left_out: Collection[str] = ()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield in order all below *folder* but directories, with its path from there.

    No link is entered, nor a directory that is called as one of *left_out*.

    Raises:
        ModelInvalidError: there are over *limit* files and directories, or it is very deep.
    """
    for name, entry in tree(model, folder, limit, left_out):
        if not entry.is_dir(follow_symlinks=False):
            yield name, entry


def tree(
    model: Path, folder: Path, limit: int, left_out: Collection[str] = ()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield what `walk` yields, and the directories.

    Raises:
        ModelInvalidError: as `walk`.
    """
    # Not by os.walk: it holds all of a directory, counts no directories and calls itself.
    left = limit
    above = [""]
    while above:
        prefix = above.pop()
        if prefix.count("/") > _MAX_DEPTH:
            message = f"the model `{model}` holds directories over {_MAX_DEPTH} deep"
            raise ModelInvalidError(message, model=model)
        entries = _entries(folder / prefix, left)
        left -= len(entries)
        if left < 0:
            message = f"the model `{model}` holds over {limit} files"
            raise ModelInvalidError(message, model=model)
        below = []
        for entry in sorted(entries, key=lambda one: one.name):
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder and entry.name in left_out:
                continue
            if is_folder:
                below.append(f"{prefix}{entry.name}/")
            yield f"{prefix}{entry.name}", entry
        above += reversed(below)


def _entries(folder: Path, limit: int) -> list[os.DirEntry[str]]:
    """Return what lies in *folder*, or one more than *limit* of it."""
    try:
        with os.scandir(folder) as entries:
            return list(itertools.islice(entries, limit + 1))
    except OSError as error:
        raise_shortage(error)
        return []


def raise_shortage(error: Exception) -> None:
    """Raise *error* again if it is this process that may not have more: no model is to blame."""
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        raise error
