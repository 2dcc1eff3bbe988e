"""Deletes what was renamed to the trash, as fast as that goes or so that nobody notices."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from envd import failpoint, seals
from envd.store.condacache import CondaCache
from envd.store.layout import Layout

_BATCH = 100
_REST = 4.0


def empty(trash: Path, *, is_gentle: bool = False) -> None:
    """Delete what is in *trash*; a gentle one rests four fifths of the time.

    What cannot be deleted is left for the next time.
    """
    failpoint.reach("delete.tree")
    pace = _Pace(is_gentle=is_gentle)
    cache = CondaCache(Layout(trash.parent))
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(trash):
            # Of conda packages, whose files are links, nothing else is to change.
            with seals.unlinking(cache.linked(Path(entry.path))):
                _delete(entry.path, pace)


def _delete(path: str, pace: _Pace) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108
        return
    _open(path)
    for folder, folders, names in os.walk(path):
        # A link to a directory counts as one; a directory is not unlinked.
        for name in (*names, *folders):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
            pace.one()
        # Before they are walked: its owner may be let neither write nor look there.
        for name in folders:
            _open(os.path.join(folder, name))  # noqa: PTH118
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # noqa: PTH106


def _open(folder: str) -> None:
    """Let its owner do anything in *folder*, if it is a directory and no link to one."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, flags)
        try:
            os.chmod(f"/proc/self/fd/{descriptor}", 0o700)  # noqa: PTH101
        finally:
            os.close(descriptor)


class _Pace:
    """Rests after every so many files, in proportion to the time they took."""

    def __init__(self, *, is_gentle: bool) -> None:
        self._is_gentle = is_gentle
        self._count, self._began = 0, time.monotonic()

    def one(self) -> None:
        self._count += 1
        if self._is_gentle and self._count % _BATCH == 0:
            time.sleep(_REST * (time.monotonic() - self._began))
            self._began = time.monotonic()
