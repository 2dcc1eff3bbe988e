"""Models are recorded whole or not at all, with their code, and what is missing is said at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import yaml

from envd import config, process
from envd import model as models
from envd.errors import RequestInvalidError
from envd.record import envd_recorded, example, record, requirements, secrets, signature
from envd.spec import gather
from tests.called import Called
from tests.conftest import environment, wait_for
from tests.unpacked import Site

_LOAD = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1] + "/code")
model = importlib.import_module("envd_recorded")._load_pyfunc(sys.argv[1])
print(json.dumps(model.predict(json.loads(sys.argv[2]))))
"""
_NOTHING = {"inputs": "[]"}


class Doubles:
    """A model of a class that is pickled by reference."""

    def predict(self, model_input: list[int]) -> list[int]:
        return [2 * one for one in model_input]


def loaded(folder: Path, data: object) -> Any:
    """Return what the model answers in a process that knows nothing else."""
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", _LOAD, folder, json.dumps(data)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Project:
    """A folder with code, in which `envctl record` is called by a Python without MLflow."""

    folder: Path
    envctl: Called
    site: Site

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        here = Path.cwd()
        os.chdir(self.folder)
        try:
            return self.envctl("record", *arguments)
        finally:
            os.chdir(here)


@pytest.fixture
def project(tmp_path: Path, home: Path, bare_python: Path) -> Project:
    site = Site(tmp_path / "site-packages")
    source = Path(cloudpickle.__file__).parent
    site.add("cloudpickle", {}, version="9.9")
    shutil.copytree(source, site.folder / "cloudpickle")
    record_ = site.folder / "cloudpickle-9.9.dist-info" / "RECORD"
    names = "".join(f"cloudpickle/{one.name},,\n" for one in source.glob("*.py"))
    record_.write_text(record_.read_text() + "\n" + names)
    prefix = str(bare_python.parents[1])
    variables = {"PYTHONPATH": str(site.folder), "PYTHONNOUSERSITE": "1", "VIRTUAL_ENV": prefix}
    (tmp_path / "project").mkdir()
    called = Called(tmp_path / "root", environment(tmp_path / "root", home, **variables))
    return Project(tmp_path / "project", called, site)


MAIN = "class Model:\n    def predict(self, context, model_input, params=None):\n        "


def test_what_a_script_defines_goes_into_the_pickle_and_needs_are_found(project: Project) -> None:
    project.site.add("used-lib", {"used.py": "def f(x):\n    return x + 1\n"}, version="1.2+mine")
    body = "import used\n        return [used.f(one) for one in model_input]\n"
    project.write({"train.py": MAIN + body, "in.json": '{"inputs": [1, 2]}'})

    done = project("train.py:Model", "-o", "model", "-i", "in.json", "--json")

    assert done.returncode == 0, done.stderr
    folder = project.folder / "model"
    assert json.loads(done.stdout) == {
        "path": str(folder),
        "requirements": ["cloudpickle==9.9", "used-lib==1.2"],
        "constraints": [],
        "code": [],
        "notes": json.loads(done.stdout)["notes"],
    }
    assert "MLflow is not here" in done.stderr
    assert sorted(one.name for one in folder.iterdir()) == [
        "MLmodel", "code", "conda.yaml", "input_example.json", "python_env.yaml",
        "python_model.pkl", "recorded.json", "requirements.txt", "serving_input_example.json",
    ]  # fmt: skip
    assert sorted(one.name for one in project.folder.iterdir()) == ["in.json", "model", "train.py"]


def test_code_is_followed_wherever_it_is_imported(project: Project) -> None:
    project.write({
        "model.py": "from base.parent import Parent\n\nclass Model(Parent):\n    pass\n",
        "base/__init__.py": "from base import early\n",
        "base/early.py": "",
        "base/parent.py": (
            "from .helping import times\nclass Parent:\n"
            "    def predict(self, model_input):\n        return [times(i) for i in model_input]\n"
            "    def rarely(self):\n        import lazily.deep\n"
        ),
        "base/helping.py": "def times(x):\n    return 3 * x\n",
        "lazily/deep.py": "from base.unloaded import X\n",
        "base/unloaded.py": "X = 1\n",
        "unused.py": "",
    })  # fmt: skip

    (project.folder / "real").mkdir()
    (project.folder / "link").symlink_to("real")
    done = project("model:Model", "-o", "link/out", "--infer-code-paths", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["code"] == [
        "base/__init__.py", "base/early.py", "base/helping.py", "base/parent.py",
        "base/unloaded.py", "lazily/deep.py", "model.py",
    ]  # fmt: skip
    assert loaded(project.folder / "real" / "out", [1, 2]) == [3, 6]


def test_a_script_trains_once_and_what_it_defines_is_followed(project: Project) -> None:
    body = "from src.helping import f\n        return f(model_input)\n"
    rarely = "    def rarely(self):\n        import late\n"
    training = "import training\nopen('data.csv').close()\n"
    project.write({
        "train.py": training + MAIN + body + rarely, "training.py": "", "late.py": "",
        "src/helping.py": "def f(x):\n    return x\n", "in.json": '{"inputs": [1]}',
        "data.csv": "",
    })  # fmt: skip

    done = project("train.py:Model", "-o", "out", "--infer-code-paths", "-i", "in.json", "--json")
    (project.folder / "data.csv").unlink()

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["code"] == ["late.py", "src/helping.py"]
    steps = ["running train.py", "following what the model imports", "running the model"]
    assert done.stderr.splitlines()[:3] == steps
    assert loaded(project.folder / "out", [1]) == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "full"), "`full` is there already"),
        (("-o", "out", "--pip-requirements", "six", "--conda-env", "conda.yaml"), "give one of"),
        (("-o", "out", "--pip-requirements", "six=1"), "is not a requirement"),
    ],
)
def test_what_cannot_be_is_said_before_a_script_trains(
    project: Project, options: tuple[str, ...], message: str
) -> None:
    training = "open('trained', 'w').close()\n"
    project.write({"train.py": training + MAIN + "return model_input\n", "full/a": ""})

    refused = project("train.py:Model", *options)

    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (project.folder / "trained").exists()


def test_another_envd_beside_the_model_is_not_asked(project: Project) -> None:
    project.site.add("envd-daemon", {"envd/__init__.py": "raise SystemExit('an older one')\n"})
    project.write({"train.py": MAIN + "return model_input\n"})

    done = project("train.py:Model", "-o", "out", "--no-check")

    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_is_worked_on_is_followed_too(project: Project, tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere"
    (mine / "mine").mkdir(parents=True)
    (mine / "mine" / "__init__.py").write_text("def f(x):\n    return -x\n")
    origin = {"url": mine.as_uri(), "dir_info": {"editable": True}}
    project.site.add("my-project", {}, origin=origin)
    project.envctl.env["PYTHONPATH"] += f":{mine}"
    body = "import mine\n        return [mine.f(one) for one in model_input]\n"
    project.write({"train.py": MAIN + body, "in.json": '{"inputs": [1]}'})

    refused = project("train.py:Model", "-o", "out", "-i", "in.json")
    done = project("train.py:Model", "-o", "out", "--infer-code-paths", "-i", "in.json", "--json")

    assert f"is worked on here and no index has: my-project ({mine})" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["code"] == ["mine/__init__.py"]
    assert loaded(project.folder / "out", [1]) == [-1]


def test_requirements_that_lack_what_the_model_needs_are_noted(project: Project) -> None:
    project.site.add("used-lib", {"used.py": "import deep\n"}, "deep-lib")
    project.site.add("deep-lib", {"deep.py": ""})
    body = "import used, deep\n        return model_input\n"
    project.write({"train.py": MAIN + body, "in.json": "[1]"})
    asked = ("train.py:Model", "-i", "in.json", "--pip-requirements", "cloudpickle")

    lacks = project(*asked, "-o", "one")
    has = project(*asked, "-o", "two", "--pip-requirements", "Used_Lib")

    assert lacks.returncode == has.returncode == 0, lacks.stderr + has.stderr
    assert "note: the model needs used-lib==1.0, which it does not ask for" in lacks.stderr
    assert "note: the model needs deep-lib==1.0" in lacks.stderr
    assert "the model needs" not in has.stderr


def test_code_that_is_missing_is_an_error_that_says_where_it_lies(project: Project) -> None:
    body = "from src.helping import f\n        return f(model_input)\n"
    project.write({
        "train.py": MAIN + body, "src/helping.py": "def f(x):\n    return x\n",
        "src/half.py": "from src.helping import f\n", "in.json": '{"inputs": [1]}',
        "half.py": MAIN + body.replace("helping", "half"),
    })  # fmt: skip

    refused = project("train.py:Model", "-o", "out", "-i", "in.json")
    half = project("half.py:Model", "-o", "out", "-i", "in.json", "--code-paths", "src/half.py")
    done = project("train.py:Model", "-o", "out", "-i", "in.json", "--code-paths", "src/helping.py")

    assert refused.returncode == 1
    assert f"the module `src` ({project.folder}/src) is not in the model" in refused.stderr
    file = project.folder / "src" / "helping.py"
    assert f"the module `src.helping` ({file}) is not in the model" in half.stderr
    assert done.returncode == 0, done.stderr
    assert not [one for one in project.folder.iterdir() if one.name.startswith(".")]


SECRETS = {
    "an AWS access key": 'KEY = "AKIA' + "Z2Q5" * 4 + '"',
    "a private key": 'PEM = """-----BEGIN RSA PRIVATE' + ' KEY-----\nMIIE"""',
    "a GitHub token": "# gh" + "p_" + "a1B2" * 9,
    "`DB_PASSWORD` and a text": 'DB_PASSWORD = "hunter22"',
    "`api_key` and a text": 'CONFIG = {"api_key": "0123456789abcdef"}',
    "a password in a URL": 'DSN = "postgres://me:hunter22@db/x"',
}
NO_SECRETS = """\
password = os.environ["PASSWORD"]
api_key = "<your key>"
eos_token = "</s>"
pad_token = "padded!"
token = "${TOKEN}"
url = f"postgres://{user}:{password}@db"
tokenizer = "bert-base"
author = "someone"
task = "risk-assessment-of-things-that-happen-rarely"
"""


@pytest.mark.parametrize("kind", SECRETS)
def test_what_looks_like_a_secret_is_named_and_not_shown(kind: str) -> None:
    found = list(secrets.in_text("a.py", f"\n{SECRETS[kind]}\n".encode()))

    assert [str(one) for one in found] == [f"a.py:2: {kind}"]


def test_what_only_has_such_a_name_is_none() -> None:
    assert list(secrets.in_text("a.py", NO_SECRETS.encode())) == []


def test_nothing_with_a_secret_is_written_unless_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("helping.py").write_text('PASSWORD = "hunter22"\n')
    given: dict[str, Any] = {"python_model": len, "code_paths": ["helping.py"], "check": False}
    here = sorted(tmp_path.iterdir())

    with pytest.raises(RequestInvalidError, match=r"helping\.py:1: `PASSWORD` and a text"):
        record("model", **given)
    assert sorted(tmp_path.iterdir()) == here
    line = "--extra-index-url https://me:hunter22@host/simple"
    with pytest.raises(RequestInvalidError, match="a password in a URL") as caught:
        record("model", python_model=len, pip_requirements=[line], check=False)
    assert "hunter22" not in caught.value.message
    record("model", **given, allow_secrets=True)


def test_code_paths_keep_the_names_modules_are_imported_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("src/__init__.py", "src/deep/helping.py", "whole/a.py", "whole/data.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    os.mkfifo("whole/pipe")
    Path("whole/.#a.py").symlink_to("me@here.1234")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "there.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "other")

    paths = ["src/deep/helping.py", "whole", tmp_path / "other" / "there.py"]
    found = record("model", python_model=len, code_paths=paths, check=False)

    assert found.code == (
        "src/__init__.py", "src/deep/helping.py", "there.py", "whole/a.py", "whole/data.txt"
    )  # fmt: skip


WRONG_PATHS = {
    "..": "is a folder that modules are found in|below neither",
    ".": "is a folder that modules are found in",
    "../beside/helping.py": "below neither the current folder",
    "nowhere.py": "is not there",
}


@pytest.mark.parametrize("path", WRONG_PATHS)
def test_a_path_that_has_no_name_is_an_error_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "helping.py").write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    with pytest.raises(RequestInvalidError, match=WRONG_PATHS[path]):
        record("model", python_model=len, code_paths=[path], check=False)
    assert list(Path().iterdir()) == []


def test_files_of_requirements_are_followed(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "all.txt").write_text(
        "six==1.17  # comment\n-r more/base.txt\n-c limits.txt\n--no-binary six\n"
    )
    (tmp_path / "more" / "base.txt").write_text("attrs \\\n  ==24.1\n-cbounds.txt\n")
    (tmp_path / "more" / "bounds.txt").write_text("numpy<3\n")
    (tmp_path / "limits.txt").write_text("pandas<4\n")

    found = requirements.read(tmp_path / "all.txt", "pip_requirements")

    assert found.lines == ("--no-binary six", "six==1.17", "attrs    ==24.1")
    assert found.constraints == ("numpy<3", "pandas<4")
    more = requirements.read(["Six==1.16", "new"], "extra_pip_requirements")
    assert (found + more).lines == ("--no-binary six", "attrs    ==24.1", "Six==1.16", "new")


def test_the_files_are_as_mlflow_writes_them(tmp_path: Path) -> None:
    (tmp_path / "limits.txt").write_text("numpy<3\n")
    asked = ["mlflow==2.9.2", f"-c {tmp_path / 'limits.txt'}", "six==1.17"]

    found = record(
        tmp_path / "model", python_model=len, pip_requirements=asked, check=False,
        metadata={"a": 1}, model_config={"b": 2}, signature=_NOTHING,
    )  # fmt: skip

    folder = found.path
    assert (
        folder / "requirements.txt"
    ).read_text() == "mlflow==2.9.2\nsix==1.17\n-c constraints.txt"
    assert (folder / "constraints.txt").read_text() == "numpy<3"
    conda = yaml.safe_load((folder / "conda.yaml").read_text())
    assert conda["channels"] == ["conda-forge"]
    assert conda["dependencies"][0] == "python={}.{}.{}".format(*sys.version_info)
    assert conda["dependencies"][-1] == {
        "pip": ["mlflow==2.9.2", "six==1.17", "-c constraints.txt"]
    }
    env = yaml.safe_load((folder / "python_env.yaml").read_text())
    assert env["dependencies"] == ["-r requirements.txt"]
    assert [one.partition("==")[0] for one in env["build_dependencies"]] == [
        "pip", "setuptools", "wheel"
    ]  # fmt: skip
    read = gather.read(models.read(folder), config.load(root=tmp_path, environ={}))
    assert [one.text for one in read.asked.constraints] == ["numpy<3"]


def test_a_conda_environment_is_kept_and_says_which_python(tmp_path: Path) -> None:
    (tmp_path / "conda.yaml").write_text(
        "channels: [mine]\ndependencies: [python=3.9.18, libfoo, {pip: [six, mlflow==2.9.2]}]\n"
    )

    record(tmp_path / "model", python_model=len, conda_env=tmp_path / "conda.yaml", check=False)

    assert yaml.safe_load((tmp_path / "model" / "conda.yaml").read_text()) == {
        "channels": ["mine"],
        "dependencies": ["python=3.9.18", "libfoo", "pip", {"pip": ["six", "mlflow==2.9.2"]}],
    }
    assert "python: 3.9.18" in (tmp_path / "model" / "python_env.yaml").read_text()


def test_artifacts_a_config_and_params_reach_the_model(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "words.txt").write_text(folder)
    text = (
        "import pathlib\nclass Model:\n    def load_context(self, context):\n"
        "        paths = (context.artifacts['a'], context.artifacts['b'])\n"
        "        self.words = [pathlib.Path(path).read_text() for path in paths]\n"
        "        self.config = context.model_config\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return [self.words, self.config, model_input, params]\n"
    )
    (tmp_path / "script.py").write_text(text)

    record(
        tmp_path / "model", python_model=f"{tmp_path / 'script.py'}:Model", check=False,
        artifacts={"a": tmp_path / "one" / "words.txt", "b": tmp_path / "two" / "words.txt"},
        model_config={"c": 1},
    )  # fmt: skip

    assert loaded(tmp_path / "model", [7]) == [["one", "two"], {"c": 1}, [7], None]
    adapted = envd_recorded._load_pyfunc(str(tmp_path / "model"), {"d": 2})
    assert adapted.predict([7], {"p": 3})[1:] == [{"c": 1, "d": 2}, [7], {"p": 3}]


WRONG = {
    "no model": ({"python_model": 1}, "has no `predict`"),
    "a class": ({"python_model": Doubles}, "give an instance"),
    "no script": ({"python_model": "nowhere.py:x"}, "cannot be read"),
    "no requirement": ({"pip_requirements": ["a b"]}, "`a b` of `pip_requirements` is not"),
    "no file": ({"pip_requirements": "nowhere.txt"}, "cannot be read"),
    "two": ({"pip_requirements": ["a"], "conda_env": {}}, "give one of"),
    "no conda": ({"conda_env": {"name": "x"}}, "no list of `dependencies`"),
    "no artifact": ({"artifacts": {"a": "nowhere"}}, "artifact `a` is not there"),
    "no signature": ({"signature": [1]}, "no mapping"),
    "no JSON": ({"input_example": object()}, "cannot be written as JSON"),
    "does not answer": ({"input_example": 3}, "does not answer `input_example`: TypeError"),
    "leads out": ({"pip_requirements": ["-e ../x"]}, "`../x` is not in the model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given, said = WRONG[case]

    with pytest.raises(RequestInvalidError, match=said):
        record("model", **{"python_model": len, "check": False, **given})
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    record(tmp_path / "model", python_model=len, check=False)

    with pytest.raises(RequestInvalidError, match="is there already"):
        record(tmp_path / "model", python_model=len, check=False)


def test_a_command_that_is_stopped_leaves_nothing(project: Project) -> None:
    body = "import pathlib, time\n        pathlib.Path('begun').touch()\n        time.sleep(60)\n"
    project.write({"train.py": MAIN + body, "in.json": "[1]"})
    argv = project.envctl.argv("record", "train.py:Model", "-o", "out", "-i", "in.json")

    with subprocess.Popen(
        argv, cwd=project.folder, env=project.envctl.env, stderr=subprocess.DEVNULL
    ) as started:
        wait_for((project.folder / "begun").exists)
        began = [one.name for one in project.folder.iterdir() if one.name.startswith(".out.")]
        started.terminate()
        started.wait(60)

    assert len(began) == 1
    assert sorted(one.name for one in project.folder.iterdir()) == ["begun", "in.json", "train.py"]


def test_what_one_left_that_was_killed_the_next_removes(project: Project) -> None:
    project.write({"train.py": MAIN + "return model_input\n"})
    ended = subprocess.run(
        [sys.executable, "-c", "from envd import process; print(process.stamp())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    left = project.folder / f".out.recording.{ended.stdout.strip()}.1"
    under_way = project.folder / f".out.recording.{process.stamp()}.1"
    for one in (left, under_way):
        (one / "code").mkdir(parents=True)

    done = project("train.py:Model", "-o", "out", "--no-check")

    assert done.returncode == 0, done.stderr
    assert not left.exists()
    assert under_way.exists()


def test_a_class_of_main_needs_cloudpickle_or_a_module(project: Project) -> None:
    shutil.rmtree(project.site.folder / "cloudpickle")
    project.write({"train.py": MAIN + "return model_input\n"})

    refused = project("train.py:Model", "-o", "out")
    done = project("train.py:Model", "-o", "out", "--code-paths", "train.py")
    inferred = project("train.py:Model", "-o", "two", "--infer-code-paths")

    assert "install it, or give --infer-code-paths" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert (project.folder / "out" / "requirements.txt").read_text() == ""
    assert loaded(project.folder / "out", [1]) == loaded(project.folder / "two", [1]) == [1]
    assert inferred.returncode == 0, inferred.stderr


@pytest.mark.slow
def test_tables_and_arrays_have_signatures_without_mlflow() -> None:
    numpy, pandas = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    table = pandas.DataFrame({"i": [1], "f": [0.5], "s": ["a"], "b": [True]})
    array = numpy.zeros((2, 3), "float32")

    assert [one["type"] for one in signature._described(table)] == [
        "long", "double", "string", "boolean"
    ]  # fmt: skip
    assert signature._described(array) == [
        {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}
    ]
    assert example.of(table).served == {
        "dataframe_split": {"columns": ["i", "f", "s", "b"], "data": [[1, 0.5, "a", True]]}
    }
    assert example.of_request(example.of(table).served).equals(table)
    assert example.of(({"x": 1}, {"p": 2})).served == {"inputs": {"x": 1}, "params": {"p": 2}}
