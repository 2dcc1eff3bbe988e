"""`--conda-exe`: which conda solves, for one call."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.called import Called
from tests.conda_channel import Channel, Package
from tests.conda_forge import CondaForge
from tests.conftest import Daemon, Envctl
from tests.mirror import Mirror
from tests.real_conda import RealConda
from tests.tiny import Tiny

HERE = "{}.{}.{}".format(*sys.version_info)
CONDA = ("--env-manager", "conda")


@pytest.fixture
def envctl(envctl: Envctl) -> Called:
    return Called(envctl.root, envctl.env)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: word, env: conda.yaml}}\n"
    )
    (path / "conda.yaml").write_text(f"dependencies: [python={HERE}, word]\n")
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A conda that writes down how it is called, and fails."""
    path = tmp_path / "bin" / "my-conda"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\nexit 1\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "verb", [("lock", "-m"), ("build",), ("predict", "-m")], ids=lambda verb: verb[0]
)
def test_every_verb_that_may_lock_takes_it(
    verb: tuple[str, ...], envctl: Called, model: Path, broken: Path, tmp_path: Path
) -> None:
    path = f"{broken.parent}:{envctl.env['PATH']}"

    done = envctl(*verb, model, *CONDA, "--conda-exe", "my-conda", stdin="{}", PATH=path)

    assert f"`{broken}` (`conda.exe`) does not work" in done.stderr
    assert " word\n" in (tmp_path / "calls").read_text()


def test_it_goes_before_the_settings_and_a_path_is_from_here(
    envctl: Called, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("lock", "-m", model, *CONDA)

    done = envctl(*asked, "--conda-exe", "./none/conda", ENVD_CONDA__EXE="/opt/other")
    by_setting = envctl(*asked, "--upgrade", ENVD_CONDA__EXE="/opt/other")

    assert f"`{tmp_path}/none/conda` (`conda.exe`) cannot be run: No such file" in done.stderr
    assert "`/opt/other` (`conda.exe`) cannot be run" in by_setting.stderr


@pytest.mark.parametrize("arguments", [(), ("--env-manager", "virtualenv")])
def test_for_a_virtualenv_it_is_a_mistake_of_usage(
    envctl: Called, model: Path, arguments: tuple[str, ...]
) -> None:
    done = envctl("build", model, *arguments, "--conda-exe", "conda")

    assert done.returncode == 2
    assert "--conda-exe is for conda environments; give --env-manager conda" in done.stderr


def test_no_client_names_a_program_for_a_daemon_to_run(
    start_daemon: Callable[..., Daemon],
    envctl: Called,
    tiny: Tiny,
    model: Path,
    broken: Path,
    tmp_path: Path,
) -> None:
    start_daemon(envctl.root, **tiny.settings)

    done = envctl("build", model, *CONDA, "--conda-exe", broken)

    assert done.returncode == 2
    assert "set `conda.exe` (ENVD_CONDA__EXE) where it is started" in done.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.slow
def test_a_real_conda_locks_what_rattler_would(
    envctl: Called,
    model: Path,
    channel: Channel,
    conda_forge: CondaForge,
    mirror: Mirror,
    tmp_path: Path,
) -> None:
    channel.add(*conda_forge.archives(HERE), Package("word"))
    (tmp_path / "real").mkdir()
    real = RealConda.make(tmp_path / "real")
    settings = {
        "ENVD_CONDA__MIRRORS": f"conda-forge={mirror.url}/conda-forge",
        "HOME": str(real.home),
    }
    asked = ("lock", "-m", model, *CONDA, "--json")

    by_conda = envctl(*asked, "--conda-exe", real.exe, **settings)
    by_rattler = envctl(*asked, **settings, ENVD_ROOT=f"{envctl.root}2")

    assert by_conda.returncode == 0, by_conda.stderr
    assert json.loads(by_conda.stdout)["package"] == json.loads(by_rattler.stdout)["package"]
