"""Whose a place is, and who else can put something else there."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def replaceable(path: Path) -> Path | None:
    """Return the directory above *path* in which everybody may rename, if there is one.

    Where it is sticky, as /tmp is, everybody may do so with what is their own.
    """
    for folder in path.parents:
        try:
            mode = folder.stat().st_mode
        except OSError:
            continue
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return folder
    return None


def stranger(path: Path) -> int | None:
    """Return whose *path* is, if it is there and neither this user's nor root's."""
    try:
        owner = path.lstat().st_uid
    except OSError:
        return None
    return owner if owner not in {os.geteuid(), 0} else None
