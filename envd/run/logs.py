"""What workers and templates say: where it goes, and that it does not fill the disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path

from envd.model import Model
from envd.run.processes import Process
from envd.store import Environment

_CHUNK_BYTES = 1 << 16


class Logs:
    """The logs of one daemon's workers and templates; `trim` keeps them short."""

    def __init__(self, folder: Path, most: int) -> None:
        """Keep them in *folder*, each up to *most* bytes long."""
        self._folder = folder
        self._most = most
        self._written: Counter[Path] = Counter()

    def of_worker(self, model: Model) -> Path:
        """Return where workers of *model* write."""
        return self._named(f"worker-{model.digest[:16]}")

    def of_template(self, environment: Environment) -> Path:
        """Return where the template of *environment* writes."""
        return self._named(f"template-{environment.id}")

    def written_by(self, process: Process, log: Path) -> None:
        """Remember that *process* writes into *log* as long as it lives."""
        self._written[log] += 1

        def forget(_: object) -> None:
            self._written[log] -= 1

        process.exited.add_done_callback(forget)

    async def trim(self) -> None:
        """Cut the logs that have been written and have grown too long to their ends."""
        # Those that nobody writes any more are looked at once more.
        logs, self._written = [*self._written], +self._written
        await asyncio.to_thread(self._cut_all, logs)

    def _cut_all(self, logs: list[Path]) -> None:
        for log in logs:
            with contextlib.suppress(OSError):
                self._cut(log)

    def _named(self, name: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{name}.log"

    def _cut(self, log: Path) -> None:
        """Move the end of *log* to its beginning: writers append, wherever that now is.

        Nothing needs room on the disk, and what is written meanwhile is lost.
        """
        if log.stat().st_size <= self._most:
            return
        kept = self._most // 2
        with log.open("r+b", buffering=0) as file:
            start = os.fstat(file.fileno()).st_size - kept
            for place in range(0, kept, _CHUNK_BYTES):
                chunk = os.pread(file.fileno(), min(_CHUNK_BYTES, kept - place), start + place)
                os.pwrite(file.fileno(), chunk, place)
            file.truncate(kept)
