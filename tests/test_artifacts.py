"""Which file of a distribution is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from packaging import tags

from envd.errors import SolveFailedError
from envd.lock.artifacts import Artifact, _tag_ranks, choose
from envd.spec import Python

PURE = "py3-none-any"
PYTHON = Python("cpython", "3.9.18", "cpython-39-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")


def file(filename: str, digest: str) -> dict[str, object]:
    return {"url": f"https://host/{filename.replace('+', '%2B')}?a=b", "hashes": {"sha256": digest}}


ENTRY: dict[str, Any] = {
    "name": "a",
    "version": "1.0+cpu",
    "wheels": [file(f"a-1.0+cpu-{PURE}.whl", "11"), file("a-1.0+cpu-cp39-none-any.whl", "33")],
    "sdist": file("a-1.0+cpu.tar.gz", "22"),
}


def test_an_old_python_has_the_tags_of_its_own_time() -> None:
    old = replace(PYTHON, version="3.7.16", abi="cpython-37m-x86_64-linux-gnu")

    ranks = {str(tag): rank for tag, rank in _tag_ranks(old).items()}

    platform = next(tags.platform_tags())
    best = [f"cp37-cp37m-{platform}", f"cp37-abi3-{platform}", f"cp37-none-{platform}"]
    assert [ranks[tag] for tag in best] == sorted(ranks[tag] for tag in best)
    assert ranks[best[0]] == 0
    assert ranks[best[-1]] < ranks["py37-none-any"] < ranks[PURE]
    assert f"cp38-cp38-{platform}" not in ranks


def test_a_file_that_is_not_called_like_a_wheel_does_not_fit() -> None:
    wheels = [file(f"a-1.x-{PURE}.whl", "44"), *ENTRY["wheels"]]

    found = choose(ENTRY | {"wheels": wheels}, PYTHON, (), from_source=False)

    assert found.filename == "a-1.0+cpu-cp39-none-any.whl"


@pytest.mark.parametrize(
    ("allowed", "from_source", "filename"),
    [
        ((), False, "a-1.0+cpu-cp39-none-any.whl"),
        (("sha256:11", "sha256:22"), False, f"a-1.0+cpu-{PURE}.whl"),
        (("sha256:22",), False, "a-1.0+cpu.tar.gz"),
        ((), True, "a-1.0+cpu.tar.gz"),
    ],
)
def test_the_best_wheel_that_is_allowed_is_taken_else_the_source(
    allowed: tuple[str, ...], filename: str, *, from_source: bool
) -> None:
    found = choose(ENTRY, PYTHON, allowed, from_source=from_source)

    assert found.filename == filename
    assert found.is_wheel == filename.endswith(".whl")


@pytest.mark.parametrize("turned", [1, -1])
def test_of_wheels_that_fit_alike_the_latest_build_is_taken(turned: int) -> None:
    builds = [f"a-1.0{build}-{PURE}.whl" for build in ("", "-1", "-2", "-10", "-10b", "-10a")]
    wheels = [file(name, str(number)) for number, name in enumerate(builds)]
    one = {"name": "a", "version": "1.0", "wheels": wheels[::turned]}

    assert choose(one, PYTHON, (), from_source=False).filename == f"a-1.0-10b-{PURE}.whl"
    plain = ("sha256:0", "sha256:1", "sha256:2", "sha256:3")
    assert choose(one, PYTHON, plain, from_source=False).filename == f"a-1.0-10-{PURE}.whl"


def test_a_better_tag_counts_for_more_than_a_later_build() -> None:
    wheels = [file(f"a-1.0-9-{PURE}.whl", "11"), file("a-1.0-cp39-none-any.whl", "22")]
    one = {"name": "a", "version": "1.0", "wheels": wheels}

    assert choose(one, PYTHON, (), from_source=False).sha256 == "22"


def test_the_name_of_a_file_is_read_from_its_url() -> None:
    found = choose(ENTRY, PYTHON, ("sha256:11",), from_source=False)

    url = f"https://host/a-1.0%2Bcpu-{PURE}.whl?a=b"
    assert found == Artifact("a", "1.0+cpu", f"a-1.0+cpu-{PURE}.whl", url, "11")


@pytest.mark.parametrize("from_source", [False, True])
def test_a_package_without_a_file_that_fits_is_refused(*, from_source: bool) -> None:
    one = {"name": "a", "version": "1.0", "wheels": [file("a-1.0-cp27-cp27m-any.whl", "11")]}

    with pytest.raises(SolveFailedError, match=r"`a==1\.0` cannot be .* no file of it") as caught:
        choose(one, PYTHON, (), from_source=from_source)

    assert caught.value.metadata == {"package": "a"}


def test_a_package_without_a_file_that_is_allowed_is_refused() -> None:
    with pytest.raises(SolveFailedError, match="none of its files has a hash the model allows"):
        choose(ENTRY, PYTHON, ("sha256:44",), from_source=False)
