"""Bodies as they come and go: bounded, counted while they come in, compressed where asked."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request

from envd.config import Settings
from envd.errors import PayloadInvalidError
from envd.serve.http.failures import BodyTooLargeError, MediaTypeError, TooSlowError
from envd.serve.in_flight import InFlight

# The formats that HTTP calls so, to zlib.
_FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": zlib.MAX_WBITS}
# What is done at once in the loop, and in a thread where there is more.
_LITTLE, _MUCH = 1 << 16, 1 << 20
# Less is not made smaller by it, or hardly.
_WORTH_IT, _FAST = 1 << 10, 1


class _Held:
    """A body that grows, within what it may hold and what all may hold together."""

    def __init__(self, limit: int, in_flight: InFlight) -> None:
        self.content = bytearray()
        self._limit = limit
        self._in_flight = in_flight

    def add(self, part: bytes) -> None:
        self.check(len(self.content) + len(part))
        self._in_flight.take(len(part), len(self.content))
        # Not a list of parts: what is freed in parts is not used again for others.
        self.content += part

    def check(self, size: int) -> None:
        if size > self._limit:
            message = (
                f"the body is more than the {self._limit} bytes that `daemon.max_message` allows"
            )
            raise BodyTooLargeError(message, max_message=self._limit)


class Bodies:
    """Takes the bodies of requests."""

    def __init__(self, settings: Settings, in_flight: InFlight) -> None:
        """Take them within what *settings* allow, counted in *in_flight*."""
        self._limit = settings.daemon.max_message
        self._pause = settings.http.read_timeout
        self._in_flight = in_flight

    async def read(self, request: Request) -> bytes:
        """Return the body of *request*, which counts as under way while it comes in.

        Raises:
            BodyTooLargeError: it is, or says that it will be, larger than is allowed.
            InFlightFullError: there is no room for it.
            TooSlowError: it does not come.
            MediaTypeError: it is compressed in a way that is not known.
            PayloadInvalidError: it is not what that says.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in _FORMATS and encoding != "identity":
            message = f"the content encoding `{encoding}` is not known; send gzip or deflate"
            raise MediaTypeError(message)
        with self._held() as held:
            held.check(int(request.headers.get("content-length", 0)))
            is_whole = False
            while not is_whole:
                part, is_whole = await self._part(request)
                if is_whole and not held.content and encoding == "identity":
                    held.check(len(part))
                    return part
                held.add(part)
            if encoding == "identity":
                return bytes(held.content)
            with self._held() as unpacked:
                await _unpack(bytes(held.content), _FORMATS[encoding], unpacked)
                return bytes(unpacked.content)

    @contextmanager
    def _held(self) -> Iterator[_Held]:
        """Return what holds a body until it is whole.

        Whoever answers it takes all of it then, in the same turn of the loop.
        """
        held = _Held(self._limit, self._in_flight)
        try:
            yield held
        finally:
            self._in_flight.give_back(len(held.content))

    async def _part(self, request: Request) -> tuple[bytes, bool]:
        """Return the next part of the body, and whether it is the last."""
        try:
            async with asyncio.timeout(None if self._pause == math.inf else self._pause):
                message = await request.receive()
        except TimeoutError:
            said = f"the body did not come: {self._pause:g} s without a byte (`http.read_timeout`)"
            raise TooSlowError(said) from None
        if message["type"] == "http.disconnect":
            request.state.has_left = True
            raise asyncio.CancelledError
        return message["body"], not message.get("more_body", False)


async def _unpack(packed: bytes, form: int, held: _Held) -> None:
    """Add to *held* what was *packed*, however large that gets to be."""
    unpacking = zlib.decompressobj(form)
    try:
        held.add(unpacking.decompress(packed, _LITTLE))
        while not unpacking.eof:
            rest: Any = unpacking.unconsumed_tail
            part = await asyncio.to_thread(unpacking.decompress, rest, _MUCH)
            if not part and not unpacking.eof:
                message = "the body is compressed, and cut off"
                raise PayloadInvalidError(message)
            held.add(part)
        if unpacking.unused_data:
            message = "the body goes on behind what is compressed"
            raise PayloadInvalidError(message)
    except zlib.error as error:
        message = f"the body is not compressed as its Content-Encoding says: {error}"
        raise PayloadInvalidError(message) from error


async def packed(body: bytes, accepted: str) -> tuple[bytes, str]:
    """Return *body* compressed as one of the encodings *accepted*, and which; or as it is."""
    wanted = {one.partition(";")[0].strip() for one in accepted.lower().split(",")
              if one.replace(" ", "").partition(";q=")[2] not in {"0", "0.0"}}  # fmt: skip
    encoding = next((one for one in ("gzip", "deflate") if one in wanted), "")
    if not encoding or len(body) < _WORTH_IT:
        return body, ""
    packing = zlib.compressobj(_FAST, wbits=_FORMATS[encoding])
    if len(body) <= _LITTLE:
        return packing.compress(body) + packing.flush(), encoding
    return await asyncio.to_thread(lambda: packing.compress(body) + packing.flush()), encoding
