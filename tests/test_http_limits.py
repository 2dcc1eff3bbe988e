"""What HTTP bears: bodies that are too large, too slow or broken, and clients that mean no good."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.tiny import Tiny
from tests.web import Answer, Web, answer, ask, post, served

KIB, MIB = 1 << 10, 1 << 20
HEAD = b"POST /invocations HTTP/1.1\r\nHost: localhost\r\n"
BODY = b'{"inputs": "%s"}'
MODEL = "        return len(data) if isinstance(data, str) else 'x' * data"
LIMITS = {
    "ENVD_DAEMON__MAX_MESSAGE": "1MiB",
    "ENVD_DAEMON__MAX_IN_FLIGHT": "1.5MiB",
    "ENVD_HTTP__MODEL": "model",
    "ENVD_HTTP__TIMEOUT": "3s",
    "ENVD_HTTP__READ_TIMEOUT": "1s",
    "ENVD_HTTP__IDLE_TIMEOUT": "1500ms",
    "ENVD_HTTP__MAX_CONNECTIONS": "12",
}


@pytest.fixture(scope="module")
def web(tiny: Tiny, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("limits")
    model = tiny.model(folder / "model", body=MODEL)
    with served(folder, home, {"model": model}, **tiny.settings, **LIMITS) as found:
        # What is built takes longer than a request may.
        wait_for(lambda: found("POST", "/invocations", {"inputs": ""}).status == 200)
        yield found


@pytest.fixture(autouse=True)
def _as_good_as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "web" not in request.fixturenames:
        return
    web = request.getfixturevalue("web")
    wait_for(lambda: held(web) == 0)
    found = web("POST", "/invocations", {"inputs": "four"})
    assert (found.status, found.document) == (200, {"predictions": 4})


def held(web: Web) -> float:
    """Return how many bytes the daemon holds."""
    lines = web("GET", "/metrics").body.decode().splitlines()
    return next(float(one.split()[1]) for one in lines if one.startswith("envd_in_flight_bytes "))


def ends(connection: socket.socket) -> bool:
    """Whether the other side closes *connection*, or has."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def chunks(*bodies: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in bodies)


# --- sizes


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_body_may_be_as_large_as_the_limit(web: Web, beyond: int) -> None:
    body = BODY % (b"x" * (MIB - len(BODY) + 2 + beyond))

    found = web("POST", "/invocations", body)

    assert len(body) == MIB + beyond
    assert found.status == (413 if beyond > 0 else 200)
    assert found.document.get("error_code") == ("BAD_REQUEST" if beyond > 0 else None)


@pytest.mark.parametrize("header", [b"", b"Expect: 100-continue\r\n"])
def test_a_body_that_will_be_too_large_is_not_waited_for(web: Web, header: bytes) -> None:
    found = web.raw(HEAD + header + b"Content-Length: %d\r\n\r\n" % (1 << 40))

    assert (found.status, found.document["error_code"]) == (413, "BAD_REQUEST")
    assert "daemon.max_message" in found.document["message"]


def test_a_body_in_chunks_is_refused_when_it_gets_too_large(web: Web) -> None:
    part = chunks(b"x" * (64 * KIB))
    with web.socket() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(17):
            connection.sendall(part)
        found = answer(connection)
        # The rest is read and thrown away, and the connection goes on.
        connection.sendall(part * 4 + b"0\r\n\r\n")
        connection.sendall(post("/invocations", b'{"inputs": "abc"}'))
        after = answer(connection)

    assert (found.status, found.document["error_code"]) == (413, "BAD_REQUEST")
    assert after.document == {"predictions": 3}


def test_a_body_in_chunks_is_taken_as_it_is(web: Web) -> None:
    body = chunks(b'{"inp', b'uts": "', b"x" * 100_000, b'"}') + b"0\r\nTrailer: 1\r\n\r\n"

    found = web.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)

    assert (found.status, found.document) == (200, {"predictions": 100_000})


def test_an_answer_that_is_too_large_is_told(web: Web) -> None:
    found = web("POST", "/invocations", {"inputs": 2 * MIB})

    assert (found.status, found.document["error_code"]) == (500, "INVALID_STATE")
    assert found.headers["x-envd-reason"] == "PAYLOAD_TOO_LARGE"


def test_bodies_that_come_in_count_as_under_way(web: Web) -> None:
    head, part = HEAD + b"Content-Length: %d\r\n\r\n" % MIB, b"x" * (900 * KIB)
    with web.socket() as first, web.socket() as second:
        first.sendall(head + part)
        wait_for(lambda: held(web) == len(part))
        second.sendall(head + part)
        found = answer(second)

    assert (found.status, found.document["error_code"]) == (429, "REQUEST_LIMIT_EXCEEDED")
    assert (found.headers["retry-after"], found.headers["x-envd-reason"]) == ("1", "IN_FLIGHT_FULL")


def test_headers_are_bounded(web: Web) -> None:
    endless = [HEAD + b"X-Long: ", *[b"x" * 8000] * 9]
    many = [HEAD, *[b"X-Short: 1\r\n" * 1000] * 6]

    found = [_refused(web, *parts) for parts in (endless, many, [b"GET /" + b"x" * 70_000])]

    assert [one.status for one in found] == [431] * 3


# --- times


def _trickling(web: Web) -> Answer:
    """Send a byte now and then, for longer than a request may take."""
    with web.socket() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while not select.select([connection], [], [], 0.2)[0]:
            connection.sendall(chunks(b" "))
        return answer(connection)


def _idle(web: Web, before: bytes) -> float:
    """Return how long a connection stays on which nothing happens."""
    with web.socket() as connection:
        connection.sendall(before)
        if len(before) > 2:
            assert answer(connection).status == 405
        begun = time.monotonic()
        assert ends(connection)
        return time.monotonic() - begun


def test_what_takes_too_long_has_an_end(web: Web, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "slow", body="        import time; time.sleep(data)")
    with web.daemon.client() as client, ThreadPoolExecutor(8) as threads:
        client.load_model(model, name="slow")
        slow = [
            HEAD + b'Content-Length: 20\r\n\r\n{"inputs"',
            b"P",
            b"\r\nPOST /invocations HTTP/1.1\r\nHost: en",
        ]
        refused = [threads.submit(_refused, web, one) for one in slow]
        refused.append(threads.submit(_trickling, web))
        idle = [threads.submit(_idle, web, one) for one in (b"", b"\r\n", post("/ping", b""))]
        asked = threads.submit(web, "POST", "/models/slow/invocations", {"inputs": 60})
        found, kept = ([one.result() for one in several] for several in (refused, idle))
        late = asked.result()
        client.unload_model("slow")

    assert [one.status for one in found] == [408] * 4
    assert {one.document["error_code"] for one in found} == {"DEADLINE_EXCEEDED"}
    said = ("http.read_timeout", "headers", "headers", "http.timeout")
    assert all(text in one.document["message"] for text, one in zip(said, found, strict=True))
    assert min(kept) > 1
    assert (late.status, late.document["error_code"]) == (504, "DEADLINE_EXCEEDED")
    assert "Request processing time exceeded limit" in late.document["message"]


def test_a_connection_on_which_something_happens_stays(web: Web) -> None:
    with contextlib.closing(web.connection()) as connection:
        for _ in range(3):
            assert ask(connection, "POST", "/invocations", {"inputs": "a"}).status == 200
            used = connection.sock
            # Less than `idle_timeout`, and together more.
            time.sleep(0.8)
        assert connection.sock is used


# --- what is no HTTP

BROKEN = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"HELLO\r\n\r\n",
    b"POST /invocations HTTP/9.9\r\n\r\n",
    b"GET /p\xc3\xa4th HTTP/1.1\r\n\r\n",
    HEAD + b"no colon\r\n\r\n",
    HEAD + b"X: a\x00b\r\n\r\n",
    HEAD + b" folded: x\r\n\r\n",
    HEAD + b"Content-Length: x\r\n\r\n",
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
    HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}!!0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    # Longer than it said: what is left over is no request.
    HEAD + b"Content-Length: 2\r\n\r\n{}{}{}{}\r\n\r\n",
]


@pytest.mark.parametrize("path", [b"/" + b"a" * 70_000, b"http://x:y/"])
def test_what_is_no_path_is_refused_in_words(web: Web, path: bytes) -> None:
    found = _refused(web, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert found.status == 400
    assert "the path of the request" in found.document["message"]


@pytest.mark.parametrize("sent", BROKEN)
def test_what_is_no_http_is_refused_and_the_connection_closed(web: Web, sent: bytes) -> None:
    found = _refused(web, sent)

    assert (found.status, found.document["error_code"]) == (400, "BAD_REQUEST")
    assert found.headers["connection"] == "close"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 20\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        HEAD + b"X: y",
    ],
)
def test_a_request_that_ends_in_its_midst_is_told(web: Web, sent: bytes) -> None:
    with web.socket() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        found = answer(connection)
        end = ends(connection)

    assert (found.status, found.document["error_code"], end) == (400, "BAD_REQUEST", True)


def test_a_client_that_leaves_in_the_midst_of_its_body_leaves_nothing(web: Web) -> None:
    with web.socket() as connection:
        connection.sendall(HEAD + b"Content-Length: 500000\r\n\r\n" + b"x" * 300_000)
        wait_for(lambda: held(web) == 300_000)

    wait_for(lambda: held(web) == 0)


# --- many


def test_there_are_only_so_many_connections(web: Web) -> None:
    with contextlib.ExitStack() as stack:
        # They are taken in the order in which they come.
        several = [stack.enter_context(web.socket()) for _ in range(12)]
        for one in several:
            one.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        taken = [answer(one).status for one in several]
        with web.socket() as connection:
            found, end = answer(connection), ends(connection)

    assert taken == [200] * 12
    assert (found.status, found.document["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert end
    assert found.headers["retry-after"] == "1"
    wait_for(lambda: _has_room(web))


def _has_room(web: Web) -> bool:
    with contextlib.suppress(OSError):
        return web("GET", "/ping").status == 200
    return False


def _refused(web: Web, *parts: bytes) -> Answer:
    """Return the answer to what is sent, and see that the connection is closed then."""
    with web.socket() as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for one in parts:
                connection.sendall(one)
        found = answer(connection)
        assert ends(connection)
        return found


# --- large ones


@pytest.fixture(scope="module")
def large(tiny: Tiny, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("large")
    model = tiny.model(folder / "model", body=MODEL)
    more = tiny.settings | {
        "ENVD_DAEMON__MAX_IN_FLIGHT": "64MiB",
        "ENVD_HTTP__IDLE_TIMEOUT": "2s",
    }
    with served(folder, home, {"model": model}, **more) as found:
        found("POST", "/invocations", {"inputs": ""})
        yield found


def test_a_hundred_slow_uploads_hold_no_more_than_is_allowed(large: Web) -> None:
    before = _peak(large)
    with contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(large.socket()) for _ in range(100)]
        for one in uploads:
            one.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (64 * MIB))
        for _ in range(12):
            for one in uploads:
                one.sendall(b"x" * (256 * KIB))
        # Each has 3 MiB to give: 21 of them are taken.
        wait_for(lambda: sum(bool(select.select([one], [], [], 0)[0]) for one in uploads) > 75)
        most, now = _peak(large) - before, held(large)
        assert large("GET", "/ping").status == 200
    wait_for(lambda: held(large) == 0)

    # With room to grow; besides that, a connection has what it has just read, as it is passed on.
    assert most < 64 * MIB * 9 // 8 + 100 * 3 * 256 * KIB
    assert now <= 64 * MIB
    assert large("POST", "/invocations", {"inputs": "four"}).document == {"predictions": 4}


def _peak(web: Web) -> int:
    """Return how much memory the daemon has had at most."""
    status = Path(f"/proc/{web.daemon.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * KIB


@pytest.mark.slow
def test_an_answer_that_nobody_reads_is_not_kept(large: Web) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        connection.connect(large.address)
        connection.settimeout(60)
        connection.sendall(post("/invocations", b'{"inputs": %d}' % (48 * MIB)))
        assert connection.recv(12) == b"HTTP/1.1 200"
        port = connection.getsockname()[1]
        assert _is_open(large, port)

        # The kernel goes on with what it has; envd keeps no more for it.
        wait_for(lambda: not _is_open(large, port))


def _is_open(web: Web, port: int) -> bool:
    """Whether the daemon has its connection to *port* still open (proc_pid_net(5))."""
    ends, established = f":{web.address[1]:04X}", "01"
    rows = [one.split() for one in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(
        local.endswith(ends) and remote.endswith(f":{port:04X}") and state == established
        for _, local, remote, state, *_ in rows
    )


@pytest.mark.slow
def test_an_answer_that_is_read_slowly_is_sent_to_its_end(large: Web) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        connection.connect(large.address)
        connection.settimeout(60)
        connection.sendall(
            post("/invocations", b'{"inputs": %d}' % (16 * MIB), "Connection: close")
        )
        size = 0
        # For several times as long as a connection may be idle.
        while part := connection.recv(128 * KIB):
            size += len(part)
            time.sleep(0.05)

    assert size > 16 * MIB


def test_a_large_body_is_taken_and_holds_up_nobody(large: Web) -> None:
    size, waits = 64 * MIB - len(BODY) + 2, []
    with ThreadPoolExecutor(1) as threads, contextlib.closing(large.connection()) as other:
        asked = threads.submit(large, "POST", "/invocations", BODY % (b"x" * size))
        while not asked.done():
            started = time.monotonic()
            assert ask(other, "GET", "/ping").status == 200
            waits.append(time.monotonic() - started)
        found = asked.result()

    assert (found.status, found.document) == (200, {"predictions": size})
    # Nobody decodes it in the loop; it is put together and handed on there.
    assert max(waits) < 0.5
