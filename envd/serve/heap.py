"""The memory of a daemon that lives for months: what is free in it is given back.

What refers to itself is freed before it has become megabytes, among which the rest would be
scattered: errors with where they were raised, and the queues of models that have changed.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc

_PAUSE_S = 30.0

_libc = ctypes.CDLL(None)


async def give_back() -> None:
    """Give whole pages that are free back to the kernel, for ever, every half a minute."""
    while True:
        await asyncio.sleep(_PAUSE_S)
        # What was there at the start is frozen, so this takes 3 ms under load.
        gc.collect()
        # Only glibc has it.
        if hasattr(_libc, "malloc_trim"):
            _libc.malloc_trim(0)
