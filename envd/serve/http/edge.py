"""From an HTTP request to a call and back: its body, its id, its time, its failures."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from envd.config import Settings
from envd.errors import DeadlineExceededError, EnvdError
from envd.serve import status
from envd.serve.callers import Caller
from envd.serve.calls import REQUEST_ID, Call, Calls
from envd.serve.http import failures, visitors
from envd.serve.http.bodies import Bodies
from envd.serve.http.failures import Failure, TooSlowError
from envd.serve.http.visitors import Visitors

Endpoint = Callable[[Request], Awaitable[Response]]
# How a protocol writes an error.
Form = Callable[[EnvdError], Failure]


@dataclass(slots=True)
class Edge:
    """What all requests have in common; once it `is_draining`, each is its connection's last."""

    settings: Settings
    calls: Calls
    bodies: Bodies
    visitors: Visitors
    is_draining: bool = False

    def call(self, method: str, answer: Endpoint, form: Form = failures.of) -> Endpoint:
        """Return *answer*, which may raise EnvdError, as an endpoint that is accounted for.

        It ends when the client leaves, and when `http.timeout` is over.
        """

        async def answered(request: Request) -> Response:
            call = self._begin(method, request)
            try:
                with self.calls.under_way(call):
                    call.caller = self._admitted(request)
                    visitors.check_site(request, self.settings.http.hosts)
                    async with self._in_time(request):
                        response = await answer(request)
            except EnvdError as error:
                response = _response(form(error))
            except asyncio.CancelledError:
                if not _has_left(request):
                    raise
                # Nobody gets this, and whoever runs this has nothing to complain of.
                response = Response(status_code=failures.STATUS["CANCELLED"])
            return self._finished(response, call)

        return answered

    def plain(self, answer: Endpoint, form: Form = failures.of) -> Endpoint:
        """Return *answer* as an endpoint that is answered at once, and not accounted for.

        What is refused is.
        """
        free, refused = self.free(answer, form), self.call("/http/look", answer, form)

        async def answered(request: Request) -> Response:
            try:
                self._admitted(request)
            except EnvdError:
                return await refused(request)
            return await free(request)

        return answered

    def free(self, answer: Endpoint, form: Form = failures.of) -> Endpoint:
        """Return *answer* likewise, which anybody gets: whoever balances load knows nothing."""

        async def answered(request: Request) -> Response:
            call = self._begin("", request)
            try:
                response = await answer(request)
            except Exception as error:  # noqa: BLE001
                response = _response(form(status.meant(error)))
            return self._finished(response, call)

        return answered

    async def body(self, request: Request) -> bytes:
        """Return the body of *request*; as `Bodies.read`."""
        request.state.is_coming_in = True
        found = await self.bodies.read(request)
        request.state.is_coming_in = False
        return found

    @contextlib.asynccontextmanager
    async def while_there(self, request: Request) -> AsyncIterator[None]:
        """Cancel what is done within when the client of *request*, all of it read, leaves."""
        task = asyncio.current_task()

        async def watch() -> None:
            # After the body nothing comes but that.
            await request.receive()
            request.state.has_left = True
            if task:
                task.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()

    @contextlib.asynccontextmanager
    async def _in_time(self, request: Request) -> AsyncIterator[None]:
        limit = self.settings.http.timeout
        try:
            async with asyncio.timeout(_finite(limit)):
                yield
        except TimeoutError:
            if request.state.is_coming_in:
                said = f"the body did not come within {limit:g} s (`http.timeout`)"
                raise TooSlowError(said) from None
            message = (
                f"Request processing time exceeded limit: it took more than {limit:g} s "
                "(`http.timeout`)"
            )
            raise DeadlineExceededError(message, seconds=limit) from None

    def _admitted(self, request: Request) -> Caller:
        """Return who sends *request*.

        Raises:
            UnauthenticatedError: nobody known.
            PermissionDeniedError: it was meant for another daemon.
        """
        self.visitors.check_host(request, self.settings.http.hosts)
        return self.visitors.caller(request)

    def _begin(self, method: str, request: Request) -> Call:
        request.state.has_left = request.state.is_coming_in = False
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.http.timeout
        given = request.headers.get(REQUEST_ID)
        headers = request.headers.items()
        call = self.calls.begin(method, given, headers, lambda: end - loop.time())
        call.peer = lambda: visitors.peer(request)
        return call

    def _finished(self, response: Response, call: Call) -> Response:
        response.headers[REQUEST_ID] = call.id
        if self.is_draining:
            response.headers["connection"] = "close"
        return response


def _has_left(request: Request) -> bool:
    return bool(request.state.has_left)


def _response(failure: Failure) -> Response:
    return Response(failure.content, failure.status, failure.headers)


def _finite(seconds: float) -> float | None:
    return None if seconds == math.inf else seconds
