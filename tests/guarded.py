"""A daemon that is served over TLS, and who may ask it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import grpc

from envd.access import roles, tokens
from envd.access.roles import Role
from tests.authority import HERE, Authority, Certified
from tests.conftest import Daemon, environment, stop, wait_for
from tests.web import Answer, ask

ROLES = tuple(Role)


@dataclass(frozen=True)
class Visitor:
    """How somebody asks: with a token, with a certificate, with neither."""

    ca: Path
    token: str | None = None
    shown: Certified | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def channel(self, target: str) -> grpc.Channel:
        pair = (self.shown.key.read_bytes(), self.shown.cert.read_bytes()) if self.shown else ()
        return grpc.secure_channel(
            target, grpc.ssl_channel_credentials(self.ca.read_bytes(), *pair)
        )

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if self.shown:
            context.load_cert_chain(self.shown.cert, self.shown.key)
        return context


@dataclass
class Guarded:
    """A daemon with TLS: where it is, what it logs."""

    daemon: Daemon
    authority: Authority
    grpc: str
    http: tuple[str, int]
    log: IO[str]
    tokens: dict[Role, str] = field(default_factory=dict)
    file: Path | None = None

    def by_token(self, role: Role | str | None) -> Visitor:
        """Return who has the token of a role, the text itself for a token, or none."""
        token = self.tokens[role] if isinstance(role, Role) else role
        return Visitor(self.authority.cert, token)

    def web(
        self, visitor: Visitor, method: str, path: str, body: object = None, **headers: str
    ) -> Answer:
        """Ask over HTTP."""
        given = {"content-type": "application/json"} | dict(visitor.metadata)
        given |= {name.replace("_", "-"): text for name, text in headers.items()}
        connection = http.client.HTTPSConnection(*self.http, timeout=60, context=visitor.context())
        with contextlib.closing(connection):
            return ask(connection, method, path, body, given)

    def said(self) -> list[dict[str, object]]:
        """Return the lines of the log so far."""
        self.log.seek(0)
        lines = self.log.read().splitlines()
        return [json.loads(one) for one in lines if one.startswith("{")]

    def audited(self) -> list[Mapping[str, object]]:
        """Return what stands in the lines of `envd.audit`."""
        found = [one for one in self.said() if one["logger"] == "envd.audit"]
        return [{**one["audit"], "request": one.get("request")} for one in found]  # type: ignore[dict-item]

    def reload(self) -> None:
        """Have the settings read again, and wait until they were."""
        before = self._reloads()
        self.daemon.process.send_signal(1)
        wait_for(lambda: self._reloads() > before)

    def _reloads(self) -> int:
        return sum(
            bool(re.match("the settings (were read|stay|were not)", str(one["message"])))
            for one in self.said()
        )


def code(channel: grpc.Channel, method: str, metadata: object = (), body: bytes = b"") -> str:
    """Return what comes of one message to *method*, whatever kind it is."""
    call = channel.stream_stream(method)(iter([body]), timeout=60, metadata=metadata)
    try:
        next(call, None)
    except grpc.RpcError as error:
        return error.code().name
    finally:
        call.cancel()
    return "OK"


def made(folder: Path, *, mode: int = 0o600) -> tuple[Path, dict[Role, str]]:
    """Write a file of tokens, one of each role, and return it with them."""
    found = {role: tokens.made(role, f"{role.value}er") for role in roles.Role}
    file = folder / "tokens"
    file.touch(mode=mode)
    file.write_text("# who may\n\n" + "".join(f"{line}\n" for _, line in found.values()))
    return file, {role: token for role, (token, _) in found.items()}


@contextlib.contextmanager
def started(folder: Path, home: Path, settings: str, **more: str) -> Iterator[Guarded]:
    """Start a daemon with TLS, and with *settings* of `[access]` besides."""
    authority = Authority(folder)
    server = authority.certify("server", *HERE)
    file = folder / "envd.toml"
    file.write_text(
        f'[daemon]\ngrpc = "127.0.0.1:0"\nlog_format = "json"\n[http]\nlisten = "127.0.0.1:0"\n'
        f'[access]\ntls_cert = "{server.cert}"\ntls_key = "{server.key}"\n{settings}'
    )
    root = folder / "root"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [f"{Path(sys.executable).parent}/envd"],
            env=environment(root, home, ENVD_CONFIG=str(file), **more),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        daemon = Daemon(root, process)
        try:
            if not process.stdout.readline():
                log.seek(0)
                raise AssertionError(log.read())
            document = json.loads((root / "daemon.json").read_text())
            host, _, port = document["http"].removeprefix("https://").rpartition(":")
            yield Guarded(daemon, authority, document["grpc"], (host, int(port)), log)
        finally:
            stop(daemon)
            log.seek(0)
            os.write(2, log.read().encode())
