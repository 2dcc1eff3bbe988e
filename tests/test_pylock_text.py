"""A lock written as a `pylock.toml`: what the standard's own reader and envd read back."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from packaging.pylock import Package as PylockPackage
from packaging.pylock import Pylock

from envd.lock import Lock, Package, pylock
from envd.spec import Python
from tests import tiny
from tests.house import House, Repository, installed, wheel_file
from tests.index import Index

PYTHON = Python("cpython", "3.9.18", "cpython-39-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
ONE, TWO = "1" * 64, "2" * 64
COMMIT = "c" * 40
WHEEL = "a-1.0-py3-none-any.whl"


def read(lock: Lock) -> tuple[Pylock, list[dict[str, Any]]]:
    document = tomllib.loads(pylock.text(lock, PYTHON))
    return Pylock.from_dict(document), document["packages"]


def written(**fields: Any) -> tuple[PylockPackage, dict[str, Any]]:
    parsed, tables = read(Lock((Package("a", "1.0", ONE, WHEEL, **fields),)))
    (package,) = parsed.packages
    (table,) = tables
    assert (table.pop("name"), table.pop("version")) == ("a", "1.0")
    return package, table


def kept(made_from: str, **fields: Any) -> dict[str, Any]:
    package, table = written(origin="kept", made_from=made_from, **fields)
    assert package.name == "a"
    return table


def test_the_lock_says_for_which_pythons_it_is() -> None:
    found, _ = read(Lock(()))

    assert str(found.requires_python) == "==3.9.*"
    assert found.created_by == "envd"
    (marker,) = found.environments or ()
    on = {"python_version": "3.9", "sys_platform": "linux", "platform_machine": "x86_64"}
    assert marker.evaluate(on | {"python_full_version": "3.9.18"})
    assert marker.evaluate(on | {"python_full_version": "3.9.17"})
    for other in (
        {"python_version": "3.10"}, {"sys_platform": "darwin"}, {"platform_machine": "aarch64"}
    ):  # fmt: skip
        assert not marker.evaluate(on | other)


def test_a_wheel_of_an_index_has_its_url_and_its_hash() -> None:
    _, table = written(url=f"https://user:s3cret@host/{WHEEL}")

    wheel = {"name": WHEEL, "url": f"https://host/{WHEEL}", "hashes": {"sha256": ONE}}
    assert table == {"wheels": [wheel]}


def test_a_wheel_of_a_url_is_an_archive() -> None:
    _, table = written(url=f"https://u:s3cret@host/{WHEEL}", origin="url")

    assert table == {"archive": {"url": f"https://host/{WHEEL}", "hashes": {"sha256": ONE}}}


@pytest.mark.parametrize(
    ("made_from", "expected"),
    [
        (
            f"https://host/a-1.0.tar.gz#sha256={TWO}",
            {"sdist": {"name": "a-1.0.tar.gz", "url": "https://host/a-1.0.tar.gz",
                       "hashes": {"sha256": TWO}}},
        ),
        (
            f"./w/a-1.0.tar.gz#sha256={TWO}",
            {"sdist": {"name": "a-1.0.tar.gz", "path": "./w/a-1.0.tar.gz",
                       "hashes": {"sha256": TWO}}},
        ),
        (
            f"./w/{WHEEL}",
            {"wheels": [{"name": WHEEL, "path": f"./w/{WHEEL}", "hashes": {"sha256": ONE}}]},
        ),
        ("./pkg", {"directory": {"path": "./pkg"}}),
        (
            f"git+https://host/a.git@{COMMIT}",
            {"vcs": {"type": "git", "url": "https://host/a.git", "commit-id": COMMIT}},
        ),
        (
            f"git+ssh://git@host/a@{COMMIT}#subdirectory=x/y",
            {"vcs": {"type": "git", "url": "ssh://git@host/a", "commit-id": COMMIT,
                     "subdirectory": "x/y"}},
        ),
    ],
)  # fmt: skip
def test_what_was_built_is_the_source_it_was_built_from(
    made_from: str, expected: dict[str, Any]
) -> None:
    assert kept(made_from) == expected


@pytest.mark.parametrize("rest", ["", "&subdirectory=x/y"])
def test_an_archive_of_a_url_is_an_archive(rest: str) -> None:
    made_from = f"https://host/main.zip#sha256={TWO}{rest}"

    below = {"subdirectory": "x/y"} if rest else {}
    archive = {"url": "https://host/main.zip", "hashes": {"sha256": TWO}} | below
    assert kept(made_from, url=made_from) == {"archive": archive}


def test_credentials_of_what_was_built_are_not_written() -> None:
    made_from = f"https://user:s3cret@host/a-1.0.tar.gz#sha256={TWO}"

    assert "s3cret" not in str(kept(made_from))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a\x7fb", "\u00fcber", "\U0001f600"])
def test_a_name_of_any_characters_is_read_back(name: str) -> None:
    table = kept(f"./{name}")

    assert table == {"directory": {"path": f"./{name}"}}


def test_a_lock_laid_into_its_model_gives_the_same_environment(
    house: House, start_index: Callable[..., Index]
) -> None:
    index, repository = start_index(), Repository(house.folder / "repository")
    house.with_indexes(index.url).with_security(profile="dev", sources=(repository.url,))
    tiny.tree(repository.folder / "sub", "tiny-git", "1.0")
    repository.commit()
    (house.model / "w").mkdir()
    wheel_file(house.model, "tiny-own", "1.0")
    wheel_file(house.model / "w", "tiny-linked", "1.0")
    tiny.tree(house.model / "pkg", "tiny-tree", "1.0")
    tiny.sdist(house.model, "tiny-archive", "1.0")
    index.add(wheel_file(house.wheels, "tiny-index", "1.0"))
    index.add(tiny.sdist(house.wheels, "tiny-sdist", "1.0"))
    lines = (
        f"{repository.url}@main#subdirectory=sub", "./tiny_own-1.0-py3-none-any.whl", "-f ./w",
        "tiny-linked", "./pkg", "./tiny_archive-1.0.tar.gz", "tiny-index", "tiny-sdist",
        index.add(wheel_file(house.wheels, "tiny-url", "1.0")),
        index.add(tiny.sdist(house.wheels, "tiny-remote", "1.0")),
    )  # fmt: skip
    asked = house.ask(*lines)
    lock = house.environments.lock(asked)
    assert len(lock.packages) == 9
    text = pylock.text(lock, asked.spec.python)
    Pylock.from_dict(tomllib.loads(text))

    (house.model / "pylock.toml").write_text(text)
    again = house.ask(*lines)
    relocked = house.environments.lock(again)

    assert "LOCK_HONOURED" in [note.code for note in again.notes]
    assert again.spec.key != asked.spec.key
    assert relocked.packages == lock.packages
    assert relocked.env_id(PYTHON) == lock.env_id(PYTHON)
    assert pylock.text(relocked, asked.spec.python) == text
    assert "VERSION" in installed(house.ready(again), "tiny_linked")
