"""Compares a warm build of a conda environment by envd with conda's own `conda create`.

The channel is the tests' own: Python 3.7.16 with scikit-learn 0.22.2.post1, NumPy, SciPy,
pip and setuptools, served over loopback HTTP. The conda is the 24.7 that conda-lock brings.

- envd: the environment was built before and has been removed; its lock and its packages
  are there. Measured is `Environments.ready`: all that a user waits for.
- conda part: the packages alone, from the same cache into a new prefix, by
  `envd.build.conda.install`, after envd has removed the prefix before: that every file
  stands as it was seen is looked at, and none is read (`envd.seals`).
- conda part, read: the same after somebody else has removed it, which envd cannot tell
  from a change: every file is read and compared with its seal.
- conda: `conda create --offline` of the match specs of the same `conda.yaml`, as
  `conda env create` does it for MLflow; its cache has the packages and what the channel has.
- conda explicit: the same with the URLs of all packages, so that nothing is solved: the
  least that conda can do, and what nobody has who has only a model.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import rounds
from rounds import Aim, Contender, Report
from setup import BENCH, CHECKOUT

from envd import config, model
from envd.build import conda
from envd.environments.asked import Asked
from envd.environments.environments import Environments
from envd.events import ignore
from envd.lock.rattler import Rattler
from envd.spec import Terms
from envd.store import Environment, removal, trash

sys.path.insert(0, str(CHECKOUT))
from tests.conda_channel import Channel
from tests.conda_forge import SKLEARN, TOOLS, CondaForge
from tests.mirror import Mirror
from tests.real_conda import RealConda

_HOME = BENCH / "conda"
_ASKED = ("python=3.7.16", "scikit-learn=0.22.2.post1", "pip")
_MODEL = {
    "MLmodel": "flavors:\n  python_function:\n    loader_module: loader\n    code: code\n"
    "    env:\n      conda: conda.yaml\n",
    "code/loader.py": "import sklearn\n",
    "conda.yaml": f"channels: [conda-forge]\ndependencies: [{', '.join(_ASKED)}]\n",
}
_AIMS = (
    Aim("envd", "conda", at_most=1 / 20),
    Aim("conda part", "conda", at_most=1 / 20),
    Aim("envd", "conda explicit", at_most=1 / 20),
)
_MOST_S = 0.3


@dataclass
class Warm:
    """An environment that envd has built, and a conda with the same packages in its cache."""

    environments: Environments
    asked: Asked
    environment: Environment
    real: RealConda

    def envd(self) -> float:
        """Build with envd, after removing what it built before."""
        store = self.environments.store
        removal.remove(store, self.environment.id)
        trash.empty(store.layout.trash)

        def build() -> None:
            self.environment = self.environments.ready(self.asked).environment

        return rounds.seconds(build)

    def part(self) -> float:
        """Install the conda packages alone, which nobody but envd has touched."""
        folder = self.environments.store.layout.trash
        self._prefix.rename(folder / "part")
        trash.empty(folder)
        return self._installed()

    def read(self) -> float:
        """Install the conda packages alone, after something that may have been a change."""
        shutil.rmtree(self._prefix, ignore_errors=True)
        return self._installed()

    @property
    def _prefix(self) -> Path:
        return self.environments.settings.root / "part"

    def _installed(self) -> float:
        packages = self.environment.manifest.lock.conda
        rattler = Rattler(self.environments.settings)
        return rounds.seconds(lambda: conda.install(packages, self._prefix, rattler, ignore))

    def conda(self) -> float:
        """Create the same with conda, which solves."""
        return self._created("--override-channels", "--channel", "conda-forge", *_ASKED)

    def explicit(self) -> float:
        """Create the same with conda, which is told every package."""
        return self._created("--file", self.real.home / "explicit.txt")

    def fill(self, mirror: Mirror) -> None:
        """Let conda fetch the packages once, and what the channel has."""
        lines = [
            f"{one.url.replace('https://conda.anaconda.org', mirror.url)}#{one.md5}"
            for one in self.environment.manifest.lock.conda
        ]
        text = "\n".join(["@EXPLICIT", *lines, ""])
        (self.real.home / "explicit.txt").write_text(text)
        self.real.configure(custom_channels={"conda-forge": mirror.url})
        self._created("--file", self.real.home / "explicit.txt", offline=False)
        forge = ("--override-channels", "--channel", "conda-forge")
        self._created(*forge, *_ASKED, offline=False)

    def _created(self, *arguments: str | Path, offline: bool = True) -> float:
        prefix = self.real.home / "prefix"
        shutil.rmtree(prefix, ignore_errors=True)
        argv: list[str | Path] = [self.real.exe, "create", "--quiet", "--yes", "--prefix", prefix]
        argv += [*arguments, "--offline"] if offline else [*arguments]
        taken = rounds.seconds(lambda: rounds.run(argv, self._variables()))
        rounds.run([prefix / "bin" / "python", "-c", "import sklearn"], {})
        return taken

    def _variables(self) -> dict[str, str]:
        return {"HOME": str(self.real.home), "CONDA_PKGS_DIRS": str(self.real.home / "packages")}


@contextmanager
def _warm() -> Iterator[Warm]:
    shutil.rmtree(_HOME, ignore_errors=True)
    for name, text in _MODEL.items():
        (_HOME / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (_HOME / "model" / name).write_text(text)
    channel = Channel(_HOME / "channels" / "conda-forge")
    packages = CondaForge(BENCH / "conda-forge")
    channel.add(*packages.archives("3.7.16", *TOOLS, *SKLEARN))
    with Mirror(channel.folder.parent) as mirror:
        mirrors = {"ENVD_CONDA__MIRRORS": f"conda-forge={mirror.url}/conda-forge"}
        environments = Environments(config.load(root=_HOME / "root", environ=mirrors))
        asked = environments.ask(model.read(_HOME / "model"), Terms(env_manager="conda"))
        environment = environments.ready(asked).environment
        warm = Warm(environments, asked, environment, RealConda.make(_HOME / "conda"))
        warm.fill(mirror)
        warm.read()
        yield warm


@click.command()
@rounds.options
def main(rounds_: int, *, is_json: bool, quick: bool) -> None:
    """Compare a warm build of a conda environment by envd with conda's own."""
    with rounds.failing_briefly(), _warm() as warm:
        contenders = [
            Contender("envd", warm.envd),
            Contender("conda part", warm.part),
            Contender("conda part, read", warm.read),
            Contender("conda", warm.conda, last=1 if quick else None),
            Contender("conda explicit", warm.explicit, last=1 if quick else None),
        ]
        load = rounds.load()
        found = rounds.alternate(contenders, rounds_)
        worst = max(one["conda part"] for one in found)
        manifest = warm.environment.manifest
        conditions = rounds.machine(BENCH) | {
            "load average": f"{load} at the start, {rounds.load()} at the end",
            "conda part": f"worst {worst:.2f} s, <= {_MOST_S}: "
            f"{'met' if worst <= _MOST_S else 'not met'}",
            "packages": len(manifest.lock.conda),
            "bytes": manifest.sizes.total,
        }
    report = Report("conda", "A warm conda environment", "seconds", found, _AIMS, conditions)
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
