"""Says which build fetches what: one lock for each archive, on a byte of one file."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from envd import held

# Far below the largest offset.
_DIGITS = 15


class Claims:
    """What one build fetches, and no other does meanwhile.

    The locks belong to the open file (F_OFD_SETLK of fcntl(2)): a program that inherits the
    `descriptor` keeps them until it ends, however envd does.
    """

    def __init__(self, path: Path) -> None:
        """Claim things by locks on bytes of *path*."""
        self.descriptor = held.open_file(path)

    def close(self) -> None:
        """Claim nothing any longer."""
        os.close(self.descriptor)

    def take(self, sha256: str) -> bool:
        """Claim what has that *sha256*, unless another build does."""
        try:
            self._lock(fcntl.F_WRLCK, sha256)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as POSIX has it
            return False
        return True

    def give_back(self, sha256: str) -> None:
        """Claim what has that *sha256* no longer."""
        self._lock(fcntl.F_UNLCK, sha256)

    def _lock(self, how: int, sha256: str) -> None:
        # struct flock: how, from where, start, length, and a pid, which has to be 0.
        asked = struct.pack("hhqqi0q", how, os.SEEK_SET, int(sha256[:_DIGITS], 16), 1, 0)
        fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, asked)
