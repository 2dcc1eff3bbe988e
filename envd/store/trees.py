"""Measures the files of a tree, with an eye on those that have several names."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

# A device and a number on it.
Inode = tuple[int, int]


@dataclass(slots=True)
class Tree:
    """The bytes of its files with one name, and its other files, with their names in it.

    `changed` is when a file of it was made, changed, or last got or lost a name.
    """

    alone: int = 0
    shared: dict[Inode, os.stat_result] = field(default_factory=dict)
    names: Counter[Inode] = field(default_factory=Counter)
    changed: float = 0.0

    def add(self, status: os.stat_result) -> None:
        """Count a file."""
        self.changed = max(self.changed, status.st_ctime)
        if status.st_nlink == 1:
            self.alone += status.st_size
            return
        inode = (status.st_dev, status.st_ino)
        self.shared[inode] = status
        self.names[inode] += 1


def measure(top: Path, but: Collection[Path] = ()) -> Tree:
    """Measure the directory or file *top*, but for the trees *but* and what cannot be read."""
    tree, passed, folders = Tree(), {str(one) for one in but}, []
    with contextlib.suppress(OSError):
        status = top.lstat()
        tree.changed = status.st_ctime
        if stat.S_ISDIR(status.st_mode):
            folders.append(str(top))
        else:
            tree.add(status)
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as found:
            for entry in found:
                if entry.path in passed:
                    continue
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        tree.add(entry.stat(follow_symlinks=False))
    return tree
