"""Models whose builds stop at a gate and are counted, and processes that ask for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from envd.builds import elsewhere
from envd.builds.elsewhere import UnderWay
from envd.store import Store
from tests.called import Called
from tests.conftest import Envctl, environment, one_python, wait_for
from tests.tiny import Tiny, tree

BUILD, IMPORT = "build", "import"
_LIMIT_S = 30

_STEP = """
import os, subprocess, sys, time
def tell(name, *words):
    with open({trace!r}, "a") as file:
        file.write(" ".join(map(str, [name, os.getpid(), *words])) + chr(10))
child = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
away = subprocess.Popen(child, start_new_session=True).pid if {has_child} else 0
tell({step!r}, time.monotonic(), away)
{more}
while not os.path.exists({gate!r}):
    time.sleep(0.02)
if away:
    os.kill(away, 9)
tell({step!r} + "-over", time.monotonic())
"""


@dataclass(frozen=True)
class Gated:
    """A model, and the folder of its gate and of the trace of its builds.

    Its own package is built once while the model is locked, and imported once while its
    environment is installed: the two steps.
    """

    folder: Path
    model: Path

    @classmethod
    def make(
        cls,
        tiny: Tiny,
        folder: Path,
        step: str = IMPORT,
        *requirements: str,
        more: str = "",
        has_child: bool = False,
    ) -> Self:
        """Write a model whose build waits at *step*, after it has done *more*.

        With a child, it has a process in a session of its own there.
        """
        found = cls(folder, folder / "model")
        # By its name as well: only what a model asks for by name is imported.
        tiny.model(found.model, *(requirements or ("tiny-a",)), "gated", "./gated")
        code = {
            one: _STEP.format(
                trace=str(found.trace),
                step=one,
                gate=str(found.gate) if one == step else "/",
                more=more if one == step else "",
                has_child=has_child and one == step,
            )
            for one in (BUILD, IMPORT)
        }
        build = f"MODULE = {code[IMPORT]!r}; exec({code[BUILD]!r}, {{}})"
        tree(found.model / "gated", "gated", "1.0", build)
        return found

    @property
    def trace(self) -> Path:
        return self.folder / "trace"

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def open(self) -> None:
        self.gate.touch()

    def seen(self, step: str) -> list[list[str]]:
        """Return what each time *step* was begun is known of it: pid, moment, child."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return [words[1:] for line in lines if (words := line.split())[0] == step]

    def pids(self) -> list[int]:
        """Return every process that was in a step, and those it started."""
        found = [words for step in (BUILD, IMPORT) for words in self.seen(step)]
        return [int(pid) for words in found for pid in (words[0], words[2]) if pid != "0"]

    def wait_at(self, step: str, times: int = 1) -> None:
        """Wait until *step* has been begun so many times."""
        wait_for(lambda: len(self.seen(step)) >= times, _LIMIT_S)


_CALLS = """
import sys, json, threading
from dataclasses import asdict
from pathlib import Path
from envd import config, model
from envd.environments.environments import Environments
from envd.errors import EnvdError
from envd.events import Stage

writing = threading.Lock()

def say(**message):
    with writing:
        print(json.dumps(message), flush=True)

def call(number):
    def tell(event):
        if number == 0 or isinstance(event, Stage):
            say(thread=number, event=type(event).__name__, **asdict(event))
    try:
        ready = environments.ready(asked, tell)
    except EnvdError as error:
        say(reason=error.reason, retry_after_s=error.retry_after_s)
    else:
        say(id=ready.environment.id, cached=ready.cached)

environments = Environments(config.load())
asked = environments.ask(model.read(Path(sys.argv[1])))
threads = [threading.Thread(target=call, args=(n,)) for n in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
say(begun=len(threads))
for thread in threads:
    thread.join()
"""


@dataclass
class Calls:
    """A process in which a number of threads ask for one model, and what it has said so far."""

    process: subprocess.Popen[str]
    said: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as file:
            for line in file:
                self.said.append(json.loads(line))

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the first of the threads was told."""
        first = [one.copy() for one in self.said if one.get("thread") == 0]
        for one in first:
            del one["thread"]
        return first

    @property
    def answers(self) -> list[dict[str, Any]]:
        """How the calls ended that have ended."""
        return [one for one in self.said if "id" in one or "reason" in one]

    def end(self) -> list[dict[str, Any]]:
        """Wait for the process and return all answers."""
        self.process.wait(timeout=120)
        self._reader.join()
        return self.answers

    def wait_for(self, event: str, /, **expected: str) -> dict[str, Any]:
        """Wait for an *event* of these fields and return it."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found[:] = [
                one
                for one in self.events
                if one["event"] == event and expected.items() <= one.items()
            ]
            return bool(found)

        wait_for(is_there, _LIMIT_S)
        return found[0]

    def all_wait_for(self, pid: int, threads: int) -> None:
        """Wait until all of so many *threads* wait for the build that *pid* has started."""

        def wait() -> bool:
            begin = f"waiting for the build started by pid {pid} "
            said = [one for one in self.said if one.get("message", "").startswith(begin)]
            told = {one["thread"] for one in said}
            return len(told) == threads

        wait_for(wait, _LIMIT_S)


@dataclass(frozen=True)
class Root:
    """A root, and whatever asks on it; all that was started here ends with the test."""

    path: Path
    env: dict[str, str]
    stack: contextlib.ExitStack

    @property
    def store(self) -> Store:
        return Store(self.path)

    @property
    def envctl(self) -> Envctl:
        """Envctl in this process."""
        return Called(self.path, self.env)

    def calls(self, model: Path, threads: int = 1, **more: str) -> Calls:
        """Ask for *model* without a daemon, in a process of its own."""
        argv = [sys.executable, "-c", _CALLS, str(model), str(threads)]
        found = Calls(self._started(argv, more))
        self.stack.callback(found.end)
        self.stack.callback(found.process.kill)
        return found

    def command(self, *arguments: object, **more: str) -> subprocess.Popen[str]:
        """Run envctl in the background."""
        process = self._started(self.envctl.argv(*arguments), more, stderr=subprocess.PIPE)
        self.stack.callback(_end, process)
        return process

    def _started(
        self, argv: list[str], more: dict[str, str], stderr: int | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv,
            env=self.env | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def build(self) -> UnderWay:
        """Return the one build under way, once there is one."""
        wait_for(lambda: elsewhere.under_way(self.store))
        (found,) = elsewhere.under_way(self.store)
        return found

    def is_building(self) -> bool:
        return bool(elsewhere.under_way(self.store))

    def remains(self) -> list[str]:
        """Return what a build that was ended has left: attempts, scratch, failures, holders."""
        left = [
            str(path)
            for name in ("environments", "scratch", "trash", "failures")
            for path in (self.path / name).glob("*")
        ]
        files = (self.path / "held").glob("[!c]*")
        held = [path for path in files if path.read_text().strip()]
        return left + [f"{path}: {path.read_text().strip()}" for path in held]


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@contextlib.contextmanager
def root_at(path: Path, home: Path, tiny: Tiny, tools: Path, **more: str) -> Iterator[Root]:
    """Give a root with the tiny wheels for an index and one Python."""
    settings = tiny.settings | one_python(tools) | more
    with contextlib.ExitStack() as stack:
        yield Root(path, environment(path, home, **settings), stack)
