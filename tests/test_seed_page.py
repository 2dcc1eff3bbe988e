"""The examples of MLflow's page on model dependencies: what MLflow does, and what envd does.

Each is a project whose `train.py` records a model, by MLflow or by envd; it is loaded by a
process that knows nothing of the project. What MLflow does is written down in EXAMPLES as
version 3.17 does it, and a slow test looks whether that is still so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from envd.cli import record as command
from tests.conftest import Daemon
from tests.tiny import Tiny, wheel

_HEAD = """\
import json, sys

def recorded(model, path, **given):
    if sys.argv[1] == "mlflow":
        mlflow.pyfunc.save_model(path, python_model=model, **given)
    else:
        from envd.record import record
        record(path, python_model=model, **given)

Base = object
if sys.argv[1] == "mlflow":
    import mlflow
    Base = mlflow.pyfunc.PythonModel
"""
_MODEL = """\
{imports}
class MyModel(Base):
    def predict(self, context, model_input, params=None):
        {lazy}
        # By its example, MLflow makes a table of the list.
        is_table = hasattr(model_input, "iloc")
        return my_func(model_input.iloc[:, 0].tolist() if is_table else list(model_input))
"""
_LOAD = {
    "mlflow": (
        "import json, sys, mlflow\n"
        "print(json.dumps(list(mlflow.pyfunc.load_model(sys.argv[1]).predict([0, 1]))))\n"
    ),
    "envd": (
        "import json, sys\nsys.path.insert(0, sys.argv[1] + '/code')\nimport envd_recorded\n"
        "print(json.dumps(envd_recorded._load_pyfunc(sys.argv[1]).predict([0, 1])))\n"
    ),
}
_FUNC = "def my_func(x):\n    return [2 * one for one in x]\n"
_EXAMPLE = {"input_example": [0, 1]}
_GONE = "No module named"


@dataclass(frozen=True)
class Case:
    """An example: files, what is recorded, and what comes of it.

    What comes of it is the code in the model and the answer, or what an error says, when it
    is recorded or when it is loaded.
    """

    files: Mapping[str, str]
    given: Mapping[str, Any]
    mlflow: str
    envd: str
    lazy: str = ""
    imports: str = ""
    folder: str = "."
    before: str = ""


EXAMPLES = {
    # "Saving Extra Code with an MLflow Model - Manual Declaration"
    "a file beside the script": Case(
        {"utils.py": _FUNC}, {"code_paths": ["utils.py"], **_EXAMPLE},
        lazy="from utils import my_func",
        mlflow="utils.py: [0, 2]", envd="utils.py: [0, 2]",
    ),
    # "Caveats of ``code_paths`` Option"
    "a file in a package": Case(
        {"src/utils.py": _FUNC}, {"code_paths": ["src/utils.py"], **_EXAMPLE},
        lazy="from src.utils import my_func",
        mlflow=f"loading: {_GONE} 'src'", envd="src/utils.py: [0, 2]",
    ),
    "the package": Case(
        {"src/utils.py": _FUNC}, {"code_paths": ["src"], **_EXAMPLE},
        lazy="from src.utils import my_func",
        mlflow="src/utils.py: [0, 2]", envd="src/utils.py: [0, 2]",
    ),
    "a file called as it is imported": Case(
        {"src/utils.py": _FUNC}, {"code_paths": ["src/utils.py"], **_EXAMPLE},
        before="sys.path.insert(0, 'src')\nimport utils\n", lazy="from utils import my_func",
        mlflow="utils.py: [0, 2]", envd="utils.py: [0, 2]",
    ),
    "the parent's package": Case(
        {"src/utils.py": _FUNC}, {"code_paths": ["../src"]}, folder="train",
        lazy="from src.utils import my_func",
        mlflow="src/utils.py: [0, 2]", envd="recording: below neither the current folder",
    ),
    "the parent's package, imported": Case(
        {"src/utils.py": _FUNC}, {"code_paths": ["../src"], **_EXAMPLE}, folder="train",
        before="sys.path.insert(0, '..')\n", lazy="from src.utils import my_func",
        mlflow="src/utils.py: [0, 2]", envd="src/utils.py: [0, 2]",
    ),
    "nothing": Case(
        {"utils.py": _FUNC}, _EXAMPLE, lazy="from utils import my_func",
        mlflow=f"loading: {_GONE} 'utils'", envd="recording: the module `utils`",
    ),
    # "Recommended Project Structure"
    "the recommended structure": Case(
        {"core/preprocessing.py": _FUNC, "helper/evaluation.py": ""},
        {"code_paths": ["core"], **_EXAMPLE}, lazy="from core.preprocessing import my_func",
        mlflow="core/preprocessing.py: [0, 2]", envd="core/preprocessing.py: [0, 2]",
    ),
    # "Saving Extra Code dependencies with an MLflow Model - Automatic inference"
    "inferred": Case(
        {"custom_code.py": _FUNC}, {"infer_code_paths": True},
        imports="from custom_code import my_func",
        mlflow="custom_code.py: [0, 2]", envd="custom_code.py: [0, 2]",
    ),
    "inferred elsewhere": Case(
        {"elsewhere/custom_code.py": _FUNC}, {"infer_code_paths": True},
        folder="here", before="sys.path.insert(0, '../elsewhere')\n",
        imports="from custom_code import my_func",
        mlflow=f"loading: {_GONE} 'custom_code'", envd="custom_code.py: [0, 2]",
    ),
    "inferred, and not called": Case(
        {"custom_code.py": "def my_func(x):\n    if not x:\n        import rarely\n    return x\n",
         "rarely.py": ""},
        {"infer_code_paths": True, **_EXAMPLE}, imports="from custom_code import my_func",
        mlflow="custom_code.py: [0, 1]", envd="custom_code.py, rarely.py: [0, 1]",
    ),
    "inferred of a parent": Case(
        {"base/__init__.py": "from base.early import my_func\n", "base/early.py": _FUNC,
         "base/model.py": "from base import my_func\nclass Parent:\n    def f(self, x):\n"
                          "        return my_func(x)\n"},
        {"infer_code_paths": True},
        imports="from base.model import Parent\ndef my_func(x): return Parent().f(x)",
        mlflow="base/__init__.py, base/early.py, base/model.py: [0, 2]",
        envd="base/__init__.py, base/early.py, base/model.py: [0, 2]",
    ),
    # "Restrictions with ``infer_code_paths``"
    "inferred of __main__": Case(
        {}, {"infer_code_paths": True}, imports=_FUNC, mlflow=": [0, 2]", envd=": [0, 2]",
    ),
    "inferred with a secret": Case(
        {"custom_code.py": f"PASSWORD = 'hunter22'\n{_FUNC}"}, {"infer_code_paths": True},
        imports="from custom_code import my_func",
        mlflow="custom_code.py: [0, 2]", envd="recording: custom_code.py:1: `PASSWORD` and a text",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def envd_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What goes on PYTHONPATH for envd and cloudpickle, and nothing else of the tests'."""
    folder = tmp_path_factory.mktemp("path")
    path = command._linked(folder, ["envd", *command._NEEDED])
    shutil.copytree(Path(cloudpickle.__file__).parent, Path(path) / "cloudpickle")
    info = folder / "site-packages" / f"cloudpickle-{cloudpickle.__version__}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: cloudpickle\nVersion: {cloudpickle.__version__}\n")
    names = [one.name for one in Path(path, "cloudpickle").glob("*.py")]
    (info / "RECORD").write_text("".join(f"cloudpickle/{one},,\n" for one in names))
    return path


def run(python: Path | str, *arguments: object, cwd: Path, **env: str) -> tuple[int, str, str]:
    variables = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8", **env}
    done = subprocess.run(
        [python, "-B", "-W", "ignore", *arguments],
        cwd=cwd, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def outcome(case: Case, folder: Path, python: Path | str, by: str, **env: str) -> str:
    """Return what comes of *case*, recorded and loaded *by* MLflow or envd."""
    for name, text in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    here = folder / case.folder
    here.mkdir(exist_ok=True)
    model = _MODEL.format(imports=case.imports, lazy=case.lazy)
    call = f"recorded(MyModel(), 'model', **json.loads({json.dumps(dict(case.given))!r}))\n"
    (here / "train.py").write_text(_HEAD + case.before + model + call)
    status, _, error = run(python, "train.py", by, cwd=here, **env)
    if status:
        return f"recording: {error}"
    code = here / "model" / "code"
    files = sorted(str(one.relative_to(code)) for one in code.rglob("*.py"))
    shown = ", ".join(one for one in files if one != "envd_recorded.py")
    (folder / "away").mkdir()
    variables = {key: value for key, value in env.items() if key != "PYTHONPATH"}
    status, said, error = run(
        python, "-c", _LOAD[by], here / "model", cwd=folder / "away", **variables,
        **({"PYTHONPATH": env["PYTHONPATH"]} if by == "envd" else {}),
    )  # fmt: skip
    return f"loading: {error}" if status else f"{shown}: {said.strip()}"


def agrees(found: str, expected: str) -> bool:
    """Whether *found* is as *expected*; of an error that says when, and a part of its text."""
    when, colon, text = expected.partition(": ")
    if when not in {"recording", "loading"}:
        return found == expected
    return found.startswith(when + colon) and text in found


# Each loads a model several times: of those that are alike one is enough every time.
_ALWAYS = {
    "a file in a package", "the parent's package", "nothing", "inferred of a parent",
    "inferred with a secret",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [one if one in _ALWAYS else pytest.param(one, marks=pytest.mark.slow) for one in EXAMPLES],
)
def test_what_envd_does(name: str, tmp_path: Path, bare_python: Path, envd_path: str) -> None:
    found = outcome(EXAMPLES[name], tmp_path, bare_python, "envd", PYTHONPATH=envd_path)

    assert agrees(found, EXAMPLES[name].envd), found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_mlflow_does(name: str, tmp_path: Path) -> None:
    offline = {"MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true"}
    found = outcome(EXAMPLES[name], tmp_path, sys.executable, "mlflow", **offline)

    assert agrees(found, EXAMPLES[name].mlflow), found


_SAME_NAME = """\
import importlib, sys
from pathlib import Path

path = Path("my_model.py")
template = '''
{base}
class MyModel(Base):
    def predict(self, context, model_input):
        return [{n}] * len(model_input)
'''
sys.path.insert(0, str(path.parent.absolute()))
base = "Base = object"
if Base is not object:
    base = "import mlflow\\nBase = mlflow.pyfunc.PythonModel"
for n in (1, 2):
    path.write_text(template.format(n=n, base=base))
    if n == 2:
        importlib.reload(my_model)
    else:
        import my_model
    given = {"code_paths": [str(path.absolute())], "pip_requirements": []}
    recorded(my_model.MyModel(), f"model{n}", **given)
"""
_ASK_BOTH = """\
import json, sys, mlflow
found = []
for pop in (False, True):
    for n in (1, 2):
        if pop:
            sys.modules.pop("my_model")
        found += mlflow.pyfunc.load_model(f"model{n}").predict([0])
print(json.dumps(found))
"""


# "Limitation of ``code_paths`` in loading multiple models with the same module name"
def test_two_models_with_modules_of_one_name_answer_as_each_was_made(
    tmp_path: Path,
    bare_python: Path,
    envd_path: str,
    start_daemon: Callable[..., Daemon],
    tiny: Tiny,
) -> None:
    (tmp_path / "wheels").mkdir()
    for name in ("pip", "setuptools", "wheel"):
        wheel(tmp_path / "wheels", name, "99.0", **{name: ""})
    wheels = {"ENVD_INDEX__FIND_LINKS": str(tmp_path / "wheels")}
    daemon = start_daemon(tmp_path / "root", **(tiny.settings | wheels))
    (tmp_path / "train.py").write_text(_HEAD + _SAME_NAME)
    made = run(bare_python, "train.py", "envd", cwd=tmp_path, PYTHONPATH=envd_path)
    assert made[0] == 0, made[2]

    with daemon.client() as client:
        ask = lambda n: client.predict(tmp_path / f"model{n}", {"inputs": [0]}).predictions  # noqa: E731
        assert [ask(1), ask(2), ask(1)] == [[1], [2], [1]]


@pytest.mark.slow
def test_in_mlflow_the_second_model_answers_as_the_first(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(_HEAD + _SAME_NAME)
    made = run(sys.executable, "train.py", "mlflow", cwd=tmp_path)
    assert made[0] == 0, made[2]

    _, said, _ = run(sys.executable, "-c", _ASK_BOTH, cwd=tmp_path)

    assert json.loads(said) == [1, 1, 1, 2]


_REQUIREMENTS = {
    # "Adding Extra Dependencies to an MLflow Model"
    "extra": (
        {"extra_pip_requirements": ["pandas==2.0.3"]},
        ["mlflow", "cloudpickle", "pandas==2.0.3"],
        ["cloudpickle", "pandas==2.0.3"],
    ),
    # "Defining All Dependencies by Yourself"
    "all": (
        {"pip_requirements": ["mlflow-skinny==2.9.2", "cloudpickle==2.5.8", "scikit-learn==1.3.1"]},
        ["mlflow-skinny==2.9.2", "cloudpickle==2.5.8", "scikit-learn==1.3.1"],
        ["mlflow-skinny==2.9.2", "cloudpickle==2.5.8", "scikit-learn==1.3.1"],
    ),
    # "3. Update the model metadata"
    "fixed": (
        {"extra_pip_requirements": ["opencv-python==4.8.0"]},
        ["mlflow", "cloudpickle", "opencv-python==4.8.0"],
        ["cloudpickle", "opencv-python==4.8.0"],
    ),
}


_ECHO = """\
class MyModel(Base):
    def predict(self, context, model_input, params=None):
        return model_input
"""


def asked(
    folder: Path, given: Mapping[str, list[str]], run_it: Callable[[], tuple[int, str, str]]
) -> list[str]:
    call = f"recorded(MyModel(), 'model', **json.loads({json.dumps(dict(given))!r}))\n"
    (folder / "train.py").write_text(_HEAD + _ECHO + call)
    status, _, error = run_it()
    assert status == 0, error
    lines = (folder / "model" / "requirements.txt").read_text().splitlines()
    conda = (folder / "model" / "conda.yaml").read_text()
    assert all(f"- {line}\n" in conda for line in lines)
    given_lines = [line for value in given.values() for line in value]
    return [line if line in given_lines else line.partition("==")[0] for line in lines]


@pytest.mark.parametrize("name", _REQUIREMENTS)
def test_requirements_stand_in_the_files(
    name: str, tmp_path: Path, bare_python: Path, envd_path: str
) -> None:
    given, _, ours = _REQUIREMENTS[name]

    found = asked(
        tmp_path, given,
        lambda: run(bare_python, "train.py", "envd", cwd=tmp_path, PYTHONPATH=envd_path),
    )  # fmt: skip

    assert found == ours


@pytest.mark.slow
@pytest.mark.parametrize("name", _REQUIREMENTS)
def test_requirements_stand_in_the_files_of_mlflow(name: str, tmp_path: Path) -> None:
    given, theirs, _ = _REQUIREMENTS[name]
    offline = {"MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true"}

    found = asked(
        tmp_path, given,
        lambda: run(sys.executable, "train.py", "mlflow", cwd=tmp_path, **offline),
    )  # fmt: skip

    assert found == theirs
