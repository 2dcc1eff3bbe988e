"""MLflow 2.9 and 3 load what is recorded beside them, and without them, and predict with it."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from envd import config
from envd.build import Interpreters
from tests.conftest import Envctl, environment

_UV = Path(sysconfig.get_path("scripts")) / "uv"
# What was there when MLflow 2.9 came.
_VERSIONS = {
    "2.9.2": ("mlflow==2.9.2", "numpy<2", "pandas<2.2", "pyarrow<15", "setuptools<81", "pip"),
    "3.17.2": ("mlflow==3.17.2", "setuptools", "pip", "uv"),
}
_TRAIN = """\
import helping

class Own:
    def predict(self, context, model_input, params=None):
        return [helping.times(one) for one in model_input["a"]]

def function(model_input):
    return [helping.times(one) for one in model_input["a"]]
"""
_WITH_MLFLOW = """\
import mlflow
import helping

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        with open(context.artifacts["words"]) as file:
            self.by = int(file.read())

    def predict(self, context, model_input, params=None):
        return [self.by * helping.times(one) for one in model_input["a"]]
"""
_SCRIPT = _WITH_MLFLOW + "\nmlflow.models.set_model(Model())\n"
_INPUT = {"dataframe_split": {"columns": ["a"], "data": [[1], [2]]}}
_LOAD = """\
import sys, json, pandas, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
table = pandas.DataFrame({"a": [1, 2]})
shown = model.metadata.get_input_schema()
print(json.dumps([[int(one) for one in model.predict(table)], shown and shown.input_names()]))
"""


@dataclass(frozen=True)
class Beside:
    """A Python with an MLflow, and a project to record from."""

    version: str
    python: Path
    folder: Path
    envctl: Envctl

    def recorded(
        self, name: str, output: str, *options: object, python: Path | None = None
    ) -> Path:
        argv = self.envctl.argv(
            "record", name, "-o", output, "--infer-code-paths", *options,
            "--python", python or self.python,
        )  # fmt: skip
        self.run(argv)
        return self.folder / output

    def run(self, argv: list[object] | list[str]) -> str:
        done = subprocess.run(
            argv, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    @property
    def env(self) -> dict[str, str]:
        more = {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONDONTWRITEBYTECODE": "1"}
        path = f"{self.python.parent}:{self.envctl.env['PATH']}"
        return self.envctl.env | more | {"PATH": path}

    def answers(self, model: Path) -> list[object]:
        """Return what the model answers, loaded where nothing of the project is."""
        said = self.run([self.python, "-I", "-W", "ignore", "-c", _LOAD, model])
        found: list[object] = json.loads(said.splitlines()[-1])
        return found

    def predicted(self, model: Path, *options: str) -> object:
        """Return what `mlflow models predict` prints."""
        mlflow = [self.python.with_name("mlflow"), "models", "predict"]
        said = self.run([*mlflow, "-m", model, "-i", "in.json", "-t", "json", *options])
        found = next(one for one in said.splitlines() if one.startswith('{"predictions"'))
        return json.loads(found)["predictions"]


@pytest.fixture(scope="module", params=_VERSIONS)
def beside(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, home: Path
) -> Beside:
    folder = tmp_path_factory.mktemp("beside")
    found = Interpreters(config.load(root=folder / "pythons", environ={})).found()
    base = next(one.path for one in found if one.python.minor == "3.11")
    own = folder / "venv" / "bin" / "python"
    env = dict(os.environ, UV_CACHE_DIR=str(tmp_path_factory.getbasetemp() / "uv-cache"))
    for arguments in (
        ["venv", "--quiet", "--python", base, folder / "venv"],
        ["pip", "install", "--quiet", "--python", own, *_VERSIONS[request.param]],
    ):
        subprocess.run([_UV, *arguments], env=env, check=True)
    for name, text in (
        ("train.py", _TRAIN), ("with_mlflow.py", _WITH_MLFLOW), ("script.py", _SCRIPT),
        ("helping.py", "def times(x):\n    return 2 * x\n"), ("in.json", json.dumps(_INPUT)),
        ("words.txt", "5"),
    ):  # fmt: skip
        (folder / name).write_text(text)
    envctl = Envctl(folder / "root", environment(folder / "root", home))
    return Beside(request.param, own, folder, envctl)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_models_recorded_beside_mlflow_are_its_own(beside: Beside) -> None:
    words = ("--artifact", "words=words.txt")
    own = beside.recorded("train.py:Own", "own", "-i", "in.json")
    function = beside.recorded("train.py:function", "function", "-i", "in.json")
    theirs = beside.recorded("with_mlflow.py:Model", "theirs", "-i", "in.json", *words)

    assert (own / "requirements.txt").read_text().startswith(f"mlflow=={beside.version}")
    assert "loader_module: mlflow.pyfunc.model" in (theirs / "MLmodel").read_text()
    assert [beside.answers(one) for one in (own, function, theirs)] == [
        [[2, 4], ["a"]], [[2, 4], ["a"]], [[10, 20], ["a"]]
    ]  # fmt: skip
    local = ("--env-manager", "local")
    assert [beside.predicted(one, *local) for one in (own, theirs)] == [[2, 4], [10, 20]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_recorded_without_mlflow_is_loaded_by_it(beside: Beside, bare_python: Path) -> None:
    found = beside.recorded("train:Own", "bare", python=bare_python)

    assert (found / "requirements.txt").read_text() == ""
    assert beside.answers(found) == [[2, 4], None]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mlflow_makes_the_environment_and_predicts(beside: Beside) -> None:
    if beside.version == "2.9.2":
        # It has pyenv compile a Python, or conda make one.
        return
    found = beside.recorded("script.py", "code", "--script", "--artifact", "words=words.txt")

    assert beside.answers(found) == [[10, 20], None]
    assert beside.predicted(found, "--env-manager", "uv") == [10, 20]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_envd_predicts_with_it_too(beside: Beside) -> None:
    found = beside.recorded("train.py:function", "served", "-i", "in.json")

    said = beside.run(beside.envctl.argv("predict", "-m", found, "-i", "in.json"))

    assert json.loads(said) == {"predictions": [2, 4]}
