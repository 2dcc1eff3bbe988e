"""Keeps workers: one process per model and environment, started once, stopped when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from envd.config import Settings
from envd.errors import EnvdError
from envd.model import Model
from envd.run.channel import Answer
from envd.run.envd_worker import protocol
from envd.run.processes import Processes
from envd.run.workers import Worker, Workshop, explained
from envd.store import Environment, Store

log = logging.getLogger(__name__)
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
        self._workshop = Workshop(settings, store, processes)
        self._clock = clock
        self._workers: dict[Key, asyncio.Task[Worker]] = {}
        self._callers: Counter[Key] = Counter()

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
        with self._calling(key):
            found, (answer, payload) = await self._answer(key, model, environment, request)
        self._store.uses.record(environment.id)
        if is_fresh:
            self._store.uses.record_model(environment.id, model.path)
        return Prediction(
            payload=payload,
            origin="fresh" if is_fresh else "warm",
            start_seconds=found.start_seconds if is_fresh else 0.0,
            predict_seconds=time.perf_counter()
            - started
            - (found.start_seconds if is_fresh else 0),
            notes=tuple(answer["notes"]),
        )

    async def _answer(
        self, key: Key, model: Model, environment: Environment, request: Request
    ) -> tuple[Worker, Answer]:
        while True:
            found = await self._worker(key, model, environment)
            try:
                return found, await self._ask(found, request)
            except ConnectionError as error:
                # What waited behind a stuck request was never begun; it is asked elsewhere.
                if not found.was_stuck:
                    raise await self._workshop.died(found, "with the request under way") from error

    @contextlib.contextmanager
    def _calling(self, key: Key) -> Iterator[None]:
        """Keep the worker of *key* from being stopped, the one it yet waits for included."""
        self._callers[key] += 1
        try:
            yield
        finally:
            self._callers[key] -= 1
            if not self._callers[key]:
                del self._callers[key]

    async def _ask(self, found: Worker, request: Request) -> Answer:
        found.last_used = self._clock()
        head = {"content_type": request.content_type, "params": request.params}
        try:
            return await found.channel.call(protocol.PREDICT, head, request.payload)
        except EnvdError as error:
            raise explained(error, found.model) from error
        except asyncio.CancelledError:
            self._end_if_stuck(found)
            raise
        finally:
            found.last_used = self._clock()

    async def stop_idle(self) -> None:
        """Stop workers that nobody has asked for `workers.idle_timeout`, for ever."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._settings.workers.idle_timeout))
            try:
                await self._stop_all(self._is_idle)
            except Exception:
                log.exception("idle workers were not stopped")

    async def release(self, env_id: str) -> None:
        """Stop the workers of the environment *env_id* that have nothing to do."""
        await self._stop_all(lambda found: found.environment.id == env_id)

    async def close(self) -> None:
        """Stop every worker, and wait until nothing is left of it."""
        tasks = list(self._workers.values())
        self._workers.clear()
        for task in tasks:
            if not task.done():
                task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._stop(one) for one in found if isinstance(one, Worker)))
        await self._workshop.close()

    def _is_idle(self, found: Worker) -> bool:
        return self._clock() - found.last_used > self._settings.workers.idle_timeout

    async def _stop_all(self, chosen: Callable[[Worker], bool]) -> None:
        """Stop those of the idle workers that *chosen* says."""
        doomed = [
            (key, found)
            for key, found in self._started()
            if key not in self._callers and not found.channel.under_way and chosen(found)
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
            # It has died before this caller woke up.
            if is_current:
                del self._workers[key]
        return found

    def _forget_failed(self, key: Key, task: asyncio.Task[Worker]) -> None:
        if (task.cancelled() or task.exception()) and self._workers.get(key) is task:
            del self._workers[key]

    async def _start(self, key: Key, model: Model, environment: Environment) -> Worker:
        found = await self._workshop.start(model, environment)
        found.channel.closed.add_done_callback(lambda _: self._lost(key, found))
        return await self._workshop.load(found)

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
