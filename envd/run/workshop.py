"""Makes one worker: a process on a lease, then the model loaded in it; and tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from envd.config import Settings
from envd.errors import (
    EnvdError,
    ImportFailedError,
    ModelInvalidError,
    WorkerDiedError,
)
from envd.model import Model
from envd.modules import distribution_of
from envd.run import memory
from envd.run.channel import Channel
from envd.run.envd_worker.protocol import LOAD
from envd.run.launcher import Launcher, Start
from envd.run.logs import Logs
from envd.run.observer import Kind, Observer
from envd.run.processes import Process, Processes
from envd.run.serving import Serving
from envd.run.templates import NotForkedError, Template, Templates
from envd.sandbox.tiers import OPEN, Sandbox
from envd.store import Environment, Store

_LOAD = "load"


@dataclass(eq=False, slots=True)
class Worker:
    """A running process with one model loaded.

    `kind` says how it came about and `why`; it takes no new requests when it `is_leaving`.
    """

    model: Model
    environment: Environment
    process: Process
    channel: Channel
    kind: Kind
    why: str
    template: Template | None = None
    start_seconds: float = 0.0
    answers: int = 0
    was_stuck: bool = False
    is_leaving: bool = False
    is_reserved: bool = False
    is_stopping: bool = False
    is_watched: bool = False
    bytes: int = 0
    born: float = 0.0
    last_used: float = 0.0

    def host_pid(self) -> int:
        """Return its pid as it is called here, 0 if it has gone."""
        if self.process.exited.done():
            return 0
        if self.template is None or self.template.process is None:
            return self.process.pid
        return memory.inside(self.template.process.pid, self.process.pid)

    @property
    def ended_by_itself(self) -> bool:
        """Whether nobody ended it: neither this daemon nor the end of its template."""
        fell_with_it = self.template is not None and self.template.has_ended
        is_ended = self.was_stuck or self.is_stopping or self.channel.is_broken
        return not (is_ended or fell_with_it)

    @property
    def may_be_asked(self) -> bool:
        """Whether it takes requests."""
        return not (self.is_leaving or self.is_reserved or self.channel.closed.done())


class Workshop:
    """What makes workers needs: the settings, the leases, the spawner and the templates."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        processes: Processes,
        clock: Callable[[], float],
        observer: Observer,
        sandbox: Sandbox = OPEN,
    ) -> None:
        """Make workers in the environments of *store*."""
        self.settings = settings
        self.clock = clock
        self.observer = observer
        self._launcher = Launcher(settings, store, processes, sandbox)
        self.logs = Logs(store.layout.logs, settings.workers.max_log)
        self.templates = Templates(settings, self._launcher, observer, self.logs)

    async def make(self, model: Model, environment: Environment, serving: Serving) -> Worker:
        """Return a worker with *model* loaded: forked where that changes no answer.

        Raises:
            EnvironmentNotFoundError: the environment has been removed meanwhile.
            ModelInvalidError: the model cannot be loaded, or not in time.
            WorkerDiedError: the process ended while it loaded the model.
        """
        template, why = await self.templates.of(model, environment, serving)
        if template is not None:
            try:
                return await self._loaded(model, environment, serving, template, why)
            except EnvdError as error:
                # Whatever it was: a fresh process is what the model was made for.
                why = error.message
                if not template.has_ended:
                    self.templates.refuse(model, environment, why)
            except NotForkedError as error:
                # That says nothing of the model.
                why = str(error)
        try:
            return await self._loaded(model, environment, serving, None, why)
        finally:
            self.templates.has_tried(environment)

    async def stop(self, found: Worker) -> None:
        """Ask a worker to end, and kill it after `workers.stop_grace`."""
        found.is_stopping = True
        found.channel.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.workers.stop_grace):
                await asyncio.shield(found.process.exited)
        found.process.kill()
        await asyncio.shield(found.process.exited)

    async def close(self) -> None:
        """End the templates, and wait until nothing is left of what workers wrote."""
        await self.templates.close()
        await self._launcher.close()

    async def died(self, found: Worker, when: str, *, stage: str | None = None) -> WorkerDiedError:
        """Return the error that says how *found* ended, once its process has."""
        status = await asyncio.shield(found.process.exited)
        if found.kind == "forked" and not found.answers and found.ended_by_itself:
            self.templates.refuse(found.model, found.environment, "its forked worker died")
        if found.process.ran_out:
            when = f"{when}, having taken more memory than it may (`memory_limit`)"
        how = f"exit status {status}" if status >= 0 else f"signal {_signal_name(-status)}"
        cause = f"exit {status}" if status >= 0 else _signal_name(-status)
        message = (
            f"the worker of `{found.model.path}` ended by {how} {when}; "
            f"its output is in `{self.logs.of_worker(found.model)}`"
        )
        return WorkerDiedError(
            message, model=found.model.path, status=status, cause=cause, stage=stage
        )

    async def _loaded(
        self,
        model: Model,
        environment: Environment,
        serving: Serving,
        template: Template | None,
        why: str,
    ) -> Worker:
        began = time.perf_counter()
        kind: Kind = "forked" if template else "fresh"
        with contextlib.ExitStack() as undo:
            connection, process = await self._spawn(model, environment, serving, template)
            undo.callback(process.kill)
            channel = await Channel.over(connection, self.settings.daemon.max_message)
            found = Worker(model, environment, process, channel, kind, why, template)
            undo.callback(channel.close)
            process.exited.add_done_callback(lambda _: channel.close_soon())
            answer = await self._load(found, serving)
            undo.pop_all()
        if template is None:
            self.templates.learn(model, environment, answer.get("modules", ()))
        found.start_seconds = time.perf_counter() - began
        found.born = found.last_used = self.clock()
        return found

    async def _spawn(
        self,
        model: Model,
        environment: Environment,
        serving: Serving,
        template: Template | None,
    ) -> tuple[socket.socket, Process]:
        """Start a process on a lease; who starts it keeps the lease as long as it lives."""
        start = Start(model, environment, serving, self.logs.of_worker(model))
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            if template is not None:
                process = await self._launcher.forked(template, start, theirs)
            else:
                process = await self._launcher.fresh(start, theirs)
            undo.pop_all()
            self.logs.written_by(process, start.log)
            return ours, process

    async def _load(self, found: Worker, serving: Serving) -> Mapping[str, object]:
        model, limit = found.model, self.settings.workers.start_timeout
        path = self._launcher.seen_at(model)
        head = {
            # MLflow takes a path with a percent sign for an encoded one.
            "model": path.as_uri() if "%" in str(path) else str(path),
            "code": str(path / model.code) if model.code else None,
            "loader_module": model.loader_module,
            "data": str(path / (model.data or "")),
            "max_payload": self.settings.daemon.max_message,
            "batch": serving.batch,
            "max_batch": serving.max_batch,
            "model_config": json.loads(serving.model_config or "null"),
            "forked": found.kind == "forked",
        }
        try:
            async with asyncio.timeout(limit):
                answer, _ = await found.channel.call(LOAD, head)
        except TimeoutError as error:
            message = f"the model `{model.path}` was not loaded within {limit:.0f} s"
            raise ModelInvalidError(message, model=model.path, stage=_LOAD) from error
        except ConnectionError as error:
            raise await self._died_loading(found) from error
        except EnvdError as error:
            raise explained(error, model, stage=_LOAD) from error
        return answer

    async def _died_loading(self, found: Worker) -> WorkerDiedError:
        # A process that is ending by itself has an exit status to tell.
        loop, grace = asyncio.get_running_loop(), self.settings.workers.stop_grace
        killing = loop.call_later(grace, found.process.kill)
        error = await self.died(found, "while it loaded the model", stage=_LOAD)
        killing.cancel()
        return error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def explained(error: EnvdError, model: Model, *, stage: str | None = None) -> EnvdError:
    """Return a worker's error with what the worker cannot know.

    Its *stage* is `load` where it was loading the model.
    """
    about: dict[str, object] = error.metadata | {"model": str(model.path), "stage": stage}
    if not isinstance(error, ImportFailedError):
        return type(error)(error.message, **about)
    module = error.metadata.get("module", "")
    distribution = distribution_of(module)
    advice = f"`{distribution}`" if distribution else "that provides it"
    message = (
        f"the model `{model.path}` imports `{module}`, which its environment does not have; "
        f"add the distribution {advice} to its requirements ({error.message})"
    )
    return ImportFailedError(message, **about, distribution=distribution)
