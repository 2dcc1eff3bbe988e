"""Keeps workers: for each model and environment a queue of requests and who answers them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from envd.config import Settings
from envd.errors import DeadlineExceededError
from envd.model import Model
from envd.run import memory
from envd.run.channel import Buffer
from envd.run.observer import Observer
from envd.run.processes import Processes
from envd.run.queue import Queue
from envd.run.recent import RecentUses
from envd.run.serving import Serving
from envd.run.stream import Stream
from envd.run.templates import Template
from envd.run.ticket import Answered
from envd.run.workshop import Worker, Workshop
from envd.sandbox.tiers import OPEN, Sandbox
from envd.settings import values
from envd.store import Environment, Store

log = logging.getLogger(__name__)
_SWEEP_S, _OFTEN_S, _MEASURE_S = 1.0, 0.05, 5.0
_DEFAULT = Serving()
# What of a model is asked: the answer of its `predict`, or each item of its `predict_stream`.
Function = Literal["predict", "predict_stream"]
# How large what it answers may be is said by these settings of the daemon's.
_LIMITS = {"predict": "max_in_parts", "predict_stream": "max_message"}


@dataclass(frozen=True, slots=True)
class Request:
    """One input for a model: bytes that are not looked into here."""

    payload: Buffer
    content_type: str
    params: dict[str, object] | None

    @property
    def head(self) -> bytes:
        """What the worker is told of it."""
        return self._head()

    def stream_head(self, function: Function, limit: int) -> bytes:
        """What the worker is told of it where the answer, of *function*, is to come in parts."""
        return self._head(function=function, limit=limit, setting=f"daemon.{_LIMITS[function]}")

    def _head(self, **more: object) -> bytes:
        about = {"content_type": self.content_type, "params": self.params}
        return json.dumps(about | more).encode()


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model, and how it came about.

    `origin` is of the worker: `warm` if it was there, else how it was started, and `why`
    so. Seconds are those spent waiting for a worker to be free, for it to be started, and
    from its being asked to its answer, of which `model_seconds` in the model.
    """

    payload: Buffer
    origin: Literal["warm", "forked", "fresh"]
    why: str
    queue_seconds: float
    start_seconds: float
    predict_seconds: float
    model_seconds: float
    notes: tuple[dict[str, str], ...]


# The model's path and digest, the environment's prefix (another attempt is another tree),
# and how it is to be run.
Key = tuple[Path, str, Path, Serving]


class Pool:
    """The workers of one daemon, or of one command."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        processes: Processes,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
        sandbox: Sandbox = OPEN,
    ) -> None:
        """Start none yet."""
        self.sandbox = sandbox
        self._settings = settings
        self._store = store
        self._uses = RecentUses(store.uses)
        self._observer = observer or Observer()
        self._workshop = Workshop(settings, store, processes, clock, self._observer, sandbox)
        self._clock = clock
        self._queues: dict[Key, Queue] = {}

    def heed(self, settings: Settings) -> None:
        """Keep workers from now on to the limits that *settings* say."""
        self._settings = settings

    async def predict(
        self,
        model: Model,
        environment: Environment,
        request: Request,
        serving: Serving = _DEFAULT,
    ) -> Prediction:
        """Answer *request* with *model* in *environment*.

        Raises:
            EnvironmentNotFoundError: the environment has been removed meanwhile.
            WorkerDiedError: the worker ended while it had the request.
            EnvdError: the model cannot be loaded, or refused the request.
        """
        queue = self._queue(model, environment, serving)
        async with _within(serving, model):
            answered = await queue.ask(request.head, request.payload)
        return self._noted(_prediction(answered, self._clock()), model, environment)

    async def stream(
        self,
        model: Model,
        environment: Environment,
        request: Request,
        function: Function,
        serving: Serving = _DEFAULT,
    ) -> Stream:
        """Return what the *function* of *model* answers to *request*, as it comes, once it begins.

        It is to be closed. When it is over, `ended` says how it came about.

        Raises:
            EnvironmentNotFoundError: the environment has been removed meanwhile.
            StreamUnsupportedError: the model has no `predict_stream`.
            EnvdError: the model cannot be loaded, or refused the request.
        """
        limit: int = getattr(self._settings.daemon, _LIMITS[function])
        queue = self._queue(model, environment, serving)
        stream = queue.stream(request.stream_head(function, limit), request.payload, limit)
        try:
            async with _within(serving, model):
                await stream.begin()
        except BaseException:
            stream.close()
            raise
        return stream

    def ended(self, stream: Stream, model: Model, environment: Environment) -> Prediction:
        """Return how the answer in *stream*, which is over, came about; it has no payload."""
        return self._noted(_prediction(stream.answered, self._clock()), model, environment)

    def _noted(self, found: Prediction, model: Model, environment: Environment) -> Prediction:
        self._uses.record(environment.id)
        if found.origin != "warm":
            self._store.uses.record_model(environment.id, model.path)
        self._observer.predicted(found.queue_seconds, found.predict_seconds, found.model_seconds)
        return found

    async def load(
        self, model: Model, environment: Environment, serving: Serving = _DEFAULT
    ) -> None:
        """Have a worker of *model* ready.

        Raises:
            EnvdError: it cannot be loaded.
        """
        await self._queue(model, environment, serving).crew.ready()
        self._store.uses.record_model(environment.id, model.path)

    def unload(self, path: Path) -> None:
        """Stop the workers of the model in *path*, each when it has answered what it was asked.

        Whoever asks for it again gets others.
        """
        for key, queue in self._queues.items():
            if key[0] == path:
                queue.crew.retire("unloaded")

    def loaded(self) -> Iterator[tuple[Key, Queue]]:
        """Yield what is loaded or being loaded."""
        yield from self._queues.items()

    async def run(self) -> None:
        """Keep workers to their limits for ever: of idleness, of age, of memory, of their logs.

        Templates go when none of their workers is left.
        """
        measured = self._clock()
        while True:
            # An `idle_timeout` of 0 is no reason to do nothing else.
            idle_timeout = self._settings.workers.idle_timeout
            await asyncio.sleep(max(_OFTEN_S, min(_SWEEP_S, idle_timeout)))
            try:
                await self._stop_idle()
                await self._workshop.logs.trim()
                if self._clock() - measured >= _MEASURE_S:
                    budget = values.share(self._settings.workers.memory, memory.total())
                    await self.keep_to_memory(budget)
                    measured = self._clock()
            except Exception:
                log.exception("idle workers were not stopped")

    async def release(self, env_id: str) -> None:
        """Stop what has nothing to do in the environment *env_id*."""
        await self._stop_all("released", lambda _, found: found.environment.id == env_id)
        for template in self._workshop.templates.running:
            if template.environment.id == env_id and not template.has_processes:
                await self._workshop.templates.stop(template, "released")

    async def close(self) -> None:
        """Stop every worker, and wait until nothing is left of it."""
        queues, self._queues = list(self._queues.values()), {}
        await asyncio.gather(*(queue.close() for queue in queues))
        await self._workshop.close()
        self._uses.close()

    def _queue(self, model: Model, environment: Environment, serving: Serving) -> Queue:
        key = (model.path, model.digest, environment.prefix, serving)
        return self._queues.get(key) or self._opened(key, model, environment)

    def _opened(self, key: Key, model: Model, environment: Environment) -> Queue:
        serving = key[3]
        for other, queue in self._queues.items():
            is_changed = (other[1], other[3]) != (key[1], serving)
            if other[0] == key[0] and is_changed and serving.replaces(other[3]):
                queue.crew.retire("changed")
        self._queues[key] = queue = Queue(self._workshop, model, environment, serving)
        return queue

    async def _stop_idle(self) -> None:
        await self._stop_all("idle", self._is_idle)
        limit = self._settings.workers.idle_timeout
        for template in self._workshop.templates.running:
            if not template.has_processes and self._clock() - template.last_used > limit:
                await self._workshop.templates.stop(template, "idle")
        for queue in self._queues.values():
            self._recycle_old(queue)

    def _is_idle(self, queue: Queue, found: Worker) -> bool:
        if queue.crew.serving.stay:
            return False
        # Those of a fixed number are kept, or not, together.
        is_alone = queue.crew.serving.workers == "auto"
        last = found.last_used if is_alone else max(one.last_used for one in queue.crew.workers)
        return self._clock() - last > self._settings.workers.idle_timeout

    def _recycle_old(self, queue: Queue) -> None:
        limit = self._settings.workers.max_age
        for worker in queue.crew.workers:
            if self._clock() - worker.born > limit:
                queue.crew.replace(worker, "recycled")

    async def keep_to_memory(self, budget: int) -> None:
        """Recycle what has grown too large, and stop the longest unused beyond *budget* bytes."""
        found = [(queue, one) for queue in self._queues.values() for one in queue.crew.workers]
        templates = self._workshop.templates.running
        sizes = await asyncio.to_thread(_sizes, [one for _, one in found], templates)
        limit = self._settings.workers.max_memory
        for (queue, worker), size in zip(found, sizes, strict=False):
            worker.bytes = size
            # One that has done nothing yet has not grown: its successor would be as large.
            if limit and size > limit and worker.answers:
                queue.crew.replace(worker, "recycled")
        everything: list[Worker | Template] = [*(worker for _, worker in found), *templates]
        may_go = {id(one) for queue in self._queues.values() for one in queue.crew.idle}
        # What a template has forked goes first; with its workers it stays.
        may_go |= {id(one) for one in templates if not one.has_processes}
        used = [
            (one.last_used, size, id(one) in may_go)
            for one, size in zip(everything, sizes, strict=True)
        ]
        doomed = {id(everything[place]) for place in memory.least_used(used, budget)}
        await self._stop_all("memory", lambda _, worker: id(worker) in doomed)
        for template in templates:
            if id(template) in doomed and not template.has_processes:
                await self._workshop.templates.stop(template, "memory")

    async def _stop_all(self, why: str, chosen: Callable[[Queue, Worker], bool]) -> None:
        """Stop those of the idle workers that *chosen* says."""
        stopping = []
        # All at once, before anything is awaited: none may get a request meanwhile.
        for key, queue in list(self._queues.items()):
            stopping += queue.crew.stop_if(functools.partial(chosen, queue))
            if queue.is_over:
                del self._queues[key]
        for _ in stopping:
            self._observer.evicted(why)
        if stopping:
            await asyncio.wait(stopping)


@contextlib.asynccontextmanager
async def _within(serving: Serving, model: Model) -> AsyncIterator[None]:
    """See that what is asked of *model* does not take longer than it may."""
    # A timer that never comes would be kept for as long as the loop lives.
    limit = None if serving.time_limit == math.inf else serving.time_limit
    try:
        async with asyncio.timeout(limit):
            yield
    except TimeoutError as error:
        message = (
            f"`{model.path}` did not answer within {serving.time_limit:g} s "
            "(`time_limit` of the model, or `workers.time_limit`)"
        )
        raise DeadlineExceededError(message, model=model.path) from error


def _sizes(workers: list[Worker], templates: list[Template]) -> list[int]:
    pids = [one.host_pid() for one in workers]
    outers = [one.process.pid if one.process else 0 for one in templates]
    workers_of = {pid for pid in pids if pid}
    return [
        *(memory.taken(pid) if pid else 0 for pid in pids),
        *(memory.taken(outer, without=workers_of) if outer else 0 for outer in outers),
    ]


def _prediction(answered: Answered, now: float) -> Prediction:
    worker = answered.worker
    is_new = worker is not None and worker.born > answered.asked
    start: Any = worker.start_seconds if worker and is_new else 0.0
    return Prediction(
        payload=answered.payload,
        origin=worker.kind if worker and is_new else "warm",
        why=worker.why if worker and is_new else "",
        queue_seconds=max(0.0, answered.sent - answered.asked - start),
        start_seconds=start,
        predict_seconds=now - answered.sent,
        model_seconds=answered.model_seconds,
        notes=answered.notes,
    )
