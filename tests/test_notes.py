"""What is worth knowing of an answer or an environment, where people and programs see it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.called import Called
from tests.conftest import Daemon, Envctl, one_python
from tests.tiny import Tiny, wheel


@pytest.fixture(scope="module")
def more_settings(tools: Path) -> dict[str, str]:
    return one_python(tools)


@pytest.fixture(scope="module")
def either(either: Envctl) -> Envctl:
    return Called(either.root, either.env)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    found = Tiny.make(tmp_path_factory.mktemp("tiny"))
    for version in ("1.0", "1.1"):
        wheel(found.wheels, "scikit-learn", version, sklearn="")
    return found


def made_with(model: Path, version: str, created: str = "2024-02-14 01:02:03") -> Path:
    with (model / "MLmodel").open("a") as file:
        file.write(f"  sklearn:\n    sklearn_version: {version}\n")
        file.write(f"utc_time_created: '{created}'\n")
    return model


def test_an_answer_says_that_a_library_is_not_the_one_the_model_was_made_with(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = made_with(tiny.model(tmp_path / "model", "tiny-a", "scikit-learn==1.1"), "1.0")
    said = "the model was made with scikit-learn 1.0; the environment has 1.1"
    note = {"code": "VERSION_DIFFERS", "message": said, "subject": "scikit-learn"}

    built = json.loads(either("build", "-m", model, "--json").stdout)
    again = json.loads(either("build", "-m", model, "--json").stdout)
    done = [
        either("predict", "-m", model, "--json", *more, stdin='{"inputs": [1]}')
        for more in ((), ("-r", "scikit-learn==1.0"))
    ]
    answer, overridden = (json.loads(one.stdout)["notes"] for one in done)

    assert note in answer
    assert f"note: {said}" in done[0].stderr
    assert "VERSION_DIFFERS" not in [one["code"] for one in overridden]
    assert note in built["notes"]
    assert again == built | {"cached": True}


def test_the_client_gets_the_notes_of_every_answer(
    daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = made_with(tiny.model(tmp_path / "model", "tiny-a", "scikit-learn==1.0"), "1.1")

    with daemon.client() as client:
        notes = [client.predict(model, [1]).notes for _ in range(2)]

    for found in notes:
        assert [one.subject for one in found if one.code == "VERSION_DIFFERS"] == ["scikit-learn"]


def test_show_says_as_of_when_and_what_was_noted(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = made_with(tiny.model(tmp_path / "model", "tiny-b", "tiny-a==1.0"), "1.0")

    env_id = json.loads(either("build", model, "--json").stdout)["id"]
    shown = json.loads(either("show", env_id, "--json").stdout)
    printed = either("show", env_id[:8]).stdout.splitlines()

    assert shown["as_of"] == "2024-02-01"
    assert "as of      2024-02-01" in printed
    assert "SETUPTOOLS_ADDED" in [one["code"] for one in shown["notes"]]
    assert [f"note       {note['message']}" for note in shown["notes"]] == [
        line for line in printed if line.startswith("note ")
    ]


def test_the_log_of_a_build_begins_with_the_notes(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model")
    (model / "python_env.yaml").unlink()
    (model / "requirements.txt").unlink()
    here = "{}.{}.{}".format(*sys.version_info)
    (model / "conda.yaml").write_text(
        f"channels: [defaults]\ndependencies: [python={here}, tiny-a=1.0=py_0]\n"
    )

    built = json.loads(either("build", model, "--json").stdout)
    lines = either("logs", built["id"]).stdout.splitlines()

    notes = [f"note: {one['message']}" for one in built["notes"]]
    assert {"CHANNEL_REWRITTEN", "CONDA_PACKAGE_TRANSLATED", "SETUPTOOLS_ADDED"} <= {
        one["code"] for one in built["notes"]
    }
    assert lines[: len(notes)] == notes
    assert [line for line in lines if line.startswith("note: ")] == notes
