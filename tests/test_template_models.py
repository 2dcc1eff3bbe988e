"""Real estimators answer the same from a fork, from a batch and from a fresh worker."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from envd import config
from envd.build import Interpreter, Interpreters
from envd.run.envd_worker import protocol
from tests.worker_program import JSON, Talk, Template, load_head, worker

_PACKAGES = ("scikit-learn", "lightgbm")
_TRAIN = """
import pickle, sys
import numpy
from lightgbm import LGBMClassifier
from sklearn.cluster import KMeans
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
table = numpy.random.RandomState(0).rand(300, 4)
labels = (table.sum(axis=1) > 2).astype(int)
found = {
    'logistic': LogisticRegression(),
    'forest': RandomForestClassifier(50, n_jobs=2, random_state=0),
    'boosting': HistGradientBoostingClassifier(random_state=0),
    'means': KMeans(3, n_init=3, random_state=0),
    'lightgbm': LGBMClassifier(n_jobs=2, verbose=-1, random_state=0),
}
for one in found.values():
    one.fit(table, labels)
with open(sys.argv[1], 'wb') as file:
    pickle.dump(found, file)
"""
_LOADER = """
import pickle
import warnings

import numpy

warnings.simplefilter('ignore')


class Model:
    def __init__(self, found):
        self.found = found

    def predict(self, data, params):
        if params['model'] == 'random':
            return numpy.random.rand(len(data))
        return self.found[params['model']].predict(numpy.array(data))


def _load_pyfunc(path):
    with open(path + '/model.pkl', 'rb') as file:
        return Model(pickle.load(file))
"""
_MODELS = ("logistic", "forest", "boosting", "means", "lightgbm")
_ROWS = [[number / 10, 0.5, 1 - number / 10, 0.4 + number / 50] for number in range(10)]


def _newest_of(tmp: Path, *minors: int) -> list[Interpreter]:
    found = Interpreters(config.load(root=tmp, environ={})).found()
    by_minor = {one.python.minor: one for one in found}
    return [by_minor[f"3.{minor}"] for minor in minors if f"3.{minor}" in by_minor]


def _environment(folder: Path, python: Path, cache: Path) -> Path:
    """Install the packages for *python*."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    env = dict(os.environ, UV_CACHE_DIR=str(cache), UV_NO_CONFIG="1")
    for arguments in (
        ["venv", "--quiet", "--python", python, folder],
        ["pip", "install", "--quiet", "--python", folder / "bin" / "python", *_PACKAGES],
    ):
        subprocess.run([uv, *arguments], env=env, check=True)
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("minor", range(8, 14))
def test_estimators_answer_the_same_fresh_forked_and_in_a_batch(
    minor: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = _newest_of(tmp_path / "root", minor)
    if not found:
        pytest.skip(f"there is no Python 3.{minor}")
    cache = tmp_path_factory.getbasetemp() / "uv-cache"
    python = _environment(tmp_path / "environment", found[0].path, cache)
    model = tmp_path / "model"
    (model / "code").mkdir(parents=True)
    (model / "code" / "loader.py").write_text(_LOADER)
    subprocess.run([python, "-c", _TRAIN, model / "model.pkl"], check=True)
    env = {"HOME": str(tmp_path), "LANG": "C.UTF-8", "PATH": os.defpath}

    with worker(python, cwd=tmp_path, env=env) as (talk, _):
        told = talk.load(model, batch=True, max_batch=len(_ROWS))["modules"]
        fresh = {one: _answers(talk, one) for one in _MODELS}
        batched = {one: _batched(talk, one) for one in _MODELS}
    forked: dict[str, list[bytes]] = {}
    drawn = []
    with Template(told, python=python, cwd=tmp_path, env=env) as template:
        ready = template.ready()
        for one in _MODELS:
            with template.worker(env=env) as (talk, _):
                talk.ask(protocol.LOAD, load_head(model))
                forked[one] = _answers(talk, one)
                drawn.append(_ask(talk, "random", _ROWS[:1]))
            assert template.hear()["status"] == 0

    assert {"sklearn", "lightgbm", "numpy"} <= set(ready["modules"])
    assert forked == fresh
    assert batched == fresh
    assert len(set(drawn)) == len(_MODELS)


def _frame(name: str, rows: list[list[float]]) -> tuple[int, dict[str, Any], bytes]:
    head = JSON | {"params": {"model": name}}
    return protocol.PREDICT, head, json.dumps({"inputs": rows}).encode()


def _ask(talk: Talk, name: str, rows: list[list[float]]) -> bytes:
    return bytes(talk.ask(*_frame(name, rows)).payload)


def _answers(talk: Talk, name: str) -> list[bytes]:
    """Return what is answered to each row alone."""
    return [_ask(talk, name, [row]) for row in _ROWS]


def _batched(talk: Talk, name: str) -> list[bytes]:
    """Return what is answered to each row of a batch."""
    talk.send(*[_frame(name, [row]) for row in _ROWS])
    assert talk.hear().kind == protocol.BEGUN
    answers = [talk.hear() for _ in _ROWS]
    assert [one.head.get("batch") for one in answers] == [len(_ROWS)] * len(_ROWS)
    return [bytes(one.payload) for one in answers]
