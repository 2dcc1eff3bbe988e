"""How large requests and answers may be: each, and those under way together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from envd.errors import InFlightFullError, PayloadTooLargeError
from envd.run.channel import Buffer
from envd.settings.sections import Daemon

# What is said of an answer beside it: notes, reasons, seconds.
_MAX_BESIDE = 1 << 16


class InFlight:
    """The payloads under way, over all connections."""

    def __init__(self, settings: Daemon) -> None:
        """Hold `max_in_flight` bytes, or one request of any size; `largest` is a message's."""
        self._most = settings.max_in_flight
        self.largest = settings.max_message
        self._largest_in_parts = settings.max_in_parts
        self.bytes = 0

    def heed(self, settings: Daemon) -> None:
        """Hold from now on what *settings* say; how large a message may be does not change."""
        self._most = settings.max_in_flight
        self._largest_in_parts = settings.max_in_parts

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """Hold what comes of one request within, however much that gets to be."""
        share = Share(self, self._largest_in_parts)
        try:
            yield share
        finally:
            self.give_back(share.bytes)

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold *size* bytes within; raises as `take` does."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)

    def take(self, size: int, held: int = 0) -> None:
        """Hold *size* bytes more of a request that has *held* some, until they are given back.

        Raises:
            InFlightFullError: there is no room for them beside what is held.
        """
        if self.bytes > held and self.bytes + size > self._most:
            message = (
                f"{self.bytes} bytes of requests are under way, and `daemon.max_in_flight` is "
                f"{self._most}; try again"
            )
            raise InFlightFullError(message, bytes=self.bytes, max_in_flight=self._most)
        self.bytes += size

    def give_back(self, size: int) -> None:
        """Hold *size* bytes less."""
        self.bytes -= size

    def check_answer(self, payload: Buffer, size: Callable[[], int]) -> None:
        """See that an answer can be sent, which has *payload* in it and is so many bytes.

        Raises:
            PayloadTooLargeError: with what is said of it, its payload is too large.
        """
        # Measuring a message is writing it.
        if len(payload) + _MAX_BESIDE <= self.largest or size() <= self.largest:
            return
        message = (
            f"the answer is {len(payload)} bytes, and with what is said of it more than the "
            f"{self.largest} that `daemon.max_message` allows"
        )
        raise PayloadTooLargeError(message, bytes=len(payload), max_message=self.largest)


class Share:
    """The payload of one request that comes in parts."""

    def __init__(self, in_flight: InFlight, largest: int) -> None:
        """Hold at most *largest* bytes of what is *in_flight*."""
        self._in_flight = in_flight
        self._largest = largest
        self.bytes = 0

    def add(self, size: int) -> None:
        """Hold *size* bytes more.

        Raises:
            PayloadTooLargeError: nobody may send so much.
            InFlightFullError: there is no room for them beside what is held of others.
        """
        if self.bytes + size > self._largest:
            message = f"the input is more than the {self._largest} bytes of `daemon.max_in_parts`"
            raise PayloadTooLargeError(message, max_in_parts=self._largest)
        self._in_flight.take(size, self.bytes)
        self.bytes += size
