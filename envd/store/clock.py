"""The store's clock: it never jumps while the machine runs, whatever the wall clock does.

Its moments are seconds since 1970. In each boot it starts at the wall clock's time, or
where it started last if that is later, and goes on with CLOCK_BOOTTIME: a wall clock set
forward by ten years makes nothing ten years old.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from envd import durable

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """The clock of one root."""

    def __init__(self, root: Path) -> None:
        """Keep where it started in `<root>/clock.json`."""
        self._path = root / "clock.json"
        self._offset: float | None = None

    def now(self) -> float:
        """Return the moment, in seconds since 1970."""
        if self._offset is None:
            self._offset = self._start()
        return self._offset + time.clock_gettime(time.CLOCK_BOOTTIME)

    def age(self, moment: float) -> float:
        """Return how long ago *moment* was, in seconds; what lies ahead is now."""
        return max(0.0, self.now() - moment)

    def of_files(self) -> float:
        """Return the moment for what the kernel has dated, by the wall clock: the earlier one."""
        return min(self.now(), time.time())

    def _start(self) -> float:
        boot, since_boot = _BOOT_ID.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME)
        last = self._read()
        if last and last[0] == boot:
            return last[1] - last[2]
        wall = max(time.time(), last[1] if last else 0.0)
        # A root that cannot be written is only read from.
        with contextlib.suppress(OSError):
            durable.write_json(self._path, {"boot": boot, "wall": wall, "since_boot": since_boot})
        return wall - since_boot

    def _read(self) -> tuple[str, float, float] | None:
        try:
            found = json.loads(self._path.read_text())
            return str(found["boot"]), float(found["wall"]), float(found["since_boot"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
