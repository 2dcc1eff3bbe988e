"""A program that envd runs for its work: how long it may, who is kept out, and what it sees."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from envd import child
from envd.child import Finished, Limits
from envd.config import Settings
from envd.errors import BuildTimedOutError, LimitReachedError
from envd.held import Held
from envd.sandbox import bounds, cgroups, tiers
from envd.sandbox.bounds import Room
from envd.sandbox.cgroups import Group
from envd.sandbox.tiers import FULL
from envd.scratch import scratch


@dataclass(frozen=True, slots=True)
class Tool:
    """A program as one root uses it.

    It inherits the file that is held while it works, so that whoever comes next waits
    until the last child of a killed envd is gone, or ends it. Without limits, each time it
    runs has those of the settings. It may write into `rooms`.
    """

    settings: Settings
    held: Held | None = None
    limits: Limits | None = None
    rooms: tuple[Path, ...] = ()

    def within(self, held: Held, limits: Limits | None = None) -> Self:
        """Return the same for work that *held* keeps others from, and that *limits* end."""
        return replace(self, held=held, limits=limits or self.limits)

    def in_rooms(self, *rooms: Path) -> Self:
        """Return the same with *rooms* to write into, besides those it has."""
        return replace(self, rooms=(*self.rooms, *rooms))

    def limited(self) -> Limits:
        """Return the limits of what begins now."""
        build = self.settings.build
        return self.limits or Limits(time.monotonic() + build.timeout, build.silence)

    def check_time(self) -> None:
        """See that there is time left.

        Raises:
            BuildTimedOutError: there is none.
        """
        if time.monotonic() >= self.limited().deadline:
            raise self._late()

    def start(
        self,
        argv: Sequence[str],
        room: Room,
        *,
        env: Mapping[str, str],
        cwd: Path,
        on_line: Callable[[str], None],
        limits: Limits | None = None,
        given: Sequence[int] = (),
    ) -> Finished:
        """Run *argv* to its end, in the sandbox in force: it has *room* and nothing else.

        It inherits the descriptors *given*.

        Raises:
            LimitReachedError: it took more memory than `build.memory_limit`.
        """
        found, own, name = tiers.of(self.settings), self._own_limits(), Path(argv[0]).name
        held = [self.held.descriptor] if self.held else []
        room = replace(room, write=(*room.write, *self.rooms))
        with self._home(found.tier) as home, self._group() as group, _memory() as text:
            if found.tier:
                env = {**env, "HOME": str(home), "TMPDIR": str(home)}
                room = room if found.tier == FULL else replace(room, write=(*room.write, home))
            if found.tier or not own.are_none:
                document = bounds.built(self.settings, found, room, own) | {"cwd": str(cwd)}
                argv, given = _confined(argv, document, given, held, group, text)
            else:
                given = [*given, *held]
            finished = child.run(
                argv,
                env=env,
                cwd=cwd,
                limits=limits or self.limited(),
                on_line=on_line,
                pass_fds=given,
                token=self.held.token if self.held else None,
            )
            if group and finished.status != 0 and group.ran_out():
                message = (
                    f"`{name}` took more memory than it may (`build.memory_limit`); raise that"
                )
                raise LimitReachedError(message)
        return finished

    def _own_limits(self) -> cgroups.Limits:
        build = self.settings.build
        return cgroups.Limits(build.memory_limit, build.cpu_limit, build.process_limit)

    @contextlib.contextmanager
    def _group(self) -> Iterator[Group | None]:
        own = self._own_limits()
        tree = None if own.are_none else cgroups.tree()
        if tree is None:
            yield None
            return
        with contextlib.closing(Group(tree, own)) as group:
            yield group

    @contextlib.contextmanager
    def _home(self, tier: int) -> Iterator[Path]:
        """Yield what it has for a home and for what passes: nobody's own."""
        if tier != 1:
            yield Path(bounds.home(self.settings))
            return
        with scratch(self.settings.root, "tmp") as folder:
            yield folder

    def _late(self) -> BuildTimedOutError:
        seconds = self.settings.build.timeout
        return BuildTimedOutError(f"the build was stopped after {seconds:.0f} s (`build.timeout`)")


def _confined(
    argv: Sequence[str],
    document: dict[str, Any],
    given: Sequence[int],
    held: Sequence[int],
    group: Group | None,
    text: int,
) -> tuple[list[str], list[int]]:
    """Return the command that runs *argv* as *document* says, and all its descriptors.

    Who waits outside of namespaces has what is *held*, and with that goes all inside; without
    any, what is left of a killed envd must have it.
    """
    procs = group.procs if group else []
    passed = [*given] if "outer" in document else [*given, *held]
    kept = [*held] if "outer" in document else []
    first = len(passed)
    document["confinement"]["cgroups"] = list(range(first, first + len(procs)))
    every = [*passed, *procs, *kept]
    document |= {"passed": first, "kept": list(range(first + len(procs), len(every)))}
    program = shutil.which(argv[0]) or argv[0]
    os.write(text, json.dumps({"argv": [program, *argv[1:]], **document}).encode())
    return bounds.program(str(text), [str(one) for one in every]), [*every, text]


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    """Yield the descriptor of a file that lies on no disk."""
    descriptor = os.memfd_create("confined.json")
    try:
        yield descriptor
    finally:
        os.close(descriptor)
