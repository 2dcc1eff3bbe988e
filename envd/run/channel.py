"""The daemon's end of a worker's socket: requests out, answers matched by their id."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from envd.errors import EnvdError, from_document
from envd.run.envd_worker.protocol import (
    BEGUN,
    CANCEL,
    CREDIT,
    DONE,
    HEADER,
    ITEM,
    MAX_HEAD_BYTES,
    PART,
)

log = logging.getLogger(__name__)
# What is large, or came in parts, is not copied once more to be bytes.
Buffer = bytes | bytearray | memoryview
Answer = tuple[dict[str, Any], Buffer]
_LAST_WORDS_S = 0.1
_LARGE_BYTES = 1 << 18


class Caller(Protocol):
    """Who sent a request, and hears what became of it, gone or not: one of these, once.

    Before an answer, or a refusal, there may be any number of parts.
    """

    def part(self, payload: Buffer, *, ends: bool) -> None:
        """Take a part of an item of the answer, which may end the item.

        Raises:
            ValueError: as `answered`.
        """

    def answered(self, head: dict[str, Any], payload: Buffer) -> None:
        """Take the answer.

        Raises:
            ValueError: no worker answers so; nothing has been done.
        """

    def refused(self, error: EnvdError) -> None:
        """Take the worker's refusal.

        Raises:
            ValueError: no worker refuses so; nothing has been done.
        """

    def lost(self, *, is_begun: bool) -> None:
        """Hear that the worker has gone, with this request under way or not yet begun."""


class Channel(asyncio.Protocol):
    """One socket to one worker, which answers what it is sent in order."""

    def __init__(self, max_payload: int) -> None:
        """Take no answer larger than *max_payload* bytes."""
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        # Whether it was ended for what came over it, whichever request was under way.
        self.is_broken = False
        self._max_payload = max_payload
        # In the order in which they were sent.
        self._callers: dict[int, Caller] = {}
        # When the callers of those that nobody waits for have left.
        self._abandoned: dict[int, float] = {}
        self._begun: Collection[int] = ()
        self._turned = 0.0
        self._received = bytearray()
        self._outgoing: list[Buffer] = []
        self._count = 0
        # The request that nothing was sent after.
        self._newest = 0

    @classmethod
    async def over(cls, connection: socket.socket, max_payload: int) -> Channel:
        """Return the channel over *connection*, which it now owns."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(max_payload), sock=connection)
        return channel

    @property
    def under_way(self) -> int:
        """How many requests have no answer yet, those nobody waits for included."""
        return len(self._callers)

    @property
    def has_abandoned(self) -> bool:
        """Whether somebody has left without an answer."""
        return bool(self._abandoned)

    def is_stuck(self, limit_s: float) -> bool:
        """Whether the worker has spent *limit_s* on what nobody waits for any more."""
        begun = self._begun_now()
        if not begun or not self._abandoned.keys() >= set(begun):
            return False
        since = max(self._turned, *(self._abandoned[number] for number in begun))
        return self._loop.time() - since >= limit_s

    def send(self, kind: int, head: bytes, payload: Buffer, caller: Caller) -> int:
        """Send one request and return its id; *caller* hears what becomes of it."""
        if self.closed.done():
            self._loop.call_soon(lambda: caller.lost(is_begun=False))
            return 0
        self._count = self._count % 0xFFFFFFFF + 1
        if not self._callers:
            self._turned = self._loop.time()
        self._callers[self._count] = caller
        self._write(HEADER.pack(len(payload), self._count, kind, len(head)) + head, payload)
        self._newest = self._count
        return self._count

    def abandon(self, number: int) -> None:
        """Let the worker drop a request if it has not begun it: nobody waits for it."""
        if number in self._callers:
            self._abandoned[number] = self._loop.time()
            self._write(HEADER.pack(0, number, CANCEL, 0))

    def grant(self, number: int, size: int) -> None:
        """Let the worker send *size* bytes more of its answer to the request *number*."""
        if number in self._callers:
            head = json.dumps({"bytes": size}).encode()
            self._write(HEADER.pack(0, number, CREDIT, len(head)) + head)

    async def call(self, kind: int, head: Mapping[str, object]) -> Answer:
        """Send one request and return the head and the payload of its answer.

        Raises:
            EnvdError: the worker refused it.
            ConnectionError: the worker is gone.
        """
        caller = _Waiting(self._loop.create_future())
        number = self.send(kind, json.dumps(head).encode(), b"", caller)
        try:
            return await caller.answer
        except asyncio.CancelledError:
            self.abandon(number)
            raise

    def close(self) -> None:
        """Say goodbye: a worker ends when its socket does."""
        self._flush()
        self._transport.close()

    def close_soon(self) -> None:
        """Close it once the last words of a worker that has ended have been read.

        Children that it left may hold its end of the socket open.
        """
        if not self.closed.done():
            self._loop.call_later(_LAST_WORDS_S, self.close)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Hand every whole answer to whoever waits for it."""
        self._received += data
        try:
            while frame := self._frame():
                self._take(*frame)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            self._give_up()

    def _take(self, number: int, kind: int, head: dict[str, Any], payload: Buffer) -> None:
        """Take one frame.

        Raises:
            Exception: no worker says so, as the answer to what it was not asked.
        """
        if kind == BEGUN:
            self._begun = frozenset(head["ids"]) & self._callers.keys()
            return
        caller = self._callers[number]
        if kind in {PART, ITEM}:
            if number not in self._begun_now():
                raise ValueError(number)
            caller.part(payload, ends=kind == ITEM)
            return
        if number in self._begun_now():
            self._turned = self._loop.time()
        if kind == DONE:
            caller.answered(head, payload)
        else:
            caller.refused(from_document(head))
        del self._callers[number]
        self._abandoned.pop(number, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody whose request is under way.

        Of a socket that is closed with something unread its peer is told by ECONNRESET: then
        the last request was not read, and is no cause of a death (unix_release_sock in Linux'
        net/unix/af_unix.c).
        """
        is_unread = bool(self._outgoing) or isinstance(exc, ConnectionError)
        begun = set(self._begun_now()) - ({self._newest} if is_unread else set())
        callers, self._callers = self._callers, {}
        if not self.closed.done():
            self.closed.set_result(None)
        self._abandoned.clear()
        for number, caller in callers.items():
            caller.lost(is_begun=number in begun)

    def _write(self, *parts: Buffer) -> None:
        """Send *parts* with all else that is sent in this turn of the loop.

        A write of its own for each would wake the worker each time, and on a busy machine
        give way to it.
        """
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += parts
        self._newest = 0

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and not self._transport.is_closing():
            self._transport.writelines(outgoing)

    def _begun_now(self) -> Collection[int]:
        """Return what the worker is at: it said so of a batch, else it is the oldest."""
        if self._begun and (begun := [one for one in self._begun if one in self._callers]):
            return begun
        oldest = next(iter(self._callers), None)
        return () if oldest is None else (oldest,)

    def _give_up(self) -> None:
        """End the channel: only code of the model's own can have written what came over it."""
        log.warning("a worker sent what no worker sends; it is ended")
        self.is_broken = True
        self._transport.abort()
        self._received.clear()

    def _frame(self) -> tuple[int, int, dict[str, Any], Buffer] | None:
        if len(self._received) < HEADER.size:
            return None
        size, number, kind, head_size = HEADER.unpack_from(self._received)
        if size > self._max_payload or head_size > MAX_HEAD_BYTES:
            self._give_up()
            return None
        start = HEADER.size + head_size
        if len(self._received) < start + size:
            return None
        with memoryview(self._received) as view:
            head = json.loads(bytes(view[HEADER.size : start]))
        if not isinstance(head, dict):
            raise TypeError
        return number, kind, head, self._cut(start, size)

    def _cut(self, start: int, size: int) -> Buffer:
        """Take out *size* bytes from *start* on, and all that is before them."""
        if size < _LARGE_BYTES or len(self._received) > start + size:
            payload = bytes(memoryview(self._received)[start : start + size])
            del self._received[: start + size]
            return payload
        # Nobody is served while it is copied.
        whole, self._received = self._received, bytearray()
        del whole[:start]
        return whole


class _Waiting:
    """A caller that awaits its answer."""

    def __init__(self, answer: asyncio.Future[Answer]) -> None:
        self.answer = answer

    def part(self, payload: Buffer, *, ends: bool) -> None:
        del payload, ends
        message = "loading a model has no parts"
        raise ValueError(message)

    def answered(self, head: dict[str, Any], payload: Buffer) -> None:
        if not self.answer.done():
            self.answer.set_result((head, payload))

    def refused(self, error: EnvdError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def lost(self, *, is_begun: bool) -> None:
        del is_begun
        if not self.answer.done():
            self.answer.set_exception(ConnectionResetError("the worker is gone"))
