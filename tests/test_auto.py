"""`auto`: which manager a model needs, whichever of its files MLflow would read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from envd import config, spec
from envd.errors import ModelInvalidError, PolicyDeniedError
from envd.model import read as read_model
from envd.spec import Dependencies, Terms

# As MLflow 3.17 saves a model with a `conda_env`.
MLMODEL = """\
flavors:
  python_function:
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mine
"""
PYTHON_ENV = """\
python: 3.11.7
build_dependencies:
- pip==23.2.1
- setuptools==65.5.0
- wheel
dependencies:
- -r requirements.txt
"""
BOTH = {"python_env.yaml": PYTHON_ENV, "requirements.txt": "mlflow==3.17.2\nNumPy"}


def conda(*packages: str, channels: str = "conda-forge") -> str:
    listed = ", ".join(("python=3.11.7", *packages))
    return f"channels: [{channels}]\ndependencies: [{listed}, {{pip: [mlflow==3.17.2, NumPy]}}]\n"


def read(
    folder: Path,
    conda_yaml: str,
    files: dict[str, str] = BOTH,
    manager: str = "auto",
    **settings: str,
) -> Dependencies:
    """Read what a model asks for that has those files."""
    for name, text in {"MLmodel": MLMODEL, "conda.yaml": conda_yaml, **files}.items():
        (folder / name).write_text(text)
    environ = {"ENVD_RESOLVE__AS_OF": "now", "ENVD_RESOLVE__REPAIR": "false", **settings}
    loaded = config.load(root=folder, environ=environ)
    return spec.read(read_model(folder), loaded, Terms(env_manager=manager))


def texts(found: Dependencies) -> list[str]:
    return [one.text for one in found.asked.requirements]


def notes(found: Dependencies) -> dict[str, str]:
    return {note.code: note.message for note in found.notes}


FILES = {
    "all three": BOTH,
    "no python_env.yaml": {"requirements.txt": BOTH["requirements.txt"]},
    "conda.yaml alone": {},
}


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_it_is_conda_where_a_package_cannot_be_had_from_pypi(
    tmp_path: Path, files: dict[str, str]
) -> None:
    found = read(tmp_path, conda("libgomp", "scikit-learn=1.3", "cudatoolkit"), files)

    assert found.manager == "conda"
    assert notes(found)["CONDA_CHOSEN"] == (
        "`auto` takes conda: `libgomp`, `cudatoolkit` cannot be had from PyPI as asked for"
    )


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_else_a_virtualenv_has_every_package_that_conda_was_asked_for(
    tmp_path: Path, files: dict[str, str]
) -> None:
    found = read(tmp_path, conda("scikit-learn=1.3.2", "numpy=1.26", "pip"), files)

    assert found.manager == "virtualenv"
    assert "scikit-learn==1.3.2" in texts(found)
    if files:
        # What the files name themselves is theirs to say.
        assert texts(found) == ["mlflow==3.17.2", "numpy", "scikit-learn==1.3.2"]
    said = [one.message for one in found.notes if one.code == "CONDA_PACKAGE_TRANSLATED"]
    assert any("`scikit-learn==1.3.2`" in one for one in said)
    assert "CONDA_CHOSEN" not in notes(found)


def test_a_model_without_conda_packages_is_the_same_as_a_virtualenv(tmp_path: Path) -> None:
    text = conda("pip<=23.2.1", "setuptools", "wheel")

    assert read(tmp_path, text) == read(tmp_path, text, manager="virtualenv")


def test_a_virtualenv_that_was_asked_for_is_as_mlflow_makes_it(tmp_path: Path) -> None:
    found = read(tmp_path, conda("libgomp", "scikit-learn=1.3"), manager="virtualenv")

    assert texts(found) == ["mlflow==3.17.2", "numpy"]


def test_what_only_an_export_pins_is_no_reason_for_conda(tmp_path: Path) -> None:
    export = ("_libgcc_mutex=0.1=main", "openssl=1.1.1k=h27cfd23_0", "six=1.16.0=pyhd3eb1b0_0")

    found = read(tmp_path, conda(*export, channels="defaults"))

    assert found.manager == "virtualenv"
    assert texts(found) == ["mlflow==3.17.2", "numpy", "six==1.16"]


def test_a_version_that_pypi_cannot_be_asked_for_needs_conda(tmp_path: Path) -> None:
    found = read(tmp_path, conda("'six=1.15|1.16'"))

    assert found.manager == "conda"
    assert "`six`" in notes(found)["CONDA_CHOSEN"]


@pytest.mark.parametrize("text", ["dependencies: [six # [linux]\n", "channels: {a: b}\n", "&a\n"])
def test_a_conda_yaml_that_cannot_be_read_costs_nothing_where_mlflow_reads_others(
    tmp_path: Path, text: str
) -> None:
    found = read(tmp_path, text)

    assert found.manager == "virtualenv"
    assert texts(found) == ["mlflow==3.17.2", "numpy"]
    assert str(tmp_path / "conda.yaml") in notes(found)["CONDA_YAML_PASSED_OVER"]
    for name in BOTH:
        (tmp_path / name).unlink()
    with pytest.raises(ModelInvalidError, match=r"conda\.yaml"):
        read(tmp_path, text, {})


def test_the_channels_of_what_is_added_are_judged(tmp_path: Path) -> None:
    strict = {"ENVD_SECURITY__PROFILE": "standard"}

    with pytest.raises(PolicyDeniedError, match="`mine`"):
        read(tmp_path, conda("mine::six"), **strict)
    with pytest.raises(PolicyDeniedError, match="`defaults`"):
        read(tmp_path, conda("six", channels="defaults"), ENVD_CONDA__DEFAULTS="deny")
    # Nothing comes from there.
    assert read(tmp_path, conda("numpy", channels="mine"), **strict).manager == "virtualenv"


SAVE = """
import sys
from mlflow.pyfunc import PythonModel, save_model

class Model(PythonModel):
    def predict(self, context, model_input):
        return model_input

packages = ["python=3.11.7", *sys.argv[2:], {"pip": ["mlflow"]}]
save_model(sys.argv[1], python_model=Model(), conda_env={"dependencies": packages})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "manager"),
    [(["libgomp", "scikit-learn=1.3.2"], "conda"), (["scikit-learn=1.3.2"], "virtualenv")],
)
def test_mlflow_writes_what_conda_was_asked_for_into_its_conda_yaml_alone(
    tmp_path: Path, packages: list[str], manager: str
) -> None:
    path = tmp_path / "model"
    subprocess.run([sys.executable, "-c", SAVE, path, *packages], cwd=tmp_path, check=True)
    settings = config.load(root=tmp_path, environ={})

    found = spec.read(read_model(path), settings, Terms(env_manager="auto"))

    assert (path / "python_env.yaml").exists()
    assert (path / "requirements.txt").read_text().strip() == "mlflow"
    assert found.manager == manager
    named = [*texts(found), *(one.name for one in found.packages)]
    assert any(one.startswith("scikit-learn") for one in named)
