"""Reads the files of a model directory, and nothing outside it.

A model's files are hostile input: a name in them may be absolute, climb out with `..`,
or lead out through a symbolic link, and a file may be a pipe or have no end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from envd.errors import ModelInvalidError

MAX_METADATA_BYTES = 1 << 20


def inside(model: Path, name: str) -> Path:
    """Return the path of *name* in *model*.

    Raises:
        ModelInvalidError: the name leads out of the model, or there is nothing there.
    """
    if "\0" in name or Path(name).is_absolute():
        message = f"`{name!r}` in `{model}` is not a relative path"
        raise ModelInvalidError(message, model=model, path=repr(name))
    try:
        path = (model / name).resolve(strict=True)
        home = model.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        message = f"`{name}` is not in the model `{model}`, which names it"
        raise ModelInvalidError(message, model=model, path=name) from error
    if not path.is_relative_to(home):
        message = f"`{name}` leads out of the model `{model}`; a model may only name its own files"
        raise ModelInvalidError(message, model=model, path=name)
    return path


def exists(model: Path, name: str) -> bool:
    """Say whether *model* has anything called *name*."""
    return os.path.lexists(model / name)


def read_text(model: Path, name: str) -> str:
    """Return the text of the file *name* of *model*, without a byte order mark.

    Raises:
        ModelInvalidError: it is not a regular UTF-8 file of the model, or too large.
    """
    path = inside(model, name)
    try:
        with open(path, "rb", opener=_opener) as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_METADATA_BYTES + 1) if is_regular else b""
    except OSError as error:
        message = f"`{name}` of the model `{model}` cannot be read: {error.strerror}"
        raise ModelInvalidError(message, model=model, path=name) from error
    if not is_regular:
        message = f"`{name}` of the model `{model}` is not a regular file"
        raise ModelInvalidError(message, model=model, path=name)
    if len(content) > MAX_METADATA_BYTES:
        message = f"`{name}` of the model `{model}` is over {MAX_METADATA_BYTES} bytes"
        raise ModelInvalidError(message, model=model, path=name)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"`{name}` of the model `{model}` is not UTF-8: {error}"
        raise ModelInvalidError(message, model=model, path=name) from error


def _opener(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
