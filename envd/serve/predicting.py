"""One prediction, whichever protocol it was asked in: the environment, the worker, the account."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

from envd.errors import DeadlineExceededError, EnvdError, EnvironmentNotFoundError
from envd.run.channel import Buffer
from envd.run.pool import Function, Pool, Prediction, Request
from envd.run.stream import Part, Stream
from envd.serve import calls
from envd.serve.calls import Call
from envd.serve.in_flight import InFlight, Share
from envd.serve.models import DEFAULT, ReadyModel, ReadyModels, again
from envd.spec import Terms


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of the model: its name, path or URI, and on which terms.

    Where the environment is not ready and it is not to `wait`, that is an error.
    """

    model: str
    terms: Terms = DEFAULT
    model_config: Mapping[str, object] | None = None
    wait: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """A prediction and what was asked for it, with the seconds until that was ready."""

    prediction: Prediction
    ready: ReadyModel
    environment_seconds: float


class Predicting:
    """Answers requests with the models and the workers it is given."""

    def __init__(
        self, models: ReadyModels, pool: Pool, in_flight: InFlight, max_pause: float
    ) -> None:
        """Use *models* to find environments and *pool* to run in them.

        Callers may pause for *max_pause* seconds, while they send or are sent parts.
        """
        self._models = models
        self._pool = pool
        self.in_flight = in_flight
        self.pause_s = None if math.isinf(max_pause) else max_pause

    async def answer(self, asked: Asked, request: Request) -> Answer:
        """Answer *request*, within a call that is under way.

        Raises:
            EnvdError: it cannot be answered.
        """
        call = calls.current()
        call.is_prediction = True
        size = len(request.payload)
        with self.in_flight.hold(size):
            answer = await again(lambda: self._answer(asked, request))
        call.bytes_in, call.bytes_out = size, len(answer.prediction.payload)
        return answer

    @contextlib.asynccontextmanager
    async def stream(
        self,
        asked: Asked,
        request: Request,
        function: Function,
        more: AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[Answering]:
        """Answer *request* in parts, within a call that is under way and as long as this is.

        What the *function* of the model answers can be iterated within, and stops where that
        does. The input goes on with *more*, of which no more is taken than there is room for,
        and nothing before the environment is ready.

        Raises:
            EnvdError: it cannot be answered, and nothing has come of it.
        """
        call = calls.current()
        call.is_prediction = True
        with self.in_flight.share() as share:
            share.add(len(request.payload))
            if more is not None:
                await again(lambda: self._ready(asked))
                whole = await received(request.payload, more, share, self.pause_s)
                request = replace(request, payload=whole)
            call.bytes_in = share.bytes
            answering = await again(lambda: self._begun(asked, request, function))
            with contextlib.closing(answering):
                yield answering

    async def _begun(self, asked: Asked, request: Request, function: Function) -> Answering:
        ready, seconds = await self._ready(asked)
        try:
            stream = await self._pool.stream(
                ready.model, ready.environment, request, function, ready.serving
            )
        except EnvironmentNotFoundError:
            self._models.forget(ready.model, asked.terms)
            raise
        except EnvdError as error:
            raise await self.failed(ready, error) from error
        return Answering(self, stream, ready, seconds)

    async def _answer(self, asked: Asked, request: Request) -> Answer:
        ready, seconds = await self._ready(asked)
        try:
            prediction = await self._pool.predict(
                ready.model, ready.environment, request, ready.serving
            )
        except EnvironmentNotFoundError:
            self._models.forget(ready.model, asked.terms)
            raise
        except EnvdError as error:
            raise await self.failed(ready, error) from error
        return await self._answered(calls.current(), prediction, ready, seconds)

    async def _ready(self, asked: Asked) -> tuple[ReadyModel, float]:
        """Return the model that is *asked*, and how long this request has waited for it."""
        call, started = calls.current(), time.perf_counter()
        ready = await self._models.ready(
            asked.model, asked.terms, asked.model_config, wait=asked.wait
        )
        seconds = call.stages.get("environment", 0.0) + time.perf_counter() - started
        call.stages["environment"] = seconds
        call.model = ready.entry.served.name if ready.entry else ""
        call.check_deadline()
        return ready, seconds

    async def failed(self, ready: ReadyModel, error: EnvdError) -> EnvdError:
        """Return what *error*, which came of running *ready*, is to the caller."""
        return await self._models.failed(ready, error)

    async def ended(self, call: Call, stream: Stream, ready: ReadyModel, seconds: float) -> Answer:
        """Return the answer of which *stream* had the parts."""
        prediction = self._pool.ended(stream, ready.model, ready.environment)
        return await self._answered(call, prediction, ready, seconds)

    async def _answered(
        self, call: Call, prediction: Prediction, ready: ReadyModel, seconds: float
    ) -> Answer:
        """Return the answer that *prediction* is, and take note where the time went."""
        if ready.entry:
            await self._models.succeeded(ready)
        stages = call.stages
        stages["queue"] = prediction.queue_seconds
        if prediction.start_seconds:
            stages["start"] = prediction.start_seconds
        stages["worker"] = prediction.predict_seconds
        stages["model"] = prediction.model_seconds
        return Answer(prediction, ready, seconds)


class Answering:
    """The parts of one answer as they come; `answer`, without a payload, when they are over."""

    answer: Answer

    def __init__(self, by: Predicting, stream: Stream, ready: ReadyModel, seconds: float) -> None:
        """Pass on the *stream* of what is *ready*."""
        self._by = by
        self._stream = stream
        self._ready, self._seconds = ready, seconds
        # Whoever iterates may do that in another task.
        self._call = calls.current()

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Part:
        """Return the next part.

        Raises:
            EnvdError: there are no more than those that have come.
        """
        try:
            part = await anext(self._stream)
        except StopAsyncIteration:
            self.answer = await self._by.ended(self._call, self._stream, self._ready, self._seconds)
            raise
        except EnvdError as error:
            raise await self._by.failed(self._ready, error) from error
        self._call.bytes_out += len(part.payload)
        return part

    def close(self) -> None:
        """Let the model stop."""
        self._stream.close()


async def received(
    first: Buffer, more: AsyncIterator[bytes], share: Share, pause_s: float | None
) -> bytearray:
    """Return *first* and what comes of *more*, which counts in *share*.

    Not a list of them: what is freed in parts is not given back to the machine.

    Raises:
        DeadlineExceededError: nothing has come for *pause_s*.
        EnvdError: there is no room for it.
    """
    whole = bytearray(first)
    try:
        while True:
            async with asyncio.timeout(pause_s):
                part = await anext(more, None)
            if part is None:
                return whole
            share.add(len(part))
            whole += part
    except TimeoutError:
        message = f"nothing more of the input has come for {pause_s:g} s (`daemon.max_pause`)"
        raise DeadlineExceededError(message) from None
