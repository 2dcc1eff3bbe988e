"""What has come over a worker's socket: requests in order, read as far as they are there."""

import collections
import json
import socket

from .protocol import BESIDE_BYTES, CANCEL, CREDIT, HEADER, WINDOW_BYTES

_CHUNK_BYTES = 1 << 16
_MAX_HELD_BYTES = 64 << 20
_MAX_HELD = 256


class Request:
    """One frame. `prepared` is for whoever looks into it before its turn."""

    __slots__ = ("head", "kind", "number", "payload", "prepared", "size")

    def __init__(self, number, kind, head, payload):
        """Keep the parts of a frame."""
        self.number, self.kind, self.head, self.payload = number, kind, head, payload
        self.prepared, self.size = None, len(payload)


class Flow:
    """How much of one answer may be sent, as far as that is known, and whether it is wanted."""

    def __init__(self, number, inbox):
        """Watch *inbox* for what is said of the request *number*."""
        self.number, self.left, self.is_cancelled = number, WINDOW_BYTES, False
        self._inbox = inbox

    def takes(self, size):
        """Wait until *size* bytes more may be sent; return whether anybody wants them."""
        self.left -= size + BESIDE_BYTES
        is_open = self._inbox.look(self, wait=self.left < 0)
        while is_open and self.left < 0 and not self.is_cancelled:
            is_open = self._inbox.look(self, wait=True)
        return is_open and not self.is_cancelled


class Inbox:
    """The requests that have come and are yet to begin."""

    def __init__(self, connection):
        """Read from *connection*."""
        self._connection = connection
        self._buffer, self._filled = bytearray(_CHUNK_BYTES), 0
        self._requests, self._held_bytes = collections.deque(), 0
        self._may_be_more, self._is_over = False, False
        self._flow = None

    def take(self):
        """Return the oldest request, once there is one; None when the daemon is gone.

        What else is there by then is read as well, unless enough is held already. A read
        that does not fill the buffer has emptied the socket: one caller at a time costs
        one system call a request.
        """
        self._may_be_more = bool(self._requests)
        while not self._is_over and not self._requests:
            self._read(0)
        while not self._is_over and self._may_be_more and self._has_room():
            self._read(socket.MSG_DONTWAIT)
        return None if self._is_over else self.take_next()

    def next(self):
        """Return the request that is next in order, if it is there."""
        return self._requests[0] if self._requests else None

    def take_next(self):
        """Take that one."""
        request = self._requests.popleft()
        self._held_bytes -= request.size
        return request

    def look(self, flow, wait):
        """Tell *flow* what has come for it, once there is something if it is to *wait*.

        Return whether the daemon is still there.
        """
        self._flow = flow
        self._read(0 if wait else socket.MSG_DONTWAIT)
        self._flow = None
        return not self._is_over

    def _has_room(self):
        return self._held_bytes <= _MAX_HELD_BYTES and len(self._requests) <= _MAX_HELD

    def _read(self, flags):
        try:
            free = memoryview(self._buffer)[self._filled :]
            count = self._connection.recv_into(free, 0, flags)
        except BlockingIOError:
            self._may_be_more = False
            return
        except ConnectionError:
            count = 0
        self._is_over = not count
        self._filled += count
        self._may_be_more = self._filled == len(self._buffer)
        self._divide()

    def _divide(self):
        """Take the whole frames out of the buffer, and make room for the one that is not."""
        start = 0
        size = self._size(start)
        while size <= self._filled - start:
            self._receive(start, size)
            start += size
            size = self._size(start)
        if start == 0 and size <= len(self._buffer):
            # It is where the rest of it goes.
            return
        rest = self._buffer[start : self._filled]
        if len(self._buffer) != max(size, _CHUNK_BYTES):
            self._buffer = bytearray(max(size, _CHUNK_BYTES))
        self._buffer[: len(rest)] = rest
        self._filled = len(rest)

    def _size(self, start):
        """Return how long the frame at *start* is, as far as that can be told."""
        if self._filled - start < HEADER.size:
            return HEADER.size + 1
        size, _, _, head_size = HEADER.unpack_from(self._buffer, start)
        return HEADER.size + head_size + size

    def _receive(self, start, size):
        _, number, kind, head_size = HEADER.unpack_from(self._buffer, start)
        body = start + HEADER.size + head_size
        view = memoryview(self._buffer)
        if kind == CANCEL:
            self._cancel(number)
            return
        if kind == CREDIT and not (self._flow and self._flow.number == number):
            # It was on its way when that request ended.
            return
        head = json.loads(bytes(view[start + HEADER.size : body]).decode() or "{}")
        if kind == CREDIT:
            self._flow.left += head["bytes"]
            return
        payload = view[body : start + size]
        # A buffer of the frame's own is not used again; there is no need for a copy.
        if len(self._buffer) == _CHUNK_BYTES:
            payload = bytes(payload)
        self._requests.append(Request(number, kind, head, payload))
        self._held_bytes += self._requests[-1].size

    def _cancel(self, number):
        if self._flow and self._flow.number == number:
            self._flow.is_cancelled = True
        for request in self._requests:
            if request.number == number:
                request.kind, request.payload, request.prepared = CANCEL, b"", None
                self._held_bytes -= request.size
                request.size = 0
