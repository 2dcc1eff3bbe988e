"""`envctl check` on broken models of real packages, one for each kind of failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import Envctl, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LOADER = """\
import pathlib, pickle
{top}

class Model:
    def __init__(self, loaded):
        self.loaded = loaded

    def predict(self, data):
{predict}


def _load_pyfunc(path):
    pickled = pathlib.Path(path) / "model.pkl"
    return Model(pickle.loads(pickled.read_bytes()) if pickled.exists() else None)
"""
# What its maker runs, in an environment of the requirements that it was made with.
SKLEARN = """\
import pickle, sys
from sklearn.ensemble import GradientBoostingRegressor
model = GradientBoostingRegressor(n_estimators=2).fit([[0], [1], [2]], [0, 1, 2])
open(sys.argv[1], "wb").write(pickle.dumps(model))
"""
TRANSFORMER = """\
import pickle, sys, types
from sklearn.preprocessing import FunctionTransformer
own = types.ModuleType("my_transformers")
exec("def double(x): return x * 2", own.__dict__)
sys.modules["my_transformers"] = own
model = FunctionTransformer(own.double)
open(sys.argv[1], "wb").write(pickle.dumps(model))
"""
BY_VALUE = """\
import cloudpickle, sys
model = lambda rows: [one + 1 for one in rows]
open(sys.argv[1], "wb").write(cloudpickle.dumps(model))
"""
PROTOCOL_5 = "import pickle, sys\nopen(sys.argv[1], 'wb').write(pickle.dumps([1], protocol=5))\n"
NUMPY_2 = (
    "import pickle, sys, numpy\nopen(sys.argv[1], 'wb').write(pickle.dumps(numpy.arange(3)))\n"
)
PREDICTS = "        return [float(one) for one in self.loaded.predict([[1]] )]"


@dataclass(frozen=True)
class Broken:
    """A model, what its check finds, and what --fix puts there; without that it does not help.

    It is made by `made_by` with the requirements `made_with`, where there are some, on
    the Python `made_on`.
    """

    requirements: tuple[str, ...]
    code: str
    subject: str
    fixed: tuple[str, ...] = ()
    answer: object = None
    predict: str = "        return 1"
    top: str = ""
    python: str = "3.11.7"
    day: str = "2024-06-15"
    recorded: str = ""
    made_by: str = ""
    made_with: tuple[str, ...] = ()
    made_on: str = "3.11.7"
    yes: tuple[str, ...] = field(default=())
    more: dict[str, str] = field(default_factory=dict)


def body(*lines: str) -> str:
    return "\n".join(f"        {one}" for one in lines)


MODELS = {
    "a module that is called otherwise, at loading": Broken(
        ("six==1.16.0",), "MODULE_MISSING", "yaml", ("PyYAML==6.0.1",), "a: 1\n",
        body("return yaml.safe_dump({'a': 1})"), top="import yaml",
    ),
    "a module that is called otherwise, at prediction": Broken(
        ("numpy==1.26.4",), "MODULE_MISSING", "cv2", ("opencv-python-headless==4.9.0.80",), 4,
        body("import cv2, numpy", "return int(cv2.add(numpy.uint8([2]), numpy.uint8([2]))[0][0])"),
    ),
    "two modules, one after the other": Broken(
        ("six==1.16.0",), "MODULE_MISSING", "dateutil", ("python-dateutil", "beautifulsoup4"),
        [2024, "x"],
        body("import dateutil.parser", "year = dateutil.parser.parse('2024-01-01').year",
             "import bs4", "return [year, bs4.BeautifulSoup('<b>x</b>', 'html.parser').text]"),
    ),
    "a module within a namespace": Broken(
        ("protobuf==4.25.3",), "MODULE_MISSING", "google.api_core",
        ("google-api-core",), "x",
        body("from google.protobuf import struct_pb2", "import google.api_core.path_template as t",
             "return t.expand('{name}', name='x')"),
    ),
    "a module that nobody knows": Broken(
        ("six==1.16.0",), "CODE_MISSING", "humanize", (), None,
        body("import humanize", "return humanize.intcomma(1000)"),
    ),
    "a module that nobody knows, with its distribution named": Broken(
        ("six==1.16.0",), "CODE_MISSING", "humanize", ("humanize",), "1,000",
        body("import humanize", "return humanize.intcomma(1000)"), yes=("humanize",),
    ),
    "a module of several distributions": Broken(
        ("six==1.16.0",), "MODULE_MISSING", "pdfminer",
        (), None, body("import pdfminer.high_level"),
    ),
    "a module of its own, which a pickle names": Broken(
        ("scikit-learn==1.5.0",), "CODE_MISSING", "my_transformers", (), None,
        made_by=TRANSFORMER, made_with=("scikit-learn==1.5.0",),
    ),
    "another version of what a pickle names": Broken(
        ("scikit-learn==1.5.0",), "VERSION_DIFFERS", "scikit-learn",
        ("scikit-learn==1.2.2",), [pytest.approx(1, abs=0.5)], PREDICTS,
        recorded="1.2.2", day="2023-06-15", made_by=SKLEARN,
        made_with=("scikit-learn==1.2.2", "numpy<2"),
    ),
    "NumPy 2 under what was compiled for 1": Broken(
        ("scikit-learn==1.2.2", "numpy==2.0.0"), "NUMPY_DIFFERS", "numpy",
        ("numpy==1.26.4",), "1.2.2", body("import sklearn.tree", "return sklearn.__version__"),
    ),
    "NumPy 1 under what NumPy 2 pickled": Broken(
        ("numpy==1.25.2",), "NUMPY_DIFFERS", "numpy", ("numpy",), 3,
        body("return int(self.loaded.sum())"), day="2024-09-15",
        made_by=NUMPY_2, made_with=("numpy==2.0.0",),
    ),
    "what NumPy has no more": Broken(
        ("numpy==1.26.4",), "VERSION_DIFFERS", "numpy", ("numpy==1.23.5",), 1,
        body("import numpy", "return int(numpy.float(1))"),
    ),
    "what Jinja has no more": Broken(
        ("flask==1.1.2", "jinja2==3.1.4", "markupsafe==2.0.1", "itsdangerous==2.0.1",
         "werkzeug==2.0.3"), "VERSION_DIFFERS", "jinja2", ("jinja2==3.0.3",), "1.1.2",
        body("import flask", "return flask.__version__"),
    ),
    "pkg_resources": Broken(
        ("setuptools==82.0.0",), "VERSION_DIFFERS", "setuptools", ("setuptools",), "8",
        body("import pkg_resources as it", "return it.get_distribution('setuptools').version[0]"),
        day="2026-03-15",
    ),
    "code of another Python": Broken(
        ("cloudpickle==2.2.1",), "PYTHON_DIFFERS", "python 3.8", (), None,
        body("return self.loaded(data)"), made_by=BY_VALUE, made_with=("cloudpickle==2.2.1",),
        made_on="3.8.18", day="2023-06-15",
    ),
    "a pickle of a newer Python": Broken(
        ("six==1.16.0",), "PYTHON_DIFFERS", "python 3.8", (), None,
        python="3.7.16", made_by=PROTOCOL_5, made_with=("six==1.16.0",), made_on="3.8.18",
    ),
    "syntax of a newer Python": Broken(
        ("six==1.16.0",), "PYTHON_DIFFERS", "tiny_loader.py", (), None,
        top="match 1:\n    case 1: pass", python="3.9.18",
    ),
    "a library that is no Python package": Broken(
        ("pyzbar==0.1.9",), "LIBRARY_MISSING", "zbar", (), None, body("import pyzbar.pyzbar"),
    ),
    "data that comes with no distribution": Broken(
        ("nltk==3.8.1",), "DATA_MISSING", "punkt", (), None,
        body("import nltk", "return nltk.word_tokenize('a b')"),
    ),
    "requirements that do not go together": Broken(
        ("scikit-learn==1.5.0", "numpy==1.16.0"), "SOLVE_FAILED", "", (), None,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def envctl(shared_root: Path, home: Path) -> Envctl:
    """envctl on the root of the real environments."""
    return Envctl(shared_root, environment(shared_root, home))


@pytest.fixture
def make(tmp_path: Path, envctl: Envctl) -> Callable[[Broken], Path]:
    def written(folder: Path, one: Broken, python: str, requirements: tuple[str, ...]) -> Path:
        (folder / "code").mkdir(parents=True)
        loader = LOADER.format(top=one.top, predict=one.predict)
        (folder / "code" / "tiny_loader.py").write_text(loader)
        (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
        (folder / "python_env.yaml").write_text(
            f"python: {python}\ndependencies:\n- -r requirements.txt\n"
        )
        flavor = f"  sklearn: {{sklearn_version: {one.recorded}}}\n" if one.recorded else ""
        (folder / "MLmodel").write_text(
            "flavors:\n  python_function:\n    loader_module: tiny_loader\n    code: code\n"
            f"    python_version: {one.made_on}\n    env: {{virtualenv: python_env.yaml}}\n{flavor}"
            f"utc_time_created: '{one.day} 12:00:00'\n"
            "saved_input_example_info: {artifact_path: example.json}\n"
        )
        (folder / "example.json").write_text('{"inputs": [1, 2]}')
        return folder

    def make(one: Broken) -> Path:
        folder = written(tmp_path / "model", one, one.python, one.requirements)
        if one.made_by:
            maker = written(tmp_path / "maker", one, one.made_on, one.made_with)
            (tmp_path / "make.py").write_text(one.made_by)
            program = ("python", tmp_path / "make.py", folder / "model.pkl")
            ran = envctl("run", "-m", maker, "--", *program)
            assert ran.returncode == 0, ran.stderr
        return folder

    return make


@pytest.mark.parametrize("name", MODELS)
def test_each_broken_model_is_diagnosed_and_fixed_where_that_is_certain(
    name: str, envctl: Envctl, make: Callable[[Broken], Path]
) -> None:
    one = MODELS[name]
    model = make(one)

    ran = envctl("check", "-m", model, "--json")
    yes = [part for text in one.yes for part in ("--yes", text)]
    fix = envctl("check", "-m", model, "--fix", "--json", *yes)

    assert ran.returncode == 1, ran.stderr
    found = json.loads(ran.stdout)["findings"][0]
    assert (found["code"], found["subject"].rpartition("/")[2]) == (one.code, one.subject), found
    if one.subject == "humanize":
        assert found["candidates"] == ["humanize"]
    fixed = json.loads(fix.stdout)
    assert fix.returncode == (0 if one.fixed else 1), fixed
    assert [text.partition("==")[0] for text in fixed["added"]] == [
        text.partition("==")[0] for text in one.fixed
    ]
    exact = [text for text in one.fixed if "==" in text]
    assert [text for text in fixed["added"] if text in exact] == exact
    if one.fixed:
        assert fixed["answer"] == {"predictions": one.answer}
