"""The handlers of envd.v1.Predictions that look after workers: list, restart."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services
from google.protobuf.timestamp_pb2 import Timestamp

from envd.errors import WorkerNotFoundError
from envd.run.pool import Pool
from envd.run.queue import Queue
from envd.run.workshop import Worker
from envd.serve.context import Context

_ORIGINS = {"forked": api.PredictResponse.FORKED, "fresh": api.PredictResponse.FRESH}


@dataclass(frozen=True, slots=True)
class _Found:
    """A worker, the queue it answers, and its pid as it is called here."""

    worker: Worker
    queue: Queue
    pid: int


class WorkerHandlers(services.PredictionsServicer):
    """Answers for the workers of a pool."""

    def __init__(self, pool: Pool) -> None:
        """Look into *pool*."""
        self._pool = pool

    async def ListWorkers(  # noqa: N802
        self, request: api.ListWorkersRequest, context: Context
    ) -> api.ListWorkersResponse:
        """List the workers, the one used last first."""
        del request, context
        found = sorted(await self._found(), key=lambda one: -one.worker.last_used)
        return api.ListWorkersResponse(workers=map(self._message, found))

    async def RestartWorker(  # noqa: N802
        self, request: api.RestartWorkerRequest, context: Context
    ) -> api.Worker:
        """Start a worker in the place of another."""
        del context
        for one in await self._found():
            if one.pid == request.pid:
                one.queue.crew.replace(one.worker, "restarted")
                return self._message(one)
        message = f"no worker has the pid {request.pid}; `envctl workers list` shows them"
        raise WorkerNotFoundError(message, pid=request.pid)

    async def _found(self) -> list[_Found]:
        workers = [(one, queue) for _, queue in self._pool.loaded() for one in queue.crew.workers]
        # Forked ones are looked for among all processes.
        pids = await asyncio.to_thread(lambda: [one.host_pid() for one, _ in workers])
        return [_Found(*one, pid) for one, pid in zip(workers, pids, strict=True) if pid]

    def _message(self, found: _Found) -> api.Worker:
        worker = found.worker
        return api.Worker(
            pid=found.pid,
            model=str(worker.model.path),
            environment_id=worker.environment.id,
            state=_state(worker),
            origin=_ORIGINS[worker.kind],
            reason=worker.why,
            answer_count=worker.answers,
            under_way_count=worker.channel.under_way,
            waiting_count=found.queue.waiting,
            memory_bytes=worker.bytes,
            start_time=_time(worker.born),
            last_use_time=_time(worker.last_used),
            sandbox=self._pool.sandbox.tier,
        )


def _state(worker: Worker) -> api.Worker.State.ValueType:
    if worker.is_leaving:
        return api.Worker.LEAVING
    return api.Worker.BUSY if worker.channel.under_way else api.Worker.IDLE


def _time(moment: float) -> Timestamp:
    """Return a moment of the monotonic clock as one of the calendar."""
    found = Timestamp()
    found.FromNanoseconds(time.time_ns() - int((time.monotonic() - moment) * 1e9))
    return found
