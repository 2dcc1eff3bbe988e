"""What the daemon does for its root by itself: gc, and emptying the trash."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator

from envd.builds.builds import Builds
from envd.config import Settings
from envd.settings import values
from envd.store.collecting import Criteria

log = logging.getLogger(__name__)
_LOOK_S, _OFTEN_S = 60.0, 1.0


class Upkeep:
    """Keeps one root within its limits."""

    def __init__(self, settings: Settings, builds: Builds) -> None:
        """Let the builders of *builds* do it."""
        self._settings = settings
        self._builds = builds
        self._is_untidy = asyncio.Event()

    def tidy_soon(self) -> None:
        """Have the trash emptied, in the background."""
        self._is_untidy.set()

    async def run(self) -> None:
        """Do it for ever: at once, after every removal, every `gc.interval`, on a full disk."""
        await asyncio.gather(self._tidy(), self._collect())

    async def _tidy(self) -> None:
        self.tidy_soon()
        while True:
            await self._is_untidy.wait()
            self._is_untidy.clear()
            with _surviving("the trash was not emptied"):
                await self._builds.tidy()

    async def _collect(self) -> None:
        # One of 0 would have gc run all the time, each in a process of its own.
        interval = max(_OFTEN_S, self._settings.gc.interval)
        look = pause = min(_LOOK_S, interval)
        loop = asyncio.get_running_loop()
        due = loop.time() + interval
        while True:
            await asyncio.sleep(pause)
            # What fills the disk may be no environment: gc can do nothing then, each time.
            pause = min(2 * pause, interval)
            with _surviving("gc failed"):
                is_full = self._is_full()
                freed = 0
                if is_full or loop.time() >= due:
                    due = loop.time() + interval
                    freed = await self._free()
                if freed or not is_full:
                    pause = look

    async def _free(self) -> int:
        """Run gc and return how many bytes went to the trash."""
        found = await self._builds.purge(Criteria(force=True))
        gone = [one for one in found.verdicts if one.goes]
        log.info("gc removed %d environments and freed %d bytes", len(gone), found.freed)
        self.tidy_soon()
        return found.freed

    def _is_full(self) -> bool:
        disk = shutil.disk_usage(self._settings.root)
        return disk.free < values.share(self._settings.gc.min_free, disk.total)


@contextlib.contextmanager
def _surviving(failure: str) -> Iterator[None]:
    """Log whatever goes wrong as a *failure*: the next round may do better."""
    try:
        yield
    except Exception:
        log.exception(failure)
