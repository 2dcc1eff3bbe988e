"""Reads the log of a spec's builds as it is written, one build's after the other's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_PART = 1 << 16


class Tail:
    """The lines of one log, from its beginning; each is whole."""

    def __init__(self, path: Path) -> None:
        """Read *path*, once it is there."""
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def read(self) -> list[str]:
        """Return some of the lines that were written since the last time, or none.

        Raises:
            OSError: it cannot be read.
        """
        if self._file is None and not self._opened():
            return []
        lines = self._lines()
        # Each build begins a new file.
        while not lines and self._is_replaced() and self._opened():
            lines = self._lines()
        return lines

    def rest(self) -> list[str]:
        """Return what was written of a line that was never ended."""
        rest, self._rest = self._rest, b""
        return [rest.decode(errors="replace")] if rest else []

    def close(self) -> None:
        """Let go of it."""
        if self._file:
            self._file.close()
            self._file = None

    def _opened(self) -> bool:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return False
        self.close()
        self._file, self._rest = file, b""
        return True

    def _lines(self) -> list[str]:
        lines: list[bytes] = []
        # A line may be longer than a part.
        while not lines and self._file and (part := self._file.read(_PART)):
            *lines, self._rest = (self._rest + part).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def _is_replaced(self) -> bool:
        return self._file is not None and not os.fstat(self._file.fileno()).st_nlink
