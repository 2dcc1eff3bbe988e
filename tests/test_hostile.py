"""Models made to harm whoever reads them (tests/hostile): refused, at no cost, in silence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import hostile

PROJECT = Path(__file__).parents[1]
REFUSALS = {"ModelInvalidError", "PolicyDeniedError", "ModelNotFoundError", "RequestInvalidError"}
CPU_S = 1.0
GROWN_KIB = 64 << 10
LONGEST = 8_000  # what a message may be: all of an error goes in 8 KiB of metadata
PROFILES = ("dev", "standard")
Found = dict[tuple[str, str], dict[str, Any]]


def _is_slow(case: str, profile: str) -> bool:
    return case in hostile.SLOW or (case in hostile.COSTLY and profile != "dev")


def _readings(cases: list[str], profiles: tuple[str, ...] = PROFILES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("case", "profile"),
        [
            pytest.param(case, profile, marks=[pytest.mark.slow] * _is_slow(case, profile))
            for case in cases
            for profile in profiles
        ],
    )


REFUSED = [name for name in hostile.names() if not hostile.is_tamed(name)]
TAMED = [name for name in hostile.names() if hostile.is_tamed(name)]


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Found]:
    """Return what came of every case under every profile, read in a process that is watched."""
    folder = tmp_path_factory.mktemp("hostile")
    models = folder / "models"
    is_all = request.config.getoption("--slow")
    read = {
        name: [profile for profile in PROFILES if is_all or not _is_slow(name, profile)]
        for name in ("benign", *hostile.names())
    }
    cases = [
        (name, str(hostile.made(name, models)), hostile.OVERRIDES.get(name, ()), profiles)
        for name, profiles in read.items()
        if profiles
    ]
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AWS_SECRET": f"{hostile.CANARY}in-a-variable",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "tests.hostile.probe", folder / "root"],
        input=json.dumps(cases),
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    # Not by Python's: it is recursive, and some of the models are deep.
    subprocess.run(["rm", "-rf", models], check=True)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, f"it ended at {lines[-1:]}: {ended.stderr[-3_000:]}"
    assert not (folder / "root").exists(), "reading a model made a root"
    yield {(one["case"], one["profile"]): one for one in lines}
    shutil.rmtree(folder)


def test_a_model_that_means_no_harm_is_read(found: Found) -> None:
    assert [found["benign", profile]["error"] for profile in PROFILES] == [None, None]


@_readings(REFUSED)
def test_a_hostile_model_is_refused(found: Found, case: str, profile: str) -> None:
    one = found[case, profile]

    assert one["error"] in REFUSALS, one["said"][:2_000]
    assert one["message"]
    assert one["message"].isprintable()
    assert len(one["said"]) < LONGEST


@_readings(TAMED)
def test_what_is_tamed_is_read_under_dev_and_may_be_refused_under_standard(
    found: Found, case: str, profile: str
) -> None:
    allowed = {None} if profile == "dev" else {None, *REFUSALS}

    assert found[case, profile]["error"] in allowed, found[case, profile]["said"][:2_000]


@_readings(hostile.names())
def test_reading_it_costs_little_and_touches_and_tells_nothing(
    found: Found, case: str, profile: str
) -> None:
    one = found[case, profile]

    assert one["cpu_s"] < CPU_S
    assert one["grown_kib"] < GROWN_KIB
    assert one["done"] == [], "it looked outside the model, or did more than look"
    assert hostile.CANARY not in one["said"]


def test_there_are_as_many_cases_as_promised() -> None:
    assert len(hostile.names()) == len(set(hostile.names())) >= 75
