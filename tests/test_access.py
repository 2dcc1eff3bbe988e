"""Who may do what over TCP with tokens: every RPC, every path, with every role and without one."""

from __future__ import annotations

import functools
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from envd_client import AsyncClient, Client
from envd_client.errors import (
    PermissionDeniedError,
    SettingsInvalidError,
    UnauthenticatedError,
)
from envd_client.v1 import envd_pb2 as api
from grpc_health.v1 import health_pb2

from envd.access import tokens
from envd.access.roles import Role
from envd.serve import roles
from tests import guarded
from tests.authority import Authority
from tests.called import Called
from tests.conftest import wait_for
from tests.guarded import ROLES, Guarded, Visitor, code
from tests.tiny import Tiny

DENIED, NOBODY = "PERMISSION_DENIED", "UNAUTHENTICATED"


@pytest.fixture(scope="module")
def door(tiny: Tiny, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("access")
    file, found = guarded.made(folder)
    models = f'[models]\necho = "{tiny.model(folder / "echo")}"\n'
    settings = f'tokens = "{file}"\n{models}'
    more = tiny.settings | {
        "ENVD_HTTP__HOSTS": "front.example,other.example",
        "ENVD_MODELS__ROOTS": str(tmp_path_factory.getbasetemp()),
    }
    with guarded.started(folder, home, settings, **more) as started:
        started.tokens, started.file = found, file
        yield started


# Of its own: a process of tests may have tritonclient's messages, which have the same names.
EVERY_RPC = """
from envd_client.v1 import envd_pb2
from envd.serve.oip import inference_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
for file in (envd_pb2, inference_pb2, health_pb2, reflection_pb2):
    for service in file.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            print(f"/{service.full_name}/{method.name}")
"""


@functools.cache
def every_rpc() -> list[str]:
    """Return every RPC that is there, by the descriptors of its service."""
    argv = [sys.executable, "-c", EVERY_RPC]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def test_every_rpc_has_a_role_and_no_other_does() -> None:
    # What not every gRPC has yet.
    newer = {"/grpc.health.v1.Health/List"}
    assert set(roles.ROLES) - newer == set(every_rpc()) - newer
    assert set(roles.ROLES) >= roles.AUDITED


def test_each_deed_of_an_admin_is_written_down_and_each_refusal(door: Guarded) -> None:
    admin, other = door.by_token(Role.ADMIN), door.by_token(Role.PREDICT)
    method = "/envd.v1.Environments/DeleteEnvironment"
    body = api.DeleteEnvironmentRequest(id="abcd\n1234", force=True).SerializeToString()
    more = (("x-request-id", "mine"),)
    with admin.channel(door.grpc) as channel:
        code(channel, method, admin.metadata + more, body)
        code(channel, method, other.metadata + more, body)
        code(channel, "/envd.v1.Predictions/ListModels", more)
        code(channel, "/envd.v1.Predictions/ListModels", admin.metadata + more)
    door.web(admin, "POST", "/v2/repository/models/no%20pid=1/unload", x_request_id="mine")

    wait_for(lambda: len(mine(door)) == 4)
    done, refused, unknown, unloaded = mine(door)
    assert done["rpc"] == method
    assert done["outcome"] not in {"OK", DENIED}
    assert (done["by"], done["role"]) == ("token adminer", "admin")
    assert str(done["peer"]).startswith("ipv4:127.0.0.1:")
    assert done["about"] == {"id": "abcd\n1234", "force": "True"}
    assert (refused["outcome"], refused["by"]) == (DENIED, "token predicter")
    assert unknown["outcome"] == NOBODY
    assert "by" not in unknown
    assert unloaded["about"] == {"model": "no pid=1"}
    assert any(str(one["message"]).endswith(': model="no pid=1"') for one in door.said())
    (line,) = (one for one in door.said() if "abcd" in str(one["message"]))
    assert "\n" not in str(line["message"])
    assert str(line["message"]).endswith(": id=abcd\\n1234 force=True")
    assert not any(secret in str(door.said()) for secret in door.tokens.values())


def mine(door: Guarded) -> list:
    return [one for one in door.audited() if one["request"] == "mine"]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_it_and_those_below_it_may(door: Guarded, role: Role) -> None:
    visitor = door.by_token(role)
    with visitor.channel(door.grpc) as channel:
        found = {one: code(channel, one, visitor.metadata) for one in every_rpc()}

    denied = {one for one in found if not role.covers(roles.ROLES[one])}
    assert {one for one, said in found.items() if said == DENIED} == denied
    assert NOBODY not in found.values()
    assert "INTERNAL" not in found.values()


@pytest.mark.parametrize("token", [None, "", "no such token", "x" * 4000])
def test_without_a_token_that_is_known_only_health_is_told(door: Guarded, token) -> None:
    visitor = door.by_token(token)
    with visitor.channel(door.grpc) as channel:
        found = {one: code(channel, one, visitor.metadata) for one in every_rpc()}
        requests = {
            one: health_pb2.HealthCheckRequest(service=one).SerializeToString()
            for one in ("models/echo", "sandbox/2", "envd.v1.Predictions")
        }
        more = {
            one: code(channel, roles.HEALTH, visitor.metadata, requests[one]) for one in requests
        }

    assert {one for one, said in found.items() if said != NOBODY} == {roles.HEALTH}
    assert found[roles.HEALTH] == "OK"
    assert more == {"models/echo": NOBODY, "sandbox/2": NOBODY, "envd.v1.Predictions": "OK"}


@pytest.mark.parametrize("sent", ["Basic {}", "{}", "Bearer", "Bearer {} {}"])
def test_a_token_in_another_form_is_none(door: Guarded, sent: str) -> None:
    token = door.tokens[Role.ADMIN]
    with door.by_token(None).channel(door.grpc) as channel:
        metadata = (("authorization", sent.format(token, token)),)
        assert code(channel, "/envd.v1.Predictions/ListModels", metadata) == NOBODY


def test_another_ca_certifies_nothing(door: Guarded, tmp_path: Path) -> None:
    stranger = Visitor(Authority(tmp_path).cert, door.tokens[Role.ADMIN])
    with stranger.channel(door.grpc) as channel:
        assert code(channel, roles.HEALTH) == "UNAVAILABLE"


def test_who_may_predict_asks_models_by_name_and_as_they_are(
    door: Guarded, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "other")
    with client(door, Role.PREDICT) as envd:
        assert envd.predict("echo", {"inputs": [1]}).predictions == ["2.0", [1]]
        for ask in (
            lambda: envd.predict(model, {"inputs": [1]}),
            lambda: envd.predict("echo", {"inputs": [1]}, pip_requirements_override=["tiny-b"]),
            lambda: envd.predict("echo", {"inputs": [1]}, env_manager="conda"),
            lambda: envd.predict("echo", {"inputs": [1]}, model_config={"a": 1}),
            lambda: list(envd.predict_stream(model, {"inputs": [1]})),
            lambda: envd.get_model(model),
            lambda: envd.resolve(model),
            lambda: envd.resolve("echo", upgrade=True),
            lambda: envd.load_model(model),
            lambda: envd.load_model("echo", name="mine"),
            lambda: envd.unload_model(model),
        ):
            with pytest.raises(PermissionDeniedError):
                ask()
        assert envd.load_model("echo").state == api.Model.READY
        assert envd.resolve("echo").environment_id


def test_who_may_build_names_paths_and_who_may_all_loads_them(
    door: Guarded, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "other")
    with client(door, Role.BUILD) as envd:
        assert envd.predict(model, {"inputs": [1]}).predictions == ["2.0", [1]]
        with pytest.raises(PermissionDeniedError):
            envd.load_model(model, name="other")
    with client(door, Role.ADMIN) as envd:
        envd.load_model(model, name="other")
        (found,) = (one for one in envd.list() if str(model) in one.models)
        envd.pin(found.id)
        envd.unpin(found.id)
        envd.unload_model("other")


# --- HTTP: the same tokens

FREE = {"/ping": 200, "/health": 200, "/v2/health/live": 200, "/v2/health/ready": 200}
TOLD = ("/openapi.json", "/metrics", "/v2", "/version", "/models/echo/ping", "/v2/models/echo",
        "/v2/models/echo/ready", "/v2/models/echo/config", "/models/echo/version")  # fmt: skip


@pytest.mark.parametrize("token", [None, "wrong", *ROLES])
def test_http_wants_the_same_tokens(door: Guarded, token) -> None:
    visitor = door.by_token(token)
    free = {path: door.web(visitor, "GET", path).status for path in FREE}
    told = [door.web(visitor, "GET", path) for path in TOLD]
    asked = door.web(visitor, "POST", "/models/echo/invocations", {"inputs": [1]})
    index = door.web(visitor, "POST", "/v2/repository/index", {})

    assert free == FREE
    if isinstance(token, Role):
        assert {one.status for one in (asked, index)} == {200}
        assert all(one.status not in {401, 403} for one in told)
    else:
        assert {one.status for one in (*told, asked, index)} == {401}
        assert {one.headers["www-authenticate"] for one in (*told, asked)} == {"Bearer"}
        assert {one.headers["x-envd-reason"] for one in (*told, asked)} == {NOBODY}


def test_over_http_too_an_admin_unloads_what_is_not_of_the_settings(
    door: Guarded, tiny: Tiny, tmp_path: Path
) -> None:
    with client(door, Role.ADMIN) as envd:
        envd.load_model(tiny.model(tmp_path / "given"), name="given")
    path = "/v2/repository/models/given/unload"

    assert door.web(door.by_token(Role.PREDICT), "POST", path).status == 403
    assert door.web(door.by_token(Role.BUILD), "POST", path).status == 403
    assert door.web(door.by_token(Role.ADMIN), "POST", path).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "front.example"}, 200),
        ({"host": "FRONT.example:8443"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "front.example.evil"}, 403),
        ({"host": "front.example", "origin": "https://front.example"}, 200),
        ({"host": "localhost", "origin": "https://other.example:1"}, 200),
        ({"host": "front.example", "origin": "https://evil.example"}, 403),
        ({"host": "front.example", "origin": "null"}, 403),
    ],
)
def test_requests_are_for_a_host_that_the_settings_name(door: Guarded, headers, status) -> None:
    visitor = door.by_token(Role.PREDICT)

    assert door.web(visitor, "POST", "/v2/repository/index", {}, **headers).status == status
    assert door.web(visitor, "GET", "/ping", **headers).status == 200


def test_what_is_not_tls_is_not_answered(door: Guarded) -> None:
    with grpc.insecure_channel(door.grpc) as channel:
        assert code(channel, roles.HEALTH) == "UNAVAILABLE"


def test_tls_is_tls_where_nobody_has_to_say_who_they_are(home: Path, tmp_path: Path) -> None:
    with guarded.started(tmp_path, home, "") as open_to_all:
        visitor = open_to_all.by_token(None)
        with grpc.insecure_channel(open_to_all.grpc) as channel:
            plain = code(channel, roles.HEALTH)
        with visitor.channel(open_to_all.grpc) as channel:
            secured = code(channel, roles.HEALTH)
        web = open_to_all.web(visitor, "GET", "/v2").status

    assert (plain, secured, web) == ("UNAVAILABLE", "OK", 200)


# --- what is written of it: not all, where much is refused


def test_whoever_is_refused_again_and_again_does_not_fill_the_log(door: Guarded) -> None:
    before, visitor = len(door.audited()), door.by_token("wrong")
    with visitor.channel(door.grpc) as channel:
        for _ in range(300):
            code(channel, "/envd.v1.Predictions/ListModels", visitor.metadata)

    assert len(door.audited()) - before < 100


# --- the tokens change


def test_a_token_counts_as_long_as_its_line_stands_there(door: Guarded) -> None:
    new, line = tokens.made(Role.ADMIN, "newer")
    before = door.file.read_text()
    old, method = door.tokens[Role.ADMIN], "/envd.v1.Predictions/RestartWorker"
    with door.by_token(None).channel(door.grpc) as channel:

        def may() -> list[str]:
            return [code(channel, method, door.by_token(one).metadata) for one in (old, new)]

        first = may()
        door.file.write_text(f"{before}{line}\n")
        door.reload()
        both = may()
        door.file.write_text(f"{line} and more\n")
        door.reload()
        unchanged = may()
        door.file.write_text(f"{line}\n")
        door.reload()
        last = may()
    door.file.write_text(before)
    door.reload()

    assert (first, both, unchanged, last) == (
        ["NOT_FOUND", NOBODY], ["NOT_FOUND"] * 2, ["NOT_FOUND"] * 2, [NOBODY, "NOT_FOUND"],
    )  # fmt: skip


def test_a_token_counts_for_each_request_of_a_stream(door: Guarded) -> None:
    before, asking = door.file.read_text(), queue.SimpleQueue[bytes | None]()
    # A ModelInferRequest for the model `nobody`.
    request = b"\n\x06nobody"
    visitor, said = door.by_token(Role.PREDICT), []
    with visitor.channel(door.grpc) as channel:
        method = "/inference.GRPCInferenceService/ModelStreamInfer"
        sending = iter(asking.get, None)
        call = channel.stream_stream(method)(sending, metadata=visitor.metadata, timeout=60)
        for text in (before, before.replace("predict ", "# predict ")):
            door.file.write_text(text)
            door.reload()
            asking.put(request)
            said.append(next(call))
        asking.put(None)
    door.file.write_text(before)
    door.reload()

    assert b"MODEL_NOT_FOUND" in said[0]
    assert NOBODY.encode() in said[1]


def test_a_new_certificate_is_served_to_whoever_connects_next(door: Guarded) -> None:
    server = door.authority.folder / "ca-server.pem"
    before, admin = server.read_bytes(), door.by_token(Role.ADMIN)
    with admin.channel(door.grpc) as channel:
        assert code(channel, roles.HEALTH) == "OK"
        door.authority.certify("server", "DNS:elsewhere")
        door.reload()
        assert code(channel, roles.HEALTH) == "OK"
    with admin.channel(door.grpc) as channel:
        assert code(channel, roles.HEALTH) == "UNAVAILABLE"
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        door.web(admin, "GET", "/ping")
    door.authority.certify("server", "DNS:localhost", "IP:127.0.0.1")
    door.reload()

    assert before != server.read_bytes()
    assert door.web(admin, "GET", "/ping").status == 200
    with admin.channel(door.grpc) as channel:
        assert code(channel, roles.HEALTH) == "OK"


# --- clients


def client(door: Guarded, role: Role, **more: object) -> Client:
    found = {"tls_ca": door.authority.cert, "token": door.tokens[role], "timeout_s": 120} | more
    return Client(door.grpc, **found)


def test_a_client_reads_its_token_again_when_the_file_has_changed(
    door: Guarded, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("wrong\n")
    with Client(door.grpc, tls_ca=door.authority.cert, token_file=file) as envd:
        with pytest.raises(UnauthenticatedError):
            envd.list_models()
        file.write_text(door.tokens[Role.PREDICT] + "\n")
        assert [one.name for one in envd.list_models()] == ["echo"]
        file.write_text("predict sha256:12 name")
        with pytest.raises(SettingsInvalidError, match="envctl token"):
            envd.list_models()
        file.unlink()
        with pytest.raises(SettingsInvalidError, match="cannot be read"):
            envd.list_models()
    assert door.tokens[Role.PREDICT] not in repr(vars(envd)["_connection"])


def test_a_client_in_a_loop_does_the_same(door: Guarded) -> None:
    import asyncio

    async def asked() -> list:
        token = door.tokens[Role.PREDICT]
        async with AsyncClient(door.grpc, tls_ca=door.authority.cert, token=token) as envd:
            return [one.name for one in await envd.list_models()]

    assert asyncio.run(asked()) == ["echo"]


def test_no_token_is_sent_to_another_machine_without_tls() -> None:
    found = []
    for target in ("192.0.2.1:1", "host:1", "dns:///host:1", "localhost.evil:1", "127.0.0.1.x:1"):
        with Client(target, token="t", timeout_s=0.1) as envd:
            found.append(envd._connection.credentials.of_channel(target))

    assert all(isinstance(one, grpc.ChannelCredentials) for one in found)


@pytest.mark.parametrize(
    "given",
    [
        {"token": "a", "token_file": "b"},
        {"tls_cert": "a"},
        {"tls_key": "a"},
        {"token": "a b"},
        {"token": ""},
    ],
)
def test_credentials_that_do_not_fit_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(SettingsInvalidError):
        Client("host:1", **given)


@pytest.fixture
def asking(door: Guarded, home: Path, tmp_path: Path) -> Called:
    """envctl on another root, asking over TCP as an admin."""
    file = tmp_path / "token"
    file.write_text(door.tokens[Role.ADMIN])
    env = {
        "HOME": str(home), "PATH": os.environ["PATH"], "ENVD_ROOT": str(tmp_path / "none"),
        "ENVD_SOCKET": door.grpc, "ENVD_TLS_CA": str(door.authority.cert),
        "ENVD_TOKEN_FILE": str(file),
    }  # fmt: skip
    return Called(tmp_path / "none", env)


def test_envctl_asks_over_tcp_whatever_it_may(door: Guarded, asking: Called) -> None:
    predicted = asking("predict", "-m", "echo", stdin='{"inputs": [1]}')
    listed, loaded = asking("list"), asking("models", "load", "echo")
    cleared, workers = asking("gc", "--dry-run"), asking("workers", "list")
    explicit = asking(
        "models", "list", "--socket", door.grpc, "--tls-ca", door.authority.cert,
        ENVD_SOCKET="", ENVD_TLS_CA="",
    )  # fmt: skip

    assert predicted.stdout.strip() == '{"predictions": ["2.0", [1]]}'
    assert {one.returncode for one in (listed, loaded, cleared, workers, explicit)} == {0}


def test_envctl_says_what_is_wrong_with_its_credentials(asking: Called, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wrong")
    wrong = asking("models", "list", "--token-file", tmp_path / "wrong")
    missing = asking("models", "list", "--token-file", tmp_path / "nothing")
    unknown = asking("models", "list", "--tls-ca", Authority(tmp_path, "stranger").cert)
    plain = asking("models", "list", ENVD_TLS_CA="")

    assert (wrong.returncode, missing.returncode) == (1, 2)
    assert (unknown.returncode, plain.returncode) == (3, 3)
    assert "this token is not one of the daemon's" in wrong.stderr
    assert "cannot be read" in missing.stderr
    assert "CERTIFICATE_VERIFY_FAILED" in unknown.stderr


def test_a_token_is_made_with_its_line(asking: Called) -> None:
    made, as_json = asking("token", "build", "--name", "ci"), asking("token", "admin", "--json")
    wrong = [asking("token", "root"), asking("token", "admin", "--name", "a b")]
    found = json.loads(as_json.stdout)

    assert tokens.parse(made.stderr, "")[0].name == "ci"
    assert tokens.find(tokens.parse(made.stderr, ""), made.stdout.strip()).role is Role.BUILD
    assert tokens.find(tokens.parse(found["line"], ""), found["token"]).role is Role.ADMIN
    assert len(made.stdout.strip()) >= 43
    assert {one.returncode for one in wrong} == {2}
