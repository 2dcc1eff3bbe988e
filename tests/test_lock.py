"""Locks: real resolutions over a wheelhouse of files of a few bytes."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from packaging import tags

from envd.errors import IndexUnreachableError, SolveFailedError
from envd.events import Line, Note
from envd.lock import Lock, Package
from envd.lock.lock import from_document
from envd.spec import Python
from tests.house import House, sdist, versions, wheel
from tests.index import Index

CPYTHON = "cp{}{}".format(*sys.version_info)
HERE = f"{CPYTHON}-{CPYTHON}-{next(tags.platform_tags())}"
PYTHON = Python("cpython", "3.9.18", "cpython-39-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")


def nowhere(sha256: str, filename: str) -> Path:
    raise AssertionError((sha256, filename))


def test_a_lock_holds_every_artifact_with_its_hash(house: House) -> None:
    wheel(house.wheels, "tiny_b", "1.0")
    digest_b = wheel(house.wheels, "tiny_b", "1.5")
    wheel(house.wheels, "tiny_b", "2.0")
    digest_a = wheel(house.wheels, "tiny_a", "1.0", requires="tiny.b<2")

    lock = house.resolve("Tiny_A")

    assert [replace(one, url="") for one in lock.packages] == [
        Package("tiny-a", "1.0", digest_a, "tiny_a-1.0-py3-none-any.whl"),
        Package("tiny-b", "1.5", digest_b, "tiny_b-1.5-py3-none-any.whl"),
    ]
    assert lock.requirements(nowhere) == (
        f"tiny-a==1.0 --hash=sha256:{digest_a}\ntiny-b==1.5 --hash=sha256:{digest_b}\n"
    )


def test_nothing_is_left_of_a_resolution(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")

    house.resolve("tiny-a")

    root = house.settings.root
    assert {path.name for path in root.iterdir()} == {"cache", "empty", "scratch"}
    assert not [*(root / "empty").iterdir(), *(root / "scratch").iterdir()]


def test_a_spec_without_requirements_has_an_empty_lock(house: House) -> None:
    assert house.resolve() == Lock(())


def test_of_several_wheels_the_most_special_that_fits_is_taken(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")
    wheel(house.wheels, "tiny_a", "1.0", "cp36-cp36m-manylinux1_x86_64")
    wheel(house.wheels, "tiny_a", "1.0", f"{CPYTHON}-{CPYTHON}-win_amd64")
    special = wheel(house.wheels, "tiny_a", "1.0", HERE)
    sdist(house.wheels, "tiny_a", "1.0")

    (package,) = house.resolve("tiny-a").packages

    assert (package.filename, package.sha256) == (f"tiny_a-1.0-{HERE}.whl", special)


def test_a_hash_chooses_among_the_files_of_a_version(house: House) -> None:
    pure = wheel(house.wheels, "tiny_a", "1.0")
    wheel(house.wheels, "tiny_a", "1.0", HERE)

    (package,) = house.resolve(f"tiny-a==1.0 --hash=sha256:{pure.upper()}").packages

    assert (package.filename, package.sha256) == ("tiny_a-1.0-py3-none-any.whl", pure)


@pytest.mark.parametrize("where", ["lines", "build", "constraints"])
def test_a_file_with_another_hash_is_refused(house: House, where: str) -> None:
    wheel(house.wheels, "tiny_a", "1.0")
    asked = {"lines": ("tiny-a",), where: ("tiny-a==1.0 --hash=sha256:00",)}

    with pytest.raises(SolveFailedError, match="none of its files has a hash the model") as caught:
        house.resolve(*asked.pop("lines"), **asked)

    assert caught.value.metadata == {"package": "tiny-a"}


def test_the_hashes_of_a_name_that_stands_there_twice_are_all_allowed(house: House) -> None:
    old = wheel(house.wheels, "tiny_a", "1.0")
    new = wheel(house.wheels, "tiny_a", "2.0")

    lock = house.resolve(
        f"tiny-a==1.0 --hash=sha256:{old} ; python_version < '3'",
        f"tiny-a==2.0 --hash=sha256:{new} ; python_version >= '3'",
    )

    assert versions(lock) == ["tiny-a==2.0"]


def test_an_unknown_package_is_named(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")

    with pytest.raises(SolveFailedError, match="nowhere-to-be-found was not found") as caught:
        house.resolve("tiny-a", "nowhere-to-be-found")

    assert caught.value.metadata == {"requirements": "nowhere-to-be-found, tiny-a"}
    assert any("nowhere" in event.text for event in house.events if isinstance(event, Line))


@pytest.mark.parametrize("line", ["tiny-a==2.0", "tiny-a>1", "tiny-a<1"])
def test_a_version_that_is_not_there_is_named(house: House, line: str) -> None:
    wheel(house.wheels, "tiny_a", "1.0")

    with pytest.raises(SolveFailedError, match=r"tiny-a[<>=]"):
        house.resolve(line)


def test_requirements_that_contradict_each_other_are_told(house: House) -> None:
    wheel(house.wheels, "tiny_b", "1.0")
    wheel(house.wheels, "tiny_b", "2.0")
    wheel(house.wheels, "tiny_a", "1.0", requires="tiny-b<2")

    with pytest.raises(SolveFailedError, match="tiny-a depend on tiny-b<2"):
        house.resolve("tiny-a", "tiny-b==2")


def test_a_constraint_limits_what_others_ask_for_and_asks_for_nothing(house: House) -> None:
    for version in ("1.0", "2.0"):
        wheel(house.wheels, "tiny_a", version)
        wheel(house.wheels, "tiny_b", version)

    lock = house.resolve("tiny-a", constraints=("tiny-a<2", "tiny-b<2"))

    assert versions(lock) == ["tiny-a==1.0"]


def test_the_version_of_a_build_dependency_is_kept(house: House) -> None:
    for version in ("58.1.0", "80.0.0"):
        wheel(house.wheels, "setuptools", version)
    wheel(house.wheels, "tiny_a", "1.0", requires="setuptools")

    lock = house.resolve("tiny-a", "setuptools", build=("setuptools==58.1.0",))

    assert versions(lock) == ["setuptools==58.1.0", "tiny-a==1.0"]


def test_a_build_dependency_is_installed_though_nothing_else_asks_for_it(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")
    wheel(house.wheels, "tiny_b", "1.0")

    lock = house.resolve("tiny-b", build=("tiny-a",))

    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]


def test_a_requirement_goes_before_a_build_dependency(house: House) -> None:
    # As with MLflow's two installs in a row, the second has its way.
    for version in ("58.1.0", "80.0.0"):
        wheel(house.wheels, "setuptools", version)

    lock = house.resolve("setuptools>=60", build=("setuptools==58.1.0",))

    assert versions(lock) == ["setuptools==80.0.0"]


def test_a_marker_that_does_not_hold_asks_for_nothing(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")

    lock = house.resolve("tiny-a", "tiny-b; python_version < '3'", "tiny-c; sys_platform=='win32'")

    assert versions(lock) == ["tiny-a==1.0"]


def test_an_index_is_asked_for_what_is_not_in_the_wheelhouse(
    house: House, start_index: Callable[..., Index]
) -> None:
    index = start_index()

    with pytest.raises(SolveFailedError):
        house.with_index(urls=(index.url,), no_index=False).resolve("tiny-a")

    assert index.requests == ["/simple/tiny-a/"]


def test_with_no_index_no_index_is_asked(house: House, start_index: Callable[..., Index]) -> None:
    index = start_index()

    with pytest.raises(SolveFailedError):
        house.with_index(urls=(index.url,)).resolve("tiny-a")

    assert index.requests == []


@pytest.mark.slow  # uv tries for ten seconds
def test_an_index_that_does_not_answer_is_unreachable(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://user:s3cret@127.0.0.1:{server.getsockname()[1]}/simple"

    with pytest.raises(IndexUnreachableError) as caught:
        house.with_indexes(closed).resolve("tiny-a")

    assert "s3cret" not in json.dumps(caught.value.document())


A = Package("a", "1.0", "11", "a-1.0-py3-none-any.whl")
B = Package("b", "2.0", "22", "b-2.0-py3-none-any.whl")


def test_the_id_of_an_environment_is_its_artifacts_and_its_python() -> None:
    one = Lock((A, B)).env_id(PYTHON)

    assert len(one) == 32
    assert int(one, 16)
    assert Lock((B, A)).env_id(PYTHON) == one
    assert Lock((replace(A, filename="elsewhere.whl"), B)).env_id(PYTHON) == one


@pytest.mark.parametrize(
    "other",
    [
        (A,),
        (A, replace(B, version="2.1")),
        (A, replace(B, sha256="33")),
        (A, replace(B, name="c")),
        (A, B, replace(A, name="c")),
    ],
)
def test_other_artifacts_are_another_environment(other: tuple[Package, ...]) -> None:
    assert Lock(other).env_id(PYTHON) != Lock((A, B)).env_id(PYTHON)


@pytest.mark.parametrize("field", ["implementation", "version", "abi", "platform", "libc"])
def test_another_python_is_another_environment(field: str) -> None:
    other = replace(PYTHON, **{field: "other"})

    assert Lock((A, B)).env_id(other) != Lock((A, B)).env_id(PYTHON)


def test_requirements_that_resolve_alike_share_an_environment(house: House) -> None:
    wheel(house.wheels, "tiny_a", "1.0")
    python = house.interpreter.python

    one = house.resolve("tiny-a==1.0")
    other = house.resolve("Tiny.A>=0.5", constraints=("tiny-a<2",))

    assert one.env_id(python) == other.env_id(python)


def test_a_lock_survives_its_document() -> None:
    kept = replace(B, origin="kept", made_from="./b-2.0.tar.gz#sha256=33")
    note = Note("AS_OF_DAY", "nothing satisfied them", "2024-02-14")
    lock = Lock((A, kept), "2024-02-14", (note,))

    assert from_document(json.loads(json.dumps(lock.document()))) == lock
