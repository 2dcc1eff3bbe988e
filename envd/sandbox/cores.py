"""Cores, as the kernel writes them of processes that die: in memory there are secrets."""

from __future__ import annotations

import resource

# Less than any core has: nothing is written then, nor given to a program, which 0 would let pass.
NONE = 1


def leave_none() -> None:
    """Have no core of this process, and of all it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    least = NONE if most == resource.RLIM_INFINITY else min(NONE, most)
    resource.setrlimit(resource.RLIMIT_CORE, (least, least))
