"""How many bytes of requests the daemon holds at once."""

from __future__ import annotations

from envd.errors import InFlightFullError


class InFlight:
    """The payloads under way, over all connections."""

    def __init__(self, most: int) -> None:
        """Hold *most* bytes, or one request of any size."""
        self._most = most
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
