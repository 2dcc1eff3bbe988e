"""Keeps one call within its deadline, however often it is tried."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc

from envd_client.errors import QueueFullError, from_rpc_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from envd_client.errors import EnvdError

DEFAULT_PAUSE_S = 1.0
# gRPC cannot count as far as a few hundred years, and takes what is later for past.
_LONGEST_S = 1e9


def limit_s(timeout_s: float | None) -> float | None:
    """Return *timeout_s* as gRPC takes it: None for what is as good as for ever, as `math.inf`."""
    return None if timeout_s is None or timeout_s > _LONGEST_S else timeout_s


class Attempts:
    """The tries of one call."""

    def __init__(
        self,
        timeout_s: float | None,
        retries: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the time of the call."""
        self._clock, limit = clock, limit_s(timeout_s)
        self._end = None if limit is None else clock() + limit
        self._retries = retries

    def left_s(self) -> float | None:
        """Return how long the call may still take, None if there is no limit."""
        return None if self._end is None else max(self._end - self._clock(), 0.0)

    def pause_s(self, error: grpc.RpcError) -> float:
        """Return how long to wait before the call is tried again.

        Raises:
            EnvdError: it is not to be tried again; this is why the last try failed.
        """
        failure = from_rpc_error(error)
        pause_s = DEFAULT_PAUSE_S if failure.retry_after_s is None else failure.retry_after_s
        if not self._is_worth(failure, pause_s):
            raise failure from error
        self._retries -= 1
        return pause_s

    def _is_worth(self, failure: EnvdError, pause_s: float) -> bool:
        is_passing = failure.code is grpc.StatusCode.UNAVAILABLE or isinstance(
            failure, QueueFullError
        )
        if self._retries <= 0 or not is_passing:
            return False
        left_s = self.left_s()
        return left_s is None or pause_s < left_s
