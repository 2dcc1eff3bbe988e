"""The `envd` command: bounds what the C library keeps for itself, and runs the daemon.

glibc reads its tunables when a process begins, so this one begins again, before anything is
imported. Each of its threads would have a heap of its own, and keep what lies free there; and
beside it up to 240 kB of freed blocks, which fill for an hour, one size after the other.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

# https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
_VARIABLE = "GLIBC_TUNABLES"
_TUNABLES = "glibc.malloc.arena_max=1:glibc.malloc.tcache_max=256"
_AGAIN = "_ENVD_BEGAN_AGAIN"


def main() -> None:
    """Run `envd`."""
    if os.environ.pop(_AGAIN, None):
        # They are for the daemon, and not for what it starts.
        os.environ.pop(_VARIABLE, None)
    elif _VARIABLE not in os.environ and _is_glibc():
        with suppress(OSError):
            environ = {**os.environ, _VARIABLE: _TUNABLES, _AGAIN: "1"}
            os.execve(sys.executable, sys.orig_argv, environ)  # noqa: S606
    from envd.serve.main import main as run  # noqa: PLC0415

    run()


def _is_glibc() -> bool:
    with suppress(ValueError, OSError):
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    return False
