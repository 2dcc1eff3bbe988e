"""Does what `ENVD_FAILPOINT` says; not in the wheel."""

from __future__ import annotations

import errno
import os
import signal

VARIABLES = ("ENVD_FAILPOINT",)
_ERRORS = {"eio": errno.EIO, "enospc": errno.ENOSPC}


def reach(name: str) -> None:
    """Die or fail at the failpoint *name*, where the variable says so.

    Raises:
        OSError: the variable says `eio` or `enospc`.
    """
    armed, _, action = os.environ.get("ENVD_FAILPOINT", "").partition(":")
    if armed != name:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    number = _ERRORS[action]
    raise OSError(number, os.strerror(number), name)
