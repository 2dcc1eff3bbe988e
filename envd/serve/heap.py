"""The memory of a daemon that lives for months: one heap, and what is free in it given back.

Each of gRPC's threads would have a heap of its own, and for hours all of them, and each, grow by
what lies free between what is in use. What refers to itself is freed before it has become
megabytes, among which the rest would be scattered: errors with where they were raised, and the
queues of models that have changed. Where the C library is not glibc, that is all.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc

# https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
_M_ARENA_MAX = -8
_PAUSE_S = 30.0

_libc = ctypes.CDLL(None)


def keep_one() -> None:
    """Have all threads that are yet to come allocate from one heap.

    They would wait for each other if they did not wait for the interpreter already.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)


async def give_back() -> None:
    """Give whole pages that are free back to the kernel, for ever, every half a minute."""
    while True:
        await asyncio.sleep(_PAUSE_S)
        # What was there at the start is frozen, so this takes 3 ms under load.
        gc.collect()
        if hasattr(_libc, "malloc_trim"):
            _libc.malloc_trim(0)
