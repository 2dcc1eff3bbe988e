"""The builds of one daemon: one per spec, in a process of its own, followed by any number.

Nobody who leaves cancels a build, and whoever comes back finds its events again.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from envd import spec
from envd.builds import elsewhere
from envd.builds.builders import Builders
from envd.builds.elsewhere import UnderWay
from envd.builds.following import Build
from envd.config import Settings
from envd.environments import verifying
from envd.environments.asked import Asked
from envd.environments.environments import Environments
from envd.environments.verifying import Verified
from envd.errors import (
    BuildCancelledError,
    BuildInterruptedError,
    CacheFullError,
    EnvdError,
    EnvironmentNotFoundError,
    from_os,
)
from envd.events import Note, Stage, ignore
from envd.lock import Lock
from envd.model import Model, location
from envd.run.observer import Observer
from envd.run.processes import Processes
from envd.spec import Terms
from envd.store import Environment, collecting
from envd.store.collecting import Collected, Criteria

_DEFAULT = Terms()
_MAX_KEPT, _MIN_PREFIX = 200, 4
_MIN_BUILDERS, _BUILDERS_PER_SLOT = 16, 4


class Builds:
    """The builds of one daemon."""

    def __init__(
        self, settings: Settings, processes: Processes, observer: Observer | None = None
    ) -> None:
        """Start none yet."""
        self._settings = settings
        self._observer = observer or Observer()
        self._builders = Builders(settings, processes)
        self._environments = Environments(settings)
        # By the day as well: where a month has no answer, each day has its own.
        self._by_spec: OrderedDict[tuple[str, str | None], Build] = OrderedDict()
        self._under_way: set[Build] = set()
        self.is_left = False
        # How many work is limited where they do (`envd.store.slots`). Many more may wait, for
        # each other or for whoever removes what they need; each is a process, though.
        self._builders_at_once = asyncio.Semaphore(
            max(_MIN_BUILDERS, _BUILDERS_PER_SLOT * settings.build.at_once)
        )

    async def learn(self) -> None:
        """Ask the Pythons of this machine what they are, so that `ask` need not."""
        await self._builders.once("learn", None, "")

    async def locate(self, name: str) -> Path:
        """Return the directory of the model *name*, asking a server if it must.

        Raises:
            EnvdError: as `envd.model.location.locate`.
        """
        if found := location.known(name, self._settings):
            return found
        return Path(await self._builders.once("locate", name, name))

    async def ask(self, model: Model, terms: Terms = _DEFAULT) -> Asked:
        """Return what *model* asks for on *terms*, obtaining the Python it needs.

        Raises:
            ModelInvalidError: its files cannot be used.
            PolicyDeniedError: the settings do not allow what they ask for.
            PythonUnavailableError: its Python cannot be had.
        """
        # In a thread: a model may bring packages of its own, which are read and hashed.
        dependencies = await asyncio.to_thread(spec.read, model, self._settings, terms)
        if dependencies.manager == "conda":
            return await asyncio.to_thread(
                Asked.of, model, dependencies, None, None, self._settings
            )
        requested = dependencies.python
        interpreters = self._environments.interpreters
        known, are_all = interpreters.known()
        if not are_all:
            await self.learn()
            known, _ = interpreters.known()
        picked = interpreters.pick(requested, known)
        if picked is None:
            await self._builders.once("obtain", requested, requested or "")
            picked = interpreters.pick(requested, interpreters.known()[0])
        if picked is None:
            message = f"Python {requested} was obtained and is not there any more; try again"
            raise BuildInterruptedError(message)
        # Likewise: what belongs on this Python is selected from a lock of any length.
        return await asyncio.to_thread(Asked.of, model, dependencies, *picked, self._settings)

    def find(self, asked: Asked) -> Environment | None:
        """Return the environment of *asked* if it is ready.

        Raises:
            PolicyDeniedError: its lock is made of what the settings do not allow.
        """
        return self._environments.find(asked)

    def kept_lock(self, asked: Asked) -> Lock | None:
        """Return the lock of *asked* if there is one."""
        return self._environments.kept_lock(asked)

    def notes(self, model: Model, asked: Asked, found: Environment) -> tuple[Note, ...]:
        """Return all that is worth knowing of *found*, the environment *model* asked for."""
        return self._environments.notes(model, asked, found)

    async def lock_file(self, asked: Asked, platforms: Sequence[str]) -> tuple[str, str]:
        """Return the lock of *asked* as a file, its name and its text; see `Environments`.

        Raises:
            EnvdError: it cannot be resolved.
        """
        about = {"asked": asked.document(), "platforms": sorted(platforms)}
        name = json.dumps([asked.spec.key, asked.day, about["platforms"]])
        file, text = await self._builders.once("lock", about, name)
        return file, text

    def get(self, prefix: str) -> Build | None:
        """Return the latest build whose spec_key or environment's id begins with *prefix*."""
        if len(prefix) < _MIN_PREFIX:
            return None
        fitting = [one for one in self._by_spec.values() if one.is_called(prefix)]
        if len({one.asked.spec.key for one in fitting}) == 1:
            return fitting[-1]
        if len({one.env_id for one in fitting}) == 1 and fitting[0].env_id.startswith(prefix):
            # Specs with the same lock have one environment; the first of them builds it.
            return min(fitting, key=lambda one: (one.done.done(), one.started))
        return None

    def all_under_way(self) -> list[Build]:
        """Return the builds under way, the earliest first."""
        return sorted(self._under_way, key=lambda one: one.started)

    async def cancel(self, prefix: str) -> Build | UnderWay:
        """End the build whose spec_key or environment's id begins with *prefix*.

        With every process of it, and be it another process's that works below this root.

        Raises:
            EnvironmentNotFoundError: no such build is under way.
            PermissionDeniedError: it is another user's, or on another host.
        """
        store = self._environments.store
        found = await asyncio.to_thread(elsewhere.find, store, prefix)
        own = [one for one in self._under_way if found and found.is_part_of(one.token)]
        ours = self._called(prefix)
        if found and not own:
            elsewhere.check(found.owner)
        if found and (not own or own[0] in ours):
            found.disclaim(store)
        for one in ours:
            one.cancel()
        if ours:
            await asyncio.wait([one.done for one in ours])
        if found and not own:
            await asyncio.to_thread(elsewhere.end, store, found)
            return ours[0] if ours else found
        if not ours:
            message = f"no build whose id begins with `{prefix}` is under way"
            raise EnvironmentNotFoundError(message, id=prefix)
        return ours[0]

    def _called(self, prefix: str) -> list[Build]:
        """Return the builds under way that `get` finds: of an environment, those of all specs."""
        build = self.get(prefix)
        if build is None or build.task is None or build.done.done():
            return []
        same = {one for one in self._under_way if one.env_id and one.env_id.startswith(prefix)}
        return [build, *(same - {build})]

    async def purge(self, criteria: Criteria) -> Collected:
        """Remove what is not worth its place, or say what that is; the trash stays full."""
        return collecting.from_document(await self._builders.run("purge", asdict(criteria), ignore))

    async def verify(self, env_id: str, *, repair: bool) -> Verified:
        """Compare *env_id* with the record of its publication.

        Raises:
            EnvdError: as `envd.environments.verifying.Verifier.verify`.
        """
        about = {"id": env_id, "repair": repair}
        return verifying.from_document(await self._builders.run("verify", about, ignore))

    async def tidy(self) -> None:
        """Clear away what dead processes left, and empty the trash, slowly."""
        await self._builders.once("tidy", {"is_gentle": True}, "")

    def leave_all(self) -> None:
        """End every following of a build, because the daemon is stopping (`is_left`)."""
        self.is_left = True
        for build in self._under_way:
            build.is_left = True
            build.wake()

    def start(
        self, asked: Asked, model: Model, *, upgrade: bool = False, retry: bool = False
    ) -> Build:
        """Return the build of *asked* that is under way, or start one, for *model*.

        With *upgrade* it is locked anew, when a plain build that is under way is over. What
        has failed a short time ago is over at once, unless it is to be tried with *retry*.
        """
        key = (asked.spec.key, asked.day)
        found = self._by_spec.get(key)
        if found and found.done.done():
            found = None
        if found and found.after and not upgrade:
            found = found.after
        if found and (found.upgrade or not upgrade):
            found.models.add(model.path)
            return found
        done: asyncio.Future[Environment] = asyncio.get_running_loop().create_future()
        build = Build(asked, model, upgrade, done, retry, found)
        build.models.add(model.path)
        # Nobody may be waiting for it; its error is kept to be shown.
        done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._by_spec[key] = build
        self._by_spec.move_to_end(key)
        self._drop_old()
        remembered = None if upgrade or retry else self._environments.remembered(asked)
        if remembered:
            done.set_exception(remembered)
            return build
        build.task = asyncio.create_task(self._build(build))
        self._under_way.add(build)
        build.task.add_done_callback(lambda _: self._over(build))
        return build

    def _over(self, build: Build) -> None:
        self._under_way.discard(build)
        if not build.done.done():
            # It was cancelled before it began.
            build.done.set_exception(_interrupted(build, asyncio.CancelledError()))
            build.wake()
        self._observer.built(build.outcome, build.seconds)

    def _drop_old(self) -> None:
        over = [key for key, one in self._by_spec.items() if one.done.done()]
        for key in over[: max(0, len(self._by_spec) - _MAX_KEPT)]:
            del self._by_spec[key]

    async def _build(self, build: Build) -> None:
        try:
            if build.after:
                build.add(Stage("waiting", "waiting for the build under way"))
                await asyncio.wait([build.after.done])
                build.after = None
            build.cached = await self._tried(build)
            found = self._built(build)
        except EnvdError as error:
            build.done.set_exception(error)
        except OSError as error:
            build.done.set_exception(from_os(error, self._settings.root))
        except BaseException as error:
            if build.after:
                # What it waited for goes on.
                self._by_spec[build.asked.spec.key, build.asked.day] = build.after
            build.done.set_exception(_interrupted(build, error))
            if not build.is_cancelled:
                raise
        else:
            build.done.set_result(found)
        finally:
            build.wake()

    async def _tried(self, build: Build) -> bool:
        """Build it, once more where the disk was too full and something could go; see `cached`."""
        try:
            return await self._queued(build)
        except CacheFullError:
            build.add(Stage("collecting", "making room on the disk"))
            if not await self._make_room():
                raise
        return await self._queued(build)

    async def _make_room(self) -> bool:
        """Remove what is not worth its place, and say whether that can have freed anything."""
        criteria = Criteria(force=True, reserve=self._settings.build.reserve)
        collected = await self.purge(criteria)
        # Whatever was removed before may be there still, while a gentle one is at it.
        has_trash = any(self._environments.store.layout.trash.glob("*"))
        await self._builders.run("tidy", {"is_gentle": False}, ignore)
        return has_trash or collected.freed > 0

    async def _queued(self, build: Build) -> bool:
        if self._builders_at_once.locked():
            build.add(Stage("queued", "waiting for other builds to end"))
        about = {
            "asked": build.asked.document(),
            "upgrade": build.upgrade,
            "retry": build.retry,
        }
        async with self._builders_at_once:
            answer = await self._builders.run("build", about, build.add, build.token)
        return bool(answer["cached"])

    def _built(self, build: Build) -> Environment:
        if found := self._environments.find(build.asked):
            for path in build.models:
                self._environments.store.uses.record_model(found.id, path)
            return found
        raise RemovedAtOnceError(REMOVED_AT_ONCE)


REMOVED_AT_ONCE = "the environment was removed as soon as it was built; try again"


class RemovedAtOnceError(BuildInterruptedError):
    """Somebody removed an environment as soon as it was built; try again."""


def _interrupted(build: Build, error: BaseException) -> EnvdError:
    if build.is_cancelled:
        return BuildCancelledError("the build was cancelled", spec_key=build.asked.spec.key)
    return BuildInterruptedError(f"the build was interrupted: {error!r}")
