"""What two models share: one build and one environment, however their files are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.called import Called
from tests.conftest import Envctl, one_python
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def more_settings(tools: Path) -> dict[str, str]:
    return one_python(tools)


@pytest.fixture(scope="module")
def either(either: Envctl) -> Envctl:
    return Called(either.root, either.env)


CONDA = """\
name: {name}
channels: {channels}
dependencies:
{lines}
"""


def built(envctl: Envctl, *models: Path) -> list[dict[str, Any]]:
    done = envctl("build", *models, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    return [document] if isinstance(document, dict) else document


def with_conda(model: Path, name: str, channels: str, *lines: str) -> Path:
    """Let *model* say what it needs in a conda.yaml alone."""
    (model / "python_env.yaml").unlink()
    (model / "requirements.txt").unlink()
    text = (model / "MLmodel").read_text()
    (model / "MLmodel").write_text(text.replace("virtualenv: python_env.yaml", "conda: conda.yaml"))
    text = CONDA.format(name=name, channels=channels, lines="\n".join(lines))
    (model / "conda.yaml").write_text(text)
    return model


def dated(model: Path, created: str) -> Path:
    with (model / "MLmodel").open("a") as file:
        file.write(f"utc_time_created: '{created}'\n")
    return model


def test_comments_order_case_and_the_name_of_a_channel_make_no_other_environment(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    first = with_conda(
        tiny.model(tmp_path / "first"),
        "mlflow-env", "[conda-forge]",
        "- python=3.11", "- setuptools=68.0", "- pip:", "  - tiny-a==1.0", "  - tiny-b",
    )  # fmt: skip
    second = with_conda(
        tiny.model(tmp_path / "second"),
        "another", "[defaults]",
        "- python=3.11", "- setuptools=68.0", "- pip:", "  # why",
        "  - Tiny_B", "  - TINY.A == 1.0",
    )  # fmt: skip

    one, other = built(either, first, second)

    assert one["spec_key"] == other["spec_key"]
    assert one["id"] == other["id"]
    assert (one["cached"], other["cached"]) == (False, True)
    assert len(list(either.root.glob(f"environments/{one['id']}/*/pyvenv.cfg"))) == 1
    shown = json.loads(either("show", one["id"], "--json").stdout)
    assert sorted(shown["models"]) == [str(first), str(second)]


def test_a_range_that_comes_to_the_same_packages_builds_nothing_new(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    pinned = tiny.model(tmp_path / "pinned", "tiny-a==2.0", "tiny-b==1.0")
    ranged = tiny.model(tmp_path / "ranged", "tiny-b<9", "# the newest", "tiny-a>1.0")

    (one,) = built(either, pinned)
    before = {path: path.stat().st_ino for path in either.root.glob("environments/*/*")}
    (other,) = built(either, ranged)
    after = {path: path.stat().st_ino for path in either.root.glob("environments/*/*")}

    assert one["id"] == other["id"]
    assert one["spec_key"] != other["spec_key"]
    assert (one["cached"], other["cached"]) == (False, True)
    assert after == before


def test_models_of_one_month_share_and_those_of_another_do_not_share_the_key(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    days = ["2024-02-14 09:08:07.123456", "2024-02-28 23:59:59", "2024-03-01 00:00:00"]
    models = [
        dated(tiny.model(tmp_path / f"model{number}", "tiny-a<2"), day)
        for number, day in enumerate(days)
    ]

    first, second, later = built(either, *models)

    assert first["spec_key"] == second["spec_key"] != later["spec_key"]
    assert first["id"] == second["id"] == later["id"]
    assert [one["as_of"] for one in (first, second, later)] == [
        "2024-02-01", "2024-02-01", "2024-03-01",
    ]  # fmt: skip
    assert second["cached"]
    assert later["cached"]
