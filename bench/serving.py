"""Compares a Predict through envd with the least that a gRPC server can be.

- plain: `echo.py`, a grpc.aio server on uvloop that answers with its input, in one process.
- echo: envd with a model that answers with its input: the whole way through the daemon to a
  worker and back, and nothing else.
- iris: envd with scikit-learn's LogisticRegression, one row per request.
- forest, batches: a RandomForestClassifier of 50 trees, one row per request, without and with
  `batch = true`.

Each server is started once. `load.py`, a process of its own, asks them in turn, half a second
each, again and again: as 1 client, then as 8, then as 64 on one connection. `p50` and `p99` are
microseconds from request to answer, `wall` is microseconds of the run per answer (a million by it
is the throughput per second), `cpu` the processor time of the server's process per answer, that of
workers not included.
"""

from __future__ import annotations

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
import grpc
import rounds
import served
from envd_client.v1 import envd_pb2 as api
from rounds import Aim, Contender, Report
from setup import BENCH

_HERE = Path(__file__).parent
_HOME = BENCH / "serving"
_CLIENTS = (1, 8, 64)
_SECONDS, _QUICK_SECONDS = 5.0, 1.0
_BYTES = 100
# At one client the median counts, at 64 the throughput.
_AIMS = (
    Aim("1: echo p50", "1: plain p50", at_most=1.5),
    Aim("64: echo wall", "64: plain wall", at_most=1 / 0.45),
    Aim("64: batches wall", "64: forest wall", at_most=1 / 1.5),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs, and what it is asked."""

    pid: int
    socket: Path
    request: Path

    def check(self, expected: object) -> None:
        """See that it answers as it should, and let it load its model.

        Raises:
            click.ClickException: it does not.
        """
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            predict: Any = channel.unary_unary("/envd.v1.Predictions/Predict")
            answer = api.PredictResponse.FromString(predict(self.request.read_bytes()))
        found = json.loads(answer.payload)
        if found != expected:
            message = f"`{self.request.name}` is answered with {found}"
            raise click.ClickException(message)


def _ask(servers: dict[str, Server], clients: int, seconds: float) -> rounds.Round:
    """Let so many *clients* ask all *servers* in turn, each for so many *seconds*."""
    asked = {
        name: {"pid": one.pid, "socket": str(one.socket), "request": str(one.request)}
        for name, one in servers.items()
    }
    given = {"clients": clients, "seconds": seconds, "servers": asked}
    argv: list[str | Path] = [sys.executable, _HERE / "load.py"]
    found = json.loads(rounds.run(argv, given=json.dumps(given)))
    return {
        f"{server} {name}": figure
        for server, figures in found.items()
        for name, figure in figures.items()
    }


@contextlib.contextmanager
def _servers() -> Iterator[dict[str, Server]]:
    """Start every server, each of which has loaded its model."""
    _HOME.mkdir(parents=True, exist_ok=True)
    served.environment()
    row, text = served.iris_row(), {"inputs": "x" * _BYTES}
    echo, iris, (forest, batches) = served.echo(), *served.copies(1), served.forests()
    settings = _HOME / "envd.toml"
    settings.write_text(f'[models.batches]\nuri = "{batches}"\nbatch = true\n')
    with _plain() as plain, daemon.running(served.ROOT, ENVD_CONFIG=str(settings)) as started:
        envd = (started.process, started.socket)
        ask = {
            "plain": (plain, served.request(echo, text), text),
            "echo": (envd, served.request(echo, text), {"predictions": text["inputs"]}),
            "iris": (envd, served.request(iris, row), {"predictions": [0]}),
            "forest": (envd, served.request(forest, row), {"predictions": [0]}),
            "batches": (envd, served.request("batches", row), {"predictions": [0]}),
        }
        found = {}
        for name, ((process, socket), request, expected) in ask.items():
            (_HOME / name).write_bytes(request)
            found[name] = Server(process.pid, socket, _HOME / name)
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
    seconds = _QUICK_SECONDS if quick else _SECONDS
    with rounds.failing_briefly(), _servers() as servers:
        load = rounds.load()
        asked = {name: one for name, one in servers.items() if not only or name in only}
        contenders = [
            Contender(str(clients), functools.partial(_ask, asked, clients, seconds))
            for clients in _CLIENTS
        ]
        found = rounds.alternate(contenders, rounds_)
    conditions = rounds.machine(BENCH) | {
        "load average": f"{load} at the start, {rounds.load()} at the end",
        "seconds": f"{seconds:g} each",
    }
    aims = [one for one in _AIMS if {one.of, one.to} <= found[0].keys()]
    subject = "A Predict through envd and a plain gRPC echo"
    report = Report("serving", subject, "microseconds", found, aims, conditions)
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
