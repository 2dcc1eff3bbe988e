"""What is made under one security profile, and used under another."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from envd.errors import PolicyDeniedError, SolveFailedError
from tests import tiny
from tests.house import House, Repository, versions, wheel_file
from tests.index import Index

WHEEL = "tiny_a-1.0-py3-none-any.whl"


@pytest.fixture
def sources(house: House, start_index: Callable[..., Index]) -> dict[str, str]:
    """Lines that ask for what is no wheel of an index, by what they are."""
    index, repository = start_index(), Repository(house.folder / "repository")
    tiny.tree(repository.folder, "tiny-a", "1.0")
    commit = repository.commit()
    tiny.tree(house.model / "pkg", "tiny-a", "1.0")
    tiny.sdist(house.model, "tiny-a", "1.0")
    archive = tiny.sdist(house.wheels, "tiny-a", "1.0")
    return {
        "sdist": "tiny-a",
        "archive": f"{index.add(archive)}#sha256={index.files[archive.name].sha256}",
        "repository": f"{repository.url}@{commit}",
        "branch": f"tiny-a @ {repository.url}@main",
        "tree": "./pkg",
        "own archive": "./tiny_a-1.0.tar.gz",
    }


def allow(house: House, profile: str, sources: dict[str, str]) -> None:
    found = (one.removeprefix("tiny-a @ ") for one in sources.values() if "://" in one)
    urls = tuple(one.partition("#")[0] for one in found)
    house.with_security(profile=profile, sources=urls, local=True)


@pytest.mark.parametrize(
    "kind", ["sdist", "archive", "repository", "branch", "tree", "own archive"]
)
def test_strict_takes_wheels_only_whatever_was_locked_before(
    house: House, sources: dict[str, str], kind: str
) -> None:
    allow(house, "strict", sources)
    asked = house.ask(sources[kind])
    # Of an index another version may have a wheel: that none has is found by the resolver.
    first = SolveFailedError if kind == "sdist" else PolicyDeniedError
    with pytest.raises(first, match="takes wheels only") as caught:
        house.ready(asked)
    assert caught.value.metadata["setting"] == "security.profile"
    assert not list(house.root.glob("wheels/*/*.whl"))

    allow(house, "dev", sources)
    assert versions(house.environments.lock(asked)) == ["tiny-a==1.0"]

    allow(house, "strict", sources)
    with pytest.raises(PolicyDeniedError, match="takes wheels only"):
        house.environments.find(asked)
    with pytest.raises(PolicyDeniedError, match="takes wheels only"):
        house.environments.lock(asked)
    with pytest.raises(first, match="takes wheels only"):
        house.ready(asked, upgrade=True)


def test_strict_takes_an_older_version_that_has_a_wheel(house: House) -> None:
    wheel_file(house.wheels, "tiny-a", "1.0")
    tiny.sdist(house.wheels, "tiny-a", "2.0")

    assert versions(house.with_security(profile="dev").resolve("tiny-a")) == ["tiny-a==2.0"]
    assert versions(house.with_security(profile="strict").resolve("tiny-a")) == ["tiny-a==1.0"]


def test_strict_takes_wheels_of_the_index_and_of_the_model(house: House) -> None:
    wheel_file(house.model, "tiny-a", "1.0")
    wheel_file(house.wheels, "tiny-b", "1.0")
    (house.model / "w").mkdir()
    wheel_file(house.model / "w", "tiny-c", "1.0")
    house.with_security(profile="strict", local=True)

    ready = house.ready(house.ask(f"./{WHEEL}", "tiny-b", "--find-links ./w", "tiny-c"))

    lock = ready.environment.manifest.lock
    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0", "tiny-c==1.0"]
    assert ready.environment.manifest.profile == "strict"


def test_strict_wants_a_hash_with_the_url_of_a_wheel(
    house: House, start_index: Callable[..., Index]
) -> None:
    index = start_index()
    url = index.add(wheel_file(house.folder, "tiny-a", "1.0"))
    house.with_security(profile="strict", sources=(url,))

    with pytest.raises(PolicyDeniedError, match=r"without a hash \(write `.*#sha256=\.\.\.`\)"):
        house.ready(house.ask(url))

    line = f"{url}#sha256={index.files[WHEEL].sha256}"
    assert versions(house.ready(house.ask(line)).environment.manifest.lock) == ["tiny-a==1.0"]


@pytest.mark.parametrize(
    ("first", "second", "is_used"),
    [
        ("dev", "standard", False),
        ("auto", "standard", False),
        ("standard", "strict", False),
        ("standard", "dev", True),
        ("strict", "standard", True),
        ("dev", "auto", True),
    ],
)
def test_an_environment_serves_its_own_profile_and_laxer_ones(
    house: House, first: str, second: str, *, is_used: bool
) -> None:
    wheel_file(house.wheels, "tiny-a", "1.0")
    house.with_security(profile=first)
    asked = house.ask("tiny-a")
    built = house.ready(asked).environment

    house.with_security(profile=second)
    found = house.environments.find(asked)
    again = house.ready(asked)

    assert (found is not None) == again.cached == is_used
    assert again.environment.id == built.id
    assert (again.environment.manifest.attempt == built.manifest.attempt) == is_used
    assert again.environment.manifest.profile == (built.manifest.profile if is_used else second)
    assert again.environment.python.exists()
    assert built.python.exists()
    assert house.environments.find(asked) == again.environment
