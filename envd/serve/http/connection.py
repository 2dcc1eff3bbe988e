"""One connection: what a client may do before there is a request, and after its answer.

uvicorn bounds neither the number of connections, nor the size of headers, nor how long a
client may take for them or for reading an answer.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from envd.serve.http import failures
from envd.settings.sections import Http

_MAX_HEADER_BYTES = 1 << 16
_OF_BODY = {b"content-length", b"transfer-encoding"}


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds."""

    def __init__(self, limits: Http, **parts: Any) -> None:
        """Allow what *limits* says."""
        super().__init__(**parts)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        # What is answered now; uvicorn's own `cycle` is what was begun last.
        self._answered: RequestResponseCycle | None = None
        self._is_in_headers = self._is_in_body = self._is_upgrade = self._is_seen = False
        self._begun = 0
        self._header_bytes = self._unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, if there is room for it."""
        self.app_state["transport"] = transport
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            message = (
                f"there are {self._limits.max_connections} connections already, as many as "
                "`http.max_connections` allows; try again"
            )
            self._refuse(503, message, b"retry-after: 1\r\n")
        else:
            self._wait(self._limits.idle_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let nothing be due any more, and whoever answers know that nobody waits."""
        self._wait(math.inf)
        super().connection_lost(exc)
        if self._answered:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Take *data*, unless it makes headers without end."""
        self._begun, rest = int(self._is_in_headers or self._is_in_body), data
        while rest and not self.transport.is_closing():
            rest = self._fed(rest)
        # Behind another request, nobody knows how much of it is theirs.
        is_theirs = self._is_in_headers and self._begun <= 1
        self._header_bytes = self._header_bytes + len(data) if is_theirs else 0
        if self._header_bytes > _MAX_HEADER_BYTES:
            self._refuse(431, f"the headers are more than {_MAX_HEADER_BYTES} bytes; send less")

    def eof_received(self) -> None:
        """Say so where a request ends in its midst; else whoever has left waits for nothing."""
        if self._is_in_headers or self._is_in_body:
            self.send_400_response("the request ends before it is whole; send all of it")

    def on_message_begin(self) -> None:
        """Let its headers take only so long."""
        if self._is_seen:
            return
        super().on_message_begin()
        self._begun += 1
        self._is_in_headers = True
        if not self._is_answering():
            self._wait(self._limits.read_timeout)

    def on_url(self, url: bytes) -> None:
        """Take a part of the path."""
        if not self._is_seen:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        if not self._is_seen:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Leave it to whoever reads the body how long that may take."""
        if self._is_seen:
            return
        self._is_in_headers, self._is_in_body = False, True
        self._is_upgrade = self.parser.should_upgrade()
        self._wait(math.inf)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Take note that the body is whole."""
        if self._is_upgrade:
            # To the parser only: the body is yet to come.
            return
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of one that was refused."""
        super().on_response_complete()
        self._unread_bytes = 0
        self._unset_keepalive_if_required()
        if not self._is_answering():
            rest = self._is_in_headers or self._is_in_body
            self._wait(self._limits.read_timeout if rest else self._limits.idle_timeout)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form of all other failures."""
        self._refuse(400, msg)

    def _fed(self, data: bytes) -> bytes:
        """Have *data* parsed, and return what of it is yet to be."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on()
            return data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError:
            self.send_400_response("the path of the request is none, or too long; send another")
        except httptools.HttpParserError as error:
            self.send_400_response(f"this is no HTTP request: {error}")
        return b""

    def _go_on(self) -> None:
        """Read on after the headers of a request that would like to speak something else.

        It may not, and is answered as it is: Java's client asks for HTTP/2 in this way. The parser
        takes what follows for the other protocol; another one has to be told of the body.
        """
        told = [b"%b: %b\r\n" % one for one in self.headers if one[0] in _OF_BODY]
        self.parser = httptools.HttpRequestParser(self)
        self._is_upgrade, self._is_seen = False, True
        self.parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *told, b"\r\n"]))
        self._is_seen = False

    def _is_answering(self) -> bool:
        return self._answered is not None and not self._answered.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, status: int, message: str, header: bytes = b"") -> None:
        """Answer with a failure, unless an answer is being sent, and close the connection."""
        if self.transport.is_closing():
            return
        self._is_in_headers = self._is_in_body = False
        answered = self._answered
        if answered is None or answered.response_complete or not answered.response_started:
            content = failures.document(status, message)
            size = b"content-length: %d\r\nconnection: close\r\n" % len(content)
            kind = b"content-type: application/json\r\n"
            self.transport.write(STATUS_LINE[status] + kind + size + header + b"\r\n" + content)
        self.transport.close()
        self._wait(self._limits.idle_timeout)

    def _wait(self, seconds: float) -> None:
        """Have `_late` called after *seconds*, which may be never, and not when it was to be."""
        if self._timer:
            self._timer.cancel()
        is_due = seconds != math.inf
        self._timer = self.loop.call_later(seconds, self._late) if is_due else None

    def _late(self) -> None:
        """End what has taken too long: headers, or an answer that is not read, or nothing."""
        unread = self.transport.get_write_buffer_size()
        if unread and unread != self._unread_bytes:
            self._unread_bytes = unread
            self._wait(self._limits.idle_timeout)
        elif unread:
            self.transport.abort()
        elif self._is_in_headers:
            self._refuse(408, "the headers take too long; send them at once")
        else:
            self.transport.close()
