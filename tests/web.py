"""A daemon that serves HTTP, and requests to it, whole or byte by byte."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import Daemon, launch, stop

JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Web:
    """A daemon, and where its HTTP is."""

    daemon: Daemon
    url: str

    @property
    def address(self) -> tuple[str, int]:
        parsed = urllib.parse.urlsplit(self.url)
        return parsed.hostname, parsed.port

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=60)

    def __call__(
        self, method: str, path: str, body: object = None, headers: dict[str, str] = JSON
    ) -> Answer:
        with contextlib.closing(self.connection()) as connection:
            return ask(connection, method, path, body, headers)

    def socket(self) -> socket.socket:
        """Return a connection to write to byte by byte."""
        return socket.create_connection(self.address, timeout=60)

    def raw(self, *parts: bytes) -> Answer:
        """Return the answer to what is sent as it is."""
        with self.socket() as connection:
            for part in parts:
                connection.sendall(part)
            return answer(connection)


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    headers: dict[str, str] = JSON,
) -> Answer:
    given = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, given, headers)
    found = connection.getresponse()
    return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())


def answer(connection: socket.socket) -> Answer:
    """Read one answer."""
    found = http.client.HTTPResponse(connection)
    found.begin()
    return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())


def answers(connection: socket.socket, count: int) -> list[Answer]:
    """Read several, which may come together."""
    found = []
    with connection.makefile("rb") as file:
        for _ in range(count):
            status = int(file.readline().split()[1])
            headers = {
                name.decode().lower(): value.decode().strip()
                for name, _, value in (
                    line.partition(b":") for line in iter(file.readline, b"\r\n")
                )
            }
            found.append(Answer(status, headers, file.read(int(headers["content-length"]))))
    return found


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Write a request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    if not any(one.lower().startswith(("content-length", "transfer-enc")) for one in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def served(folder: Path, home: Path, models: dict[str, Path], **more: str) -> Iterator[Web]:
    """Serve *models* in a daemon on a root in *folder*."""
    file = folder / "envd.toml"
    lines = [f'"{name}" = "{one}"\n' for name, one in models.items()]
    file.write_text("".join(["[models]\n", *lines]))
    daemon = launch(
        folder / "root",
        home,
        **{
            "ENVD_CONFIG": str(file),
            "ENVD_HTTP__LISTEN": "127.0.0.1:0",
            # Models have the libraries of the tests, and write files for them.
            "ENVD_SECURITY__PROFILE": "dev",
            **more,
        },
    )
    try:
        document = json.loads((folder / "root" / "daemon.json").read_text())
        yield Web(daemon, document["http"])
    finally:
        stop(daemon)
