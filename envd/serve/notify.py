"""Tells the service manager how the daemon is (sd_notify(3)): ready, what it does, that it gets on.

The watchdog is fed by the loop that answers requests, each time after the spawner has answered
it: where either hangs, nothing is said, and systemd starts the daemon anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

log = logging.getLogger(__name__)
_SAY_EVERY_S = 5.0
# Of the watchdog's time: one that comes late must not be taken for none.
_PART = 3


class Notifier:
    """What listens for that, if anything does."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Take from *environ* where it listens, and how often it wants to hear."""
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._limit_s = _watchdog_s(environ)
        self._status = ""
        self._unsaid: deque[str] = deque()

    def ready(self) -> None:
        """Say that the daemon serves, or does so again after a reload."""
        self._say("READY=1")

    def reloading(self) -> None:
        """Say that it reads its settings."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that it takes no more requests."""
        self._say("STOPPING=1")

    def status(self, text: str) -> None:
        """Say in a sentence what it does, if that is not what was said last."""
        if text != self._status:
            self._status = text
            self._say(f"STATUS={text}")

    async def run(self, answers: Callable[[], Awaitable[None]], doing: Callable[[], str]) -> None:
        """For ever say what it is *doing*, and that it gets on whenever the spawner *answers*."""
        if not self._address:
            return
        pause = min(_SAY_EVERY_S, self._limit_s / _PART)
        while True:
            await answers()
            self._flush()
            if self._limit_s < math.inf and not self._unsaid:
                self._say("WATCHDOG=1")
            self.status(doing())
            await asyncio.sleep(pause)

    def _say(self, *lines: str) -> None:
        """Send it, where somebody listens."""
        if self._address:
            self._unsaid.append("\n".join(lines))
            self._flush()

    def _flush(self) -> None:
        """Send what there is room for: no request waits for whoever listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection:
            while self._unsaid:
                try:
                    connection.sendto(self._unsaid[0].encode(), self._address)
                except BlockingIOError:
                    return
                except OSError as error:
                    log.warning("%s does not listen: %s", self._address, error)
                self._unsaid.popleft()


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return within how many seconds the watchdog is to be fed; for ever where there is none."""
    is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    given = environ.get("WATCHDOG_USEC", "")
    return int(given) / 1e6 if is_ours and given.isascii() and given.isdigit() else math.inf
