"""Compares a request through envd with the least that a gRPC server can be, and with its peers.

- plain: `echo.py`, a grpc.aio server on uvloop that answers with its input, in one process.
- echo: envd with a model that answers with its input: the whole way through the daemon to a
  worker and back, and nothing else.
- iris: envd with scikit-learn's LogisticRegression, one row per request.
- forest, batches: a RandomForestClassifier of 50 trees, one row per request, without and with
  `batch = true`.
- oip, oip-batches: LogisticRegression again, by the Open Inference Protocol, a tensor for each of
  its four columns, without and with `batch = true`.
- mlserver-0, mlserver-1: MLServer with the same model and the same request, and so many
  `parallel_workers`.
- http: envd with LogisticRegression over HTTP, as MLflow's server is asked.
- mlflow: `mlflow models serve` with the same model and the same request.

Each server is started once. `load.py`, a process of its own, asks them in turn, half a second
each, again and again: as 1 client, then as 8, then as 64. `p50` and `p99` are microseconds from
request to answer, `wall` is microseconds of the run per answer (a million by it is the throughput
per second), `cpu` the processor time of the server's process per answer, that of workers not
included.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import daemon
import peers
import questions
import rounds
import served
from questions import Question
from rounds import Aim, Contender, Report
from setup import BENCH

_HERE = Path(__file__).parent
_HOME = BENCH / "serving"
_CLIENTS = (1, 8, 64)
_SECONDS, _QUICK_SECONDS = 5.0, 1.0
_TEXT = {"inputs": "x" * 100}
# At one client the median counts, at 64 the throughput.
_AIMS = (
    Aim("1: echo p50", "1: plain p50", at_most=1.5),
    Aim("64: echo wall", "64: plain wall", at_most=1 / 0.45),
    Aim("64: batches wall", "64: forest wall", at_most=1 / 1.5),
    Aim("64: oip wall", "64: mlserver-1 wall", at_most=1 / 3),
    Aim("64: oip wall", "64: mlserver-0 wall", at_most=1 / 2),
    Aim("64: oip-batches wall", "64: mlserver-0 wall", at_most=1 / 5),
    Aim("1: http p50", "1: mlflow p50", at_most=1 / 2),
    Aim("64: http wall", "64: mlflow wall", at_most=1 / 4),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: its process, its address, and how it is asked."""

    pid: int
    target: str
    question: Question

    def check(self, file: Path) -> dict[str, object]:
        """Return what `load.py` is told of it, its request in *file*, once it has answered.

        Raises:
            click.ClickException: the answer is another one.
        """
        file.write_bytes(self.question.request)
        found = self.question.ask(self.target)
        if found != self.question.answer:
            message = f"`{file.name}` is answered with {found}"
            raise click.ClickException(message)
        method = self.question.method
        return {"pid": self.pid, "target": self.target, "method": method, "request": str(file)}


def _ask(servers: dict[str, dict[str, object]], clients: int, seconds: float) -> rounds.Round:
    """Let so many *clients* ask all *servers* in turn, each for so many *seconds*."""
    given = {"clients": clients, "seconds": seconds, "servers": servers}
    argv: list[str | Path] = [sys.executable, _HERE / "load.py"]
    found = json.loads(rounds.run(argv, given=json.dumps(given)))
    return {
        f"{server} {name}": figure
        for server, figures in found.items()
        for name, figure in figures.items()
    }


@contextlib.contextmanager
def _servers(only: Collection[str]) -> Iterator[dict[str, dict[str, object]]]:
    """Start every server, or *only* some, each of which has loaded its model."""
    _HOME.mkdir(parents=True, exist_ok=True)
    served.environment()
    with contextlib.ExitStack() as stack:
        start: dict[str, Callable[[], Server]] = {
            "plain": lambda: _plain(stack),
            **_envds(stack),
            "mlserver-0": lambda: _mlserver(stack, 0),
            "mlserver-1": lambda: _mlserver(stack, 1),
            "mlflow": lambda: _mlflow(stack),
        }
        wanted = [name for name in start if not only or name in only]
        yield {name: start[name]().check(_HOME / f"{name}.request") for name in wanted}


def _plain(stack: contextlib.ExitStack) -> Server:
    socket = _HOME / "plain.sock"
    socket.unlink(missing_ok=True)
    argv: list[str | Path] = [sys.executable, _HERE / "echo.py", socket]
    server = daemon.started(argv, dict(os.environ), "serving")
    stack.callback(server.communicate)
    stack.callback(server.terminate)
    return Server(server.pid, f"unix:{socket}", questions.predict("echo", _TEXT, _TEXT))


def _envds(stack: contextlib.ExitStack) -> dict[str, Callable[[], Server]]:
    """Return how each model of envd is asked; all are one daemon's."""
    echo, (iris, quick), (forest, batches) = served.echo(), served.copies(2), served.forests()
    row, first = served.iris_row(), {"predictions": [0]}
    settings = _HOME / "envd.toml"
    settings.write_text(
        f'[models]\niris = "{iris}"\n'
        f'[models.quick]\nuri = "{quick}"\nbatch = true\n'
        f'[models.batches]\nuri = "{batches}"\nbatch = true\n'
    )
    grpc, http = (f"127.0.0.1:{peers.free_port()}" for _ in range(2))

    @functools.cache
    def envd() -> daemon.Daemon:
        # The others have no sandbox either.
        variables = {
            "ENVD_DAEMON__GRPC": grpc,
            "ENVD_HTTP__LISTEN": http,
            "ENVD_SECURITY__PROFILE": "dev",
        }
        return stack.enter_context(
            daemon.running(served.ROOT, ENVD_CONFIG=str(settings), **variables)
        )

    def over(target: str, question: Question) -> Callable[[], Server]:
        return lambda: Server(envd().process.pid, target or f"unix:{envd().socket}", question)

    echoed = {"predictions": _TEXT["inputs"]}
    return {
        "echo": over("", questions.predict(str(echo), _TEXT, echoed)),
        "iris": over("", questions.predict(str(iris), row, first)),
        "forest": over("", questions.predict(str(forest), row, first)),
        "batches": over("", questions.predict("batches", row, first)),
        "oip": over(grpc, questions.infer("iris", row)),
        "oip-batches": over(grpc, questions.infer("quick", row)),
        "http": over(http, questions.invocation("/models/iris/invocations", row, first)),
    }


def _mlserver(stack: contextlib.ExitStack, workers: int) -> Server:
    peer = stack.enter_context(peers.mlserver_serving(served.copies(1)[0], workers))
    question = questions.infer("iris", served.iris_row())
    return Server(peer.pid, f"127.0.0.1:{peer.grpc}", question)


def _mlflow(stack: contextlib.ExitStack) -> Server:
    peer = stack.enter_context(peers.mlflow_serving(peers.mlflow(), served.copies(1)[0]))
    row = served.iris_row()
    question = questions.invocation("/invocations", row, {"predictions": [0]})
    return Server(peer.pid, f"127.0.0.1:{peer.http}", question)


@click.command()
@click.option("--only", multiple=True, help="Ask this server only, and any other named so.")
@rounds.options
def main(rounds_: int, *, only: tuple[str, ...], is_json: bool, quick: bool) -> None:
    """Compare a request through envd with a plain gRPC echo, with MLServer and with MLflow."""
    seconds = _QUICK_SECONDS if quick else _SECONDS
    with rounds.failing_briefly(), _servers(only) as asked:
        load = rounds.load()
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
    subject = "A request through envd, a plain gRPC echo, MLServer and MLflow's server"
    report = Report("serving", subject, "microseconds", found, aims, conditions)
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
