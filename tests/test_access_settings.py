"""What `[access]` may say, what is refused before anything starts, and its files, fuzzed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envd import config
from envd.access import credentials, exposure, openings, tokens
from envd.access.roles import NAMES, Role
from envd.access.tokens import Token
from envd.config import Access, Settings
from envd.errors import SettingsInvalidError
from envd.serve import reloading
from envd.settings import values
from envd.settings.values import Location
from envd.spec import policy
from tests.authority import HERE, Authority
from tests.conftest import environment

A = f"sha256:{'a' * 64}"


def read(folder: Path, toml: str, **variables: str) -> Settings:
    """Read settings as the daemon does."""
    file = folder / "envd.toml"
    file.write_text(toml)
    found = config.load(root=folder / "root", file=file, environ=variables)
    exposure.check(found)
    credentials.load(found)
    return exposure.settled(found)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """What settings name: good files, and such as cannot be used."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    one, two = authority.certify("one", *HERE), other.certify("two", *HERE)
    file = tmp_path / "tokens"
    file.touch(mode=0o600)
    file.write_text(f"predict {A} one\n")
    return {
        "cert": str(one.cert), "key": str(one.key), "other": str(two.key),
        "ca": str(authority.cert), "tokens": str(file),
    }  # fmt: skip


TLS = 'tls_cert = "{cert}"\ntls_key = "{key}"\n'
TWICE = 'client_ca = "{ca}"\ncertificates = {{ "DNS:A" = "predict", "DNS:a" = "admin" }}'
REFUSED = [
    ('[daemon]\ngrpc = "0.0.0.0:1"', "2: `daemon.grpc` is 0.0.0.0:1, which others"),
    ('[http]\n\nlisten = "[::]:1"', "3: `http.listen`"),
    ('[http]\nlisten = "name.example:1"', "2: `http.listen`"),
    ('[http]\nlisten = "localhost.example:1"', "2: `http.listen`"),
    ('[http]\nlisten = "10.0.0.1:1"\n[access]\n' + TLS, "2: `http.listen`"),
    ('[http]\nlisten = "10.0.0.1:1"\n[access]\ntokens = "{tokens}"', "2: `http.listen`"),
    ('[daemon]\ngrpc = "unix:8001"', "2: `daemon.grpc` cannot be 'unix:8001'; give an address"),
    ('[access]\ngroup = "no such"', "2: `access.group`: there is no group `no such`"),
    ('[access]\nadmin_group = "none"', "2: `access.admin_group`"),
    ('[access]\ntls_cert = "{cert}"', "2: `access.tls_cert` needs `access.tls_key`"),
    ('[access]\ntls_key = "{key}"', "2: `access.tls_key` needs"),
    ('[access]\nclient_ca = "{ca}"', "2: `access.client_ca` needs"),
    (f'[access]\n{TLS}client_ca = "{{ca}}"', "4: `access.client_ca` lets nobody in"),
    ('[access]\ncertificates = {{ "DNS:a" = "admin" }}', "2: `access.certificates` need"),
    ('[access]\ncertificates = {{ "a" = "admin" }}', "2: `access.certificates` cannot be"),
    ('[access]\ncertificates = {{ "DNS:a" = "root" }}', "2: `access.certificates` cannot be"),
    (f"[access]\n{TLS}{TWICE}", "5: `access.certificates` give `DNS:a` a role twice"),
    ('[access]\ntls_cert = "{cert}"\ntls_key = "{other}"', "2: `access.tls_cert`: TLS cannot"),
    ('[access]\ntls_cert = "{cert}"\ntls_key = "/no"', "2: `access.tls_cert`: TLS cannot"),
    ('[access]\ntls_cert = "{tokens}"\ntls_key = "{key}"', "2: `access.tls_cert`: TLS cannot"),
    ('[access]\ntokens = "/no"', "2: `access.tokens`: the file of tokens `/no` cannot be read"),
    ('[access]\nopen = true\ntokens = "{tokens}"', "2: `access.open` lets in everybody"),
    ('[access]\ntokens = "{cert}"', "2: `access.tokens`: the file of tokens"),
]


@pytest.mark.parametrize(("toml", "said"), REFUSED)
def test_what_is_wrong_is_said_with_file_line_and_key(
    tmp_path: Path, files: dict[str, str], toml: str, said: str
) -> None:
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    with pytest.raises(SettingsInvalidError) as caught:
        read(tmp_path, toml.format(**files))

    assert caught.value.message.startswith(f"{tmp_path / 'envd.toml'}:{said}")
    assert caught.value.metadata["setting"].startswith(("access.", "daemon.", "http."))


def test_what_a_variable_sets_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalidError, match=r"^ENVD_DAEMON__GRPC: `daemon.grpc` is 0\.0"):
        read(tmp_path, "", ENVD_DAEMON__GRPC="0.0.0.0:1")


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.1.2.3:1", "name.example:1"])
def test_with_tls_and_tokens_others_may_reach_it(
    tmp_path: Path, files: dict[str, str], listen: str
) -> None:
    toml = f'[daemon]\ngrpc = "{listen}"\n[access]\n{TLS}tokens = "{{tokens}}"'

    assert read(tmp_path, toml.format(**files)).security.profile == "standard"


def test_where_something_else_guards_the_network_everybody_may_reach_it(tmp_path: Path) -> None:
    toml = '[http]\nlisten = "0.0.0.0:1"\n[access]\nopen = true'

    assert read(tmp_path, toml).security.profile == "standard"


def test_a_key_with_a_password_is_refused_and_nobody_asked_for_it(
    tmp_path: Path, files: dict[str, str]
) -> None:
    argv = ["openssl", "pkey", "-in", files["key"], "-aes256", "-passout", "pass:secret"]
    locked = tmp_path / "locked.key"
    locked.write_bytes(subprocess.run(argv, check=True, capture_output=True).stdout)

    with pytest.raises(SettingsInvalidError, match="the key without a password"):
        read(tmp_path, TLS.format(cert=files["cert"], key=locked).join(["[access]\n", ""]))


@pytest.mark.parametrize(
    ("toml", "profile"),
    [
        ("", "dev"),
        ('[http]\nlisten = "/run/http.sock"', "dev"),
        ('[daemon]\nmetrics = "127.0.0.1:1"', "dev"),
        ('[http]\nlisten = "127.0.0.1:1"', "standard"),
        ('[daemon]\ngrpc = "localhost:1"', "standard"),
        ('[access]\ngroup = "root"', "standard"),
        ('[access]\nadmin_group = "root"', "standard"),
        ('[access]\ngroup = "root"\n[security]\nprofile = "dev"', "dev"),
        ('[security]\nprofile = "strict"', "strict"),
    ],
)
def test_the_profile_follows_who_can_reach_the_daemon(
    tmp_path: Path, toml: str, profile: str
) -> None:
    assert policy.of(read(tmp_path, toml).security).profile == profile


def test_whether_callers_are_told_apart_takes_a_restart_and_who_they_are_does_not() -> None:
    root = Path("/a")
    none, one, two = (Settings(root, access=Access(tokens=Location(x))) for x in ("", "/1", "/2"))

    assert reloading.merged(none, one) == (none, ["access.tokens"])
    assert reloading.merged(one, none) == (one, ["access.tokens"])
    assert reloading.merged(one, two) == (two, [])


# --- the file of tokens


@pytest.mark.parametrize("mode", [0o620, 0o604, 0o602, 0o601, 0o666])
def test_a_file_of_tokens_that_others_may_read_or_write_is_refused(
    tmp_path: Path, mode: int
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"admin {A}\n")
    file.chmod(mode)

    with pytest.raises(SettingsInvalidError, match="is open to others"):
        tokens.read(str(file))
    file.chmod(0o640)
    assert tokens.read(str(file)) == (Token(Role.ADMIN, bytes.fromhex("a" * 64), "a" * 8),)


def test_a_file_of_tokens_is_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokens", 0o600)

    with pytest.raises(SettingsInvalidError, match="is not a regular file"):
        tokens.read(str(tmp_path / "tokens"))


@pytest.mark.parametrize(
    "line",
    [
        f"root {A}",
        f"Admin {A}",
        "admin",
        "admin secret-token",
        f"admin sha256:{'A' * 64}",
        f"admin sha1:{'a' * 40}",
        f"admin {A[:-1]}",
        f"admin {A}a",
        f"admin {A} two names",
        f"admin {A} {'n' * 65}",
        f"admin {A} n\x00",
        f"admin {A} \u2028",
        f"predict {A}\nadmin {A}",
    ],
)
def test_what_is_no_line_of_tokens_is_refused_and_not_shown(line: str) -> None:
    with pytest.raises(SettingsInvalidError, match=r"(in|of) line") as caught:
        tokens.parse(f"# first\n\n  build sha256:{'b' * 64}\tx\r\n{line}", "/tokens")

    assert "secret" not in caught.value.message
    assert "aaaa" not in caught.value.message


def test_there_are_not_endless_tokens() -> None:
    lines = [f"admin sha256:{number:064x}" for number in range(1001)]

    assert len(tokens.parse("\n".join(lines[:1000]), "")) == 1000
    with pytest.raises(SettingsInvalidError, match="more than 1000"):
        tokens.parse("\n".join(lines), "")


PARTS = st.sampled_from([*NAMES, "sha256:", "a" * 64, A, " ", "\t", "\n", "#", "name", "\r", "\0"])


@given(st.lists(PARTS | st.text(max_size=5), max_size=12).map("".join))
def test_any_text_is_tokens_or_refused(text: str) -> None:
    try:
        found = tokens.parse(text, "/tokens")
    except SettingsInvalidError:
        return
    assert all(one.name.isprintable() and len(one.digest) == 32 for one in found)
    assert len({one.digest for one in found}) == len(found)


@given(st.text(max_size=80), st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
def test_only_what_was_made_is_found(other: str, given_roles: list[str]) -> None:
    made = [tokens.made(Role(role), "") for role in given_roles]
    known = tokens.parse("\n".join(line for _, line in made), "")

    assert [tokens.find(known, token) for token, _ in made] == list(known)
    assert tokens.find(known, other) is None
    assert [one.role.value for one in known] == given_roles


# --- the names of certificates

KINDS = st.sampled_from(["DNS:", "URI:", "email:", "IP:", "dns:", ""])


@given(KINDS, st.text(max_size=20), st.sampled_from([*NAMES, "", "root", "Admin"]))
def test_any_name_and_role_is_a_grant_or_refused(kind: str, name: str, role: str) -> None:
    try:
        (grant,) = values.parse(tuple[values.Grant, ...], {f"{kind}{name}": [role]})  # type: ignore[misc]
    except ValueError:
        return
    known = Settings(Path("/"), access=Access(certificates=(grant,)))
    found, called = credentials.load(known), credentials.canonical(f"{kind}{name}")
    assert found.role_of([f"{kind}{name}"]) == (Role(role), called)
    assert found.role_of([f"{kind}{name}x", f"x{kind}{name}", ""]) is None


def test_grants_stand_in_a_variable_as_well(tmp_path: Path) -> None:
    given = "DNS:a=predict,URI:spiffe://b?c=d=admin"
    found = config.load(root=tmp_path, environ={"ENVD_ACCESS__CERTIFICATES": given})

    assert found.access.certificates == ("DNS:a=predict", "URI:spiffe://b?c=d=admin")
    assert credentials.load(found).grants == {
        "DNS:a": Role.PREDICT, "URI:spiffe://b?c=d": Role.ADMIN,
    }  # fmt: skip


# --- the directory of sockets


def test_a_directory_with_other_things_is_not_opened_to_a_group(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "root"
    done = subprocess.run(
        [f"{Path(sys.executable).parent}/envd"],
        env=environment(root, home, ENVD_ACCESS__GROUP="daemon"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert "lets the group `daemon` not come to the sockets" in done.stderr
    assert root.stat().st_mode & 0o777 == 0o700


def test_the_socket_of_another_program_is_left_to_it(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "its.sock"
    with socket.socket(socket.AF_UNIX) as its:
        its.bind(str(path))
        its.listen()
        before = path.stat().st_ino
        done = subprocess.run(
            [f"{Path(sys.executable).parent}/envd", "--admin-socket", path],
            env=environment(tmp_path / "root", home),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert done.returncode == 2
    assert f"another program listens on `{path}`" in done.stderr
    assert path.stat().st_ino == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root has every group")
def test_two_groups_both_pass(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    (folder / "predict.sock.lock").touch(mode=0o600)

    openings.let_pass(folder, {"daemon", ""})
    one = folder.stat()
    openings.let_pass(folder, {"daemon", "mail"})

    assert (one.st_mode & 0o777, one.st_gid) == (0o710, exposure.gid("daemon"))
    assert folder.stat().st_mode & 0o777 == 0o711
