"""Who may do what over TCP with certificates: the same table, and what the handshake refuses."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from envd_client import Client
from envd_client.errors import DaemonUnreachableError, UnauthenticatedError

from envd.access.roles import Role
from envd.serve import roles
from tests import guarded
from tests.authority import Authority, Certified
from tests.guarded import ROLES, Guarded, Visitor, code
from tests.test_access import DENIED, NOBODY, every_rpc
from tests.tiny import Tiny

GRANTS = """\
certificates = { "DNS:Front.example" = "predict", "URI:spiffe://here/ci?a=b" = "build", \
"email:root@example" = "admin" }
"""
NAMES = {
    Role.PREDICT: ("DNS:front.EXAMPLE", "URI:spiffe://here/other"),
    Role.BUILD: ("URI:spiffe://here/ci?a=b", "DNS:front.example"),
    Role.ADMIN: ("email:root@example",),
}


@pytest.fixture(scope="module")
def door(tiny: Tiny, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("mtls")
    file, found = guarded.made(folder)
    models = f'[models]\necho = "{tiny.model(folder / "echo")}"\n'
    settings = f'client_ca = "{folder / "ca.pem"}"\ntokens = "{file}"\n{GRANTS}{models}'
    with guarded.started(folder, home, settings, **tiny.settings) as started:
        started.tokens, started.file = found, file
        yield started


@pytest.fixture(scope="module")
def shown(door: Guarded) -> dict[Role, Certified]:
    return {role: door.authority.certify(role.value, *names) for role, names in NAMES.items()}


@pytest.mark.parametrize("role", ROLES)
def test_a_certificate_has_the_largest_role_of_its_names(
    door: Guarded, shown: dict[Role, Certified], role: Role
) -> None:
    visitor = Visitor(door.authority.cert, None, shown[role])
    with visitor.channel(door.grpc) as channel:
        found = {one: code(channel, one) for one in every_rpc()}
    index = door.web(visitor, "POST", "/v2/repository/index", {})

    denied = {one for one in found if not role.covers(roles.ROLES[one])}
    assert {one for one, said in found.items() if said == DENIED} == denied
    assert NOBODY not in found.values()
    assert index.status == 200


def test_a_name_of_another_kind_or_none_that_is_known_has_no_role(door: Guarded) -> None:
    names = ("DNS:root.example", "URI:DNS:front.example", "DNS:sub.front.example", "DNS:*.example")
    # What gRPC, being C, takes to end there.
    whole = ("DNS:front.example\0.evil", "URI:spiffe://here/ci?a=b\0c", "email:root@example\0.evil")
    shown = door.authority.certify("front.example", *names, *whole)
    visitor = Visitor(door.authority.cert, None, shown)
    with visitor.channel(door.grpc) as channel:
        found = {one: code(channel, one) for one in every_rpc()}
    asked = door.web(visitor, "POST", "/v2/repository/index", {})

    assert {one for one, said in found.items() if said != NOBODY} == {roles.HEALTH}
    assert (asked.status, asked.headers["x-envd-reason"]) == (401, NOBODY)
    assert door.web(visitor, "GET", "/ping").status == 200


def test_a_token_that_is_sent_decides_whatever_the_certificate(
    door: Guarded, shown: dict[Role, Certified]
) -> None:
    method = "/envd.v1.Predictions/RestartWorker"
    pairs = ((Role.PREDICT, door.tokens[Role.ADMIN]), (Role.ADMIN, door.tokens[Role.PREDICT]))
    said = []
    for role, token in (*pairs, (Role.ADMIN, "wrong")):
        visitor = Visitor(door.authority.cert, token, shown[role])
        with visitor.channel(door.grpc) as channel:
            said.append(code(channel, method, visitor.metadata))

    assert said == ["NOT_FOUND", DENIED, NOBODY]


@pytest.mark.parametrize("kind", ["none", "expired", "of another"])
def test_whose_certificate_is_no_good_does_not_get_in(
    door: Guarded, tmp_path: Path, kind: str
) -> None:
    names = NAMES[Role.ADMIN]
    certified = {
        "none": lambda: None,
        "expired": lambda: door.authority.certify("old", *names, days=-1),
        "of another": lambda: Authority(tmp_path).certify("stranger", *names),
    }
    visitor = Visitor(door.authority.cert, door.tokens[Role.ADMIN], certified[kind]())
    with visitor.channel(door.grpc) as channel:
        found = {code(channel, one, visitor.metadata) for one in every_rpc()}
    # Of TLS 1.3 a client only learns when it reads.
    with pytest.raises((ssl.SSLError, ConnectionError)):
        door.web(visitor, "GET", "/ping")

    assert found == {"UNAVAILABLE"}


def test_clients_show_certificates(door: Guarded, shown: dict[Role, Certified]) -> None:
    def client(role: Role, **more: object) -> Client:
        pair = {"tls_cert": shown[role].cert, "tls_key": shown[role].key}
        return Client(door.grpc, tls_ca=door.authority.cert, timeout_s=60, **(pair | more))

    with client(Role.PREDICT) as envd:
        assert envd.predict("echo", {"inputs": [1]}).predictions == ["2.0", [1]]
    with client(Role.ADMIN, token="wrong") as envd, pytest.raises(UnauthenticatedError):
        envd.list_models()
    nothing = {"tls_cert": None, "tls_key": None}
    with client(Role.ADMIN, **nothing) as envd, pytest.raises(DaemonUnreachableError):
        envd.list_models()


def test_other_cas_are_those_of_the_next_start_over_grpc_as_over_http(
    door: Guarded, shown: dict[Role, Certified], tmp_path: Path
) -> None:
    before, stranger = door.authority.cert.read_bytes(), Authority(tmp_path, "stranger")
    known = Visitor(door.authority.cert, None, shown[Role.ADMIN])
    names = NAMES[Role.ADMIN]
    unknown = Visitor(tmp_path / "before.pem", None, stranger.certify("client", *names))
    unknown.ca.write_bytes(before)
    door.authority.cert.write_bytes(stranger.cert.read_bytes())
    door.reload()
    door.authority.cert.write_bytes(before)

    said = []
    for visitor in (known, unknown):
        with visitor.channel(door.grpc) as channel:
            said.append(code(channel, roles.HEALTH))
    assert said == ["OK", "UNAVAILABLE"]
    assert door.web(known, "GET", "/ping").status == 200
    assert any("`access.client_ca` when it is restarted" in str(one) for one in door.said())


def test_the_line_of_a_deed_names_the_certificate(
    door: Guarded, shown: dict[Role, Certified]
) -> None:
    visitor = Visitor(door.authority.cert, None, shown[Role.ADMIN])
    more = (("x-request-id", "mine"),)
    with visitor.channel(door.grpc) as channel:
        code(channel, "/envd.v1.Predictions/RestartWorker", more, b"\x08\x07")

    (line,) = (one for one in door.audited() if one["request"] == "mine")
    assert line["by"] == "certificate email:root@example"
    assert (line["outcome"], line["about"]) == ("WORKER_NOT_FOUND", {"pid": "7"})
