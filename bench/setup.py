"""Makes what `build.py` compares envd with; what is there already is left alone.

.bench/
|-- root/               envd's root, its caches warm
|-- peers/              a virtualenv with pip and virtualenv; `pins` when it is whole
|-- wheels/<env_id>/    the lock as wheels; `requirements.txt` when they are whole
|-- uv/, virtualenv/    caches of the peers
`-- trees/              what is being measured
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import click
from packaging.utils import parse_wheel_filename
from rounds import failing_briefly, run, say
from uv import find_uv_bin

from envd import config, model
from envd.environments.asked import Asked
from envd.environments.environments import Environments
from envd.lock import Wheels
from envd.store import Environment

CHECKOUT = Path(__file__).resolve().parent.parent
BENCH = CHECKOUT / ".bench"
IRIS = CHECKOUT / "examples" / "iris"
# The newest that work on Python 3.9, where pip runs in the interpreter it installs for.
PINS = {"pip": "26.0.1", "virtualenv": "21.15.8"}


@dataclass(frozen=True, slots=True)
class Peers:
    """The virtualenv with pip and virtualenv in it."""

    home: Path

    def virtualenv(self, python: Path, prefix: Path) -> None:
        """Make the empty virtualenv *prefix* on *python*."""
        argv = ["virtualenv", "--quiet", "--no-periodic-update", "--no-seed"]
        self._run([*argv, "--python", str(python), str(prefix)])

    def pip(self, python: Path, *arguments: str | Path) -> None:
        """Run pip in *python*."""
        self._run(["pip", "--python", str(python), *arguments])

    def _run(self, arguments: list[str | Path]) -> None:
        run([self.home / "bin" / "python", "-m", *arguments], environ())


@dataclass(frozen=True, slots=True)
class Warm:
    """A model whose environment has been built, and the same packages as wheels."""

    environments: Environments
    asked: Asked
    environment: Environment
    peers: Peers
    wheels: Path


def environ() -> dict[str, str]:
    """Return the variables the peers get."""
    # With PYTHONDONTWRITEBYTECODE, pip would compile itself each time it starts.
    passed = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return passed | {
        "UV_SYSTEM_CERTS": "1",
        "UV_CACHE_DIR": str(BENCH / "uv"),
        "VIRTUALENV_OVERRIDE_APP_DATA": str(BENCH / "virtualenv"),
    }


def prepare(directory: Path) -> Warm:
    """Make everything for the model in *directory*."""
    environments = Environments(config.load(root=BENCH / "root"))
    asked = environments.ask(model.read(directory))
    environment = environments.ready(asked).environment
    peers = _peers(BENCH / "peers")
    wheels = BENCH / "wheels" / environment.id
    if not (wheels / "requirements.txt").exists():
        _download(environment, environment.manifest.base.path, peers, wheels)
    return Warm(environments, asked, environment, peers, wheels)


def _peers(home: Path) -> Peers:
    pins, marker = [f"{name}=={version}" for name, version in PINS.items()], home / "pins"
    if not marker.exists() or marker.read_text().split() != pins:
        say(f"installing {' and '.join(pins)}")
        uv = [find_uv_bin(), "--no-config", "--quiet"]
        run([*uv, "venv", "--clear", "--python", sys.executable, home], environ())
        install = ["pip", "install", "--compile-bytecode", "--python", f"{home}/bin/python"]
        run([*uv, *install, *pins], environ())
        marker.write_text("\n".join(pins))
    return Peers(home)


def _download(environment: Environment, python: Path, peers: Peers, wheels: Path) -> None:
    say(f"downloading {len(environment.manifest.lock.packages)} packages for pip")
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    lock = wheels / "lock.txt"
    kept = Wheels(environment.prefix.parents[2]).path
    lock.write_text(environment.manifest.lock.requirements(kept))
    peers.pip(python, "wheel", "--no-deps", "--wheel-dir", wheels, "--requirement", lock)
    lines = map(_requirement, sorted(wheels.glob("*.whl")))
    (wheels / "requirements.txt").write_text("".join(lines))


def _requirement(wheel: Path) -> str:
    name, version, *_ = parse_wheel_filename(wheel.name)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{name}=={version} --hash=sha256:{digest}\n"


@click.command()
@click.option("--model", "directory", type=click.Path(path_type=Path), default=IRIS)
def main(directory: Path) -> None:
    """Make what the benchmarks need, for the model directory they use."""
    with failing_briefly():
        prepare(directory)


if __name__ == "__main__":
    main()
