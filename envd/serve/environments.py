"""The handlers of envd.v1.Environments: one message in, one call, one message out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services

from envd import messages
from envd.builds import Build, Builds
from envd.errors import BuildInterruptedError, EnvdError, RequestInvalidError
from envd.run.pool import Pool
from envd.serve import status
from envd.serve.context import Context
from envd.serve.models import ReadyModels
from envd.store import Environment, Store

_PAGE, _MAX_PAGE, _THREADS = 50, 1000, 4
_Result = TypeVar("_Result")


class Environments(services.EnvironmentsServicer):
    """Answers from a store and the builds of one daemon.

    What walks a tree or waits for a lock runs in threads of its own, never in the loop.
    """

    def __init__(self, store: Store, builds: Builds, models: ReadyModels, pool: Pool) -> None:
        """Use the parts of one daemon."""
        self._store = store
        self._builds = builds
        self._models = models
        self._pool = pool
        self._threads = ThreadPoolExecutor(_THREADS, "store")

    @status.unary
    async def ResolveSpec(  # noqa: N802
        self, request: api.ResolveSpecRequest, context: Context
    ) -> api.ResolvedSpec:
        """Say what a model asks for, locking it if asked to."""
        del context
        model = await self._models.read(request.model)
        override = tuple(request.pip_requirements_override)
        asked = await self._builds.ask(model, override, fresh=request.upgrade)
        if request.lock:
            return messages.resolved(asked, await self._builds.lock(asked), with_lock=True)
        return messages.resolved(asked, self._store.specs.lock(asked.spec.key, asked.day))

    @status.unary
    async def BuildEnvironment(  # noqa: N802
        self, request: api.BuildEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Start a build, or return what is ready."""
        del context
        model = await self._models.read(request.model)
        override = tuple(request.pip_requirements_override)
        asked = await self._builds.ask(model, override, fresh=request.upgrade)
        found = None if request.upgrade else self._builds.find(asked)
        if found is None:
            return _unready(self._builds.start(asked, model, upgrade=request.upgrade))
        self._store.record_model(found, model.path)
        notes = self._builds.notes(model, asked, found)
        return await self._in_thread(
            lambda: messages.asked_for(self._store, found, asked, notes, cached=True)
        )

    @status.stream
    async def WatchEnvironment(  # noqa: N802
        self, request: api.WatchEnvironmentRequest, context: Context
    ) -> AsyncIterator[api.EnvironmentEvent]:
        """Stream the events of a build, a snapshot first and last."""
        del context
        build = self._builds.get(request.id)
        if build is None or build.done.done():
            yield api.EnvironmentEvent(environment=await self._snapshot(request.id))
            return
        yield api.EnvironmentEvent(environment=_unready(build))
        last = request.after_sequence
        async for number, happened in build.follow(last):
            yield messages.event(number, happened)
            last = number
        outcome = await self._in_thread(lambda: self._outcome(build))
        yield api.EnvironmentEvent(sequence=last + 1, environment=outcome)

    @status.unary
    async def GetEnvironment(  # noqa: N802
        self, request: api.GetEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Return one environment."""
        del context
        return await self._snapshot(request.id, full=request.view == api.FULL)

    @status.unary
    async def ListEnvironments(  # noqa: N802
        self, request: api.ListEnvironmentsRequest, context: Context
    ) -> api.ListEnvironmentsResponse:
        """Return a page of published environments."""
        del context
        if request.page_size < 0:
            message = f"the page size {request.page_size} is negative"
            raise RequestInvalidError(message, page_size=request.page_size)
        size = min(request.page_size or _PAGE, _MAX_PAGE)
        after = _last_of(request.page_token)
        return await self._in_thread(lambda: self._page(after, size))

    @status.unary
    async def DeleteEnvironment(  # noqa: N802
        self, request: api.DeleteEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Remove one environment."""
        del context
        found = await self._in_thread(lambda: self._store.resolve(request.id))
        await self._pool.release(found.id)
        return await self._in_thread(lambda: self._remove(found))

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _snapshot(self, prefix: str, *, full: bool = False) -> api.Environment:
        build = self._builds.get(prefix)
        if build and not build.done.done():
            return _unready(build)
        try:
            return await self._in_thread(lambda: self._published(prefix, full=full))
        except EnvdError:
            if build is None or not build.done.exception():
                raise
            return _unready(build)

    def _published(self, prefix: str, *, full: bool) -> api.Environment:
        found = self._store.resolve(prefix)
        return messages.published(self._store, found, self._store.holders(), full=full)

    def _outcome(self, build: Build) -> api.Environment:
        if build.done.exception():
            return _unready(build)
        found = self._builds.find(build.asked)
        if found is None:
            message = "the environment was removed as soon as it was built; try again"
            return messages.unready(build.asked, build.seconds, BuildInterruptedError(message))
        notes = self._builds.notes(build.model, build.asked, found)
        return messages.asked_for(self._store, found, build.asked, notes, cached=build.cached)

    def _page(self, after: str, size: int) -> api.ListEnvironmentsResponse:
        # By id: an order that changes with every use would lose some between two pages.
        left = [name for name in self._store.ids() if name > after]
        holders = self._store.holders()
        page = [one for name in left[:size] if (one := self._store.read(name))]
        return api.ListEnvironmentsResponse(
            environments=[messages.published(self._store, one, holders) for one in page],
            next_page_token=_token(left[size - 1]) if len(left) > size else "",
        )

    def _remove(self, found: Environment) -> api.Environment:
        message = messages.published(self._store, found, self._store.holders())
        self._store.remove(found.id)
        return message


def _unready(build: Build) -> api.Environment:
    failed = build.done.exception() if build.done.done() else None
    error = failed if isinstance(failed, EnvdError) else None
    return messages.unready(build.asked, build.seconds, error)


def _token(env_id: str) -> str:
    return base64.urlsafe_b64encode(f"envd:{env_id}".encode()).decode()


def _last_of(token: str) -> str:
    """Return the last id of the page that *token* came with, or nothing for the first page."""
    if not token:
        return ""
    try:
        text = base64.urlsafe_b64decode(token).decode()
    except (binascii.Error, ValueError):
        text = ""
    found = re.fullmatch(r"envd:([0-9a-f]+)", text)
    if found is None:
        message = "the page token is not one of this list; start again without it"
        raise RequestInvalidError(message, page_token=token)
    return found[1]
