"""Compares many models in one environment with as many servers of MLflow's.

The models are copies of `examples/iris`, each with coefficients of its own, and all have one
environment. What is there before: the environment, and its files in the page cache.

- envd: a daemon that has just started is asked by each model in turn, once. `first` and `second`
  are the seconds from the first request for these models to its answer, `further` the median of
  all others, `slowest` the longest of them. `MB` is what each further model takes: memory that no
  other process shares, of all processes of the daemon.
- mlflow: `mlflow models serve --env-manager local` in the same environment, one model: `first` is
  the seconds from its start to its first answer, `MB` the memory of its processes. Each further
  model takes as much.
"""

from __future__ import annotations

import json
import statistics
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import click
import daemon
import memory
import peers
import rounds
import served
from envd_client import Client
from rounds import Aim, Contender, Limit, Report
from setup import BENCH

_MANY, _QUICK = 50, 10
# With the second model comes the template that all others are forked from.
_FIRST = 2
_LIMITS = (Limit("envd: further", 0.15), Limit("envd: MB", 30))
_AIMS = (Aim("envd: further", "mlflow: first", at_most=1), Aim("envd: MB", "mlflow: MB", at_most=1))


@dataclass(frozen=True, slots=True)
class Many:
    """The models, and a row to ask them about."""

    folders: list[Path]
    row: dict[str, object]
    mlflow: Path

    def envd(self) -> rounds.Round:
        """Ask every model of a new daemon once."""
        taken = []
        with daemon.running(served.ROOT) as envd, Client(envd.socket) as client:
            for number, folder in enumerate(self.folders):
                started = time.perf_counter()
                client.predict(folder, self.row)
                taken.append(time.perf_counter() - started)
                if number == _FIRST:
                    before = memory.private_mb(envd.process.pid)
            after = memory.private_mb(envd.process.pid)
        return {
            "first": taken[0],
            "second": taken[1],
            "further": statistics.median(taken[2:]),
            "slowest": max(taken[2:]),
            "MB": (after - before) / (len(taken) - _FIRST - 1),
        }

    def mlflow_serve(self) -> rounds.Round:
        """Serve one model with MLflow."""
        started = time.perf_counter()
        with peers.mlflow_serving(self.mlflow, self.folders[0]) as server:
            _ask(server.http, self.row)
            return {
                "first": time.perf_counter() - started,
                "MB": memory.private_mb(server.pid),
            }


def _ask(port: int, row: dict[str, object]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(row).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).read()


@click.command()
@click.option("--models", type=click.IntRange(4), help=f"How many; else {_MANY}, or {_QUICK}.")
@rounds.options
def main(models: int | None, rounds_: int, *, is_json: bool, quick: bool) -> None:
    """Compare many models in one environment with a server for each."""
    count = models or (_QUICK if quick else _MANY)
    with rounds.failing_briefly():
        many = Many(served.copies(count), served.iris_row(), peers.mlflow())
        # Whoever comes first must not pay for what has to be read from the disk.
        many.mlflow_serve()
        load = rounds.load()
        contenders = [Contender("envd", many.envd), Contender("mlflow", many.mlflow_serve)]
        found = rounds.alternate(contenders, rounds_)
    conditions = {one.of: one.text(found) for one in _LIMITS} | {
        "models": count,
        "load average": f"{load} at the start, {rounds.load()} at the end",
        **rounds.machine(BENCH),
    }
    subject = f"{count} models in one environment"
    report = Report("models", subject, "seconds and MB", found, _AIMS, conditions)
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
