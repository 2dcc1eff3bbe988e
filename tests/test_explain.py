"""`envctl explain`: the keys of a model, and what makes those of two differ."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envd.cli import explain
from envd.spec.differences import between
from tests.called import Called
from tests.conftest import Envctl, one_python
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def more_settings(tools: Path) -> dict[str, str]:
    return one_python(tools)


@pytest.fixture(scope="module")
def either(either: Envctl) -> Envctl:
    return Called(either.root, either.env)


@pytest.fixture
def envctl(envctl: Envctl, more_settings: dict[str, str]) -> Envctl:
    return Called(envctl.root, envctl.env | more_settings)


KEYS = {"spec_key", "env_id", "spec", "notes", "differences"}

quick = settings(max_examples=100, deadline=None, database=None, derandomize=True)


def requirement(name: str, text: str = "", source: str = "", *hashes: str) -> dict[str, Any]:
    return {"name": name, "text": text or name, "source": source, "hashes": list(hashes)}


SPEC: dict[str, Any] = {
    "v": 2,
    "manager": "virtualenv",
    "python": {"version": "3.11.7", "abi": "cpython-311"},
    "requirements": [requirement("numpy", "numpy==1.26.4"), requirement("six")],
    "build": [],
    "only_binary": [],
    "indexes": {"urls": ["A", "B"], "no_index": False, "find_links": []},
    "as_of": "2024-02",
    "prereleases": False,
}


def changed(**more: Any) -> dict[str, Any]:
    return deepcopy(SPEC) | more


def said(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [one.message for one in between(first, second)]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (changed(), []),
        (
            changed(requirements=[requirement("numpy", "numpy>=2"), requirement("six")]),
            ["requirement: `numpy==1.26.4` in the first, `numpy>=2` in the second"],
        ),
        (
            changed(requirements=[requirement("numpy", "numpy==1.26.4"), requirement("scipy")]),
            ["requirement: only the second has `scipy`", "requirement: only the first has `six`"],
        ),
        (
            changed(build=[requirement("wheel", "", "https://a.org/w.whl", "sha256:1")]),
            ["build dependency: only the second has `wheel @ https://a.org/w.whl (sha256:1)`"],
        ),
        (
            changed(python={"version": "3.11.8", "abi": "cpython-311"}),
            ["python's version: `3.11.7` in the first, `3.11.8` in the second"],
        ),
        (
            changed(prereleases=True),
            ["pre-releases are taken: no in the first, yes in the second"],
        ),
        (
            changed(as_of=""),
            ["what is left open is resolved as of: `2024-02` in the first, today in the second"],
        ),
        (
            changed(indexes=SPEC["indexes"] | {"urls": ["B", "A"]}),
            ["index: `A` > `B` in the first, `B` > `A` in the second"],
        ),
        (
            changed(indexes=SPEC["indexes"] | {"urls": ["B"], "no_index": True}),
            [
                "no index is asked: no in the first, yes in the second",
                "index: only the first has `A`",
            ],
        ),
        (changed(only_binary=["six"]), ["taken as a wheel only: only the second has `six`"]),
        (changed(v=3), ["version of the spec: `2` in the first, `3` in the second"]),
    ],
)
def test_differences_are_said_in_words(second: dict[str, Any], expected: list[str]) -> None:
    assert said(SPEC, second) == expected


def test_a_difference_has_a_field_and_both_sides() -> None:
    (found,) = between(SPEC, changed(manager="conda"))

    assert found.document() == {
        "field": "manager", "first": "`virtualenv`", "second": "`conda`",
        "message": "manager: `virtualenv` in the first, `conda` in the second",
    }  # fmt: skip


TEXTS = st.sampled_from(["", "a", "b", "2024-02", "today", "yes", "no"])
REQUIREMENTS = st.lists(
    st.builds(
        lambda name, text, source, hashes: requirement(name, f"{name}{text}", source, *hashes),
        st.sampled_from(["six", "numpy"]),
        st.sampled_from(["", "==1", ">=1"]),
        st.sampled_from(["", "https://a.org/six.whl"]),
        st.lists(st.sampled_from(["sha256:1", "sha256:2"]), max_size=1),
    ),
    max_size=3,
    unique_by=json.dumps,
)
SPECS = st.fixed_dictionaries(
    {
        "manager": TEXTS,
        "python": st.fixed_dictionaries({"version": TEXTS, "abi": TEXTS}),
        "requirements": REQUIREMENTS,
        "constraints": REQUIREMENTS,
        "indexes": st.fixed_dictionaries(
            {"urls": st.lists(TEXTS, max_size=3, unique=True), "no_index": st.booleans()}
        ),
        "as_of": TEXTS,
        "closed": st.booleans(),
    }
)


@quick
@given(SPECS, SPECS, st.sets(st.sampled_from(sorted(SPEC)), max_size=3))
def test_there_is_a_difference_where_two_specs_are_not_equal_and_only_there(
    first: dict[str, Any], other: dict[str, Any], fields: set[str]
) -> None:
    second = first | {name: other[name] for name in fields & {*other}}

    found = between(first, second)

    assert bool(found) == (first != second)
    assert between(first, deepcopy(first)) == []
    turned = [(one.field, one.second, one.first) for one in between(second, first)]
    assert turned == [(one.field, one.first, one.second) for one in found]


def test_a_model_is_explained_before_and_after_it_is_locked(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "Tiny_A >= 1.0  # any", "tiny-b")

    before = json.loads(either("explain", "-m", model, "--json").stdout)
    text = either("explain", model).stdout
    either("lock", "-m", model)
    after = json.loads(either("explain", model, "--json").stdout)

    assert set(before) == KEYS
    assert before["env_id"] is None
    assert re.fullmatch("[0-9a-f]{64}", before["spec_key"])
    assert before["differences"] == []
    assert [one["text"] for one in before["spec"]["requirements"]] == ["tiny-a>=1", "tiny-b"]
    assert {"code", "message", "subject"} == set(before["notes"][0])
    assert re.fullmatch("[0-9a-f]{32}", after["env_id"])
    assert after == before | {"env_id": after["env_id"]}
    rows = [re.split("  +", line, maxsplit=1) for line in text.splitlines()]
    assert ["spec key", before["spec_key"]] in [line.split("    ", 1) for line in text.splitlines()]
    assert ["asks for", "tiny-b"] in rows
    assert ["as of", "today"] in rows
    assert ["links", str(tiny.wheels)] in rows
    assert "not locked yet" in text


def test_the_text_of_one_model_has_all_that_may_make_keys_differ(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    digest = "sha256:" + "0" * 64
    options = ["--pre", "--only-binary tiny-a,tiny-b", "--no-binary six",
               "--extra-index-url https://a.org/simple"]  # fmt: skip
    pins = [f"tiny-a==1.0 --hash={digest} --hash={digest[:-1]}1", f"tiny-b==1.0 --hash={digest}"]
    model = tiny.model(tmp_path / "model", *options, *pins)
    locked = tiny.model(tmp_path / "locked", "tiny-a==1.0")
    envctl("lock", "-m", locked, "-o", locked / "pylock.toml")

    of_model = envctl("explain", model).stdout.splitlines()
    of_lock = envctl("explain", locked).stdout.splitlines()
    plain = envctl("explain", tiny.model(tmp_path / "plain"), ENVD_INDEX__NO_INDEX="no").stdout

    assert {
        "no index    only the links are looked in",
        "best match  every index is asked for every package",
        "prereleases are taken",
        "no wheels   six",
        "asks for    tiny-a==1 (2 hashes)",
        "asks for    tiny-b==1 (1 hash)",
    } <= {*of_model}
    (wheels,) = (line for line in of_model if line.startswith("wheels only "))
    assert {"tiny-a", "tiny-b"} <= {*wheels.removeprefix("wheels only ").split(", ")}
    assert "closed      the requirements are a whole lock" in of_lock
    assert not re.search("^(no |best|prereleases|closed|build limit)", plain, re.MULTILINE)


def test_the_text_has_the_limits_on_builds(capsys: pytest.CaptureFixture[str]) -> None:
    spec = SPEC | {"constraints": [], "no_binary": [], "build_constraints": ["setuptools<81"]}
    spec["python"] = spec["python"] | {"libc": "glibc-2.36"}

    explain._say({"spec_key": "0" * 64, "env_id": None, "spec": spec, "notes": []})

    assert "build limit setuptools<81" in capsys.readouterr().out.splitlines()


def test_two_models_are_compared_and_one_environment_of_both_is_said(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    pinned = tiny.model(tmp_path / "pinned", "tiny-a==2.0")
    ranged = tiny.model(tmp_path / "ranged", "tiny-a>=1.5")
    twin = tiny.model(tmp_path / "twin", "TINY.A >= 1.5")
    said = "requirement: `tiny-a==2` in the first, `tiny-a>=1.5` in the second"

    different = either("explain", pinned, ranged)
    either("lock", "-m", pinned)
    either("lock", "-m", ranged)
    shared = either("explain", "-m", pinned, ranged)
    document = json.loads(either("explain", pinned, ranged, "--json").stdout)
    same = either("explain", ranged, twin)

    assert f"- {said}" in different.stdout.splitlines()
    assert "share one environment" not in different.stdout
    assert f"- {said}" in shared.stdout.splitlines()
    assert "share one environment" in shared.stdout
    assert set(document) == KEYS | {"other"}
    assert set(document["other"]) == KEYS - {"differences"}
    assert document["env_id"] == document["other"]["env_id"]
    assert document["spec_key"] != document["other"]["spec_key"]
    assert [one["message"] for one in document["differences"]] == [said]
    assert "their specs are the same" in same.stdout


def test_a_model_is_compared_with_an_environment(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    built = tiny.model(tmp_path / "built", "tiny-a==1.0", "tiny-b")
    asked = tiny.model(tmp_path / "asked", "tiny-a==1.0")
    env_id = json.loads(either("build", built, "--json").stdout)["id"]

    document = json.loads(either("explain", asked, env_id[:8], "--json").stdout)
    overridden = json.loads(either("explain", asked, env_id, "-r", "tiny-b", "--json").stdout)
    unknown = either("explain", asked, "abcdef0123456789")
    overridden_id = either("explain", env_id, "-r", "tiny-b")

    assert document["other"]["env_id"] == env_id
    assert [one["message"] for one in document["differences"]] == [
        "requirement: only the second has `tiny-b`"
    ]
    assert overridden["differences"] == []
    assert overridden["env_id"] == env_id
    assert overridden_id.returncode == 2
    assert unknown.returncode == 1
    assert "abcdef0123456789" in unknown.stderr


@pytest.mark.parametrize("with_daemon", [False, True])
def test_a_served_name_goes_before_an_id_that_begins_so(
    envctl: Envctl, start_daemon, tiny: Tiny, tmp_path: Path, *, with_daemon: bool
) -> None:
    built = tiny.model(tmp_path / "built", "tiny-a==1.0")
    served = tiny.model(tmp_path / "served", "tiny-b")
    env_id = json.loads(envctl("build", built, "--json").stdout)["id"]
    file = tmp_path / "envd.toml"
    lines = [f'"{env_id[:8]}" = "{served}"', f'cafe = "{served}"', f'face = "{tmp_path}/missing"']
    file.write_text("\n".join(["[models]", *lines]))
    envctl = Called(envctl.root, envctl.env | {"ENVD_CONFIG": str(file)})
    if with_daemon:
        start_daemon(envctl.root, **envctl.env)

    found = [json.loads(envctl("explain", one, "--json").stdout)
             for one in ("cafe", env_id[:8], env_id[:9])]  # fmt: skip
    missing = envctl("explain", "face")
    neither = envctl("explain", "beef")

    asked = [[one["name"] for one in document["spec"]["requirements"]] for document in found]
    assert asked == [["tiny-b"], ["tiny-b"], ["tiny-a"]]
    assert found[2]["env_id"] == env_id
    assert f"`{tmp_path}/missing`" in missing.stderr
    assert "no environment" in neither.stderr


def test_one_or_two_are_explained_and_not_more(envctl: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model")

    for arguments in [(), (model, model, model), ("-m", model, model, model)]:
        done = envctl("explain", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "give one model, or two" in done.stderr


def test_the_daemon_explains_what_the_command_does(
    start_daemon, envctl: Envctl, tiny: Tiny, more_settings: dict[str, str], tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a", "tiny-b==1.0")
    other = tiny.model(tmp_path / "other", "tiny-b", python="3.11")
    calls = [(model,), (model, other), (model, "-r", "tiny-b>=1")]

    alone = [envctl("explain", *one, "--json").stdout for one in calls]
    start_daemon(envctl.root, **tiny.settings | more_settings)
    asked = [envctl("explain", *one, "--json").stdout for one in calls]

    assert asked == alone
    assert all(json.loads(one)["env_id"] is None for one in alone)


def conda_model(path: Path, variables: str) -> Path:
    path.mkdir()
    (path / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: a, env: conda.yaml}}\n"
    )
    (path / "conda.yaml").write_text(f"dependencies: [python=3.11]\nvariables: {variables}\n")
    return path


def test_variables_are_told_apart_by_values_that_are_not_shown(
    either: Envctl, tmp_path: Path
) -> None:
    first = conda_model(tmp_path / "first", "{MODE: quick, PASSWORD: s3cret}")
    second = conda_model(tmp_path / "second", "{MODE: quick, PASSWORD: t0ps3cret}")
    conda = ("--env-manager", "conda")

    text = either("explain", first, *conda).stdout
    compared = either("explain", first, second, *conda).stdout
    document = json.loads(either("explain", first, second, *conda, "--json").stdout)
    same = json.loads(either("explain", first, first, *conda, "--json").stdout)

    assert "s3cret" not in text + compared + json.dumps(document)
    assert {"variable    MODE", "variable    PASSWORD"} <= {*text.splitlines()}
    assert document["spec_key"] != document["other"]["spec_key"]
    (difference,) = document["differences"]
    assert re.fullmatch(
        r"variable: `PASSWORD` \(value \w{8}\) in the first, "
        r"`PASSWORD` \(value \w{8}\) in the second",
        difference["message"],
    )
    assert f"- {difference['message']}" in compared.splitlines()
    assert same["differences"] == []
