"""Asks a model again and again, in a process of its own: `steady.py SOCKET MODEL`.

What a test does meanwhile, with texts of 256 MiB maybe, is not to be taken for what a daemon does.
A line is written for each answer: when it was due, by the clock of all processes, how long after
that it came, and the reason of the error if it was one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from envd_client import Client
from envd_client.errors import EnvdError

RATE = 20


def main() -> None:
    """Ask."""
    socket, model = sys.argv[1:]
    due = time.monotonic()
    with Client(socket) as client:
        while True:
            reason = "-"
            try:
                client.predict(model, [1], timeout_s=30)
            except EnvdError as error:
                reason = error.reason
            print(due, time.monotonic() - due, reason, flush=True)
            due += 1 / RATE
            time.sleep(max(0.0, due - time.monotonic()))


@dataclass(frozen=True)
class Answers:
    """How long the answers of a while took, and the reasons of those that were errors."""

    seconds: list[float]
    errors: list[str]


@dataclass(frozen=True)
class Steady:
    """Whoever asks, and where the lines go."""

    process: subprocess.Popen[bytes]
    lines: Path

    @classmethod
    def on(cls, socket: Path, model: Path, lines: Path) -> Steady:
        """Begin."""
        argv = [sys.executable, __file__, socket, model]
        with lines.open("wb") as file:
            steady = cls(subprocess.Popen(argv, stdout=file), lines)
        # So that its connection is there.
        steady.since(time.monotonic())
        return steady

    def stop(self) -> None:
        """End."""
        self.process.kill()
        self.process.wait()

    def since(self, begun: float) -> Answers:
        """Return what has come since the moment *begun*, and the first that is yet to be due."""
        now = time.monotonic()
        found: list[list[str]] = []
        while not found or float(found[-1][0]) <= now:
            assert self.process.poll() is None
            time.sleep(0.01)
            whole = self.lines.read_text().rpartition("\n")[0]
            found = [line.split() for line in whole.splitlines()]
        kept = [(float(late), why) for due, late, why in found if float(due) + float(late) > begun]
        return Answers([late for late, _ in kept], [why for _, why in kept if why != "-"])


if __name__ == "__main__":
    main()
