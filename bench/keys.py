"""Measures what a Predict pays once per change of a model's files: from the files to the env_id.

- envd: the model directory is read (`MLmodel`, the digest of its files), then its
  dependency files; the Python is chosen among those of this machine; the canonical spec,
  its key and the cached lock give the env_id. Nothing is remembered from call to call.
- mlflow: what MLflow does for the same purpose, `_get_virtualenv_name` over the same
  model: `MLmodel`, `python_env.yaml` and `requirements.txt` to the name of a directory.

Each figure is the median of many calls. The aim for envd is in milliseconds, because it
is what a caller waits for; the ratio says what reading a model costs elsewhere.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import rounds
from mlflow.models import Model as MlflowModel
from mlflow.utils import virtualenv
from rounds import Aim, Contender, Report
from setup import BENCH, IRIS

from envd import config, model, spec
from envd.environments.asked import Asked
from envd.environments.environments import Environments

# Without types; the names it uses are MLflow's own.
_MLFLOW: Any = virtualenv
_CALLS = 100
_AIM_MS = 5.0
_AIMS = (Aim("envd", "mlflow", at_most=1),)


class Keys:
    """The two ways from a model directory to the name of its environment."""

    def __init__(self, path: Path) -> None:
        """Lock the model *path*, so that its env_id is known."""
        self._path = path
        self._environments = Environments(config.load(root=BENCH / "root"))
        self._environments.lock(self._environments.ask(model.read(path)))

    def env_id(self) -> str:
        """Return the id of the model's environment."""
        found, settings = self._environments, self._environments.settings
        read = model.read(self._path)
        dependencies = spec.read(read, settings)
        known, _ = found.interpreters.known()
        picked = found.interpreters.pick(dependencies.python, known)
        assert picked is not None
        asked = Asked.of(read, dependencies, *picked, settings)
        lock = found.kept_lock(asked)
        assert lock is not None
        return lock.env_id(asked.spec.python)

    def mlflow_name(self) -> str:
        """Return the name of MLflow's environment for the model."""
        MlflowModel.load(self._path)
        python_env = _MLFLOW._get_python_env(self._path)  # noqa: SLF001
        name: str = _MLFLOW._get_virtualenv_name(python_env, self._path)  # noqa: SLF001
        return name


def _median_ms(act: Callable[[], object]) -> float:
    taken = []
    for _ in range(_CALLS):
        started = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken)


@click.command()
@rounds.options
def main(rounds_: int, *, quick: bool, is_json: bool) -> None:
    """Compare the time from a model's files to the name of its environment."""
    del quick
    with rounds.failing_briefly():
        keys = Keys(IRIS)
        taken = rounds.alternate(
            [
                Contender("envd", lambda: _median_ms(keys.env_id)),
                Contender("mlflow", lambda: _median_ms(keys.mlflow_name)),
            ],
            rounds_,
        )
    worst = max(one["envd"] for one in taken)
    report = Report(
        benchmark="keys",
        subject="From the files of a model to the name of its environment",
        unit=f"milliseconds, median of {_CALLS} calls",
        rounds=taken,
        aims=_AIMS,
        conditions={
            "aim": f"envd under {_AIM_MS:g} ms: worst {worst:.2f} ms, "
            + ("met" if worst < _AIM_MS else "not met"),
            "model": json.dumps(str(IRIS.name)),
            "load": rounds.load(),
            **rounds.machine(BENCH),
        },
    )
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
