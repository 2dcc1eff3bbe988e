"""A `conda-lock.yml` that lies in a model: what it has to hold, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envd import config
from envd.environments.asked import Asked
from envd.errors import ModelInvalidError, PolicyDeniedError
from envd.model.mlmodel import read as read_model
from envd.spec import Dependencies, Terms
from envd.spec import read as read_spec

FORGE = "https://conda.anaconda.org/conda-forge"
MLFLOW = "mlflow.sklearn"
CONDA = Terms(env_manager="conda")


def conda(name: str, version: str = "1.0", build: str = "h1_0", **more: object) -> dict[str, Any]:
    """Return the entry of a conda package."""
    return {
        "name": name,
        "version": version,
        "manager": "conda",
        "platform": "linux-64",
        "url": f"{FORGE}/linux-64/{name}-{version}-{build}.conda",
        "hash": {"md5": "0" * 32, "sha256": "1" * 64},
    } | more


def pip(name: str, version: str = "1.0") -> dict[str, Any]:
    """Return the entry of a package of the pip section."""
    return conda(name, version) | {"manager": "pip", "url": f"https://host/{name}-{version}.whl"}


PYTHON = conda("python", "3.9.18")


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Write a model that asks for *asked* and has a lock of *entries*, and read it."""

    def written(
        asked: str,
        *entries: dict[str, Any],
        loader: str = "own",
        channels: str = "conda-forge",
        terms: Terms = CONDA,
        **environ: str,
    ) -> Dependencies:
        (tmp_path / "conda.yaml").write_text(f"channels: [{channels}]\ndependencies: [{asked}]\n")
        if entries:
            document = {"version": 1, "metadata": {}, "package": entries}
            (tmp_path / "conda-lock.yml").write_text(json.dumps(document, indent=1))
        (tmp_path / "MLmodel").write_text(
            f"flavors: {{python_function: {{loader_module: {loader}, env: conda.yaml}}}}\n"
            "utc_time_created: '2024-02-14 12:00:00'"
        )
        settings = config.load(root=tmp_path / "root", environ=environ)
        found = read_spec(read_model(tmp_path), settings, terms)
        Asked.of(read_model(tmp_path), found, None, None, settings)
        return found

    return written


def codes(found: Dependencies) -> list[str]:
    return [one.code for one in found.notes]


def test_a_lock_says_all_there_is_to_install(read: Any) -> None:
    found = read(
        "python=3.9, 'word>=1', {pip: ['six>=1']}",
        PYTHON, conda("word", "1.5"), conda("libword"), pip("six"), pip("more"),
    )  # fmt: skip

    assert codes(found) == ["LOCK_HONOURED"]
    assert found.closed
    assert [one.text for one in found.packages][:2] == [
        f"libword ==1.0[build='h1_0',sha256='{'1' * 64}']",
        f"python ==3.9.18[build='h1_0',sha256='{'1' * 64}']",
    ]
    assert [(one.text, one.hashes) for one in found.asked.requirements] == [
        (f"{name}==1.0", (f"sha256:{'1' * 64}",)) for name in ("more", "six")
    ]
    assert [one.name for one in found.locked] == ["libword", "python", "word"]


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("python=3.9, word>=2", "word >=2 (it has 1.5 h1_0)"),
        ("python=3.9, 'word=1.5=h2_*'", "word ==1.5[build='h2_*'] (it has 1.5 h1_0)"),
        ("python=3.9, other::word", "other::word (it has 1.5 h1_0)"),
        ("python=3.8, word", "python 3.8.* (it has 3.9.18 h1_0)"),
        ("python=3.9, nowhere", "nowhere"),
        ("python=3.9, {pip: ['six>=2', 'six>=1', nowhere, 'torch<2', 'odd>=2']}",
         "six>=2, nowhere, torch<2, odd>=2"),
        ("python=3.9, {pip: ['six>=2; python_version < \"3.9\"', 'six<1']}", "six<1"),
    ],
)  # fmt: skip
def test_a_lock_that_does_not_hold_what_is_asked_for_is_refused(
    asked: str, what: str, read: Any
) -> None:
    with pytest.raises(ModelInvalidError) as caught:
        read(asked, PYTHON, conda("word", "1.5"), conda("pytorch", "2.1.0"),
             conda("odd", "1.1.1w"), pip("six", "1.16"))  # fmt: skip

    assert caught.value.message == (
        f"`conda-lock.yml` of the model does not hold what the model asks for: {what}; write a "
        "new one with `envctl lock --upgrade --env-manager conda -m MODEL -o MODEL/conda-lock.yml`"
    )
    assert caught.value.metadata == {"path": "conda-lock.yml", "requirements": what}


def test_a_lock_has_to_hold_what_is_asked_for_after_repairs(read: Any) -> None:
    old = (
        "python=3.9, 'numpy=1.20=py39_mkl_0', {pip: ['mlflow==2.9.2', 'wheel==0.36.post20210125']}"
    )
    there = (
        PYTHON,
        conda("numpy", "1.20"),
        conda("mlflow", "2.9.2"),
        pip("wheel", "0.36"),
    )

    found = read(old, *there, conda("setuptools", "80.9"), loader=MLFLOW, channels="defaults")

    assert codes(found) == ["CHANNEL_REWRITTEN", "BUILD_DROPPED", "LOCK_HONOURED"]
    with pytest.raises(ModelInvalidError, match=r"setuptools <81 \(it has 82.0 h1_0\); write"):
        read(old, *there, conda("setuptools", "82.0"), loader=MLFLOW, channels="defaults")
    with pytest.raises(ModelInvalidError, match=r"model asks for: setuptools <81, mlflow; write"):
        read("python=3.9", PYTHON, loader=MLFLOW)


def test_an_old_source_of_a_lock_is_built_as_outside_of_one(read: Any) -> None:
    found = read("python=3.9, {pip: [pyyaml==5.4.1]}", PYTHON, pip("pyyaml", "5.4.1"))

    assert found.build_constraints == ("cython<3", "setuptools<66")


def test_a_patch_release_of_python_may_differ_where_that_is_allowed(read: Any) -> None:
    found = read("python=3.9.99", PYTHON)

    assert codes(found) == ["PYTHON_PATCH_DIFFERS", "LOCK_HONOURED"]
    for asked in ("python=3.9", "python=3.9.18", "'python>=3.8,<3.10'"):
        assert codes(read(asked, PYTHON, ENVD_PYTHON__MATCH="exact")) == ["LOCK_HONOURED"]
    with pytest.raises(ModelInvalidError, match=r"python 3\.9\.99\.\* \(it has 3\.9\.18 h1_0\)"):
        read("python=3.9.99", PYTHON, ENVD_PYTHON__MATCH="exact")


def test_an_override_goes_before_a_lock(read: Any) -> None:
    terms = Terms(override=("six==2",), env_manager="conda")

    found = read("python=3.9, {pip: [six]}", PYTHON, pip("six"), pip("more"), terms=terms)

    resolved = found.on(None)
    assert [one.text for one in resolved.asked.requirements] == ["more==1.0", "six==2"]
    assert not resolved.closed


def test_a_lock_of_anacondas_builds_goes_by_the_setting(read: Any) -> None:
    url = "https://repo.anaconda.com/pkgs/main/linux-64/python-3.9.18-h1_0.conda"
    theirs = PYTHON | {"url": url}

    passed_over = read("python=3.9", theirs)
    kept = read("python=3.9", theirs, ENVD_CONDA__DEFAULTS="warn")

    assert codes(passed_over) == ["LOCK_PASSED_OVER"]
    assert not passed_over.closed
    assert codes(kept) == ["CHANNEL_FROM_MODEL", "LOCK_HONOURED"]
    with pytest.raises(PolicyDeniedError, match="Anaconda's own channel"):
        read("python=3.9", theirs, ENVD_CONDA__DEFAULTS="deny")


def test_a_lock_for_the_other_manager_is_passed_over_with_a_note(read: Any, tmp_path: Path) -> None:
    virtualenv = Terms(env_manager="virtualenv")
    of_virtualenv = read("python=3.9", PYTHON, terms=virtualenv)
    (tmp_path / "conda-lock.yml").unlink()
    # Neither is even read.
    for name in ("pylock.toml", "uv.lock"):
        (tmp_path / name).write_text("no lock")

    of_conda = read("python=3.9")

    said = [
        (one.code, one.subject)
        for one in of_virtualenv.notes + of_conda.notes
        if one.code != "SETUPTOOLS_ADDED"
    ]
    assert said == [
        ("LOCK_PASSED_OVER", "conda-lock.yml"),
        ("LOCK_PASSED_OVER", "pylock.toml"),
        ("LOCK_PASSED_OVER", "uv.lock"),
    ]
    assert of_virtualenv.notes[0].message == (
        "`conda-lock.yml` of the model is passed over: it is a lock for conda, and the "
        "environment is made by virtualenv (`--env-manager`)"
    )
    assert codes(read("python=3.9", terms=Terms(env_manager="conda", fresh=True))) == []
