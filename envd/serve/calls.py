"""What all requests to envd's own services have: an id, an account of their time, one end.

A request's id is the caller's `x-request-id`, or made. It comes back in the trailing metadata,
stands in every line that is logged for it, and in the metadata of its error.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import grpc

from envd.access.roles import Role
from envd.errors import (
    DeadlineExceededError,
    EnvdError,
    ShuttingDownError,
    UnauthenticatedError,
)
from envd.serve import status
from envd.serve.callers import Caller
from envd.serve.context import Context

log = logging.getLogger(__name__)
REQUEST_ID = "x-request-id"
# For those that are cancelled to come to their end.
_LAST_S = 5
_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
Unary = Callable[[Any, Context], Awaitable[Any]]
Stream = Callable[[Any, Context], AsyncIterator[Any]]
Both = Callable[[AsyncIterator[Any], Context], Awaitable[None]]
# How many seconds the caller still waits; None is for ever.
LeftS = Callable[[], float | None]


@dataclass(frozen=True, slots=True)
class Admission:
    """Who asks, as `caller` tells, and the role that it takes; None is nobody's."""

    caller: Callable[[Context], Caller]
    role: Role | None

    def check(self, context: Context) -> None:
        """See that whoever asks may.

        Raises:
            UnauthenticatedError: they are nobody known.
            PermissionDeniedError: they may not.
        """
        self.caller(context).check_may(self.role)

    def admit(self, call: Call, context: Context) -> None:
        """Leave in *call* who asks, and see that they may; raises as `check` does."""
        call.caller = self.caller(context)
        call.caller.check_may(self.role)


@dataclass(slots=True)
class Call:
    """One request: what it is, and how it went.

    `left_s` says how long its caller still waits, `stages` where its time went, in seconds;
    `outcome` is OK, CANCELLED, or the reason of the error. Of a prediction, `model` is the
    name it is served by, empty for a path or a URI, and `was_missing` says that its
    environment was not there. `peer` says from where it came; `caller` is who asked, once that
    is known, and `subject` what about, where a line is written for that. Of a stream whose
    messages are requests of their own, `admit` lets in each of them.
    """

    id: str
    method: str
    metadata: Any
    left_s: LeftS
    began: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    outcome: str = "CANCELLED"
    model: str = ""
    is_prediction: bool = False
    was_missing: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    peer: Callable[[], str] = str
    caller: Caller | None = None
    subject: Mapping[str, str] | None = None
    admit: Callable[[Call], object] = lambda call: call.by

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    @property
    def by(self) -> Caller:
        """Who asked, once they were let in."""
        if self.caller is None:
            message = "nobody was let in for this request"
            raise UnauthenticatedError(message)
        return self.caller

    def check_deadline(self) -> None:
        """See that the caller still waits.

        Raises:
            DeadlineExceededError: its time is over.
        """
        left_s = self.left_s()
        if left_s is not None and left_s <= 0:
            message = "the deadline of the request has passed before it was begun"
            raise DeadlineExceededError(message)


class Watcher(Protocol):
    """Whoever wants to know of every request that has ended."""

    def ended(self, call: Call) -> None:
        """Take note of *call*."""


_current: ContextVar[Call] = ContextVar("call")


def current() -> Call:
    """Return the request that this task answers."""
    return _current.get()


def missed() -> None:
    """Take note that the environment was not there, if this is for a request."""
    if call := _current.get(None):
        call.was_missing = True


def mark(record: logging.LogRecord) -> bool:
    """Add to a line of the log the id of the request that it is about, as `request`."""
    call = _current.get(None)
    record.request = f" [{call.id}]" if call else ""
    return True


class Calls:
    """The requests of one daemon; the `watchers` are told of each that ends."""

    def __init__(self) -> None:
        """Begin with none."""
        self.watchers: list[Watcher] = []
        self._made = map(
            "{}-{:x}".format, itertools.repeat(secrets.token_hex(4)), itertools.count(1)
        )
        self._tasks: set[asyncio.Task[Any] | None] = set()
        self._none = asyncio.Event()
        self._none.set()
        # Set when no new requests are taken any more.
        self.draining = asyncio.Event()
        self._is_over = False

    @property
    def count(self) -> int:
        """How many are under way."""
        return len(self._tasks)

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests, and after *limit_s* those that are still under way.

        gRPC answers with CANCELLED what it refuses, which no client takes for a reason to
        ask again (https://github.com/grpc/grpc/issues/41785).
        """
        self.draining.set()
        try:
            await asyncio.wait_for(self._none.wait(), limit_s)
        except TimeoutError:
            self._is_over = True
            for task in filter(None, self._tasks):
                task.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._none.wait(), _LAST_S)

    def unary(self, method: str, answer: Unary, admission: Admission) -> Unary:
        """Return *answer*, a coroutine function that may raise EnvdError, as gRPC may call it.

        Only those come to it whom *admission* lets in.
        """

        async def answered(request: Any, context: Context) -> Any:
            call = self._begin(method, context)
            try:
                with self.under_way(call):
                    admission.admit(call, context)
                    return await answer(request, context)
            except EnvdError as failure:
                ended = status.of(failure, call.id)
            # gRPC keeps what it raises for that, which knows this function and refers to itself.
            del request
            return await _abort(context, ended, call.id)

        return answered

    def stream(self, method: str, answer: Stream, admission: Admission) -> Stream:
        """Return *answer*, an asynchronous generator function, likewise."""

        async def answered(request: Any, context: Context) -> AsyncIterator[Any]:
            call = self._begin(method, context)
            try:
                with self.under_way(call):
                    admission.admit(call, context)
                    async for message in answer(request, context):
                        yield message
            except EnvdError as failure:
                ended = status.of(failure, call.id)
            else:
                return
            await _abort(context, ended, call.id)

        return answered

    def both(self, method: str, answer: Both, admission: Admission) -> Both:
        """Return *answer*, a coroutine function that reads and writes messages, likewise.

        No generator: one that is left while its caller takes no message is only closed when
        it is found to be rubbish.
        """

        async def answered(requests: AsyncIterator[Any], context: Context) -> None:
            call = self._begin(method, context)
            call.admit = functools.partial(admission.admit, context=context)
            try:
                with self.under_way(call):
                    admission.admit(call, context)
                    await answer(requests, context)
            except EnvdError as failure:
                ended = status.of(failure, call.id)
            else:
                return
            await _abort(context, ended, call.id)

        return answered

    def begin(self, method: str, given_id: object, metadata: Any, left_s: LeftS) -> Call:
        """Return a request that this task answers from now on; see `Call`."""
        is_usable = isinstance(given_id, str) and _ID.fullmatch(given_id)
        call = Call(str(given_id) if is_usable else next(self._made), method, metadata, left_s)
        _current.set(call)
        return call

    @contextlib.contextmanager
    def under_way(self, call: Call) -> Iterator[None]:
        """Answer *call* within, in the one task that does.

        Raises:
            EnvdError: what any exception within means for the caller.
        """
        task = asyncio.current_task()
        self._tasks.add(task)
        self._none.clear()
        try:
            self._check_open()
            yield
            call.outcome = "OK"
        except asyncio.CancelledError:
            if not self._is_over:
                raise
            raise _failed(call, stopping()) from None
        except Exception as error:
            failure = _failed(call, error)
            if failure is error:
                # Its own cause, it would be kept, with what its frames hold, until a collection.
                raise
            raise failure from error
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._none.set()
            self._end(call)

    def _check_open(self) -> None:
        if self.draining.is_set():
            raise stopping()

    def _begin(self, method: str, context: Context) -> Call:
        metadata = context.invocation_metadata() or ()
        given = next((value for key, value in metadata if key == REQUEST_ID), None)
        left_s: Any = context.time_remaining  # None where the caller waits for ever
        call = self.begin(method, given, metadata, left_s)
        call.peer = context.peer
        context.set_trailing_metadata(((REQUEST_ID, call.id),))
        return call

    def _end(self, call: Call) -> None:
        call.ended = time.perf_counter()
        for watcher in self.watchers:
            watcher.ended(call)
        if log.isEnabledFor(logging.INFO):
            stages = "".join(f", {name} {1e3 * took:.1f}" for name, took in call.stages.items())
            log.info("%s %s in %.1f ms%s", call.method, call.outcome, 1e3 * call.seconds, stages)


def stopping() -> ShuttingDownError:
    """Return what whoever asks now, or still, is told."""
    return ShuttingDownError("the daemon is stopping; ask again when it is back")


def _failed(call: Call, error: Exception) -> EnvdError:
    """Return what *error* means for the caller of *call*."""
    failure = status.meant(error)
    call.outcome = failure.reason
    return failure


async def _abort(context: Context, answer: grpc.Status, request_id: str) -> NoReturn:
    trailers = (*answer.trailing_metadata, (REQUEST_ID, request_id))
    try:
        await context.abort(answer.code, answer.details, trailers)
    except grpc.aio.InternalError:
        # The caller, who took nothing, has left before this could be sent.
        raise asyncio.CancelledError from None
