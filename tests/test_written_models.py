"""What envd writes into the files of models, read and restored by MLflow itself."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import MODELS, Envctl, environment, expected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Loads a model and predicts as MLflow does, and says what it takes the model to depend on.
PROGRAM = """\
import json, sys
import mlflow
from mlflow.utils.requirements_utils import _parse_requirements
from mlflow.utils.virtualenv import _get_python_env
from pathlib import Path

path = sys.argv[1]
file = mlflow.pyfunc.get_model_dependencies(path)
asked = [one.req_str for one in _parse_requirements(file, is_constraint=False)]
conda = mlflow.pyfunc.get_model_dependencies(path, format="conda")
import yaml
document = yaml.safe_load(open(conda))
pip = next(one["pip"] for one in document["dependencies"] if isinstance(one, dict))
python = _get_python_env(Path(path))
json.dump({"version": mlflow.__version__, "asked": asked, "pip": pip,
           "python": python.dependencies}, sys.stdout)
mlflow.pyfunc.load_model(path)
"""


@pytest.fixture(scope="module")
def envctl(shared_root: Path, home: Path) -> Envctl:
    """envctl on the root of the real environments."""
    return Envctl(shared_root, environment(shared_root, home))


@pytest.mark.parametrize(("letter", "version"), [("a", "2.9.2"), ("f", "3.17.2")])
def test_mlflow_reads_what_requirements_were_added(
    tmp_path: Path, envctl: Envctl, letter: str, version: str
) -> None:
    found = expected(letter)
    model = tmp_path / "model"
    shutil.copytree(found.path, model)
    with (model / "requirements.txt").open("a") as file:
        # As MLflow writes a model that was logged with constraints.
        file.write("\n-c constraints.txt\n")
    (model / "constraints.txt").write_text("six==1.15.0  # ours\n")
    before = (model / "requirements.txt").read_text().splitlines()
    (tmp_path / "in.json").write_text(json.dumps(found.payload))

    edits = (
        ("add", "six==1.16.0", "BeautifulSoup4>=4.12,<5", "attrs"),
        ("set", "beautifulsoup4==4.12.3"),
        ("remove", "Attrs"),
    )
    for verb, *texts in edits:
        edited = envctl("requirements", verb, "-m", model, *texts)
        assert edited.returncode == 0, edited.stderr

    answer = envctl("predict", "-m", model, "-i", tmp_path / "in.json")
    assert json.loads(answer.stdout) == found.answer
    ran = envctl("run", "-m", model, "--", "python", "-c", PROGRAM, model)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    wanted = [*before[:-1], "six==1.16.0", "beautifulsoup4==4.12.3"]
    assert said["version"] == version
    assert said["asked"] == [*wanted, "six==1.16.0"]
    assert said["pip"] == wanted
    assert said["python"] == ["-r requirements.txt"]


def test_mlflow_restores_and_predicts_what_check_has_fixed_and_written(
    tmp_path: Path, envctl: Envctl
) -> None:
    found = expected("f")
    model = tmp_path / "model"
    shutil.copytree(MODELS / "f_missing_bs4", model)
    given, wanted, out = (tmp_path / f"{name}.json" for name in ("in", "wanted", "out"))
    given.write_text(json.dumps(found.payload))
    wanted.write_text(json.dumps(found.answer))

    named = envctl("check", "-m", model, "-i", given)
    fixed = envctl("check", "-m", model, "-i", given, "--expect", wanted, "--fix", "--write")

    assert named.returncode == 1
    assert "`bs4` is not in its environment; `beautifulsoup4` brings it" in named.stdout
    assert fixed.returncode == 0, fixed.stderr
    assert json.loads(fixed.stdout.splitlines()[-1]) == found.answer
    plain = envctl("predict", "-m", model, "-i", given)
    assert json.loads(plain.stdout) == found.answer
    # MLflow builds the environment itself, of the files as they are now.
    tools = {"PATH": f"{Path(sys.executable).parent}:{envctl.env['PATH']}", "UV_SYSTEM_CERTS": "1"}
    mlflow = ("mlflow", "models", "predict", "-m", model, "-i", given, "-o", out)
    ran = envctl("run", "-m", model, "--", *mlflow, "--env-manager", "uv", **tools)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(out.read_text()) == found.answer
