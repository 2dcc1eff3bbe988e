"""`envctl build` of a folder: every model in it, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from envd.cli.engine import Document, Order
from envd.cli.local import Local
from envd.cli.remote import Remote
from envd.events import OnEvent
from tests.called import Called
from tests.conftest import Envctl, one_python
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def either(either: Envctl) -> Envctl:
    return Called(either.root, either.env)


@pytest.fixture(scope="module")
def more_settings(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    roots = str(tmp_path_factory.getbasetemp())
    strict = {"ENVD_SECURITY__PROFILE": "standard", "ENVD_MODELS__ROOTS": roots}
    return strict | one_python(tools)


def tree(tiny: Tiny, folder: Path) -> Path:
    """Write a folder of eight models, three of which cannot be built."""
    tiny.model(folder / "a_good", "tiny-a==1.0", "tiny-b")
    (tiny.model(folder / "b_broken") / "MLmodel").write_text("flavors:\n  python_function: [\n")
    tiny.model(folder / "c_missing", "tiny-a", "no-such-package==1.0")
    tiny.model(folder / "d_denied", "--extra-index-url https://a.org/simple", "tiny-a")
    tiny.model(folder / "named" / "1", "tiny-a==1.0")
    tiny.model(folder / "named" / "10", "tiny-b", "tiny_a==1.0")
    outer = tiny.model(folder / "outer", "tiny-a==1.0")
    tiny.model(outer / "artifacts" / "inner", "no-such-package")
    tiny.model(outer / "artifacts" / "deep" / "down" / "inner", "no-such-package")
    tiny.model(folder / "y with spaces", "tiny-a==1.0")
    (folder / "z_empty").mkdir()
    (folder / "README.md").write_text("no model")
    return folder


EXPECTED = {
    "a_good": None,
    "b_broken": ("spec", "MODEL_INVALID"),
    "c_missing": ("spec", "SOLVE_FAILED"),
    "d_denied": ("spec", "POLICY_DENIED"),
    "named/1": None,
    "named/10": None,
    "outer": None,
    "y with spaces": None,
}


def test_a_folder_is_built_past_what_fails(either: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    folder = tree(tiny, tmp_path / "models")

    done = either("build", folder, "--json")
    again = either("build", folder)

    found = json.loads(done.stdout)
    failures = {
        str(Path(one["model"]).relative_to(folder)): one["failure"]
        and (one["failure"]["class"], one["failure"]["reason"])
        for one in found
    }
    assert failures == EXPECTED
    assert list(failures) == list(EXPECTED)
    ids = [one["id"] for one in found]
    assert ids[0] == ids[5]
    assert ids[4] == ids[6] == ids[7]
    assert [one["cached"] for one in found] == [False] * 5 + [True] * 3
    assert {one["state"] for one in found} == {"ready", "failed"}
    assert done.returncode == again.returncode == 1
    assert outcomes(done.stderr) == {
        "ready": 3, "built": 2,
        "spec MODEL_INVALID": 1, "spec SOLVE_FAILED": 1, "spec POLICY_DENIED": 1,
    }  # fmt: skip
    assert outcomes(again.stderr) == {
        "ready": 5, "spec MODEL_INVALID": 1, "spec SOLVE_FAILED": 1, "spec POLICY_DENIED": 1,
    }  # fmt: skip
    assert again.stdout.count("was ready") == 5
    assert f"cannot build {folder / 'c_missing'}" in again.stderr
    assert "no-such-package" in again.stderr
    assert "security.indexes" in again.stderr
    assert "Traceback" not in done.stderr + again.stderr
    unready = [
        one for one in either.root.glob("environments/*") if not (one / "ready.json").exists()
    ]
    assert not unready


def outcomes(text: str) -> dict[str, int]:
    """Return the table at the end of *text*."""
    table = text.partition("8 models:\n")[2]
    rows = [line.split(None, 1) for line in table.splitlines()]
    return {re.sub(" +", " ", title): int(count) for count, title in rows}


def test_a_model_whose_path_is_not_utf_8_costs_the_others_nothing(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    good = tiny.model(tmp_path / "models" / "good", "tiny-a==1.0")
    odd = tmp_path / "models" / os.fsdecode(b"\xff\xfebad")
    tiny.model(odd, "tiny-a==1.0")

    done = either("build", tmp_path / "models", "--json")
    (built, refused) = sorted(json.loads(done.stdout), key=lambda one: one["state"] != "ready")
    # As an envd that did not look left it.
    mark = either.root / "environments" / built["id"] / "used-by" / "0123456789abcdef"
    mark.write_bytes(os.fsencode(odd))
    alone = either("build", "-m", odd)
    missing = either("build", "-m", f"{odd}-missing", "--json")
    verbs = [either(verb, "-m", odd) for verb in ("lock", "explain")]
    verbs.append(either("predict", "-m", odd, stdin="[1]"))
    listed = json.loads(either("list", "--json").stdout)
    again = either("build", good)

    shown = f"{tmp_path}/models/\ufffd\ufffdbad"
    assert built["model"] == str(good)
    assert (refused["model"], refused["failure"]["reason"]) == (shown, "MODEL_INVALID")
    assert f"`{shown}` is not UTF-8; rename it" in refused["failure"]["message"]
    assert json.loads(missing.stdout)["failure"]["class"] == "spec"
    for one in (alone, *verbs):
        assert one.returncode == 1
        assert "is not UTF-8; rename it" in one.stderr
    assert again.returncode == 0
    mark.unlink()
    (models,) = (one["models"] for one in listed if one["id"] == built["id"])
    assert {str(good), shown} <= {*models}


def test_what_is_unexpected_of_one_model_of_several_is_a_row_of_its_own(
    either: Envctl, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [tiny.model(tmp_path / "models" / name, "tiny-a==1.0") for name in "abc"]

    def build(engine: Local | Remote, order: Order, on_event: OnEvent) -> Document:
        if order.model == str(models[1]):
            message = "never thought of"
            raise ZeroDivisionError(message)
        return builds[type(engine)](engine, order, on_event)

    builds = {engine: engine.build for engine in (Local, Remote)}
    for engine in builds:
        monkeypatch.setattr(engine, "build", build)

    done = either("build", tmp_path / "models", "--json")
    with pytest.raises(ZeroDivisionError):
        either("build", models[1], "--json")

    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert [one["model"] for one in found] == [*map(str, models)]
    assert [one["state"] for one in found] == ["ready", "failed", "ready"]
    failure = found[1]["failure"]
    assert (failure["class"], failure["reason"]) == ("local", "INTERNAL")
    assert "ZeroDivisionError('never thought of')" in failure["message"]


def test_a_folder_of_one_good_model_is_a_list_of_one(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "models" / "only", "tiny-a==1.0")

    done = either("build", tmp_path / "models", "--json")
    alone = either("build", model, "--json")

    assert done.returncode == alone.returncode == 0
    assert [one["model"] for one in json.loads(done.stdout)] == [str(model)]
    assert json.loads(alone.stdout)["model"] == str(model)
    assert re.search(r"^1 model:\n     1  (built|ready)\n\Z", done.stderr, re.MULTILINE)
    assert "model:" not in alone.stderr


def test_folders_and_models_are_built_in_the_order_they_are_given(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    last = tiny.model(tmp_path / "last", "tiny-a==1.0")
    models = [tiny.model(tmp_path / "models" / name, "tiny-a==1.0") for name in "ab"]

    done = either("build", tmp_path / "models", last, "-m", last, "--json")

    assert done.returncode == 0, done.stderr
    found = [one["model"] for one in json.loads(done.stdout)]
    assert found == [str(last), *map(str, models), str(last)]


def test_a_name_that_no_file_can_have_costs_the_others_nothing(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    good, bad = tiny.model(tmp_path / "good", "tiny-a==1.0"), f"{tmp_path}/{'n' * 300}"

    done = either("build", bad, good, "--json")

    failed, built = json.loads(done.stdout)
    assert (failed["model"], failed["state"]) == (bad, "failed")
    assert "File name too long" in failed["failure"]["message"]
    assert (built["model"], built["state"]) == (str(good), "ready")
    assert done.returncode == 1


def test_a_folder_without_a_model_is_a_usage_error(either: Envctl, tmp_path: Path) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)

    done = either("build", tmp_path / "empty", "--json")

    assert (done.returncode, done.stdout) == (2, "")
    assert f"there is no model in {tmp_path / 'empty'}" in done.stderr
