"""Makes the models that the benchmarks of serving ask; what is there already is left alone.

- echo: answers with its input. Its loader is its own and imports nothing, so that its
  environment is a Python with no packages, and what is measured is envd alone.
- iris, forest: scikit-learn's, in the environment of `examples/iris`: its LogisticRegression,
  and a RandomForestClassifier of 50 trees on the same data.
- copies: the LogisticRegression again and again, each with coefficients of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from rounds import run, say
from setup import BENCH, IRIS

from envd import config
from envd import model as models
from envd.environments.environments import Environments
from envd.store import Environment

ROOT = BENCH / "root"
_HOME = BENCH / "served"
_ECHO = {
    "MLmodel": "flavors:\n  python_function:\n    loader_module: echoing\n    code: code\n"
    "    env:\n      virtualenv: python_env.yaml\n",
    "code/echoing.py": "class Echo:\n    def predict(self, data):\n        return data\n\n\n"
    "def _load_pyfunc(path):\n    return Echo()\n",
    "python_env.yaml": "python: {python}\ndependencies:\n- -r requirements.txt\n",
    "requirements.txt": "",
}
_FOREST = """
import sys, cloudpickle
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

data = load_iris()
for target in sys.argv[1:]:
    model = RandomForestClassifier(50, random_state=0).fit(data.data, data.target)
    cloudpickle.dump(model, open(target + "/model.pkl", "wb"))
"""
_COPIES = """
import pathlib, pickle, sys, cloudpickle

source, *targets = sys.argv[1:]
for number, target in enumerate(targets, 1):
    model = pickle.loads(pathlib.Path(source, "model.pkl").read_bytes())
    model.coef_ *= 1 + number / 1000
    pathlib.Path(target, "model.pkl").write_bytes(cloudpickle.dumps(model))
"""


def environment() -> Environment:
    """Return the environment of `examples/iris`, built if it must be."""
    environments = Environments(config.load(root=ROOT))
    return environments.ready(environments.ask(models.read(IRIS))).environment


def echo() -> Path:
    """Make the model that echoes."""
    folder = _HOME / "echo"
    python = "{}.{}.{}".format(*sys.version_info)
    for name, text in _ECHO.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("{python}", python))
    return folder


def forests() -> list[Path]:
    """Make the forest, twice: of two with one path, both would be asked in batches."""
    return _like_iris(["forest", "batches"], _FOREST)


def copies(count: int) -> list[Path]:
    """Make *count* models, none like another."""
    return _like_iris([f"copy-{number}" for number in range(count)], _COPIES, IRIS)


def _like_iris(names: list[str], program: str, *given: Path) -> list[Path]:
    """Copy `examples/iris` under each of *names*; *program* writes what differs."""
    folders = [_HOME / name for name in names]
    missing = [one for one in folders if not one.with_suffix(".made").exists()]
    if missing:
        say(f"making {len(missing)} models")
        for folder in missing:
            shutil.copytree(IRIS, folder, dirs_exist_ok=True)
        python = environment().python
        run([python, "-I", "-c", program, *given, *missing], {})
        for folder in missing:
            folder.with_suffix(".made").touch()
    return folders


def iris_row() -> dict[str, object]:
    """Return one row for the models like iris."""
    table = json.loads((IRIS.parent / "iris.json").read_text())["dataframe_split"]
    return {"dataframe_split": {"columns": table["columns"], "data": table["data"][:1]}}
