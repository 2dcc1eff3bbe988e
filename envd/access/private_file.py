"""Reads a file of text that nobody may write in but the user of this process, or root."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from envd.errors import SettingsInvalidError

_MAX_BYTES = 1 << 20
_NOT_FOR_OTHERS = stat.S_IWGRP | stat.S_IRWXO
# What tells that a file is another one, was written into, or is another's now.
Identity = tuple[int, int, int, int]


def identity(path: str) -> Identity | None:
    """Return what changes when the file or its mode does, None where it cannot be looked at."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size


def read(path: str, what: str) -> str:
    """Return the text of *path*, which messages call *what*; its group may read it, too.

    Raises:
        SettingsInvalidError: it cannot be read, others can read it, or it is no such file.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as (
            file
        ):
            if why := _trouble(file):
                raise refused(path, what, why)
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise refused(path, what, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        # Not from it: it holds what stands in the file.
        raise refused(path, what, "is not UTF-8") from None
    if len(content) > _MAX_BYTES:
        raise refused(path, what, f"is over {_MAX_BYTES} bytes")
    return text


def refused(path: str, what: str, why: str) -> SettingsInvalidError:
    """Return the error of a file that cannot be used."""
    return SettingsInvalidError(f"{what} `{path}` {why}", file=path)


def _trouble(file: BinaryIO) -> str:
    """Say why what was opened is not to be trusted, if so."""
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_uid not in {os.geteuid(), 0}:
        return f"belongs to the user {found.st_uid}; it must be that of the daemon or root"
    if found.st_mode & _NOT_FOR_OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        return f"has the mode {mode:04o}, which is open to others; `chmod 600` it"
    return ""
