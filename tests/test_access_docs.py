"""What docs/access.md says is so: its table of roles, its settings, its certificates."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from envd import config
from envd.access import credentials, exposure, tokens
from envd.access.roles import Role
from envd.serve import roles

TEXT = (Path(__file__).parent.parent / "docs" / "access.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_table_has_every_rpc_in_the_row_of_its_role() -> None:
    rows = re.findall(r"^\| `(predict|build|admin)` \| [^|]* \| ([^|]*) \|$", TEXT, re.MULTILINE)
    said = {name: role for role, names in rows for name in re.findall(r"`(\w+)`", names)}

    assert said == {one.rpartition("/")[2]: role.value for one, role in roles.ROLES.items()}


def test_the_certificates_are_made_as_it_says_and_fit_the_settings(tmp_path: Path) -> None:
    (commands,) = (one for one in blocks("sh") if "openssl" in one)
    subprocess.run(["/bin/sh", "-e", "-c", commands], cwd=tmp_path, check=True, capture_output=True)
    _, line = tokens.made(Role.ADMIN, "me")
    (tmp_path / "tokens").touch(mode=0o600)
    (tmp_path / "tokens").write_text(line)
    groups = {"models": "root", "operators": "root"}
    found = []
    for text in blocks("toml"):
        here = text.replace("/etc/envd", str(tmp_path))
        for one, other in groups.items():
            here = here.replace(f'"{one}"', f'"{other}"')
        tomllib.loads(here)
        (tmp_path / "envd.toml").write_text(here)
        settings = config.load(root=tmp_path, file=tmp_path / "envd.toml", environ={})
        exposure.check(settings)
        found.append(credentials.load(settings))

    group, by_token, by_certificate = found
    assert (group.cert, group.tokens) == (b"", ())
    assert [one.name for one in by_token.tokens] == ["me"]
    assert by_certificate.role_of(["DNS:front.example"]) == (Role.PREDICT, "DNS:front.example")
    assert by_certificate.client_ca == (tmp_path / "ca.pem").read_bytes()
    verified = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.pem", "server.pem", "front.pem"]
    subprocess.run(verified, cwd=tmp_path, check=True, capture_output=True)


def test_tokens_are_made_as_it_says_and_are_nobody_elses(tmp_path: Path) -> None:
    (text,) = blocks("console")
    lines = [one.removeprefix("$ ") for one in text.replace("/etc/envd", ".").splitlines()]
    commands = "\n".join(one for one in lines if not one.startswith("systemctl"))
    here = commands.replace("-g envd", f"-g {os.getgid()}")
    wrong = here.replace("--name frontend", "--name 'a b'").splitlines()[-1]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(commands: str) -> int:
        argv = ["/bin/sh", "-ec", commands]
        return subprocess.run(argv, check=False, cwd=tmp_path, env=env).returncode

    assert (run(f"umask 022\n{here}"), run(wrong)) == (0, 2)
    assert (tmp_path / "frontend.token").stat().st_mode & 0o777 == 0o600
    (found,) = tokens.read(str(tmp_path / "tokens"))
    assert (found.role, found.name) == (Role.PREDICT, "frontend")
