"""Compares a Predict through envd with the least that a gRPC server can be.

- plain: `echo.py`, a grpc.aio server on uvloop that answers with its input, in one process.
- echo: envd with a model that answers with its input: the whole way through the daemon to a
  worker and back, and nothing else.
- iris: envd with scikit-learn's LogisticRegression, one row per request.
- forest, batches: a RandomForestClassifier of 50 trees, one row per request, without and with
  `batch = true`.

Each server is started once. They are asked in turn by 1 client, then by 8, then by 64 on one
connection, each time by `load.py` in a process of its own. `p50` and `p99` are microseconds from
request to answer, `wall` is microseconds of the run per answer (a million by it is the throughput
per second), `cpu` the processor time of the daemon per answer, its worker's not included.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import daemon
import rounds
import served
from envd_client.v1 import envd_pb2 as api
from rounds import Aim, Contender, Report
from setup import BENCH

_HERE = Path(__file__).parent
_HOME = BENCH / "serving"
_CLIENTS = (1, 8, 64)
_SECONDS, _QUICK_SECONDS = 3.0, 0.7
_BYTES = 100
# At one client the median counts, at 64 the throughput.
_AIMS = (
    Aim("echo 1: p50", "plain 1: p50", at_most=1.5),
    Aim("echo 64: wall", "plain 64: wall", at_most=1 / 0.45),
)
_BATCHES = Aim("batches 64: wall", "forest 64: wall", at_most=1 / 1.5)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs, and what it is asked."""

    pid: int
    socket: Path
    request: Path
    seconds: float

    def measure(self, clients: int) -> rounds.Round:
        """Let so many *clients* ask it."""
        before = daemon.cpu_seconds(self.pid)
        found = self._asked(clients, self.seconds)
        cpu = daemon.cpu_seconds(self.pid) - before
        return {
            "p50": found["p50"],
            "p99": found["p99"],
            "wall": 1e6 / found["rate"],
            "cpu": 1e6 * cpu / found["calls"],
        }

    def check(self, expected: object) -> None:
        """See that it answers as it should, and let it load its model.

        Raises:
            click.ClickException: it does not.
        """
        answer = base64.b64decode(self._asked(1, 0.2)["answer"])
        found = json.loads(api.PredictResponse.FromString(answer).payload)
        if found != expected:
            message = f"`{self.request.name}` is answered with {found}"
            raise click.ClickException(message)

    def _asked(self, clients: int, seconds: float) -> Any:
        argv: list[str | Path] = [sys.executable, _HERE / "load.py", self.socket, self.request]
        return json.loads(rounds.run([*argv, str(clients), str(seconds)]))


@contextlib.contextmanager
def _servers(seconds: float) -> Iterator[dict[str, Server]]:
    """Start every server, each of which has loaded its model."""
    _HOME.mkdir(parents=True, exist_ok=True)
    served.environment()
    row, text = served.iris_row(), {"inputs": "x" * _BYTES}
    echo, iris, forest = served.echo(), *served.copies(1), served.forest()
    with _plain() as plain, daemon.running(served.ROOT) as started:
        envd = (started.process, started.socket)
        ask = {
            "plain": (plain, served.request(echo, text), text),
            "echo": (envd, served.request(echo, text), {"predictions": text["inputs"]}),
            "iris": (envd, served.request(iris, row), {"predictions": [0]}),
            "forest": (envd, served.request(forest, row), {"predictions": [0]}),
        }
        found = {}
        for name, ((process, socket), request, expected) in ask.items():
            (_HOME / name).write_bytes(request)
            found[name] = Server(process.pid, socket, _HOME / name, seconds)
            found[name].check(expected)
        yield found


@contextlib.contextmanager
def _plain() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    socket = _HOME / "plain.sock"
    socket.unlink(missing_ok=True)
    argv: list[str | Path] = [sys.executable, _HERE / "echo.py", socket]
    server = daemon.started(argv, dict(os.environ), "serving")
    try:
        yield server, socket
    finally:
        server.terminate()
        server.communicate()


@click.command()
@click.option("--only", multiple=True, help="Ask this server only, and any other named so.")
@rounds.options
def main(rounds_: int, *, only: tuple[str, ...], is_json: bool, quick: bool) -> None:
    """Compare a Predict through envd with a plain gRPC echo."""
    with rounds.failing_briefly(), _servers(_QUICK_SECONDS if quick else _SECONDS) as servers:
        load = rounds.load()
        contenders = [
            Contender(f"{name} {clients}", functools.partial(one.measure, clients))
            for clients in _CLIENTS
            for name, one in servers.items()
            if not only or name in only
        ]
        found = rounds.alternate(contenders, rounds_)
    conditions = rounds.machine(BENCH) | {
        "load average": f"{load} at the start, {rounds.load()} at the end",
        "seconds": f"{_QUICK_SECONDS if quick else _SECONDS} each",
    }
    aims = [one for one in (*_AIMS, _BATCHES) if {one.of, one.to} <= found[0].keys()]
    subject = "A Predict through envd and a plain gRPC echo"
    report = Report("serving", subject, "microseconds", found, aims, conditions)
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
