"""The daemon's end of a worker's socket: requests out, answers matched by their id."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any

from envd.errors import EnvdError, InternalError, from_document
from envd.run.envd_worker.protocol import DONE, HEADER, MAX_HEAD_BYTES

Answer = tuple[dict[str, Any], bytes]


class Channel(asyncio.Protocol):
    """One socket to one worker; any number of requests may be under way."""

    def __init__(self, max_payload: int) -> None:
        """Take no answer larger than *max_payload* bytes."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._max_payload = max_payload
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self.abandoned: set[int] = set()
        self._turned = 0.0
        self._received = bytearray()
        self._count = 0

    @classmethod
    async def over(cls, connection: socket.socket, max_payload: int) -> Channel:
        """Return the channel over *connection*, which it now owns."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(max_payload), sock=connection)
        return channel

    @property
    def under_way(self) -> int:
        """How many requests have no answer yet, those nobody waits for included."""
        return len(self._waiting) + len(self.abandoned)

    def is_stuck(self, limit_s: float) -> bool:
        """Whether the worker has spent *limit_s* on one request that nobody waits for.

        It answers in order: it is at the oldest one, since it answered the one before.
        """
        if not self.abandoned or min(self.abandoned) > min(self._waiting, default=1 << 32):
            return False
        return asyncio.get_running_loop().time() - self._turned >= limit_s

    async def call(self, kind: int, head: Mapping[str, object], payload: bytes = b"") -> Answer:
        """Send one request and return the head and the payload of its answer.

        Raises:
            EnvdError: the worker refused it.
            ConnectionError: the worker is gone.
        """
        if self.closed.done():
            message = "the worker is gone"
            raise ConnectionResetError(message)
        self._count += 1
        number = self._count & 0xFFFFFFFF
        text = json.dumps(head).encode()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if not self.under_way:
            self._turned = answer.get_loop().time()
        self._waiting[number] = answer
        self._transport.write(HEADER.pack(len(payload), number, kind, len(text)) + text)
        if payload:
            self._transport.write(payload)
        try:
            return await answer
        except asyncio.CancelledError:
            # The answer may have come in the very turn in which the caller left.
            if not answer.done() or answer.cancelled():
                self.abandoned.add(number)
            raise
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Say goodbye: a worker ends when its socket does."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Hand every whole answer to whoever waits for it."""
        self._received += data
        while frame := self._frame():
            number, kind, head, payload = frame
            self.abandoned.discard(number)
            self._turned = asyncio.get_running_loop().time()
            waiting = self._waiting.get(number)
            if waiting is None or waiting.done():
                continue
            if kind == DONE:
                waiting.set_result((head, payload))
            else:
                waiting.set_exception(_error(head))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is under way."""
        del exc
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the worker is gone"))
        if not self.closed.done():
            self.closed.set_result(None)

    def _frame(self) -> tuple[int, int, dict[str, Any], bytes] | None:
        if len(self._received) < HEADER.size:
            return None
        size, number, kind, head_size = HEADER.unpack_from(self._received)
        if size > self._max_payload or head_size > MAX_HEAD_BYTES:
            # Only code of the model's own can have written this; there is no way back in.
            self._transport.abort()
            self._received.clear()
            return None
        start = HEADER.size + head_size
        if len(self._received) < start + size:
            return None
        with memoryview(self._received) as view:
            head = json.loads(bytes(view[HEADER.size : start]))
            payload = bytes(view[start : start + size])
        del self._received[: start + size]
        return number, kind, head, payload


def _error(head: dict[str, Any]) -> EnvdError:
    try:
        return from_document(head)
    except (TypeError, ValueError):
        return InternalError("a worker sent an answer that cannot be read")
