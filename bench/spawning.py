"""Measures what starting processes costs those who are being served.

One model that answers with its input is asked by 8 clients on one connection, again and again:
for three seconds while nothing else happens, then for as long while ten processes are started,
evenly spread, or the other way round; twenty times each a round, 200 processes in a minute. They
are, in turn, fresh workers of models that nobody has asked for before, which answer once and are
stopped a second later, and builders that lock and look for an environment that is there. `wall`
is microseconds of the run per answer: a million by it is the throughput per second.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import daemon
import questions
import rounds
import served
from envd_client import Client
from rounds import Aim, Contender, Report, Round
from setup import BENCH

_HERE = Path(__file__).parent
_HOME = BENCH / "spawning"
_CLIENTS, _AT_ONCE = 8, 8
_SECONDS, _STARTED = 3.0, 10
_WINDOWS, _QUICK_WINDOWS = 20, 4
_AIM = Aim("answers: spawning", "answers: quiet", at_most=1 / 0.8)
_SETTINGS = {"ENVD_WORKERS__TEMPLATE": "false", "ENVD_WORKERS__IDLE_TIMEOUT": "1s"}


@dataclass(frozen=True, slots=True)
class Served:
    """A daemon that serves, and what starts processes of it."""

    running: daemon.Daemon
    starts: Iterator[Callable[[], None]]

    def windows(self, count: int) -> Round:
        """Return microseconds per answer, with nothing else going on and with *count* starts."""
        taken: dict[str, list[float]] = {"quiet": [], "spawning": []}
        ways = {"quiet": self._load, "spawning": self._spawning}
        for number in range(count):
            for name in sorted(ways, reverse=number % 2 == 1):
                taken[name].append(ways[name]())
        return {name: sum(walls) / count for name, walls in taken.items()}

    def _load(self) -> float:
        """Let the clients ask for a while; return microseconds per answer."""
        process, socket = self.running.process, self.running.socket
        asked = {
            "pid": process.pid,
            "target": f"unix:{socket}",
            "method": questions.PREDICT,
            "request": str(_HOME / "request"),
        }
        given = {"clients": _CLIENTS, "seconds": _SECONDS, "servers": {"echo": asked}}
        argv: list[str | Path] = [sys.executable, _HERE / "load.py"]
        found = json.loads(rounds.run(argv, given=json.dumps(given)))
        return float(found["echo"]["wall"])

    def _spawning(self) -> float:
        """Start processes all the while."""
        with ThreadPoolExecutor(_AT_ONCE) as threads, ThreadPoolExecutor(1) as beside:
            started = beside.submit(self._spread, threads)
            wall = self._load()
            for one in started.result():
                one.result()
        # Those that were asked once are still there.
        time.sleep(2)
        return wall

    def _spread(self, threads: ThreadPoolExecutor) -> list[Future[None]]:
        begun, asked = time.monotonic(), []
        for number, start in enumerate(itertools.islice(self.starts, _STARTED)):
            time.sleep(max(0.0, begun + _SECONDS * number / _STARTED - time.monotonic()))
            asked.append(threads.submit(start))
        return asked


def _starts(client: Client, echo: Path) -> Iterator[Callable[[], None]]:
    """Yield what starts a process: workers and builders in turn."""
    for number in itertools.count():
        if number % 2:
            yield functools.partial(_build, client, echo)
        else:
            yield functools.partial(_ask, client, echo, number)


def _build(client: Client, echo: Path) -> None:
    found = client.build(echo, upgrade=True)
    for _ in client.watch(found.id or found.spec_key):
        pass


def _ask(client: Client, echo: Path, number: int) -> None:
    model = _HOME / "models" / str(number)
    shutil.copytree(echo, model)
    # Otherwise it would be the same model.
    with (model / "code" / "echoing.py").open("a") as file:
        file.write(f"NUMBER = {number}\n")
    client.predict(model, {"inputs": [number]})


@contextlib.contextmanager
def _served() -> Iterator[Served]:
    shutil.rmtree(_HOME, ignore_errors=True)
    (_HOME / "models").mkdir(parents=True)
    echo = served.echo()
    question = questions.predict(str(echo), {"inputs": "x" * 100}, None)
    (_HOME / "request").write_bytes(question.request)
    with daemon.running(served.ROOT, **_SETTINGS) as running, Client(running.socket) as client:
        client.predict(echo, {"inputs": [1]})
        yield Served(running, _starts(client, echo))


@click.command()
@rounds.options
def main(rounds_: int, *, is_json: bool, quick: bool) -> None:
    """Measure what starting processes costs those who are being served."""
    count = _QUICK_WINDOWS if quick else _WINDOWS
    with rounds.failing_briefly(), _served() as serving:
        load = rounds.load()
        found = rounds.alternate(
            [Contender("answers", functools.partial(serving.windows, count))], rounds_
        )
    conditions = rounds.machine(BENCH) | {
        "load average": f"{load} at the start, {rounds.load()} at the end",
        "clients": _CLIENTS,
        "processes": f"{count * _STARTED} in {count * _SECONDS:g} s, each round",
    }
    subject = "Answers while processes are started, and while none are"
    report = Report("spawning", subject, "microseconds per answer", found, [_AIM], conditions)
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
