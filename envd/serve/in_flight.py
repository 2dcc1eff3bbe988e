"""How large requests and answers may be: each, and those under way together."""

from __future__ import annotations

from google.protobuf.message import Message

from envd import config
from envd.errors import InFlightFullError, PayloadTooLargeError

# What is said of an answer beside it: notes, reasons, seconds.
_MAX_BESIDE = 1 << 16


class InFlight:
    """The payloads under way, over all connections."""

    def __init__(self, settings: config.Daemon) -> None:
        """Hold `max_in_flight` bytes, or one request of any size."""
        self._most = settings.max_in_flight
        self._largest = settings.max_message
        self.bytes = 0

    def take(self, size: int) -> None:
        """Hold *size* bytes more, until they are given back.

        Raises:
            InFlightFullError: there is no room for them beside what is held.
        """
        if self.bytes and self.bytes + size > self._most:
            message = (
                f"{self.bytes} bytes of requests are under way, and `daemon.max_in_flight` is "
                f"{self._most}; try again"
            )
            raise InFlightFullError(message, bytes=self.bytes, max_in_flight=self._most)
        self.bytes += size

    def give_back(self, size: int) -> None:
        """Hold *size* bytes less."""
        self.bytes -= size

    def check_answer(self, answer: Message, payload_size: int) -> None:
        """See that *answer* can be sent.

        Raises:
            PayloadTooLargeError: with what is said of it, its payload is too large.
        """
        # Measuring a message is writing it.
        if payload_size + _MAX_BESIDE <= self._largest or answer.ByteSize() <= self._largest:
            return
        message = (
            f"the answer is {payload_size} bytes, and with what is said of it more than the "
            f"{self._largest} that `daemon.max_message` allows"
        )
        raise PayloadTooLargeError(message, bytes=payload_size, max_message=self._largest)
