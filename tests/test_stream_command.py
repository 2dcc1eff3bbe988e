"""`envctl predict --stream`, and inputs larger than a message, with a daemon and without one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.called import Called
from tests.conftest import Envctl
from tests.tiny import Tiny

BODY = """
        return "x" * data if isinstance(data, int) else len(data)

    def predict_stream(self, data):
        import os, time
        yield from data
        while data and not os.path.exists(str(data[0])):
            time.sleep(0.005)
        yield float("nan")
        1 / data[1]
"""


@pytest.fixture(scope="module")
def more_settings() -> dict[str, str]:
    return {"ENVD_DAEMON__MAX_MESSAGE": "1MiB"}


@pytest.fixture
def called(either: Envctl) -> Envctl:
    return Called(either.root, either.env)


@pytest.fixture(scope="module")
def model(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("model") / "model", body=BODY)


def test_every_item_is_a_line_as_soon_as_it_is_there(
    either: Envctl, model: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        either.argv("predict", "-m", model, "--stream", "-v"),
        env=either.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        json.dump({"inputs": [f"{tmp_path}/go", 1]}, process.stdin)
        process.stdin.close()
        first = [process.stdout.readline() for _ in range(2)]
        (tmp_path / "go").touch()
        rest, said = process.stdout.read(), process.stderr.read()

    assert [json.loads(line) for line in first] == [f"{tmp_path}/go", 1]
    assert rest == "null\n"
    assert "note: NaN and infinities" in said
    assert "worker" in said
    assert process.returncode == 0


def test_an_error_comes_after_the_items(called: Envctl, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    done = called(
        *("predict", "-m", model, "--stream", "-o", path),
        stdin=json.dumps({"inputs": [str(tmp_path), 0]}),
    )

    assert path.read_text().splitlines() == [f'"{tmp_path}"', "0", "null"]
    assert (done.returncode, done.stdout) == (1, "")
    assert "ZeroDivisionError" in done.stderr


def test_what_cannot_be_streamed_is_said(called: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    plain = tiny.model(tmp_path / "plain")
    done = called("predict", "-m", plain, "--stream", stdin='{"inputs": [1]}')
    both = called("predict", "-m", plain, "--stream", "--json", stdin='{"inputs": [1]}')

    assert (done.returncode, done.stdout) == (1, "")
    assert "`predict_stream`" in done.stderr
    assert both.returncode == 2


def test_an_input_may_be_larger_than_a_message(called: Envctl, model: Path, tmp_path: Path) -> None:
    (tmp_path / "large.json").write_text(json.dumps({"inputs": "x" * (3 << 20)}))
    done = called("predict", "-m", model, "-i", tmp_path / "large.json")

    assert (done.returncode, json.loads(done.stdout)) == (0, {"predictions": 3 << 20})
    items = [str(tmp_path), 1, "x" * (2 << 20)]
    (tmp_path / "lines.json").write_text(json.dumps({"inputs": items}))
    done = called("predict", "-m", model, "-i", tmp_path / "lines.json", "--stream")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 2
    assert "max_message" in done.stderr
