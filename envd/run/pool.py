"""Keeps workers: one process per model and environment, started once, stopped when idle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from envd.config import Settings
from envd.errors import (
    EnvdError,
    EnvironmentNotFoundError,
    ImportFailedError,
    ModelInvalidError,
    WorkerDiedError,
)
from envd.model import Model
from envd.run import worker
from envd.run.channel import Answer, Channel
from envd.run.distributions import distribution_of
from envd.run.processes import Process, Processes
from envd.store import Environment, Store

_SWEEP_S = 1.0
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One input for a model: bytes that are not looked into here."""

    payload: bytes
    content_type: str
    params: dict[str, object] | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model, and how it came about."""

    payload: bytes
    origin: str
    start_seconds: float
    predict_seconds: float
    notes: tuple[dict[str, str], ...]


@dataclass(eq=False, slots=True)
class Worker:
    """A running process with one model loaded."""

    model: Model
    environment: Environment
    process: Process
    channel: Channel
    start_seconds: float
    was_stuck: bool = False
    last_used: float = field(default_factory=time.monotonic)


# The model's path and digest, and the environment's prefix: another attempt is another tree.
Key = tuple[Path, str, Path]


class Pool:
    """The workers of one daemon, or of one command."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        processes: Processes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start none yet."""
        self._settings = settings
        self._store = store
        self._processes = processes
        self._clock = clock
        self._workers: dict[Key, asyncio.Task[Worker]] = {}

    async def predict(self, model: Model, environment: Environment, request: Request) -> Prediction:
        """Answer *request* with *model* in *environment*.

        Raises:
            EnvironmentNotFoundError: the environment has been removed meanwhile.
            WorkerDiedError: the worker ended while it had the request.
            EnvdError: the model cannot be loaded, or refused the request.
        """
        key = (model.path, model.digest, environment.prefix)
        is_fresh = key not in self._workers
        started = time.perf_counter()
        while True:
            found = await self._worker(key, model, environment)
            try:
                answer, payload = await self._ask(found, request)
                break
            except ConnectionError as error:
                # What waited behind a stuck request was never begun; it is asked elsewhere.
                if not found.was_stuck:
                    raise await self._died(found, "with the request under way") from error
        self._store.record_use(environment, model.path)
        return Prediction(
            payload=payload,
            origin="fresh" if is_fresh else "warm",
            start_seconds=found.start_seconds if is_fresh else 0.0,
            predict_seconds=time.perf_counter()
            - started
            - (found.start_seconds if is_fresh else 0),
            notes=tuple(answer["notes"]),
        )

    async def _ask(self, found: Worker, request: Request) -> Answer:
        found.last_used = self._clock()
        head = {"content_type": request.content_type, "params": request.params}
        try:
            return await found.channel.call(worker.PREDICT, head, request.payload)
        except EnvdError as error:
            raise _explained(error, found.model) from error
        except asyncio.CancelledError:
            self._end_if_stuck(found)
            raise
        finally:
            found.last_used = self._clock()

    async def stop_idle(self) -> None:
        """Stop workers that nobody has asked for `workers.idle_timeout`, for ever."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._settings.workers.idle_timeout))
            await self._stop_all(
                lambda found: self._clock() - found.last_used > self._settings.workers.idle_timeout
            )

    async def release(self, env_id: str) -> None:
        """Stop the workers of the environment *env_id* that have nothing to do."""
        await self._stop_all(lambda found: found.environment.id == env_id)

    async def close(self) -> None:
        """Stop every worker."""
        tasks = list(self._workers.values())
        self._workers.clear()
        for task in tasks:
            if not task.done():
                task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._stop(one) for one in found if isinstance(one, Worker)))

    async def _stop_all(self, chosen: Callable[[Worker], bool]) -> None:
        """Stop those of the idle workers that *chosen* says."""
        doomed = [
            (key, found)
            for key, found in self._started()
            if not found.channel.under_way and chosen(found)
        ]
        # All at once, before anything is awaited: none may get a request meanwhile.
        for key, _ in doomed:
            del self._workers[key]
        await asyncio.gather(*(self._stop(found) for _, found in doomed))

    def _started(self) -> list[tuple[Key, Worker]]:
        return [
            (key, task.result())
            for key, task in self._workers.items()
            if task.done() and not task.cancelled() and not task.exception()
        ]

    async def _worker(self, key: Key, model: Model, environment: Environment) -> Worker:
        """Return the worker of *key*: the first to ask starts it, the others wait for it."""
        for _ in range(_ATTEMPTS):
            task = self._workers.get(key)
            if task is None:
                task = asyncio.create_task(self._start(key, model, environment))
                self._workers[key] = task
                task.add_done_callback(lambda done: self._forget_failed(key, done))
            # Shielded: a caller that leaves must not take the worker from the others.
            found = await asyncio.shield(task)
            is_current = self._workers.get(key) is task
            if is_current and not found.channel.closed.done():
                return found
            # It was stopped as idle, or has died, before this caller woke up.
            if is_current:
                del self._workers[key]
        return found

    def _forget_failed(self, key: Key, task: asyncio.Task[Worker]) -> None:
        if (task.cancelled() or task.exception()) and self._workers.get(key) is task:
            del self._workers[key]

    async def _start(self, key: Key, model: Model, environment: Environment) -> Worker:
        started = time.perf_counter()
        connection, process, scratch = await self._spawn(model, environment)
        process.exited.add_done_callback(lambda _: shutil.rmtree(scratch, ignore_errors=True))
        channel = await Channel.over(connection, self._settings.daemon.max_message)
        found = Worker(model, environment, process, channel, 0.0)
        channel.closed.add_done_callback(lambda _: self._lost(key, found))
        try:
            await self._load(found)
        except BaseException:
            found.channel.close()
            raise
        found.start_seconds = time.perf_counter() - started
        return found

    async def _spawn(
        self, model: Model, environment: Environment
    ) -> tuple[socket.socket, Process, Path]:
        """Start a process on a lease; the spawner keeps the lease as long as it lives."""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as handed_on:
            leased = self._store.lease(environment.id)
            if leased is not None:
                handed_on.callback(leased[1].close)
            if leased is None or leased[0].prefix != environment.prefix:
                message = f"the environment {environment.id} has been removed"
                raise EnvironmentNotFoundError(message, id=environment.id)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            handed_on.callback(theirs.close)
            scratch = self._store.scratch()
            undo.callback(shutil.rmtree, scratch, ignore_errors=True)
            process = await self._processes.start(
                [str(environment.python), "-I", "-B", worker.__file__, "{0}"],
                env=_variables(environment, scratch),
                cwd=scratch,
                log=self._log(model),
                given=[theirs.fileno()],
                kept=[leased[1].descriptor],
            )
            undo.pop_all()
            return ours, process, scratch

    async def _load(self, found: Worker) -> None:
        model, limit = found.model, self._settings.workers.start_timeout
        head = {
            # MLflow takes a path with a percent sign for an encoded one.
            "model": model.path.as_uri() if "%" in str(model.path) else str(model.path),
            "code": str(model.path / model.code) if model.code else None,
            "loader_module": model.loader_module,
            "data": str(model.path / (model.data or "")),
            "max_payload": self._settings.daemon.max_message,
        }
        try:
            async with asyncio.timeout(limit):
                await found.channel.call(worker.LOAD, head)
        except TimeoutError as error:
            message = f"the model `{model.path}` was not loaded within {limit:.0f} s"
            raise ModelInvalidError(message, model=model.path) from error
        except ConnectionError as error:
            raise await self._died(found, "while it loaded the model") from error
        except EnvdError as error:
            raise _explained(error, model) from error

    def _lost(self, key: Key, found: Worker) -> None:
        """Forget a worker whose socket has ended, and see that its process does."""
        if (key, found) in self._started():
            del self._workers[key]
        # Not at once: a process that is ending by itself has an exit status to tell.
        asyncio.get_running_loop().call_later(self._settings.workers.stop_grace, found.process.kill)

    def _end_if_stuck(self, found: Worker) -> None:
        """Kill a worker that goes on for `workers.stop_grace` with what nobody waits for.

        One that answers others meanwhile is only busy, and is looked at again.
        """
        loop, grace = asyncio.get_running_loop(), self._settings.workers.stop_grace

        def look() -> None:
            if found.channel.is_stuck(grace):
                found.was_stuck = True
                found.process.kill()
            elif found.channel.abandoned:
                loop.call_later(grace, look)

        loop.call_later(grace, look)

    async def _stop(self, found: Worker) -> None:
        """Ask a worker to end, and kill it after `workers.stop_grace`."""
        found.channel.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.workers.stop_grace):
                await asyncio.shield(found.process.exited)
        found.process.kill()
        await asyncio.shield(found.process.exited)

    async def _died(self, found: Worker, when: str) -> WorkerDiedError:
        status = await asyncio.shield(found.process.exited)
        how = f"exit status {status}" if status >= 0 else f"signal {_signal_name(-status)}"
        message = (
            f"the worker of `{found.model.path}` ended by {how} {when}; "
            f"its output is in `{self._log(found.model)}`"
        )
        return WorkerDiedError(message, model=found.model.path, status=status)

    def _log(self, model: Model) -> Path:
        logs = self._store.layout.root / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        return logs / f"worker-{model.digest[:16]}.log"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _variables(environment: Environment, scratch: Path) -> dict[str, str]:
    """Return the whole environment of a worker: nothing of the daemon's is in it."""
    return {
        "PATH": f"{environment.prefix / 'bin'}:{os.defpath}",
        "VIRTUAL_ENV": str(environment.prefix),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
    }


def _explained(error: EnvdError, model: Model) -> EnvdError:
    """Return a worker's error with what the worker cannot know."""
    about = error.metadata | {"model": str(model.path)}
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
