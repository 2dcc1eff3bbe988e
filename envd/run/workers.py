"""Makes one worker: a process on a lease, then the model loaded in it; and tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
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
from envd.run.channel import Channel
from envd.run.distributions import distribution_of
from envd.run.envd_worker import protocol
from envd.run.processes import Process, Processes
from envd.store import Environment, Store

# A folder that Python runs.
_PROGRAM = str(Path(protocol.__file__).parent)


@dataclass(eq=False, slots=True)
class Worker:
    """A running process with one model loaded."""

    model: Model
    environment: Environment
    process: Process
    channel: Channel
    started: float
    start_seconds: float = 0.0
    was_stuck: bool = False
    last_used: float = field(default_factory=time.monotonic)


class Workshop:
    """What makes workers needs: the settings, the leases and the spawner."""

    def __init__(self, settings: Settings, store: Store, processes: Processes) -> None:
        """Make workers in the environments of *store*."""
        self._settings = settings
        self._store = store
        self._processes = processes
        self._threads = ThreadPoolExecutor(1, "scratch")
        self._clearing: set[asyncio.Future[None]] = set()

    async def start(self, model: Model, environment: Environment) -> Worker:
        """Start the process of a worker for *model*, which `load` then loads.

        Raises:
            EnvironmentNotFoundError: the environment has been removed meanwhile.
        """
        started = time.perf_counter()
        connection, process, scratch = await self._spawn(model, environment)
        process.exited.add_done_callback(lambda _: self._clear(scratch))
        channel = await Channel.over(connection, self._settings.daemon.max_message)
        return Worker(model, environment, process, channel, started)

    async def load(self, found: Worker) -> Worker:
        """Load the model of *found*, or end it.

        Raises:
            ModelInvalidError: the model cannot be loaded, or not in time.
            WorkerDiedError: the process ended.
        """
        try:
            await self._load(found)
        except BaseException:
            found.channel.close()
            raise
        found.start_seconds = time.perf_counter() - found.started
        return found

    async def close(self) -> None:
        """Wait until nothing is left of what workers that have ended wrote."""
        if self._clearing:
            await asyncio.wait(self._clearing)

    async def died(self, found: Worker, when: str) -> WorkerDiedError:
        """Return the error that says how *found* ended, once its process has."""
        status = await asyncio.shield(found.process.exited)
        how = f"exit status {status}" if status >= 0 else f"signal {_signal_name(-status)}"
        message = (
            f"the worker of `{found.model.path}` ended by {how} {when}; "
            f"its output is in `{self._log(found.model)}`"
        )
        return WorkerDiedError(message, model=found.model.path, status=status)

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
            scratch = self._scratch()
            undo.callback(shutil.rmtree, scratch, ignore_errors=True)
            process = await self._processes.start(
                [str(environment.python), "-I", "-B", _PROGRAM, "serve", "{0}"],
                env=_variables(environment, scratch),
                cwd=scratch,
                log=self._log(model),
                given=[theirs.fileno()],
                kept=[leased[1].descriptor],
            )
            undo.pop_all()
            return ours, process, scratch

    def _scratch(self) -> Path:
        try:
            return self._store.scratch()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # What is ready serves from a full disk as well.
            return self._store.scratch_in_memory()

    def _clear(self, scratch: Path) -> None:
        """Delete *scratch* in a thread: a model may have written any number of files."""
        clearing = asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: shutil.rmtree(scratch, ignore_errors=True)
        )
        self._clearing.add(clearing)
        clearing.add_done_callback(self._clearing.discard)

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
                await found.channel.call(protocol.LOAD, head)
        except TimeoutError as error:
            message = f"the model `{model.path}` was not loaded within {limit:.0f} s"
            raise ModelInvalidError(message, model=model.path) from error
        except ConnectionError as error:
            raise await self.died(found, "while it loaded the model") from error
        except EnvdError as error:
            raise explained(error, model) from error

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
        **environment.variables,
        "PATH": f"{environment.prefix / 'bin'}:{os.defpath}",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
    }


def explained(error: EnvdError, model: Model) -> EnvdError:
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
