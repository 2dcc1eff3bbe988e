"""The sockets of a daemon that a group may open, tried as other users of the machine."""

from __future__ import annotations

import contextlib
import grp
import http.client
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from envd_client import Client

from envd.serve import roles
from tests import guarded
from tests.conftest import Daemon, launch, stop
from tests.guarded import code
from tests.tiny import Tiny
from tests.web import ask

IS_ROOT = os.getuid() == 0
GROUP = grp.getgrnam("mail") if IS_ROOT else grp.getgrgid(os.getgid())
# One that others than root may run as well.
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
DEEDS = """
import json, os, socket, sys
def tried(deed, *given):
    try:
        deed(*given)
    except OSError as error:
        return type(error).__name__
    return "done"
def connect(path):
    with socket.socket(socket.AF_UNIX) as found:
        found.connect(path)
run, root = sys.argv[1:]
print(json.dumps({
    **{name: tried(connect, f"{run}/{name}.sock") for name in ("predict", "admin", "http")},
    "lock": tried(open, f"{run}/predict.sock.lock"),
    "list": tried(os.listdir, run),
    "link": tried(os.symlink, "/etc/shadow", f"{run}/planted"),
    "unlink": tried(os.unlink, f"{run}/predict.sock"),
    "root": tried(os.listdir, root),
    "logs": tried(os.listdir, f"{root}/logs"),
    "daemon.json": tried(open, f"{root}/daemon.json"),
    "daemon.lock": tried(open, f"{root}/daemon.lock", "r+"),
}))
"""
REFUSED = "PermissionError"


@dataclass(frozen=True)
class Yard:
    """A daemon whose directories everybody can come to, and how its sockets have looked."""

    folder: Path
    daemon: Daemon
    seen: set[tuple[str, int, int]]
    tokens: dict[roles.Role, str]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def target(self, name: str) -> str:
        return f"unix:{self.run}/{name}.sock"


@pytest.fixture(scope="module")
def yard(home: Path, tiny: Tiny) -> Iterator[Yard]:
    # Where pytest makes folders nobody else can come.
    folder = Path(tempfile.mkdtemp(prefix="envd-groups-"))
    folder.chmod(0o755)
    run, seen, is_up = folder / "run", set[tuple[str, int, int]](), threading.Event()
    model = tiny.model(folder / "echo")
    file = folder / "envd.toml"
    known, found = guarded.made(folder)
    access = f'[access]\ngroup = "{GROUP.gr_name}"\ntokens = "{known}"\n'
    file.write_text(f'{access}[models]\necho = "{model}"\n')

    def look() -> None:
        while not is_up.is_set():
            for name in ("predict.sock", "admin.sock", "http.sock"):
                try:
                    found = (run / name).stat()
                except OSError:
                    continue
                seen.add((name, stat.S_IMODE(found.st_mode), found.st_gid))

    looking = threading.Thread(target=look)
    looking.start()
    more = {
        "ENVD_SOCKET": f"{run}/predict.sock",
        "ENVD_HTTP__LISTEN": f"{run}/http.sock",
        "ENVD_DAEMON__GRPC": "127.0.0.1:0",
        "ENVD_CONFIG": str(file),
    }
    try:
        with (folder / "log").open("w") as log, contextlib.redirect_stderr(log):
            daemon = launch(folder / "root", home, **tiny.settings, **more)
        is_up.set()
        looking.join()
        yield Yard(folder, daemon, seen, found)
        stop(daemon)
    finally:
        is_up.set()
        shutil.rmtree(folder)


def deeds(yard: Yard, *groups: int) -> dict[str, str]:
    """Return what comes of what nobody tries, who is in *groups*."""
    done = subprocess.run(
        [PYTHON, "-I", "-S", "-c", DEEDS, str(yard.run), str(yard.daemon.root)],
        user=65534,
        group=65534,
        extra_groups=groups,
        capture_output=True,
        check=True,
        cwd="/",
        env={},
    )
    return json.loads(done.stdout)


def test_sockets_have_the_mode_of_their_group_and_never_had_a_wider_one(yard: Yard) -> None:
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in yard.run.iterdir()}
    folder = yard.run.stat()

    assert modes == {
        "predict.sock": 0o660, "http.sock": 0o660, "admin.sock": 0o600,
        "predict.sock.lock": 0o600, "admin.sock.lock": 0o600,
    }  # fmt: skip
    assert (stat.S_IMODE(folder.st_mode), folder.st_gid) == (0o710, GROUP.gr_gid)
    assert {name for name, _, _ in yard.seen} == {"predict.sock", "admin.sock", "http.sock"}
    narrow = {(0o600, os.getgid()), (0o600, GROUP.gr_gid), (0o660, GROUP.gr_gid)}
    assert {(mode, gid) for _, mode, gid in yard.seen} <= narrow
    assert {mode for name, mode, _ in yard.seen if name == "admin.sock"} == {0o600}


def test_such_a_daemon_does_not_trust_models_as_its_owners_own(yard: Yard) -> None:
    document = json.loads((yard.daemon.root / "daemon.json").read_text())

    assert document["profile"] == "standard"


@pytest.mark.skipif(not IS_ROOT, reason="only root can be others")
def test_a_member_of_the_group_opens_its_sockets_and_nothing_else(yard: Yard) -> None:
    found = deeds(yard, GROUP.gr_gid)

    assert {name for name, said in found.items() if said == "done"} == {"predict", "http"}
    assert {said for name, said in found.items() if said != "done"} == {REFUSED}


@pytest.mark.skipif(not IS_ROOT, reason="only root can be others")
def test_whoever_is_in_no_group_gets_nowhere(yard: Yard) -> None:
    assert set(deeds(yard).values()) == {REFUSED}


def test_a_socket_decides_what_may_be_asked_there(yard: Yard) -> None:
    found = {}
    for name in ("predict", "admin"):
        with grpc.insecure_channel(yard.target(name)) as channel:
            token = (("authorization", "Bearer whatever"),)
            found[name] = {one: code(channel, one, token) for one in roles.ROLES}

    wanted = {one for one, role in roles.ROLES.items() if role is roles.Role.ADMIN}
    denied = {one for one, said in found["predict"].items() if said == "PERMISSION_DENIED"}
    assert denied == wanted
    assert not {"PERMISSION_DENIED", "UNAUTHENTICATED"} & set(found["admin"].values())


def test_of_http_through_a_socket_it_is_told_which_process_asked(yard: Yard) -> None:
    with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(f"{yard.run}/http.sock")
        path = "/v2/repository/models/nobody/unload"
        asked = ask(connection, "POST", path, None, {"x-request-id": "mine", "host": "any"})

    assert asked.status == 404
    (line,) = (one for one in (yard.folder / "log").read_text().splitlines() if "[mine]" in one)
    by = f"by whoever opens http.sock from unix: pid {os.getpid()} uid {os.getuid()}"
    assert line.endswith(f": /http/unload MODEL_NOT_FOUND {by}: model=nobody")


def test_on_this_machine_tokens_go_without_tls_and_are_wanted_too(yard: Yard) -> None:
    target = json.loads((yard.daemon.root / "daemon.json").read_text())["grpc"]
    token, method = yard.tokens[roles.Role.PREDICT], "/envd.v1.Predictions/ListModels"
    with grpc.insecure_channel(target) as channel:
        assert code(channel, method) == "UNAUTHENTICATED"
        assert code(channel, method, (("authorization", f"bearer {token}"),)) == "OK"
        assert code(channel, roles.HEALTH) == "OK"
    with Client(target, token=token, timeout_s=60) as envd:
        assert [one.name for one in envd.list_models()] == ["echo"]


def test_what_has_no_role_is_denied_to_everybody() -> None:
    # Not in this process, which may have tritonclient's messages: theirs have the same names.
    argv = [sys.executable, "-m", "tests.unlisted_rpcs"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    # Nothing is said of stderr: gRPC may tell there that the server left before its client.
    assert (done.stdout.split(), done.returncode) == (["PERMISSION_DENIED"] * 2, 0)
