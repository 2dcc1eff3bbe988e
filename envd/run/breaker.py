"""Keeps a model whose workers fail one after the other from costing ever more of them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from envd.errors import EnvdError

_FIRST_S, _LONGEST_S, _MEMORY_S = 0.5, 30.0, 60.0
_MAX_SUSPECTS, _DEADLY = 256, 2


class Breaker:
    """Failures since the last success: the first costs nothing, then it waits ever longer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin without a failure."""
        self._clock = clock
        self._count = 0
        self._until = 0.0
        self._error: EnvdError | None = None

    def succeeded(self) -> None:
        """Forget the failures."""
        self._count, self._error = 0, None

    def failed(self, error: EnvdError) -> None:
        """Remember that a worker could not be started, or died."""
        self._count += 1
        self._error = error
        wait = _FIRST_S * 2 ** (self._count - 2) if self._count > 1 else 0.0
        self._until = self._clock() + min(wait, _LONGEST_S)

    @property
    def is_forgotten(self) -> bool:
        """Whether no failure is worth remembering."""
        return self._error is None or self._clock() - self._until > _MEMORY_S

    def open_error(self) -> EnvdError | None:
        """Return why no worker is started now, or None where one may be."""
        wait = self._until - self._clock()
        if self._error is None or wait <= 0:
            return None
        message = f"{self._error.message} (it failed {self._count} times; tried again soon)"
        error = type(self._error)(message, **self._error.metadata)
        error.retry_after_s = wait
        return error


class Suspects:
    """Requests that a worker died of, by content: at the second one nobody else has to."""

    def __init__(self) -> None:
        """Suspect none."""
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    def accuse(self, head: bytes, payload: bytes) -> bool:
        """Count a worker that died of this request; return whether that is certain now."""
        key = _digest(head, payload)
        self._deaths[key] = self._deaths.pop(key, 0) + 1
        if len(self._deaths) > _MAX_SUSPECTS:
            self._deaths.popitem(last=False)
        return self._deaths[key] >= _DEADLY

    def are_deadly(self, head: bytes, payload: bytes) -> bool:
        """Whether workers are known to die of this request."""
        # Nothing is hashed as long as nobody has died.
        return bool(self._deaths) and self._deaths.get(_digest(head, payload), 0) >= _DEADLY


def _digest(head: bytes, payload: bytes) -> bytes:
    return hashlib.sha256(b"%d:%s%s" % (len(head), head, payload)).digest()
