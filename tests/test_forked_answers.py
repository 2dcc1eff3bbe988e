"""What a forked worker answers is what a fresh one does, for real libraries on every Python."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from envd.model import mlmodel
from envd.run.pool import Pool, Prediction, Request
from envd.run.serving import Serving
from envd.settings.sections import Index, Resolve
from envd.store import Environment
from tests.house import House
from tests.stage import Stage, answer
from tests.tiny import Tiny

_MAKER = Path(__file__).with_name("make_forkable_models.py")
_REQUIREMENTS = ("mlflow-skinny", "pandas", "scikit-learn", "lightgbm", "cloudpickle")
_ROWS = {"columns": list("abcd"), "data": [[0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.7, 0.6]]}
_REQUEST = Request(json.dumps({"dataframe_split": _ROWS}).encode(), "application/json", None)
_SAME = ("logistic", "forest", "boosting", "clusters", "lightgbm")


@pytest.fixture
def every_python(house: House, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage with the real index and all Pythons of the machine."""
    monkeypatch.undo()
    house.settings = replace(house.settings, index=Index(), resolve=Resolve(as_of="now"))
    return Stage(house, tiny)


def made(stage: Stage, python: str) -> tuple[dict[str, Path], Environment]:
    """Build one environment for *python*, and save models with it."""
    seed = stage.tiny.model(stage.house.folder / "seed", *_REQUIREMENTS, python=python)
    environments = stage.house.environments
    found = environments.ready(environments.ask(mlmodel.read(seed))).environment
    folder = stage.house.folder / "models"
    folder.mkdir()
    subprocess.run(
        [found.python, "-I", "-B", _MAKER, folder, *_REQUIREMENTS],
        check=True,
        capture_output=True,
        cwd=stage.house.folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(stage.house.folder)},
        timeout=240,
    )
    return {path.name: path for path in folder.iterdir() if path.is_dir()}, found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("python", ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"])
def test_a_forked_worker_answers_as_a_fresh_one(every_python: Stage, python: str) -> None:
    stage = every_python
    paths, environment = made(stage, python)

    async def ask(pool: Pool, name: str, serving: Serving) -> Prediction:
        return await pool.predict(mlmodel.read(paths[name]), environment, _REQUEST, serving)

    async def play(pool: Pool) -> None:
        fresh, forked = Serving(template=False), Serving()
        answers = {name: await ask(pool, name, fresh) for name in paths}
        # So that the template has been told of every library.
        assert {found.origin for found in answers.values()} == {"fresh"}
        found = {name: await ask(pool, name, forked) for name in paths}
        for name in _SAME:
            assert (found[name].origin, name) == ("forked", name)
            assert found[name].payload == answers[name].payload
            again = await ask(pool, name, forked)
            assert (again.origin, again.payload) == ("warm", answers[name].payload)
        assert found["draws"].origin == "forked"
        numbers = answer(found["draws"]), answer(answers["draws"])
        assert numbers[0][0] != numbers[1][0]
        assert numbers[0][1] != numbers[1][1]
        for name, expected in (("shadowed", ["the model"]), ("sets", ["yes"])):
            assert (found[name].origin, answer(found[name])) == ("fresh", expected)

    stage.run(play, limit_s=600)
