"""Writes that are whole or absent after a crash, and removals that cannot be seen half done."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envd import failpoint, process

_UNFINISHED = ".unfinished."


def write_checked(path: Path, document: Mapping[str, Any]) -> None:
    """Replace the file *path* by *document* and its checksum, for `read_checked`.

    It is readable by its owner only.
    """
    text = json.dumps({**document, "checksum": _checksum(document)}, indent=1)
    write_bytes(path, text.encode(), mode=0o600)


def read_checked(path: Path) -> dict[str, Any]:
    """Return the document that `write_checked` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what was written.
    """
    message = f"`{path}` is damaged"
    try:
        document = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError(message) from None
    if not isinstance(document, dict) or document.pop("checksum", None) != _checksum(document):
        raise ValueError(message)
    return document


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replace the file *path* by *document*: after a crash there is the old or the new one."""
    write_text(path, json.dumps(document, indent=1))


def write_text(path: Path, text: str) -> None:
    """Replace the file *path* by *text*: after a crash there is the old or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace the file *path* by *content*: after a crash there is the old or the new one.

    It has the permissions *mode*, but for those that the umask takes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = unfinished(path)
    try:
        failpoint.reach("write.begun")
        with open(beside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            failpoint.reach("write.flush")
            os.fsync(file.fileno())
        failpoint.reach("write.rename")
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    failpoint.reach("write.renamed")
    sync_directory(path.parent)


def unfinished(path: Path) -> Path:
    """Return where to write what is to replace the file *path*; `remove_unfinished` finds it."""
    return path.with_name(f"{_UNFINISHED}{process.stamp()}.{secrets.token_hex(4)}")


def is_unfinished(name: str) -> bool:
    """Whether *name* is one that `unfinished` gives."""
    return name.startswith(_UNFINISHED)


def remove_unfinished(folder: Path) -> None:
    """Remove from *folder* what processes that are gone have not finished to write."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        if process.is_stamp_of_the_dead(path.name.removeprefix(_UNFINISHED)):
            path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in the directory *path* survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """Flush the filesystem that holds *path*.

    One syncfs for a tree: an fsync per file costs 24 times as much.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def discard(path: Path, trash: Path) -> Path | None:
    """Rename *path* into *trash*, and return what is to be deleted there."""
    trash.mkdir(parents=True, exist_ok=True)
    doomed = trash / f"{path.name}.{secrets.token_hex(4)}"
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return None
    return doomed


def remove_tree(path: Path, trash: Path) -> None:
    """Remove the directory *path*: nobody sees it half removed."""
    if doomed := discard(path, trash):
        shutil.rmtree(doomed, ignore_errors=True)
