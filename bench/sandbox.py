"""Compares the start of a worker that is forked into a sandbox with a bare fork.

From asking the template of `examples/iris`'s environment for a worker until that answers a
frame: without any confinement, in sandbox 1, in sandbox 2, and there with a cgroup as well.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import rounds
import served
from rounds import Aim, Contender, Report
from setup import BENCH, CHECKOUT, IRIS

from envd.config import Settings
from envd.run.envd_worker import mounts, protocol
from envd.sandbox import cgroups
from envd.sandbox.bounds import TMP, Ground
from envd.sandbox.cgroups import NO_LIMITS, Group, Limits
from envd.sandbox.tiers import Sandbox, user

sys.path.insert(0, str(CHECKOUT))
from tests.worker_program import Talk, Template

_MODULES = ("mlflow.pyfunc", "pandas", "sklearn.linear_model")
_FORKS = 30
_AIMS = (
    Aim("forks: sandbox 1", "forks: bare", at_most=3),
    Aim("forks: sandbox 2", "forks: bare", at_most=3),
    Aim("forks: with cgroup", "forks: bare", at_most=3),
)


class Forks:
    """Templates of one environment, each in its sandbox, that are asked for workers."""

    def __init__(self, tier: int, limits: Limits = NO_LIMITS) -> None:
        """Have the environment built."""
        settings = Settings(Path(served.ROOT))
        sandbox = Sandbox(tier, user=user(settings) if tier > 1 else None, groups="v1")
        found = served.environment()
        self._python, self._tier, self._limits = found.python, tier, limits
        self._ground = Ground(found.prefix, found.manifest.base.path, sandbox, settings)

    @contextlib.contextmanager
    def template(self, folder: Path) -> Iterator[Template]:
        """Start the template, with its files in *folder*."""
        folder.mkdir()
        outer = self._ground.outer(network=False) if self._tier > 1 else {}
        with Template(_MODULES, cwd=folder, python=self._python, outer=outer) as found:
            found.ready()
            # The first one ends the threads of the template's libraries.
            self.second(found)
            yield found

    def second(self, template: Template) -> float:
        """Return how long it takes to have one worker."""
        with contextlib.ExitStack() as stack:
            tree = cgroups.tree()
            group = None
            if tree and not self._limits.are_none:
                group = Group(tree, self._limits)
                stack.callback(group.close)
            began = time.perf_counter()
            given, order = self._order(template, group, stack)
            with template.worker(given, **order) as (talk, _):
                _answered(talk)
                taken = time.perf_counter() - began
            assert template.hear()["status"] == 0
            return taken

    def _order(
        self, template: Template, group: Group | None, stack: contextlib.ExitStack
    ) -> tuple[list[int], dict[str, Any]]:
        given = [os.open(os.devnull, os.O_WRONLY)]
        order: dict[str, Any] = {"log": 1, "cwd": str(template.cwd)}
        if self._tier:
            steps = self._ground.worker(self._limits, network=False, scratch=template.cwd)
            steps["model"] = 2
            if self._tier > 1:
                order["cwd"] = TMP
                given.append(mounts.detached(str(IRIS)))
            else:
                given.append(os.open(IRIS, os.O_PATH))
            if group:
                steps["cgroups"] = [len(given) + 1 + place for place in range(len(group.procs))]
            order["confinement"] = steps
        for one in given:
            stack.callback(os.close, one)
        return [*given, *(group.procs if group else ())], order


def _answered(talk: Talk) -> None:
    """Have the worker refuse something, which shows that it listens."""
    talk.send((protocol.LOAD, {"code": None}, b""))
    assert talk.hear().kind == protocol.FAILED


def _figures() -> rounds.Round:
    """Return how long each kind takes in the middle, in milliseconds, taken by turns."""
    kinds = {
        "bare": Forks(0),
        "sandbox 1": Forks(1),
        "sandbox 2": Forks(2),
        "with cgroup": Forks(2, Limits(memory=1 << 30)),
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        templates = {
            name: stack.enter_context(kind.template(Path(folder, name)))
            for name, kind in kinds.items()
        }
        for _ in range(_FORKS):
            for name, kind in kinds.items():
                taken[name].append(1000 * kind.second(templates[name]))
    return {name: statistics.median(each) for name, each in taken.items()}


@click.command()
@rounds.options
def main(rounds_: int, *, is_json: bool, quick: bool) -> None:
    """Compare the start of a worker that is forked into a sandbox with a bare fork."""
    del quick
    with rounds.failing_briefly():
        load = rounds.load()
        found = rounds.alternate([Contender("forks", _figures)], rounds_)
    conditions = rounds.machine(BENCH) | {
        "load average": f"{load} at the start, {rounds.load()} at the end",
        "each figure": f"the median of {_FORKS} forks",
    }
    subject = "A worker forked from a template of mlflow, pandas and scikit-learn"
    report = Report("sandbox", subject, "milliseconds", found, _AIMS, conditions)
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
