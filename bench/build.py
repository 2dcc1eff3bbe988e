"""Compares a warm build by envd with `cp -al` of its result, and with virtualenv and pip.

- envd: the environment was built before and has been removed; its lock and all downloads
  are there. Measured is `Environments.ready`: all that a user waits for, from the empty
  directory to the manifest, with the packages imported once and the disk flushed.
- cp -al: hardlinks of the same tree, the least that making it can cost.
- pip: `virtualenv` and `pip install -r` of the same lock. Everything is to its advantage:
  the wheels lie in a directory that was just read, there is no index, nothing to resolve,
  no pip in the virtualenv to be put there first. It compiles what it installs, as it does
  by default.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import time
from pathlib import Path

import click
import rounds
from rounds import Aim, Contender, Report
from setup import BENCH, IRIS, PINS, Warm, prepare

from envd.events import Event, Stage
from envd.store import Environment, removal, trash

_TREES = BENCH / "trees"
_AIMS = (Aim("envd", "cp -al", at_most=2), Aim("envd", "pip", at_most=1 / 20))


class Build:
    """The three ways to the same tree."""

    def __init__(self, warm: Warm) -> None:
        self._warm = warm
        self.environment = warm.environment

    def envd(self) -> float:
        """Build with envd, after removing what it built before."""
        environments, stages = self._warm.environments, _Stages()
        removal.remove(environments.store, self.environment.id)
        trash.empty(environments.store.layout.trash)

        def build() -> None:
            ready = environments.ready(self._warm.asked, stages.event)
            if ready.cached:
                message = "envd had the environment already: somebody else builds in `.bench`"
                raise click.ClickException(message)
            self.environment = ready.environment

        taken = rounds.seconds(build)
        rounds.say(f"envd: {stages.text()}")
        return taken

    def copy(self) -> float:
        """Link the finished tree."""
        source, target = self.environment.prefix, _fresh("copy")
        return rounds.seconds(lambda: rounds.run(["cp", "-al", source, target]))

    def pip(self) -> float:
        """Make a virtualenv and install the lock into it with pip."""
        target, wheels = _fresh("pip"), self._warm.wheels
        for wheel in wheels.glob("*.whl"):
            wheel.read_bytes()

        def build() -> None:
            self._warm.peers.virtualenv(self._warm.environment.manifest.base.path, target)
            # Whatever is configured here would cost pip time, and find it nothing better.
            self._warm.peers.pip(
                target / "bin" / "python", "--isolated", "install", "--no-index", "--no-deps",
                "--find-links", wheels, "--requirement", wheels / "requirements.txt",
            )  # fmt: skip

        taken = rounds.seconds(build)
        if _distributions(target) != _distributions(self.environment.prefix):
            message = "pip has not installed the packages that envd has"
            raise click.ClickException(message)
        return taken


class _Stages:
    """When the stages of one build began."""

    def __init__(self) -> None:
        self.began: list[tuple[str, float]] = []

    def event(self, event: Event) -> None:
        if isinstance(event, Stage):
            self.began.append((event.name, time.perf_counter()))

    def text(self) -> str:
        ends = [*(at for _, at in self.began[1:]), time.perf_counter()]
        pairs = zip(self.began, ends, strict=True)
        return ", ".join(f"{name} {end - at:.2f}" for (name, at), end in pairs)


def _fresh(name: str) -> Path:
    """Return a path below `.bench/trees` where nothing is."""
    tree = _TREES / name
    shutil.rmtree(tree, ignore_errors=True)
    tree.parent.mkdir(parents=True, exist_ok=True)
    return tree


def _distributions(prefix: Path) -> set[str]:
    return {path.name for path in prefix.glob("lib/python*/site-packages/*.dist-info")}


def _conditions(environment: Environment, load_before: str) -> dict[str, object]:
    manifest = environment.manifest
    return rounds.machine(BENCH) | {
        "load average": f"{load_before} at the start, {rounds.load()} at the end",
        "environment's Python": manifest.python.version,
        "uv": importlib.metadata.version("uv"),
        **PINS,
        "link mode": manifest.link_mode,
        "packages": len(manifest.lock.packages),
        "files": sum(len(files) for _, _, files in os.walk(environment.prefix)),
        "bytes": manifest.sizes.total,
    }


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=IRIS, help="A model directory.")
@rounds.options
def main(model: Path, rounds_: int, *, is_json: bool, quick: bool) -> None:
    """Compare a warm build by envd with linking its result, and with virtualenv and pip."""
    with rounds.failing_briefly():
        build = Build(prepare(model))
        # The first build after a change of envd may fill caches that later ones use.
        build.envd()
        contenders = [
            Contender("envd", build.envd),
            Contender("cp -al", build.copy),
            Contender("pip", build.pip, last=1 if quick else None),
        ]
        load = rounds.load()
        found = rounds.alternate(contenders, rounds_)
        conditions = _conditions(build.environment, load)
    subject = f"A warm build of the environment of {model.resolve().name}"
    report = Report("build", subject, "seconds", found, _AIMS, conditions)
    rounds.show(report, is_json=is_json)
    shutil.rmtree(_TREES, ignore_errors=True)


if __name__ == "__main__":
    main()
