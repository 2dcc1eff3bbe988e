"""`envctl doctor`: what it finds of a machine, and what it says is to be done."""

from __future__ import annotations

import grp
import json
import os
import socket
import ssl
import subprocess
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envd
from envd.access import certificates
from envd.addresses import Sockets
from envd.cli import checks_access
from envd.config import Access, Settings
from tests.authority import HERE, Authority
from tests.called import Called
from tests.conftest import Daemon, Envctl, environment
from tests.tiny import Tiny

ALONE = [
    "versions", "settings", "root", "disk", "files", "pythons", "uv", "conda", "sandbox",
    "access", "daemon",
]  # fmt: skip


@pytest.fixture
def doctor(envctl: Envctl) -> Called:
    return Called(envctl.root, envctl.env)


def found(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {one["name"]: one for one in json.loads(done.stdout)["checks"]}


def troubles(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {name: one["to_do"] for name, one in found(done).items() if not one["ok"]}


def test_all_is_well_and_nothing_is_changed(doctor: Called) -> None:
    done = doctor("doctor", "--json")
    text = doctor("doctor")

    assert list(found(done)) == ALONE
    assert troubles(done) == {}
    assert json.loads(done.stdout)["ok"] is True
    assert (done.returncode, text.returncode) == (0, 0)
    assert [line.split()[:2] for line in text.stdout.splitlines()] == [["ok", x] for x in ALONE]
    assert f"envd {envd.__version__}" in text.stdout
    assert not doctor.root.exists()


def test_a_daemon_is_asked(module_daemon: Daemon, home: Path, tiny: Tiny) -> None:
    doctor = Called(module_daemon.root, environment(module_daemon.root, home, **tiny.settings))
    well = doctor("doctor", "--json")
    file, socket = module_daemon.root / "daemon.json", module_daemon.root / "admin.sock"
    document = file.read_text()

    socket.chmod(0o666)
    file.write_text(json.dumps(json.loads(document) | {"version": "0.0.1"}))
    ill = doctor("doctor", "--json")
    socket.chmod(0o600)
    file.write_text(document)

    assert (well.returncode, troubles(well)) == (0, {})
    assert list(found(well)) == [*ALONE[:-1], "sockets", "daemon"]
    assert f"pid {module_daemon.pid}, profile dev, sandbox 0" in found(well)["daemon"]["found"]
    assert ill.returncode == 1
    assert troubles(ill) == {
        "sockets": f"everybody may connect: `chmod o= {socket}`",
        "daemon": f"it is another version than this one, {envd.__version__}: restart it",
    }


def test_what_is_missing_is_named_with_what_to_do(doctor: Called) -> None:
    wrong = {
        "ENVD_BUILD__RESERVE": "1000TB",
        "ENVD_CONDA__EXE": "/nowhere/micromamba",
        "ENVD_PYTHON__DOWNLOAD": "never",
        "ENVD_SECURITY__SANDBOX": "0",
        "ENVD_WORKERS__NETWORK": "off",
        "PATH": "/nowhere",
    }
    said = {
        "disk": "`build.reserve`",
        "pythons": "`python.roots`",
        "conda": "`conda.exe` is no program",
        "sandbox": "takes sandbox 1 or 2",
    }

    done, text = doctor("doctor", "--json", **wrong), doctor("doctor", **wrong)

    assert (done.returncode, text.returncode) == (1, 1)
    assert list(troubles(done)) == list(said)
    for name, to_do in troubles(done).items():
        assert said[name] in to_do
        assert f"\nTO DO  {name}" in text.stdout
        assert f"-> {to_do}\n" in text.stdout


def test_wrong_settings_are_all_that_is_said(doctor: Called) -> None:
    done = doctor("doctor", "--json", ENVD_GC__KEEP="few")

    assert done.returncode == 1
    assert list(found(done)) == ["versions", "settings"]
    assert "ENVD_GC__KEEP: `gc.keep` cannot be 'few'" in troubles(done)["settings"]


def test_a_root_that_others_may_write_in_is_trouble(doctor: Called) -> None:
    doctor.root.mkdir()
    doctor.root.chmod(0o777)

    done = doctor("doctor", "--json")

    assert f"chmod go-w {doctor.root}" in troubles(done)["root"]


@pytest.mark.parametrize(("days", "said"), [(-1, "has ended on"), (5, "ends on"), (30, "")])
def test_a_certificate_that_ends_is_trouble_in_time(
    doctor: Called, tmp_path: Path, days: int, said: str
) -> None:
    authority = Authority(tmp_path)
    server = authority.certify("server", *HERE, days=days)
    until = datetime.now(UTC).date() + timedelta(days=days)

    done = doctor(
        "doctor", "--json", ENVD_ACCESS__TLS_CERT=str(server.cert),
        ENVD_ACCESS__TLS_KEY=str(server.key),
    )  # fmt: skip

    assert abs(date.fromisoformat(found(done)["access"]["found"][-10:]) - until).days <= 1
    assert list(troubles(done)) == (["access"] if said else [])
    assert said in troubles(done).get("access", "")


def test_a_key_and_tokens_that_others_may_read_are_trouble(doctor: Called, tmp_path: Path) -> None:
    server = Authority(tmp_path).certify("server", *HERE, days=100)
    tls = {"ENVD_ACCESS__TLS_CERT": str(server.cert), "ENVD_ACCESS__TLS_KEY": str(server.key)}
    (tmp_path / "tokens").touch(mode=0o644)
    server.key.chmod(0o644)

    key = doctor("doctor", "--json", **tls)
    tokens = doctor("doctor", "--json", ENVD_ACCESS__TOKENS=str(tmp_path / "tokens"))

    assert troubles(key) == {"access": f"everybody may read the key: `chmod o= {server.key}`"}
    assert "mode 0644, which is open to others" in troubles(tokens)["access"]


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda one: b"\x30\x82" + one))
def test_what_is_no_certificate_is_said_to_be_none(der: bytes) -> None:
    with pytest.raises(OSError, match="no certificate"):
        list(certificates.validities(ssl.DER_cert_to_PEM_cert(der)))


def test_a_group_that_does_not_come_to_its_sockets_is_trouble(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    settings = Settings(tmp_path, access=Access(group=group))
    run = tmp_path / "run"
    run.mkdir()
    chosen = Sockets(run / "predict.sock", run / "admin.sock")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.bind(str(chosen.predict))
        two.bind(str(chosen.admin))
        for path in (chosen.predict, chosen.admin):
            path.chmod(0o600)
        private = checks_access.sockets(settings, chosen)
        chosen.predict.chmod(0o660)
        run.chmod(0o700)
        closed = checks_access.sockets(settings, chosen)

    assert f"cannot open `{chosen.predict}`: restart" in private[1]
    assert closed[0] == f"{chosen.predict} (group {group})"
    assert f"does not come through `{run}`" in closed[1]


def test_too_few_files_are_trouble(envctl: Envctl) -> None:
    command = ["/bin/sh", "-c", 'ulimit -n 1000; exec "$0" doctor --json', envctl.argv()[0]]
    done = subprocess.run(command, env=envctl.env, capture_output=True, text=True, check=False)

    assert found(done)["files"]["found"] == "1000 may be open"
    assert "LimitNOFILE" in troubles(done)["files"]
