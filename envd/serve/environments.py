"""The handlers of envd.v1.Environments: one message in, one call, one message out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services
from google.protobuf.duration_pb2 import Duration

from envd import messages
from envd.builds import elsewhere
from envd.builds.builds import REMOVED_AT_ONCE, Builds, RemovedAtOnceError
from envd.builds.following import Build
from envd.environments import waiting
from envd.environments.tail import Tail
from envd.errors import RequestInvalidError, ShuttingDownError
from envd.run.pool import Pool
from envd.serve.context import Context
from envd.serve.model_handlers import named
from envd.serve.models import ReadyModels
from envd.serve.upkeep import Upkeep
from envd.settings import values
from envd.snapshots import Snapshots
from envd.spec import Terms
from envd.store import Store, prefixes, removal
from envd.store.collecting import Criteria

_PAGE, _MAX_PAGE, _THREADS = 50, 1000, 4
_POLL_S, _LOOK_S = 0.1, 0.3
_Result = TypeVar("_Result")


class Environments(services.EnvironmentsServicer):
    """Answers from a store and the builds of one daemon.

    What walks a tree or waits for a lock runs in threads of its own, never in the loop.
    """

    def __init__(
        self, store: Store, builds: Builds, models: ReadyModels, pool: Pool, upkeep: Upkeep
    ) -> None:
        """Use the parts of one daemon."""
        self._store = store
        self._builds = builds
        self._models = models
        self._pool = pool
        self._upkeep = upkeep
        self._snapshots = Snapshots(store, builds)
        self._threads = ThreadPoolExecutor(_THREADS, "store")

    async def ResolveSpec(  # noqa: N802
        self, request: api.ResolveSpecRequest, context: Context
    ) -> api.ResolvedSpec:
        """Say what a model asks for, locking it if asked to."""
        del context
        override, manager = request.pip_requirements_override, request.env_manager
        model = await self._models.read(
            named(request.model, override, manager, request.upgrade, request.platforms)
        )
        asked = await self._models.ask(model, _terms(request))
        if request.lock:
            file = await self._builds.lock_file(asked, request.platforms)
            return messages.resolved(asked, self._builds.kept_lock(asked), file)
        return messages.resolved(asked, self._builds.kept_lock(asked))

    async def BuildEnvironment(  # noqa: N802
        self, request: api.BuildEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Start a build, or return what is ready."""
        del context
        model = await self._models.read(named(request.model))
        asked = await self._models.ask(model, _terms(request))
        found = None if request.upgrade else self._builds.find(asked)
        if found is None:
            build = self._builds.start(asked, model, upgrade=request.upgrade, retry=request.retry)
            return self._snapshots.unready(build)
        self._store.uses.record_model(found.id, model.path)
        notes = self._builds.notes(model, asked, found)
        return await self._in_thread(
            lambda: messages.asked_for(self._store, found, asked, notes, cached=True)
        )

    async def CancelBuild(  # noqa: N802
        self, request: api.CancelBuildRequest, context: Context
    ) -> api.Environment:
        """End a build."""
        del context
        prefixes.check(request.id)
        cancelled = await self._builds.cancel(request.id)
        if isinstance(cancelled, Build):
            return self._snapshots.unready(cancelled)
        return messages.cancelled(self._store, cancelled)

    async def WatchEnvironment(  # noqa: N802
        self, request: api.WatchEnvironmentRequest, context: Context
    ) -> AsyncIterator[api.EnvironmentEvent]:
        """Stream the events of a build, a snapshot first and last."""
        del context
        prefixes.check(request.id)
        build = self._builds.get(request.id)
        if build is None or build.done.done():
            async for event in self._of_other(request.id, request.after_sequence):
                yield event
            snapshot = await self._in_thread(lambda: self._snapshots.any(request.id))
            yield api.EnvironmentEvent(environment=snapshot)
            return
        yield api.EnvironmentEvent(environment=self._snapshots.unready(build))
        last = request.after_sequence
        async for number, happened in build.follow(last):
            yield messages.event(number, happened)
            last = number
        outcome = await self._in_thread(lambda: self._outcome(build))
        yield api.EnvironmentEvent(sequence=last + 1, environment=outcome)

    async def GetEnvironment(  # noqa: N802
        self, request: api.GetEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Return one environment."""
        del context
        is_full = request.view == api.FULL
        return await self._in_thread(lambda: self._snapshots.any(request.id, full=is_full))

    async def ListEnvironments(  # noqa: N802
        self, request: api.ListEnvironmentsRequest, context: Context
    ) -> api.ListEnvironmentsResponse:
        """Return a page of environments."""
        del context
        if request.page_size < 0:
            message = f"the page size {request.page_size} is negative"
            raise RequestInvalidError(message, page_size=request.page_size)
        return await self._in_thread(lambda: self._page(request))

    async def DeleteEnvironment(  # noqa: N802
        self, request: api.DeleteEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Remove one environment."""
        del context
        message = await self._published(request.id)
        if request.force:
            await self._remove_by_force(message.id)
        else:
            await self._pool.release(message.id)
            await self._in_thread(lambda: removal.remove(self._store, message.id))
        self._upkeep.tidy_soon()
        return message

    async def PinEnvironment(  # noqa: N802
        self, request: api.PinEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Keep one environment from gc."""
        del context
        found = await self._in_thread(lambda: prefixes.resolve(self._store, request.id))
        await self._in_thread(lambda: self._store.pin(found.id))
        return await self._published(found.id)

    async def UnpinEnvironment(  # noqa: N802
        self, request: api.UnpinEnvironmentRequest, context: Context
    ) -> api.Environment:
        """Let gc have one environment again."""
        del context
        found = await self._in_thread(lambda: prefixes.resolve(self._store, request.id))
        self._store.unpin(found.id)
        return await self._published(found.id)

    async def PurgeEnvironments(  # noqa: N802
        self, request: api.PurgeEnvironmentsRequest, context: Context
    ) -> api.PurgeEnvironmentsResponse:
        """Remove what is not worth its place, or say what that is."""
        del context
        found = await self._builds.purge(_criteria(request))
        self._upkeep.tidy_soon()
        return messages.purged(found)

    async def VerifyEnvironment(  # noqa: N802
        self, request: api.VerifyEnvironmentRequest, context: Context
    ) -> api.VerifyEnvironmentResponse:
        """Compare one environment with the record of its publication."""
        del context
        found = await self._in_thread(lambda: prefixes.resolve(self._store, request.id))
        verified = await self._builds.verify(found.id, repair=request.repair)
        if verified.is_repaired:
            # Its workers run in what was wrong.
            await self._pool.release(found.id)
        return messages.verified(verified, await self._published(found.id))

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _published(self, prefix: str) -> api.Environment:
        return await self._in_thread(lambda: self._snapshots.published(prefix))

    async def _of_other(self, prefix: str, after: int) -> AsyncIterator[api.EnvironmentEvent]:
        """Follow the log of the build that another process does, if one does."""
        other = await self._in_thread(lambda: elsewhere.find(self._store, prefix))
        if other is None:
            return
        yield api.EnvironmentEvent(environment=messages.elsewhere(self._store, other))
        number, has_ended = 0, False
        following = elsewhere.Following(self._store, other.spec_key)
        with contextlib.closing(Tail(self._store.layout.log(other.spec_key))) as tail:
            while not has_ended:
                if self._builds.is_left:
                    message = "the daemon is stopping; ask again when it is back"
                    raise ShuttingDownError(message)
                await asyncio.sleep(_LOOK_S)
                # Looked at before the log: what was written last is not lost.
                has_ended = await self._in_thread(following.has_ended)
                while lines := await self._in_thread(tail.read):
                    for number, line in enumerate(lines, number + 1):  # noqa: B020
                        if number > after:
                            yield messages.event(number, waiting.read(line))

    def _outcome(self, build: Build) -> api.Environment:
        if build.done.exception():
            return self._snapshots.unready(build)
        found = self._builds.find(build.asked)
        if found is None:
            return messages.unready(build.asked, build.seconds, RemovedAtOnceError(REMOVED_AT_ONCE))
        notes = self._builds.notes(build.model, build.asked, found)
        return messages.asked_for(self._store, found, build.asked, notes, cached=build.cached)

    async def _remove_by_force(self, env_id: str) -> None:
        """Remove it, waiting for others as long as they like and the caller stays.

        Raises:
            ShuttingDownError: the daemon is stopping.
        """
        with contextlib.closing(removal.forcing(self._store, env_id)) as steps:
            while not await self._is_last(steps):
                if self._builds.is_left:
                    message = f"the daemon is stopping before nobody uses {env_id} any more"
                    raise ShuttingDownError(message, id=env_id)
                # Those that have become idle.
                await self._pool.release(env_id)
                await asyncio.sleep(_POLL_S)

    async def _is_last(self, steps: Generator[None, None, None]) -> bool:
        """Take the next of *steps*, and say whether there is none any more."""
        step = asyncio.ensure_future(self._in_thread(lambda: next(steps, True) is True))
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            # It cannot be closed in the middle of a step.
            await asyncio.wait([step])
            raise

    def _page(self, request: api.ListEnvironmentsRequest) -> api.ListEnvironmentsResponse:
        # By id: an order that changes with every use would lose some between two pages.
        after, size = _last_of(request.page_token), min(request.page_size or _PAGE, _MAX_PAGE)
        left = [one for one in self._store.records() if one.id > after]
        page = [messages.listed(one) for one in left[:size]]
        is_last = len(left) <= size
        others = self._snapshots.others() if is_last and request.show_all else []
        return api.ListEnvironmentsResponse(
            environments=page + others,
            next_page_token="" if is_last else _token(left[size - 1].id),
        )


def _terms(request: api.BuildEnvironmentRequest | api.ResolveSpecRequest) -> Terms:
    override = tuple(request.pip_requirements_override)
    return Terms(override, request.env_manager, fresh=request.upgrade)


def _criteria(request: api.PurgeEnvironmentsRequest) -> Criteria:
    return Criteria(
        force=request.force,
        max_age=_age("max_age", request.max_age) if request.HasField("max_age") else None,
        unused_for=(
            _age("unused_for", request.unused_for) if request.HasField("unused_for") else None
        ),
        max_size=request.max_size if request.HasField("max_size") else None,
        min_free=_share(request.min_free),
        keep=request.keep if request.HasField("keep") else None,
    )


def _age(name: str, duration: Duration) -> float:
    seconds = duration.ToNanoseconds() / 1e9
    if seconds < 0:
        message = f"`{name}` cannot be {seconds:g} s: nothing is as old as that"
        raise RequestInvalidError(message, **{name: seconds})
    return seconds


def _share(text: str) -> str | None:
    try:
        return str(values.parse(values.Share, text)) if text else None
    except ValueError as error:
        message = f"`min_free` cannot be {text!r}; {error}"
        raise RequestInvalidError(message, min_free=text) from error


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
