"""The builds of one daemon: one per spec, in a process of its own, followed by any number.

Nobody who leaves cancels a build, and whoever comes back finds its events again.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envd import config, spec
from envd.asked import Asked
from envd.config import Settings
from envd.environments import Environments
from envd.errors import BuildInterruptedError, EnvdError, ShuttingDownError, from_document
from envd.events import Event, Line, Note, OnEvent, Stage, ignore
from envd.lock import Lock
from envd.lock.uv import PASSED
from envd.model import Model, location
from envd.run.processes import Processes
from envd.store import Environment

_MAX_KEPT, _MAX_EVENTS, _MIN_PREFIX = 200, 10_000, 4
_MAX_LINE_BYTES = 1 << 20


@dataclass(eq=False, slots=True)
class Build:
    """One build, under way or over. `done` gets the environment or the error.

    It was first asked for by `model`; `cached` says that its lock had an environment already.
    One that upgrades begins when the plain one `after` which it was asked for is over.
    """

    asked: Asked
    model: Model
    upgrade: bool
    done: asyncio.Future[Environment]
    after: Build | None = None
    models: set[Path] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    cached: bool = False
    is_left: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self.started

    def add(self, event: Event) -> None:
        """Keep *event* and wake whoever follows; of very many lines only the log has the rest."""
        if len(self.events) < _MAX_EVENTS or isinstance(event, Stage):
            self.events.append(event)
        self.wake()

    def wake(self) -> None:
        """Let whoever follows look again."""
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int) -> AsyncIterator[tuple[int, Event]]:
        """Yield (sequence number, event) for every event after *after*, until it is over."""
        while True:
            if self.is_left:
                message = "the daemon is stopping; ask again when it is back"
                raise ShuttingDownError(message)
            news = self._news
            for number, event in enumerate(self.events[after:], after + 1):
                yield number, event
                after = number
            if self.done.done() and after == len(self.events):
                return
            await news.wait()


class Builds:
    """The builds of one daemon."""

    def __init__(self, settings: Settings, processes: Processes) -> None:
        """Start none yet."""
        self._settings = settings
        self._processes = processes
        self._environments = Environments(settings)
        # By the day as well: where a month has no answer, each day has its own.
        self._by_spec: OrderedDict[tuple[str, str | None], Build] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Task[dict[str, Any]]] = {}
        self._under_way: dict[asyncio.Task[None], Build] = {}

    async def learn(self) -> None:
        """Ask the Pythons of this machine what they are, so that `ask` need not."""
        await self._once("learn", None, "")

    async def locate(self, name: str) -> Path:
        """Return the directory of the model *name*, asking a server if it must.

        Raises:
            EnvdError: as `envd.model.location.locate`.
        """
        if found := location.known(name, self._settings):
            return found
        return Path((await self._once("locate", name, name))["located"])

    async def ask(
        self, model: Model, override: Sequence[str] = (), *, fresh: bool = False
    ) -> Asked:
        """Return what *model* asks for with *override*, obtaining the Python it needs.

        With *fresh* a lock that lies in the model is passed over.

        Raises:
            ModelInvalidError: its files cannot be used.
            PolicyDeniedError: the settings do not allow what they ask for.
            PythonUnavailableError: its Python cannot be had.
        """
        # In a thread: a model may bring packages of its own, which are read and hashed.
        dependencies = await asyncio.to_thread(
            spec.read, model, self._settings, override, fresh=fresh
        )
        requested = dependencies.python
        interpreters = self._environments.interpreters
        known, are_all = interpreters.known()
        if not are_all:
            await self.learn()
            known, _ = interpreters.known()
        picked = interpreters.pick(requested, known)
        if picked is None:
            await self._once("obtain", requested, requested or "")
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

    def notes(self, model: Model, asked: Asked, found: Environment) -> tuple[Note, ...]:
        """Return all that is worth knowing of *found*, the environment *model* asked for."""
        return self._environments.notes(model, asked, found)

    async def lock(self, asked: Asked) -> Lock:
        """Return the lock of *asked*, resolving it if that was never done.

        Raises:
            EnvdError: it cannot be resolved.
        """
        if self._environments.kept_lock(asked) is None:
            await self._once("lock", asked.document(), f"{asked.spec.key} {asked.day}")
        if lock := self._environments.kept_lock(asked):
            return lock
        message = "the lock was removed as soon as it was made; try again"
        raise BuildInterruptedError(message)

    def get(self, spec_key: str) -> Build | None:
        """Return the latest build of the spec whose key begins with *spec_key*, if one is known."""
        if len(spec_key) < _MIN_PREFIX:
            return None
        fitting = [one for (key, _), one in self._by_spec.items() if key.startswith(spec_key)]
        return fitting[-1] if len({one.asked.spec.key for one in fitting}) == 1 else None

    def leave_all(self) -> None:
        """End every following of a build, because the daemon is stopping."""
        for build in self._under_way.values():
            build.is_left = True
            build.wake()

    def start(self, asked: Asked, model: Model, *, upgrade: bool = False) -> Build:
        """Return the build of *asked* that is under way, or start one, for *model*.

        With *upgrade* it is locked anew, when a plain build that is under way is over.
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
        build = Build(asked, model, upgrade, asyncio.get_running_loop().create_future(), found)
        build.models.add(model.path)
        # Nobody may be waiting for it; its error is kept to be shown.
        build.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._by_spec[key] = build
        self._by_spec.move_to_end(key)
        self._drop_old()
        task = asyncio.create_task(self._build(build))
        self._under_way[task] = build
        task.add_done_callback(self._under_way.pop)
        return build

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
            task = {"build": build.asked.document(), "upgrade": build.upgrade}
            build.cached = (await self._run(task, build.add))["cached"]
            found = self._built(build)
        except EnvdError as error:
            build.done.set_exception(error)
        except BaseException as error:
            message = f"the build was interrupted: {error!r}"
            build.done.set_exception(BuildInterruptedError(message))
            raise
        else:
            build.done.set_result(found)
        finally:
            build.wake()

    def _built(self, build: Build) -> Environment:
        if found := self._environments.find(build.asked):
            for path in build.models:
                self._environments.store.record_model(found, path)
            return found
        message = "the environment was removed as soon as it was built; try again"
        raise BuildInterruptedError(message)

    async def _once(self, verb: str, about: object, name: str) -> dict[str, Any]:
        """Give a task to a builder, or join whoever has given the one called *name* already."""
        key = (verb, name)
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._run({verb: about}, ignore))
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    async def _run(self, task: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
        """Give *task* to a builder, see it through to its end, and return its last message."""
        ours, theirs = socket.socketpair()
        logs = self._settings.root / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with theirs:
            process = await self._processes.start(
                [sys.executable, "-I", "-m", "envd.builder", "{0}"],
                env=config.passed((*PASSED, "PYENV_ROOT")) | location.inherited(),
                cwd=self._settings.root,
                log=logs / "builders.log",
                given=[theirs.fileno()],
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_MAX_LINE_BYTES)
        try:
            request = {"settings": config.document(self._settings), **task}
            writer.write(json.dumps(request).encode() + b"\n")
            return await _follow(reader, on_event)
        finally:
            writer.close()
            process.kill()


async def _follow(reader: asyncio.StreamReader, on_event: OnEvent) -> dict[str, Any]:
    while line := await reader.readline():
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise from_document(message["error"])
        if message.keys() & {"ready", "obtained", "located", "locked"}:
            return message
        if "stage" in message:
            on_event(Stage(message["stage"], message["message"]))
        else:
            on_event(Line(message["line"]))
    message_lost = "the process that built the environment was killed; ask again"
    raise BuildInterruptedError(message_lost)
