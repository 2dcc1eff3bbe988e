"""Records the uses of environments by requests that come one right after the other."""

from __future__ import annotations

import asyncio

from envd.store.uses import Uses

# To the store a use is as recent 50 ms later, and four system calls are a tenth of a request.
_MOMENT_S = 0.05


class RecentUses:
    """Records the first use of a moment at once, and those that follow together at its end."""

    def __init__(self, uses: Uses) -> None:
        """Record them in *uses*."""
        self._uses = uses
        self._following: dict[str, int] = {}

    def record(self, env_id: str) -> None:
        """Remember that *env_id* was used just now."""
        if env_id in self._following:
            self._following[env_id] += 1
            return
        self._uses.record(env_id)
        self._following[env_id] = 0
        asyncio.get_running_loop().call_later(_MOMENT_S, self._settle, env_id)

    def close(self) -> None:
        """Record what has not been yet."""
        for env_id in list(self._following):
            self._settle(env_id)

    def _settle(self, env_id: str) -> None:
        if times := self._following.pop(env_id, 0):
            self._uses.record(env_id, times)
