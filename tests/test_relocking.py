"""A lock is cached, serves without a network, and is made anew when that is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from envd.environments.asked import Asked
from envd.errors import (
    IndexUnreachableError,
    InstallFailedError,
    NotLockedOfflineError,
    SolveFailedError,
)
from envd.events import Event, Stage
from envd.store import removal
from tests import tiny
from tests.house import House, versions, wheel_file
from tests.index import Index


@pytest.fixture
def index(house: House, start_index: Callable[..., Index]) -> Index:
    found = start_index(is_dated=False)
    house.with_indexes(found.url)
    found.add(wheel_file(house.wheels, "tiny-a", "1.0"))
    return found


def found_version(house: House, asked: Asked) -> list[str]:
    found = house.environments.find(asked)
    return versions(found.manifest.lock) if found else []


def test_what_is_locked_and_downloaded_needs_no_network(house: House, index: Index) -> None:
    asked = house.ask("tiny-a")
    lock = house.environments.lock(asked)
    first = house.ready(asked)
    removal.remove(house.environments.store, first.environment.id)
    index.requests.clear()
    index.add(wheel_file(house.wheels, "tiny-a", "2.0"))

    house.with_index(offline=True)
    again = house.ready(asked)

    assert index.requests == []
    assert not again.cached
    assert again.environment.manifest.lock == lock
    # Nor with one is the index asked of what is there.
    removal.remove(house.environments.store, again.environment.id)
    assert house.with_index(offline=False).ready(asked).environment.id == first.environment.id
    assert index.requests == []


@pytest.mark.parametrize("day", ["", "2024-02-14"])
def test_what_is_not_locked_says_so_offline(house: House, index: Index, day: str) -> None:
    house.with_index(offline=True)
    asked = house.ask("tiny-a", day=day)

    with pytest.raises(NotLockedOfflineError, match=r"Lock it .* with `envctl lock`"):
        house.ready(asked)

    assert index.requests == []
    assert house.environments.store.specs.lock(asked.spec.key) is None


def test_a_repository_is_not_asked_offline(house: House) -> None:
    url = "git+https://localhost:1/nowhere"
    house.with_index(offline=True).with_security(profile="dev")

    with pytest.raises(NotLockedOfflineError):
        house.ready(house.ask(f"tiny-a @ {url}"))


def test_a_repository_that_does_not_answer_is_unreachable(house: House) -> None:
    house.with_security(profile="dev")

    with pytest.raises(IndexUnreachableError):
        house.ready(house.ask("tiny-a @ git+https://127.0.0.1:1/nowhere"))


def test_a_folder_of_packages_suffices_offline(house: House, index: Index) -> None:
    wheel_file(house.wheels, "tiny-tool", "1.0")
    tiny.sdist(house.wheels, "tiny-b", "1.0", "import tiny_tool", "tiny-tool")
    house.with_index(offline=True, find_links=(str(house.wheels),))

    ready = house.ready(house.ask("tiny-a", "tiny-b"))

    assert versions(ready.environment.manifest.lock) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert index.requests == []


def test_an_upgrade_builds_beside_while_the_old_environment_serves(
    house: House, index: Index
) -> None:
    asked = house.ask("tiny-a")
    old = house.ready(asked).environment
    index.add(wheel_file(house.wheels, "tiny-a", "2.0"))
    assert house.ready(asked).cached
    served: dict[str, list[str]] = {}

    def look(event: Event) -> None:
        if isinstance(event, Stage):
            served[event.name] = found_version(house, asked)

    new = house.environments.ready(asked, look, upgrade=True)

    assert served.keys() >= {"locking", "installing", "publishing"}
    assert set(map(tuple, served.values())) == {("tiny-a==1.0",)}
    assert not new.cached
    assert new.environment.id != old.id
    assert found_version(house, asked) == ["tiny-a==2.0"]
    assert house.ready(asked).environment == new.environment
    assert old.python.exists()


def test_an_upgrade_that_changes_nothing_is_cached(house: House, index: Index) -> None:
    asked = house.ask("tiny-a")
    first = house.ready(asked)
    index.requests.clear()

    again = house.ready(asked, upgrade=True)

    assert index.requests
    assert again.cached
    assert again.environment == first.environment


def test_an_upgrade_of_what_was_never_built_builds_it(house: House, index: Index) -> None:
    asked = house.ask("tiny-a")

    assert not house.ready(asked, upgrade=True).cached
    assert found_version(house, asked) == ["tiny-a==1.0"]
    assert index.requests


def test_an_upgrade_that_fails_leaves_the_old_environment(house: House, index: Index) -> None:
    asked = house.ask("tiny-a")
    old = house.ready(asked).environment
    archive = tiny.sdist(house.wheels, "tiny-a", "2.0", "raise SystemExit('no luck')")
    index.add(archive)

    with pytest.raises(InstallFailedError, match="no luck"):
        house.ready(asked, upgrade=True)

    assert house.environments.find(asked) == old
    index.files.clear()
    with pytest.raises(SolveFailedError):
        house.ready(asked, upgrade=True)
    assert house.environments.find(asked) == old
