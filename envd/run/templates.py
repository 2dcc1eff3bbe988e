"""Keeps templates: a process per environment that has imported what its models need.

A worker forked from one starts in milliseconds and shares its memory. It is a worker like
any other: where forking could change an answer, there is none for that model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envd.config import Settings
from envd.errors import EnvdError, InternalError, LimitReachedError
from envd.model import Model
from envd.run.launcher import Launcher
from envd.run.logs import Logs
from envd.run.observer import Observer
from envd.run.processes import Process, Starter
from envd.run.serving import Serving
from envd.store import Environment

log = logging.getLogger(__name__)
# What takes a template milliseconds; and what importing the largest libraries may take.
_DEAF_S, _PATIENCE_S = 10.0, 15.0
# It is workers that say what to import, and they may say anything.
_MAX_MODULES = 50_000


class NotForkedError(Exception):
    """A template has forked no worker."""


class Template(Starter):
    """One template, which starts workers by forking; `process` is the outer one of its tree."""

    def __init__(self, control: socket.socket, environment: Environment) -> None:
        """Speak over *control* to the template of *environment*."""
        super().__init__(control)
        self.attach()
        self.environment = environment
        self.ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.process: Process | None = None
        self.last_used = time.monotonic()

    @property
    def is_usable(self) -> bool:
        """Whether it runs and is ready."""
        is_ready = self.ready.done() and not self.ready.cancelled() and not self.ready.exception()
        return is_ready and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether it has gone, and its workers with it."""
        return self._control.fileno() < 0 or (
            self.process is not None and self.process.exited.done()
        )

    async def fork(self, request: Mapping[str, object], given: Sequence[int]) -> Process:
        """Start a worker as *request* says, with the descriptors *given*.

        Raises:
            NotForkedError: none could be forked, or not in time.
        """
        self.last_used = time.monotonic()
        try:
            async with asyncio.timeout(_DEAF_S):
                return await self.ask(request, given)
        except TimeoutError as error:
            self._end_if_deaf()
            message = "its template does not answer"
            raise NotForkedError(message) from error
        except EnvdError as error:
            raise NotForkedError(error.message) from error

    def signal(self, process: Process, number: int) -> None:
        """Have a worker get a signal; a template that does not see to it is ended itself."""
        super().signal(process, number)
        asyncio.get_running_loop().call_later(_DEAF_S, self._end_if_deaf, process)

    def _end_if_deaf(self, process: Process | None = None) -> None:
        """End a template that does not do as it is told, and its workers with it."""
        if self.process is None or (process and process.exited.done()):
            return
        log.warning("the template of the environment %s does not answer", self.environment.id)
        self.process.kill()

    def close(self) -> None:
        """Let it end: its control socket does."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            if not self.ready.done():
                self.ready.set_result(message["pid"])
        elif "unusable" in message:
            self._refuse(message["unusable"])
        else:
            super()._dispatch(message)

    def _lose(self, gone: asyncio.Future[None]) -> None:
        super()._lose(gone)
        self._control.close()
        self._refuse("it ended")

    def _refuse(self, why: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(InternalError(f"no template: {why}"))
            # Whoever wanted it may have gone.
            self.ready.exception()


@dataclass(slots=True)
class _Known:
    """What is known of one environment: what its workers imported, and which models it has."""

    modules: list[str] = field(default_factory=list)
    models: set[Path] = field(default_factory=set)
    template: asyncio.Task[Template] | None = None
    refused: dict[str, str] = field(default_factory=dict)
    # Ends when the first worker has been started, or could not be.
    first: asyncio.Future[None] | None = None

    @property
    def found(self) -> Template | None:
        """Its template, if it became ready."""
        task = self.template
        if task is None or not task.done() or task.cancelled() or task.exception():
            return None
        return task.result()

    @property
    def is_in_use(self) -> bool:
        """Whether it has a template, or is getting one."""
        is_starting = self.template is not None and not self.template.done()
        return is_starting or (self.found is not None and self.found.is_usable)


class Templates:
    """The templates of one daemon, by the prefix of their environment."""

    def __init__(
        self,
        settings: Settings,
        launcher: Launcher,
        observer: Observer,
        logs: Logs,
    ) -> None:
        """Start none yet."""
        self._settings = settings
        self._logs = logs
        self._launcher = launcher
        self._observer = observer
        self._known: dict[Path, _Known] = {}

    @property
    def running(self) -> list[Template]:
        """The templates that are ready."""
        found = [one.found for one in self._known.values()]
        return [one for one in found if one]

    async def of(
        self, model: Model, environment: Environment, serving: Serving
    ) -> tuple[Template | None, str]:
        """Return the template that a worker of *model* can be forked from, and why (not)."""
        if why := self._none_for(environment, serving):
            return None, why
        known = self._of(environment)
        if why := known.refused.get(model.digest) or known.refused.get(""):
            return None, why
        await _wait_for_first(known)
        is_first = not known.models - {model.path}
        if not known.modules or (is_first and serving.workers == 1):
            known.first = known.first or asyncio.get_running_loop().create_future()
            return None, "it is the first model of its environment"
        try:
            found = await self._running(known, environment)
        except (EnvdError, OSError) as error:
            why = f"its environment has no template: {error}"
            log.warning("the environment %s gets no template: %s", environment.id, error)
            if not _is_passing(error):
                known.refused[""] = why
            return None, why
        return found, "its environment has a template"

    def _of(self, environment: Environment) -> _Known:
        if known := self._known.get(environment.prefix):
            return known
        # There is always another one: what has been removed need not be known for ever.
        gone = [prefix for prefix in self._known if not prefix.exists()]
        for prefix in gone:
            if not self._known[prefix].is_in_use:
                del self._known[prefix]
        known = self._known[environment.prefix] = _Known()
        return known

    def _none_for(self, environment: Environment, serving: Serving) -> str | None:
        off = self._settings.workers.without_template
        if not serving.template or environment.id.startswith(off):
            return "templates are off"
        if why := self._launcher.keeps_from_template(serving):
            return why
        # Libraries read variables when they are imported.
        return "it has variables of its own" if serving.env else None

    def has_tried(self, environment: Environment) -> None:
        """Let whoever waits know that a fresh worker has been started, or could not be."""
        known = self._known.get(environment.prefix)
        if known and known.first:
            known.first.set_result(None)
            known.first = None

    def learn(self, model: Model, environment: Environment, modules: object) -> None:
        """Remember what a fresh worker of *model* has imported."""
        known = self._of(environment)
        known.models.add(model.path)
        if isinstance(modules, list):
            names = [name for name in modules if isinstance(name, str)]
            known.modules = list(dict.fromkeys([*known.modules, *names]))[:_MAX_MODULES]

    def refuse(self, model: Model, environment: Environment, why: str) -> None:
        """Start *model* in fresh processes from now on."""
        self._of(environment).refused[model.digest] = why

    async def stop(self, found: Template, why: str) -> None:
        """End a template, which ends its workers, and wait until it has."""
        known = self._known.get(found.environment.prefix)
        if known and known.found is found:
            known.template = None
        self._observer.evicted(why)
        # Shielded: it is to end, whoever waits for that.
        await asyncio.shield(_ended(found, self._settings.workers.stop_grace))

    async def close(self) -> None:
        """End all templates."""
        tasks = [one.template for one in self._known.values() if one.template]
        self._known.clear()
        for task in tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        found = [task.result() for task in tasks if not task.cancelled() and not task.exception()]
        grace = self._settings.workers.stop_grace
        await asyncio.gather(*(_ended(one, grace) for one in found))

    async def _running(self, known: _Known, environment: Environment) -> Template:
        task = known.template
        if task is None or (task.done() and not (known.found and known.found.is_usable)):
            task = known.template = asyncio.create_task(self._start(known, environment))
        # Shielded: a caller that leaves must not take it from the others.
        return await asyncio.shield(task)

    async def _start(self, known: _Known, environment: Environment) -> Template:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        found = Template(ours, environment)
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(found.close)
            log_path = self._logs.of_template(environment)
            process = found.process = await self._launcher.template(
                environment, known.modules, log_path, theirs
            )
            undo.callback(process.kill)
            self._logs.written_by(process, log_path)
            theirs.close()
            async with asyncio.timeout(self._settings.workers.start_timeout):
                await found.ready
            undo.pop_all()
        return found


async def _wait_for_first(known: _Known) -> None:
    """Wait for whoever comes first to tell what it has imported, if that does not take long.

    Many models asked for at once would else each import the same by itself.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            while known.first and not known.modules:
                await asyncio.shield(known.first)


def _is_passing(error: Exception) -> bool:
    """Whether it says something of the machine as it is just now."""
    if isinstance(error, OSError):
        return not isinstance(error, TimeoutError)
    return isinstance(error, LimitReachedError)


async def _ended(found: Template, grace: float) -> None:
    found.close()
    if found.process is None:
        return
    await asyncio.wait([found.process.exited], timeout=grace)
    found.process.kill()
    await asyncio.shield(found.process.exited)
