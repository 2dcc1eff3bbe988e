"""Credentials of the settings reach the index and nothing else."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from envd.errors import (
    EnvdError,
    IndexUnreachableError,
    PolicyDeniedError,
    SettingsInvalidError,
)
from envd.lock import Sources, pylock
from envd.settings import sections
from envd.spec import Indexes
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


def test_an_index_of_the_model_gets_the_credentials_of_the_index_it_lies_below(
    house: House, start_index: Callable[..., Index]
) -> None:
    index = start_index(login=LOGIN)
    house.with_indexes(f"http://reader:{SECRET}@{index.host}/team")
    index.add(wheel_file(house.wheels, "tiny-a", "1.0"))

    line = f"--index-url http://someone:else@{index.host}/team/simple"
    lock = house.environments.lock(house.ask(line, "tiny-a"))

    assert versions(lock) == ["tiny-a==1.0"]
    assert "/team/simple/tiny-a/" in index.requests
    assert set(index.logins) <= {"", LOGIN}
    assert_nowhere(house)


# uv keeps what it is told of its indexes in an order that depends on the port.
@pytest.mark.parametrize("_again", range(4))
@pytest.mark.parametrize(("mine", "other"), [("team", "other"), ("team", "team2")])
def test_a_strangers_index_on_the_host_of_an_index_gets_none(
    house: House, start_index: Callable[..., Index], mine: str, other: str, _again: int
) -> None:
    index = start_index(login=LOGIN)
    house.with_indexes(f"http://reader:{SECRET}@{index.host}/{mine}/simple")
    index.add(wheel_file(house.wheels, "tiny-a", "1.0"))

    line = f"--extra-index-url http://{index.host}/{other}/simple"
    lock = house.environments.lock(house.ask(line, "tiny-a"))

    assert versions(lock) == ["tiny-a==1.0"]
    asked = set(zip(index.requests, index.logins, strict=True))
    assert {login for path, login in asked if path.startswith(f"/{other}/")} == {""}
    assert (f"/{mine}/simple/tiny-a/", LOGIN) in asked
    assert_nowhere(house)


@pytest.mark.parametrize("place", ["other/simple", "simple2", "SIMPLE/x"])
def test_a_strangers_index_in_the_place_of_an_index_gets_none(
    house: House, start_index: Callable[..., Index], place: str
) -> None:
    index = start_index(login=LOGIN)
    house.with_indexes(with_login(index))
    index.add(wheel_file(house.wheels, "tiny-a", "1.0"))

    with pytest.raises(IndexUnreachableError, match="lack of valid authentication credentials"):
        house.environments.lock(house.ask(f"--index-url http://{index.host}/{place}", "tiny-a"))

    assert index.requests == [f"/{place}/tiny-a/"]
    assert index.logins == [""]


@pytest.mark.parametrize(
    ("mine", "line"),
    [
        ("simple", "--extra-index-url http://{host}/other/simple"),
        ("a/simple", "--extra-index-url http://{host}/simple"),
        ("a/+simple", "--extra-index-url http://{host}/a/b"),
        ("a/simple", "--find-links http://{host}/b/tiny-a/"),
    ],
)
def test_an_index_that_uv_would_give_the_credentials_to_is_refused(
    house: House, start_index: Callable[..., Index], mine: str, line: str
) -> None:
    index = start_index(login=LOGIN)
    house.with_indexes(f"http://reader:{SECRET}@{index.host}/{mine}")
    url = line.partition(" ")[2].format(host=index.host)

    with pytest.raises(PolicyDeniedError, match="uv would send them there") as caught:
        house.environments.lock(house.ask(line.format(host=index.host), "tiny-a"))

    assert caught.value.metadata["index"] == url
    assert index.requests == []
    assert_nowhere(house, caught.value.message)


def test_an_index_of_the_settings_beside_one_with_credentials_is_no_strangers(
    house: House, start_index: Callable[..., Index]
) -> None:
    index = start_index(login=LOGIN)
    house.with_indexes(with_login(index), f"http://{index.host}/other/simple")
    index.add(wheel_file(house.wheels, "tiny-a", "1.0"))

    lock = house.resolve("tiny-a")

    assert versions(lock) == ["tiny-a==1.0"]


@pytest.mark.parametrize(
    ("setting", "url", "login"),
    [
        ("https://u:p@host/simple", "https://host:443/simple/x", "u:p"),
        ("http://u:p@Host:80/a@b", "http://host/a@b", "u:p"),
        ("name=https://u@host/simple/", "https://host/simple", "u"),
        ("https://u:p@host/simple", "http://host/simple", ""),
        ("https://u:p@host/simple", "https://host:8443/simple", ""),
        ("https://u:p@host/simple", "https://host/simpleton", ""),
        ("https://u:p@host/simple", "https://host.evil/simple", ""),
    ],
)
def test_which_index_lies_below_which_is_read_off_their_urls(
    setting: str, url: str, login: str
) -> None:
    sources = Sources(Indexes(urls=(url,)))

    (found,) = tomllib.loads(sources.configuration(sections.Index(urls=(setting,))))["index"]

    expected = url.replace("://", f"://{login}@") if login else url
    assert found == {"url": expected, "default": True}


def test_of_two_settings_the_inner_one_has_the_credentials() -> None:
    urls = ("https://u:p@host/a", "https://v:q@host/a/b")
    sources = Sources(Indexes(urls=("https://host/a/b/simple",)))

    for settings in (urls, urls[::-1]):
        text = sources.configuration(sections.Index(urls=settings))
        assert "https://v:q@host/a/b/simple" in text


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


def test_pages_that_only_secrets_tell_apart_are_not_taken_for_one() -> None:
    page = "https://host/pages"
    for one, other in ((f"{page}?a", f"{page}?b"), (f"{page}?a", page)):
        with pytest.raises(SettingsInvalidError, match="find_links"):
            Sources(Indexes()).configuration(sections.Index(find_links=(one, other)))

    assert f"{page}?a" in Sources(Indexes(find_links=(page,))).configuration(
        sections.Index(find_links=(f"{page}?a", f"{page}?a"))
    )
