"""Sends inputs and takes answers that come in parts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from envd_client.answer import answer
from envd_client.v1 import envd_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from envd_client.answer import Answer

PREDICT = envd_pb2.PredictStreamRequest.PREDICT
PREDICT_STREAM = envd_pb2.PredictStreamRequest.PREDICT_STREAM
_PART_BYTES = 1 << 19
# What a request says beside its payload, unless somebody has very much to say.
_BESIDE_BYTES = 1 << 16


def fits(request: envd_pb2.PredictRequest, payload: bytes, max_message_bytes: int) -> bool:
    """Whether *request* can be sent in one message with *payload*, which is not in it yet."""
    left = max_message_bytes - len(payload)
    return left >= _BESIDE_BYTES or left >= request.ByteSize() + 16


def messages(
    request: envd_pb2.PredictRequest,
    payload: bytes,
    function: envd_pb2.PredictStreamRequest.Function.ValueType,
    max_message_bytes: int,
) -> Iterator[envd_pb2.PredictStreamRequest]:
    """Yield the messages that ask *function* for *request* with *payload*."""
    size = min(_PART_BYTES, max_message_bytes // 2)
    first = envd_pb2.PredictStreamRequest(request=request, function=function)
    if len(payload) <= size:
        first.request.payload, first.input_ends = payload, True
        yield first
        return
    yield first
    parts = memoryview(payload)
    for start in range(0, len(parts), size):
        part, ends = bytes(parts[start : start + size]), start + size >= len(parts)
        yield envd_pb2.PredictStreamRequest(payload=part, input_ends=ends)


class Items:
    """Puts items together that come in parts, and keeps what is said in the end."""

    def __init__(self) -> None:
        """Begin with none."""
        self._answer: Answer | None = None
        self._parts: list[bytes] = []

    def add(self, response: envd_pb2.PredictStreamResponse) -> bytes | None:
        """Return the item that ends with *response*, if one does."""
        if response.HasField("end"):
            self._answer = answer(response.end)
            return None
        self._parts.append(response.payload)
        if not response.item_ends:
            return None
        item = b"".join(self._parts)
        self._parts.clear()
        return item

    def answered(self, payload: bytes = b"") -> Answer:
        """Return the answer, of which *payload* is the one item.

        Raises:
            ValueError: it is not over.
        """
        if self._answer is None:
            message = "the answer is not over"
            raise ValueError(message)
        return replace(self._answer, payload=payload)


class Stream:
    """What a model says item by item, decoded, as it says it.

    When it is over, `answer` says how it came about; its payload is empty. Leaving its
    `with`, or `close`, stops the model; whoever stops iterating may go on later.
    """

    def __init__(self, responses: Generator[envd_pb2.PredictStreamResponse, None, None]) -> None:
        """Take the items from *responses*, which ask when the first one is wanted."""
        self._responses = responses
        self._items = Items()

    @property
    def answer(self) -> Answer:
        """How the answer came about, without its payload, when it is over.

        Raises:
            ValueError: it is not.
        """
        return self._items.answered()

    def payloads(self) -> Iterator[bytes]:
        """Yield the items as they come, JSON each."""
        for response in self._responses:
            item = self._items.add(response)
            if item is not None:
                yield item

    def __iter__(self) -> Iterator[Any]:
        """Yield the items."""
        return map(json.loads, self.payloads())

    def close(self) -> None:
        """Stop the model, if it is not over."""
        self._responses.close()

    def __enter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the model, if it is not over."""
        self.close()


class AsyncStream:
    """What a model says item by item, decoded, as it says it: see `Stream`."""

    def __init__(self, responses: AsyncGenerator[envd_pb2.PredictStreamResponse, None]) -> None:
        """Take the items from *responses*, which ask when the first one is wanted."""
        self._responses = responses
        self._items = Items()

    @property
    def answer(self) -> Answer:
        """How the answer came about, without its payload, when it is over.

        Raises:
            ValueError: it is not.
        """
        return self._items.answered()

    async def payloads(self) -> AsyncGenerator[bytes, None]:
        """Yield the items as they come, JSON each."""
        async for response in self._responses:
            item = self._items.add(response)
            if item is not None:
                yield item

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        """Yield the items."""
        async for payload in self.payloads():
            yield json.loads(payload)

    async def close(self) -> None:
        """Stop the model, if it is not over."""
        await self._responses.aclose()

    async def __aenter__(self) -> Self:
        """Return the stream itself."""
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the model, if it is not over."""
        await self.close()
