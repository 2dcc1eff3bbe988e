"""What a daemon sees of systemd: a socket that it tells how it is (sd_notify(3))."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Iterator

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_PATIENCE_S = 60


class Manager:
    """Hears what a daemon says, in its order."""

    def __init__(self, address: str) -> None:
        """Listen at a path, or where it begins with `@` at an abstract address."""
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        self.said: list[str] = []

    def close(self) -> None:
        self._socket.close()

    def variables(self, watchdog_s: float = 0) -> dict[str, str]:
        found = {"NOTIFY_SOCKET": self._address}
        return found | ({"WATCHDOG_USEC": str(int(watchdog_s * 1e6))} if watchdog_s else {})

    def until(self, *lines: str) -> None:
        """Wait until each of *lines* has been said from now on, the first of them first."""
        deadline = time.monotonic() + _PATIENCE_S
        for wanted in lines:
            while wanted not in self._next(deadline - time.monotonic()):
                pass

    def within(self, seconds: float) -> list[str]:
        """Return what is said within *seconds*."""
        end, heard = time.monotonic() + seconds, []
        while (left := end - time.monotonic()) > 0:
            try:
                heard += self._next(left)
            except TimeoutError:
                break
        return heard

    def rest(self) -> list[str]:
        """Return what has been said and not been listened to."""
        return self.within(0.05)

    def _next(self, limit_s: float) -> list[str]:
        self._socket.settimeout(max(limit_s, 0.001))
        lines = self._socket.recv(1 << 16).decode().split("\n")
        self.said += lines
        return lines


def stop_first_thread(pid: int) -> Iterator[None]:
    """Stop the first thread of *pid*, a child, and no other, until this goes on."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    for request in (_SEIZE, _INTERRUPT):
        assert ptrace(request, pid, None, None) == 0, os.strerror(ctypes.get_errno())
    os.waitpid(pid, 0)
    yield
    assert ptrace(_DETACH, pid, None, None) == 0
