"""What is inferred of real models runs them in clean environments, and nothing of it can go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from envd import config, infer
from envd import model as models
from envd.build import Interpreters
from envd.infer import Inferred
from envd.infer.observing import Observer, given_of
from tests.conftest import Envctl, environment

PROJECT = Path(__file__).parent.parent
_MAKER = Path(__file__).with_name("make_inferred_models.py")
_UV = Path(sysconfig.get_path("scripts")) / "uv"
_PACKAGES = (
    "mlflow==3.17.2", "scikit-learn", "lightgbm", "beautifulsoup4", "statsmodels", "six",
    "pandas[output-formatting]", "zope.interface", "zope.event", "pip", "setuptools",
)  # fmt: skip
_MINE = {
    "pyproject.toml": (
        "[build-system]\nrequires = ['setuptools>=64']\nbuild-backend = 'setuptools.build_meta'\n"
        "[project]\nname = 'mine'\nversion = '0.1'\ndependencies = ['six']\n"
        "[tool.setuptools]\npackages = ['mine']\n"
    ),
    "mine/__init__.py": "import six\n\n\ndef text(one):\n    return six.ensure_text(one).upper()\n",
}
# Every line but those of mlflow's own closure, whose versions are all they say.
EXPECTED = {
    "sklearn": "mlflow scikit-learn",
    "sklearn_pickle": "mlflow cloudpickle numpy scikit-learn",
    "lightgbm": "mlflow lightgbm",
    "xgboost": "mlflow xgboost-cpu",
    "statsmodels": "mlflow numpy pandas pyarrow statsmodels",
    "lazy": "mlflow beautifulsoup4 cloudpickle",
    "tabulated": "mlflow cloudpickle pandas[output-formatting]",
    "namespaces": "mlflow cloudpickle zope.interface",
    "worked": "mlflow cloudpickle six",
    "plain": "mlflow cloudpickle",
}


@dataclass(frozen=True)
class Training:
    """Where the models were made: the Python, and the folder they lie in."""

    python: Path
    folder: Path
    envctl: Envctl

    def observer(self, folder: Path, python: Path | None = None) -> Observer:
        model = models.read(folder)
        return Observer(model, given_of(model), python or self.python)

    def environment_of(self, folder: Path, lines: list[str]) -> Path:
        """Let the model ask for *lines*, and return the Python of its environment."""
        (folder / "requirements.txt").write_text("\n".join(lines))
        built = self.envctl("build", "-m", folder, "--json")
        assert built.returncode == 0, built.stderr
        shown = self.envctl("show", json.loads(built.stdout)["id"], "--json")
        return Path(json.loads(shown.stdout)["prefix"]) / "bin" / "python"


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Training:
    folder = tmp_path_factory.mktemp("training")
    found = Interpreters(config.load(root=folder / "pythons", environ={})).found()
    python = next(one.path for one in found if one.python.minor == "3.11")
    for name, text in _MINE.items():
        (folder / "models" / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "models" / "mine" / name).write_text(text)
    own = folder / "venv" / "bin" / "python"
    env = dict(os.environ, UV_CACHE_DIR=str(tmp_path_factory.getbasetemp() / "uv-cache"))
    # xgboost brings the libraries of a GPU; what lies there in the end is the other's.
    for arguments in (
        ["venv", "--quiet", "--python", python, folder / "venv"],
        ["pip", "install", "--quiet", "--python", own, *_PACKAGES],
        ["pip", "install", "--quiet", "--python", own, "--no-deps", "xgboost"],
        ["pip", "install", "--quiet", "--python", own, "--no-deps", "xgboost-cpu"],
        ["pip", "install", "--quiet", "--python", own, "--editable", folder / "models" / "mine"],
    ):
        subprocess.run([_UV, *arguments], env=env, check=True)
    subprocess.run([own, "-W", "ignore", _MAKER, folder / "models"], check=True)
    root = tmp_path_factory.mktemp("clean") / "root"
    return Training(own, folder / "models", Envctl(root, environment(root, home)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", EXPECTED)
def test_the_set_runs_the_model_and_nothing_of_it_can_go(
    training: Training, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(training.folder / name, tmp_path / "model")
    found = infer.infer(training.observer(folder))
    answer = training.observer(folder).observe().answer
    if found.local:
        _put_in(folder, Path(found.local[0].path) / "mine")

    assert names(found) == EXPECTED[name]
    clean = training.environment_of(folder, list(found.requirements))
    assert training.observer(folder, clean).observe().answer == answer
    predicted = training.envctl(
        "predict", "-m", folder, "-i", folder / "serving_input_example.json"
    )
    assert predicted.returncode == 0, predicted.stderr
    for line in found.lines:
        if not line.held_by and line.key != "mlflow":
            less = [one for one in found.requirements if one != line.text]
            without = training.environment_of(folder, less)
            assert training.observer(folder, without).observe().answer != answer, line.text


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_table_of_the_page_is_what_both_infer(training: Training) -> None:
    page = (PROJECT / "docs" / "dependencies.md").read_text()

    for name, ours in EXPECTED.items():
        theirs = (training.folder / name / "requirements.txt").read_text().split()
        row = f"| {name} | {ours} | {' '.join(one.partition('==')[0] for one in theirs)} |"
        assert row in page


def names(found: Inferred) -> str:
    return " ".join(one.text.partition("==")[0] for one in found.lines)


def _put_in(folder: Path, package: Path) -> None:
    """Put the code of *package* into the model, as it is said to be needed."""
    shutil.copytree(package, folder / "code" / package.name)
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("    code: null", "    code: code"))
