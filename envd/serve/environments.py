"""The handlers of envd.v1.Environments: one message in, one call, one message out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator

from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services

from envd import messages
from envd.builds import Build, Builds
from envd.errors import EnvdError, RequestInvalidError
from envd.run.pool import Pool
from envd.serve import status
from envd.serve.context import Context
from envd.serve.models import ReadyModels
from envd.store import Store

_PAGE, _MAX_PAGE = 50, 1000


class Environments(services.EnvironmentsServicer):
    """Answers from a store and the builds of one daemon."""

    def __init__(self, store: Store, builds: Builds, models: ReadyModels, pool: Pool) -> None:
        """Use the parts of one daemon."""
        self._store = store
        self._builds = builds
        self._models = models
        self._pool = pool

    @status.unary
    async def ResolveSpec(  # noqa: N802
        self, request: api.ResolveSpecRequest, context: Context
    ) -> api.ResolvedSpec:
        """Say what a model asks for."""
        del context
        asked = await self._builds.ask(await self._models.read(request.model))
        lock = self._store.read_lock(asked.spec.key)
        return api.ResolvedSpec(
            spec_key=asked.spec.key,
            environment_id=lock.env_id(asked.spec.python) if lock else "",
            spec_json=asked.spec.canonical(),
            notes=messages.notes(asked.notes),
        )

    @status.unary
    async def BuildEnvironment(  # noqa: N802
        self, request: api.BuildEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Start a build, or return what is ready."""
        del context
        model = await self._models.read(request.model)
        asked = await self._builds.ask(model)
        if found := self._builds.find(asked):
            self._store.record_model(found, model.path)
            return messages.asked_for(self._store, found, asked, cached=True)
        return _unready(self._builds.start(asked, model.path))

    @status.stream
    async def WatchEnvironment(  # noqa: N802
        self, request: api.WatchEnvironmentRequest, context: Context
    ) -> AsyncIterator[api.EnvironmentEvent]:
        """Stream the events of a build, a snapshot first and last."""
        del context
        build = self._builds.get(request.id)
        if build is None or build.done.done():
            yield api.EnvironmentEvent(environment=self._snapshot(request.id, full=False))
            return
        yield api.EnvironmentEvent(environment=_unready(build))
        last = request.after_sequence
        async for number, happened in build.follow(last):
            yield messages.event(number, happened)
            last = number
        yield api.EnvironmentEvent(sequence=last + 1, environment=self._outcome(build))

    @status.unary
    async def GetEnvironment(  # noqa: N802
        self, request: api.GetEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Return one environment."""
        del context
        return self._snapshot(request.id, full=request.view == api.FULL)

    @status.unary
    async def ListEnvironments(  # noqa: N802
        self, request: api.ListEnvironmentsRequest, context: Context
    ) -> api.ListEnvironmentsResponse:
        """Return a page of ready environments."""
        del context
        if request.page_size < 0:
            message = f"the page size {request.page_size} is negative"
            raise RequestInvalidError(message, page_size=request.page_size)
        size = min(request.page_size or _PAGE, _MAX_PAGE)
        start = _offset(request.page_token)
        records = self._store.records()
        page = records[start : start + size]
        return api.ListEnvironmentsResponse(
            environments=[messages.ready(self._store, one) for one in page],
            next_page_token=_token(start + size) if start + size < len(records) else "",
        )

    @status.unary
    async def DeleteEnvironment(  # noqa: N802
        self, request: api.DeleteEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Remove one environment."""
        del context
        found = self._store.resolve(request.id)
        await self._pool.release(found.id)
        message = messages.ready(self._store, found)
        self._store.remove(found.id)
        return message

    def _outcome(self, build: Build) -> api.Environment:
        found = self._builds.find(build.asked)
        if build.done.exception() or found is None:
            return _unready(build)
        return messages.asked_for(self._store, found, build.asked, cached=False)

    def _snapshot(self, prefix: str, *, full: bool) -> api.Environment:
        build = self._builds.get(prefix)
        if build and not build.done.done():
            return _unready(build)
        try:
            found = self._store.resolve(prefix)
        except EnvdError:
            if build is None:
                raise
            return _unready(build)
        return messages.ready(self._store, found, full=full)


def _unready(build: Build) -> api.Environment:
    failed = build.done.exception() if build.done.done() else None
    error = failed if isinstance(failed, EnvdError) else None
    return messages.unready(build.asked, build.seconds, error)


def _token(offset: int) -> str:
    return base64.urlsafe_b64encode(f"envd:{offset}".encode()).decode()


def _offset(token: str) -> int:
    if not token:
        return 0
    try:
        return int(base64.urlsafe_b64decode(token).decode().removeprefix("envd:"))
    except (binascii.Error, ValueError) as error:
        message = "the page token is not one of this list; start again without it"
        raise RequestInvalidError(message, page_token=token) from error
