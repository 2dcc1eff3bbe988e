"""Compares one prediction on the command line with MLflow's.

All ask `examples/iris` about the four rows of `examples/iris.json`, its environment being there:

- daemon: `envctl predict`, while a daemon runs that has been asked before;
- alone: `envctl predict` without a daemon;
- mlflow: `mlflow models predict --env-manager local`, run in that environment.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import click
import daemon
import rounds
import served
from rounds import Aim, Contender, Report
from setup import BENCH, IRIS

_INPUT = IRIS.parent / "iris.json"
_ANSWER = {"predictions": [0, 1, 2, 2]}
_TIMES = 5
_AIMS = (Aim("daemon", "mlflow", at_most=1 / 20), Aim("alone", "mlflow", at_most=1 / 5))


class Once:
    """The three ways to one answer."""

    def __init__(self) -> None:
        """Have the environment built."""
        self._bin = served.environment().prefix / "bin"
        self._environ = daemon.environ(served.ROOT)

    def daemon(self) -> float:
        """Ask a daemon; it is not counted how long it takes to start and to load the model."""
        with daemon.running(served.ROOT):
            self._envctl()
            return statistics.median(rounds.seconds(self._envctl) for _ in range(_TIMES))

    def alone(self) -> float:
        """Ask without a daemon."""
        return rounds.seconds(self._envctl)

    def mlflow(self) -> float:
        """Ask MLflow."""
        argv: list[str | Path] = [self._bin / "mlflow", "models", "predict", "--model-uri", IRIS]
        argv += ["--input-path", _INPUT, "--env-manager", "local"]
        path = f"{self._bin}:{self._environ['PATH']}"
        return rounds.seconds(lambda: _check(rounds.run(argv, self._environ | {"PATH": path})))

    def _envctl(self) -> None:
        argv: list[str | Path] = [daemon.BIN / "envctl", "predict", "-m", IRIS, "-i", _INPUT]
        _check(rounds.run(argv, self._environ))


def _check(said: str) -> None:
    """See that the last line is the answer.

    Raises:
        click.ClickException: it is another one.
    """
    lines = said.strip().splitlines()
    if not lines or json.loads(lines[-1]) != _ANSWER:
        message = f"the answer is another one:\n{said[-2000:]}"
        raise click.ClickException(message)


@click.command()
@rounds.options
def main(rounds_: int, *, is_json: bool, quick: bool) -> None:
    """Compare one prediction on the command line with MLflow's."""
    del quick
    with rounds.failing_briefly():
        once = Once()
        # Whoever comes first must not pay for what has to be read from the disk.
        once.alone()
        once.mlflow()
        load = rounds.load()
        contenders = [
            Contender("daemon", once.daemon),
            Contender("alone", once.alone),
            Contender("mlflow", once.mlflow),
        ]
        found = rounds.alternate(contenders, rounds_)
    conditions = rounds.machine(BENCH) | {
        "load average": f"{load} at the start, {rounds.load()} at the end",
        "daemon": f"median of {_TIMES} calls",
    }
    subject = "One prediction on the command line"
    report = Report("once", subject, "seconds", found, _AIMS, conditions)
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
