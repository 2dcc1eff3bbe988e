"""Reads a file of variables that nobody else may read: KEY=VALUE, one in each line."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from envd.errors import SettingsInvalidError
from envd.values import is_variable

_MAX_BYTES = 1 << 20
_QUOTES = ("'", '"')
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


def read(path: str) -> dict[str, str]:
    """Return the variables in the file *path*; empty lines and those with a `#` first are none.

    A value is all that follows the `=`, without the quotes around it.

    Raises:
        SettingsInvalidError: it cannot be read, others can read it, or it is no such file.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as (
            file
        ):
            _check(path, file)
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        # Not from it: it holds what stands in the file.
        raise _refused(path, "is not UTF-8") from None
    if len(content) > _MAX_BYTES:
        raise _refused(path, f"is over {_MAX_BYTES} bytes")
    return _variables(path, text)


def _check(path: str, file: BinaryIO) -> None:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise _refused(path, "is not a regular file")
    if found.st_uid not in {os.geteuid(), 0}:
        why = f"belongs to the user {found.st_uid}; it must be that of the daemon or root"
        raise _refused(path, why)
    if found.st_mode & _NOT_FOR_OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise _refused(path, f"has the mode {mode:04o}, which is open to others; `chmod 600` it")


def _variables(path: str, text: str) -> dict[str, str]:
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not is_variable(name.strip()) or "\0" in value:
            # Not the line itself: it may be the rest of a secret.
            raise _refused(path, f"has no KEY=VALUE in line {number}")
        found[name.strip()] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES
    return value[1:-1] if is_quoted and value.count(value[0]) == len(_QUOTES) else value


def _refused(path: str, why: str) -> SettingsInvalidError:
    return SettingsInvalidError(f"the variables' file `{path}` {why}", file=path)
