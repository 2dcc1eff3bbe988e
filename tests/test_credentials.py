"""Credentials of the settings reach the index and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from envd.errors import EnvdError
from envd.lock import pylock
from tests import tiny
from tests.conftest import wait_for
from tests.house import House, versions, wheel_file
from tests.index import Index

SECRET = "s3cr%2Fet"
LOGIN = "reader:s3cr/et"


@pytest.fixture(params=[True, False], ids=["dated", "undated"])
def index(request: pytest.FixtureRequest, house: House, start_index: Callable[..., Index]) -> Index:
    found = start_index(is_dated=request.param, login=LOGIN)
    house.with_indexes(with_login(found))
    return found


def with_login(index: Index) -> str:
    return f"http://reader:{SECRET}@{index.host}/simple"


def assert_nowhere(house: House, *texts: str) -> None:
    """No credentials below the root, in the events, nor in *texts*."""
    for path in house.root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert b"s3cr" not in content, path
            assert b"reader" not in content, path
    for text in (*texts, json.dumps([asdict(event) for event in house.events])):
        assert "s3cr" not in text
        assert "reader" not in text


def test_credentials_arrive_at_the_index_and_are_kept_nowhere(house: House, index: Index) -> None:
    index.add(wheel_file(house.wheels, "tiny-a", "1.0"))
    index.add(wheel_file(house.wheels, "tiny-tool", "1.0"))
    index.add(tiny.sdist(house.wheels, "tiny-b", "1.0", "import tiny_tool", "tiny-tool"))
    asked = house.ask("tiny-a", "tiny-b", day="2024-02-14")

    ready = house.ready(asked)

    lock = house.lock_of(asked)
    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert LOGIN in index.logins
    codes = [note.code for note in lock.notes]
    assert codes == ([] if index.is_dated else ["INDEX_UNDATED"])
    documents = [lock.document(), ready.environment.manifest.document(), asked.document()]
    assert_nowhere(house, json.dumps(documents), pylock.text(lock, asked.spec.python))


def test_a_build_that_tells_the_password_is_not_repeated(house: House, index: Index) -> None:
    telling = "raise SystemExit(os.environ.get('UV_INDEX_ENVD0_PASSWORD', 'it has none'))"
    index.add(tiny.sdist(house.wheels, "tiny-a", "1.0", telling))
    asked = house.ask("tiny-a", day="2024-02-14")

    with pytest.raises(EnvdError) as caught:
        house.ready(asked)

    assert_nowhere(house, json.dumps(caught.value.document()))


def test_credentials_that_are_refused_are_not_in_what_is_said_of_it(
    house: House, index: Index
) -> None:
    index.add(wheel_file(house.wheels, "tiny-a", "1.0"))
    index.login = "reader:another"

    with pytest.raises(EnvdError) as caught:
        house.ready(house.ask("tiny-a", day="2024-02-14"))

    assert LOGIN in index.logins
    assert_nowhere(house, json.dumps(caught.value.document()))


def test_credentials_are_not_in_the_arguments_of_a_process(house: House, index: Index) -> None:
    index.add(wheel_file(house.wheels, "tiny-a", "1.0"))
    asked = house.ask("tiny-a", day="2024-02-14")
    index.gate.clear()
    seen: list[str] = []
    thread = threading.Thread(target=house.environments.lock, args=(asked,))
    thread.start()

    wait_for(lambda: index.requests)
    seen += arguments_of(house)
    index.gate.set()
    while thread.is_alive():
        seen += arguments_of(house)

    assert any("compile" in one for one in seen)
    assert not [one for one in seen if "s3cr" in one or "reader" in one]


def arguments_of(house: House) -> list[str]:
    """Return the command lines of the processes that work for *house*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_text()
        except OSError:
            continue
        if str(house.root) in text:
            found.append(text)
    return found


@pytest.mark.parametrize("option", ["--extra-index-url", "--index-url"])
def test_an_index_of_the_model_on_a_host_of_the_settings_gets_their_credentials(
    house: House, start_index: Callable[..., Index], option: str
) -> None:
    index = start_index(login=LOGIN)
    house.with_indexes(with_login(index))
    index.add(wheel_file(house.wheels, "tiny-a", "1.0"))
    line = f"{option} http://someone:else@{index.host}/other/simple"

    lock = house.environments.lock(house.ask(line, "tiny-a"))

    assert versions(lock) == ["tiny-a==1.0"]
    assert "/other/simple/tiny-a/" in index.requests
    assert set(index.logins) <= {"", LOGIN}
    assert_nowhere(house)


def test_an_index_of_the_model_on_another_host_gets_none(
    house: House, start_index: Callable[..., Index]
) -> None:
    index, other = start_index(login=LOGIN), start_index()
    house.with_indexes(with_login(index))
    index.add(wheel_file(house.wheels, "tiny-a", "1.0"))
    other.add(wheel_file(house.wheels, "tiny-b", "1.0"))

    lock = house.resolve(f"--extra-index-url {other.url}", "tiny-a", "tiny-b")

    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert set(other.logins) == {""}


def test_a_page_of_links_gets_its_credentials_and_they_are_kept_nowhere(
    house: House, start_index: Callable[..., Index]
) -> None:
    pages = start_index(is_dated=False, login=LOGIN)
    pages.add(wheel_file(house.wheels, "tiny-a", "1.0"))
    pages.add(tiny.sdist(house.wheels, "tiny-a", "2.0"))
    house.with_index(find_links=(f"{with_login(pages)}/tiny-a/",))
    asked = [house.ask(line, day="2024-02-14") for line in ("tiny-a<2", "tiny-a>=2")]

    found = [house.ready(one) for one in asked]

    assert [versions(one.environment.manifest.lock) for one in found] == [
        ["tiny-a==1.0"], ["tiny-a==2.0"]
    ]  # fmt: skip
    assert LOGIN in pages.logins
    assert_nowhere(house, *(json.dumps(house.lock_of(one).document()) for one in asked))
