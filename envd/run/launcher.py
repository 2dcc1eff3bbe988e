"""Starts the processes of an environment: workers, fresh and forked, and templates."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from envd.config import Settings
from envd.errors import LimitReachedError
from envd.model import Model
from envd.run import places
from envd.run.mounts import Mounts, opened
from envd.run.processes import Process, Processes
from envd.run.serving import Serving
from envd.sandbox import cgroups
from envd.sandbox.bounds import MODEL, TMP, Ground, can_keep_apart, confined
from envd.sandbox.cgroups import Group
from envd.sandbox.tiers import FULL, Sandbox
from envd.scratch import Scratch
from envd.store import Environment, Store


@dataclass(frozen=True, slots=True)
class Start:
    """A worker that is to be started: of which model, in which environment, and how."""

    model: Model
    environment: Environment
    serving: Serving
    log: Path


class Template(Protocol):
    """What forks workers."""

    async def fork(self, request: Mapping[str, object], given: Sequence[int]) -> Process:
        """Start a worker as *request* says, with the descriptors *given*."""


class Launcher:
    """Starts processes as the sandbox says, and clears away what they leave."""

    def __init__(
        self, settings: Settings, store: Store, processes: Processes, sandbox: Sandbox
    ) -> None:
        """Start none yet."""
        self.sandbox = sandbox
        self._settings, self._store, self._processes = settings, store, processes
        self._mounts = Mounts(processes, sandbox, store.layout.logs / "mounts.log")
        self._threads = ThreadPoolExecutor(1, "scratch")
        self._clearing: set[asyncio.Future[None]] = set()

    def seen_at(self, model: Model) -> Path:
        """Return where a worker finds *model*."""
        return Path(MODEL) if self.sandbox.tier == FULL else model.path

    def may_use_network(self, serving: Serving) -> bool:
        """Whether workers of a model that is run so may use the network."""
        if self.sandbox.tier == 0:
            return True
        own = serving.network
        return self._settings.workers.network == "on" if own is None else own

    @property
    def _has_network(self) -> bool:
        return self.may_use_network(Serving())

    def keeps_from_template(self, serving: Serving) -> str:
        """Say why no template may have workers of a model that is run so, if that is so."""
        if not can_keep_apart():
            return "this kernel cannot keep forked workers apart: it has no landlock 6"
        is_other = self.may_use_network(serving) and not self._has_network
        return "templates are without the network that it may use" if is_other else ""

    async def fresh(self, start: Start, connection: socket.socket) -> Process:
        """Start a worker that speaks over *connection*; the spawner keeps its lease.

        Raises:
            EnvdError: it cannot be started.
        """
        with self._room(start) as room, contextlib.ExitStack() as handed_on:
            ground, lease = self._ground(start.environment), self._lease(start, handed_on)
            given, steps = await self._steps(start, room, connection, handed_on)
            names = [f"{{{place}}}" for place in range(len(given))]
            argv = [*places.program(start.environment), "serve", "{0}"]
            if self.sandbox.tier == 0:
                argv += [json.dumps({"confinement": steps}), *names[1:]]
            else:
                document: dict[str, Any] = {"is_worker": True, "confinement": steps}
                if self.sandbox.tier == FULL:
                    network = self.may_use_network(start.serving)
                    document["outer"] = ground.outer(network=network)
                argv = confined(argv, document, names)
            process = await self._processes.start(
                argv,
                env=room.variables,
                cwd=room.scratch.path if room.scratch else Path("/"),
                log=start.log,
                given=given,
                kept=[lease],
            )
            return self._clearing_after(process, room)

    async def forked(self, template: Template, start: Start, connection: socket.socket) -> Process:
        """Have *template* fork a worker that speaks over *connection*.

        Raises:
            EnvdError: it cannot be started.
        """
        with self._room(start) as room, contextlib.ExitStack() as handed_on:
            given, steps = await self._steps(start, room, connection, handed_on)
            log: int | str = str(start.log)
            if self.sandbox.tier:
                # It cannot be opened inside.
                log = len(given)
                given.append(_log(start.log, handed_on))
            request = {
                "log": log,
                "env": room.variables,
                "cwd": str(room.inside),
                "confinement": steps,
            }
            return self._clearing_after(await template.fork(request, given), room)

    async def template(
        self, environment: Environment, modules: Sequence[str], log: Path, control: socket.socket
    ) -> Process:
        """Start a template that imports *modules* and speaks over *control*.

        Raises:
            EnvdError: it cannot be started.
        """
        with self._folder() as scratch, contextlib.ExitStack() as handed_on:
            file = scratch.path / "template.json"
            file.write_text(json.dumps({"modules": modules, "is_inside": self.sandbox.tier > 0}))
            lease = places.lease(self._store, environment)
            handed_on.callback(lease.close)
            given = [control.fileno(), os.open(file, os.O_RDONLY | os.O_CLOEXEC), lease.descriptor]
            handed_on.callback(os.close, given[1])
            argv = [*places.program(environment), "template", "{0}", "{1}"]
            if self.sandbox.tier == 0:
                argv.append("{2}")
            else:
                network, ground = self._has_network, self._ground(environment)
                document: dict[str, Any] = {"passed": 2, "kept": [2]}
                if self.sandbox.tier == FULL:
                    document |= {"outer": ground.outer(network=network), "cwd": TMP}
                else:
                    document |= {
                        "outer": {"namespaces": []},
                        "confinement": ground.template(scratch.path, network=network),
                    }
                argv = confined(argv, document, ["{0}", "{1}", "{2}"])
            inside = Path(TMP) if self.sandbox.tier == FULL else scratch.path
            process = await self._processes.start(
                argv,
                env=self._variables(environment, inside),
                cwd=scratch.path,
                log=log,
                given=given,
            )
            process.exited.add_done_callback(lambda _: self._clear(scratch, None))
            return process

    async def close(self) -> None:
        """Wait until nothing is left of what processes wrote."""
        self._mounts.close()
        if self._clearing:
            await asyncio.wait(self._clearing)

    def _ground(self, environment: Environment) -> Ground:
        base = environment.manifest.base.path
        return Ground(environment.prefix, base, self.sandbox, self._settings)

    def _lease(self, start: Start, handed_on: contextlib.ExitStack) -> int:
        lease = places.lease(self._store, start.environment)
        handed_on.callback(lease.close)
        return lease.descriptor

    def _variables(self, environment: Environment, home: Path) -> dict[str, str]:
        return places.variables(environment, home, self.sandbox.tier)

    async def _steps(
        self,
        start: Start,
        room: _Room,
        connection: socket.socket,
        handed_on: contextlib.ExitStack,
    ) -> tuple[list[int], dict[str, Any]]:
        """Return the descriptors of a worker, and what confines it by them."""
        network, given = self.may_use_network(start.serving), [connection.fileno()]
        steps = self._ground(start.environment).worker(
            start.serving.limits, network=network, scratch=room.inside
        )
        if self.sandbox.tier:
            # Not by its path, which may lead elsewhere by now.
            steps["model"] = len(given)
            is_mount = self.sandbox.tier == FULL
            given.append(await self._mounts.of(start.model) if is_mount else opened(start.model))
            handed_on.callback(os.close, given[-1])
        if room.group:
            steps["cgroups"] = list(range(len(given), len(given) + len(room.group.procs)))
            given += room.group.procs
        return given, steps

    @contextlib.contextmanager
    def _room(self, start: Start) -> Iterator[_Room]:
        """Yield where a worker is at home; it is cleared away unless it was started."""
        group = _group(start, self.sandbox)
        with contextlib.ExitStack() as undo:
            undo.callback(group.close if group else bool)
            scratch = None
            if self.sandbox.tier < FULL:
                scratch = places.scratch(self._store)
                undo.callback(scratch.remove)
            inside = scratch.path if scratch else Path(TMP)
            variables = self._variables(start.environment, inside) | dict(start.serving.env)
            yield _Room(group, scratch, inside, variables)
            undo.pop_all()
            if group:
                group.let_go()

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Scratch]:
        scratch = places.scratch(self._store)
        try:
            yield scratch
        except BaseException:
            scratch.remove()
            raise

    def _clearing_after(self, process: Process, room: _Room) -> Process:
        """See to it that all of *room* goes when *process* has ended."""

        def clear(_: object) -> None:
            process.ran_out = room.group is not None and room.group.ran_out()
            if room.scratch or room.group:
                self._clear(room.scratch, room.group)

        process.exited.add_done_callback(clear)
        return process

    def _clear(self, scratch: Scratch | None, group: Group | None) -> None:
        """Remove them in a thread: a model may have written any number of files."""

        def remove() -> None:
            if scratch:
                scratch.remove()
            if group:
                group.close()

        clearing = asyncio.get_running_loop().run_in_executor(self._threads, remove)
        self._clearing.add(clearing)
        clearing.add_done_callback(self._clearing.discard)


@dataclass(frozen=True, slots=True)
class _Room:
    """Where one worker is at home: its group, its folder `scratch`, and how it calls that."""

    group: Group | None
    scratch: Scratch | None
    inside: Path
    variables: Mapping[str, str]


def _group(start: Start, sandbox: Sandbox) -> Group | None:
    limits = start.serving.limits
    if sandbox.tier == FULL:
        # A resource limit holds those.
        limits = replace(limits, processes=0)
    # Where they are made is prepared only for who needs one.
    tree = None if limits.are_none else cgroups.tree()
    try:
        return Group(tree, limits) if tree else None
    except OSError as error:
        message = f"the worker of `{start.model.path}` gets no cgroup: {error}"
        raise LimitReachedError(message, model=start.model.path) from error


def _log(path: Path, handed_on: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        # On a full disk what is said is lost, and the worker starts all the same.
        descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    handed_on.callback(os.close, descriptor)
    return descriptor
