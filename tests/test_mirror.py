"""The mirror of the tests: what is to go wrong does, and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.mirror import (
    Fault,
    Mirror,
    break_off,
    first,
    hang,
    refuse,
    serve,
    tamper,
    trickle,
    truncate,
    want,
)

FILE = "/conda-forge/noarch/word-1.0-0.conda"
OTHER = "/conda-forge/noarch/repodata.json"
WHOLE = b"0123456789" * 100


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    folder = tmp_path / "conda-forge" / "noarch"
    folder.mkdir(parents=True)
    (folder / "word-1.0-0.conda").write_bytes(WHOLE)
    (folder / "repodata.json").write_bytes(b"{}")
    with Mirror(tmp_path) as found:
        yield found


def get(mirror: Mirror, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (serve, (200, WHOLE)),
        (refuse(404), (404, b"")),
        (refuse(500), (500, b"")),
        (want("ada:secret"), (401, b"")),
        (want("tk-1", 403), (403, b"")),
        (truncate, (200, WHOLE[:500])),
        (tamper(b"another"), (200, b"another")),
        (trickle(20_000), (200, WHOLE)),
    ],
)
def test_only_what_a_fault_is_for_goes_wrong(
    fault: Fault, expected: tuple[int, bytes], mirror: Mirror
) -> None:
    mirror.faults["*/word-*"] = fault

    assert get(mirror, FILE) == expected
    assert get(mirror, OTHER) == (200, b"{}")
    assert get(mirror, "/conda-forge/noarch/none.conda") == (404, b"")


def test_only_who_has_the_credential_is_served(mirror: Mirror) -> None:
    mirror.faults["*"] = want("tk-1")

    for path, header in ((f"/t/tk-1{FILE}", ""), (FILE, "Bearer tk-1")):
        assert get(mirror, path, Authorization=header) == (200, WHOLE)
    assert get(mirror, f"/t/tk-2{FILE}")[0] == 401
    mirror.faults["*"] = want("ada:secret")
    assert get(mirror, FILE, Authorization="Basic YWRhOnNlY3JldA==") == (200, WHOLE)
    assert mirror.asked("*/word-*") == 4
    assert mirror.requests[-1].credential == "ada:secret"


def test_an_answer_that_breaks_off_is_known_as_one(mirror: Mirror) -> None:
    mirror.faults["*"] = break_off

    with pytest.raises(http.client.IncompleteRead):
        get(mirror, FILE)


def test_a_fault_passes_after_so_many_answers(mirror: Mirror) -> None:
    mirror.faults["*"] = first(2, refuse(500))

    assert [get(mirror, FILE)[0] for _ in range(4)] == [500, 500, 200, 200]


def test_a_slow_answer_takes_its_time(mirror: Mirror) -> None:
    mirror.faults["*"] = trickle(2000)
    begun = time.monotonic()

    get(mirror, FILE)

    assert time.monotonic() - begun >= 0.4


def test_a_mirror_that_stops_ends_what_hangs_and_is_found_again(mirror: Mirror) -> None:
    mirror.faults["*"] = hang
    with ThreadPoolExecutor() as threads:
        hanging = threads.submit(get, mirror, FILE)
        wait_for(lambda: mirror.requests)
        with pytest.raises(TimeoutError):
            hanging.result(0.2)
        mirror.stop()
        with pytest.raises(http.client.RemoteDisconnected):
            hanging.result(5)
    with pytest.raises(ConnectionRefusedError):
        get(mirror, FILE)
    mirror.faults.clear()

    mirror.start()

    assert get(mirror, FILE) == (200, WHOLE)


def test_requests_are_counted_by_their_paths(mirror: Mirror) -> None:
    get(mirror, FILE)
    get(mirror, OTHER)
    get(mirror, OTHER)

    assert mirror.asked("*.conda") == 1
    assert mirror.asked(OTHER) == 2
    assert mirror.asked("*") == 3


def test_who_has_the_content_does_not_get_it_again(mirror: Mirror) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", mirror.port)) as connection:
        connection.request("HEAD", OTHER)
        tag = connection.getresponse().headers["ETag"]
    file = mirror.folder / OTHER[1:]

    assert get(mirror, OTHER, **{"If-None-Match": tag}) == (304, b"")
    file.write_bytes(b"{ }")
    assert get(mirror, OTHER, **{"If-None-Match": tag}) == (200, b"{ }")
