"""How large an environment is: all its files, and those that nothing else shares."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of all files, and of those with no other name (hardlink) anywhere."""

    total: int
    exclusive: int


def measure(prefix: Path) -> Sizes:
    """Add up the files below *prefix*."""
    total = exclusive = 0
    folders = [str(prefix)]
    while folders:
        # It may be removed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(folders.pop()):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
                total += status.st_size
                exclusive += status.st_size if status.st_nlink == 1 else 0
    return Sizes(total, exclusive)
