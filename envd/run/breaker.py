"""Keeps a model whose workers fail one after the other from costing ever more of them."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable

from envd.errors import EnvdError
from envd.run.channel import Buffer

_FIRST_S, _DOUBLINGS, _LONGEST_S, _MEMORY_S = 0.5, 10, 30.0, 60.0
# What loads well may die of one caller's requests, which must not keep the others out.
_LONGEST_OF_LOADED_S = 1.0
_MAX_SUSPECTS, _DEADLY, _SUSPECT_S = 256, 2, 600.0
# Nobody is served while it is hashed: of a larger payload only its beginning.
_MOST_HASHED_BYTES = 64 << 20

# How long its head and its payload are, and a digest of both.
_Content = tuple[int, int, bytes]


class Breaker:
    """Failures since the last success: the first costs nothing, then it waits ever longer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin without a failure."""
        self._clock = clock
        self._count = 0
        self._failed = 0.0
        self._until = 0.0
        self._error: EnvdError | None = None

    def succeeded(self) -> None:
        """Forget the failures."""
        self._count, self._error = 0, None

    def failed(self, error: EnvdError, born: float = math.inf) -> None:
        """Remember that a worker could not be started, or died that was *born* then.

        One that was there at the last failure already is no further one: no start was in vain.
        """
        if self._error is not None and born <= self._failed:
            return
        self._count += 1
        # As raised, it would keep the request that met it.
        self._error, self._failed = error.anew(), self._clock()
        wait = _FIRST_S * 2 ** min(self._count - 2, _DOUBLINGS) if self._count > 1 else 0.0
        longest = _LONGEST_S if born == math.inf else _LONGEST_OF_LOADED_S
        self._until = self._clock() + min(wait, longest)

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
    """Requests that a worker died of, by content: at the second one nobody else has to.

    A suspicion ends when the request is answered after all, and with time.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Suspect none."""
        self._clock = clock
        # How many died of each, and when the last one did.
        self._deaths: OrderedDict[_Content, tuple[int, float]] = OrderedDict()

    def accuse(self, head: bytes, payload: Buffer) -> bool:
        """Count a worker that died of this request; return whether that is certain now."""
        key = _content(head, payload)
        count = self._count(key) + 1
        self._deaths.pop(key, None)
        self._deaths[key] = count, self._clock()
        if len(self._deaths) > _MAX_SUSPECTS:
            self._deaths.popitem(last=False)
        return count >= _DEADLY

    def clear(self, head: bytes, payload: Buffer) -> None:
        """Forget what was held against this request: it was answered."""
        if self._has_like(head, payload):
            self._deaths.pop(_content(head, payload), None)

    def are_deadly(self, head: bytes, payload: Buffer) -> bool:
        """Whether workers are known to die of this request."""
        return self._has_like(head, payload) and self._count(_content(head, payload)) >= _DEADLY

    def _has_like(self, head: bytes, payload: Buffer) -> bool:
        """Whether it may be a suspect at all: only then it is hashed."""
        sizes = len(head), len(payload)
        return any(one[:2] == sizes for one in self._deaths)

    def _count(self, key: _Content) -> int:
        count, last = self._deaths.get(key, (0, 0.0))
        return count if self._clock() - last < _SUSPECT_S else 0


def _content(head: bytes, payload: Buffer) -> _Content:
    found = hashlib.sha256(head)
    found.update(memoryview(payload)[:_MOST_HASHED_BYTES])
    return len(head), len(payload), found.digest()
