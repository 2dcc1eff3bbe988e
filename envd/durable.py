"""Writes that are whole or absent after a crash, and removals that cannot be seen half done."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replace the file *path* by *document*: after a crash there is the old or the new one."""
    write_text(path, json.dumps(document, indent=1))


def write_text(path: Path, text: str) -> None:
    """Replace the file *path* by *text*: after a crash there is the old or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file *path* by *content*: after a crash there is the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(path.parent)


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
