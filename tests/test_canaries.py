"""Secrets of every kind are given to envd, which builds, answers, fails and tells with them.

Then all that it keeps, says and shows to other users is searched: they are nowhere but where
they must be.
"""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import canaries
from tests.canaries import KINDS, OURS, Servers, Watch, canary, spellings
from tests.conda_forge import CondaForge
from tests.conftest import Envctl, environment, one_python
from tests.mirror import want
from tests.tiny import Tiny

# And the key that TLS is served with.
ALL = (*KINDS, "tls-key")
PROGRAMS = Path(sys.executable).parent


@dataclass
class Told:
    """All that was said, by where."""

    folder: Path
    models: Path
    watch: Watch
    texts: dict[str, str] = field(default_factory=dict)
    limits: str = ""

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def secret(self, kind: str) -> str:
        if kind != "tls-key":
            return canary(kind)
        return (self.folder / "ca-server.key").read_text().splitlines()[1]

    def add(self, what: str, done: subprocess.CompletedProcess[str]) -> str:
        name = what if what not in self.texts else f"{what} {len(self.texts)}"
        self.texts[name] = done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, conda_forge: CondaForge) -> Iterator[Servers]:
    with canaries.serving(tmp_path_factory.mktemp("servers"), conda_forge) as found:
        yield found


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, servers: Servers, home: Path, tiny: Tiny, tools: Path
) -> Told:
    folder = tmp_path_factory.mktemp("canaries")
    given = canaries.settings(folder, servers) | one_python(tools)
    env = environment(folder / "root", home, **given)
    found = Told(folder, canaries.models(folder, tiny, servers), Watch())
    found.watch.start()
    try:
        _use(found, Envctl(found.root, env), servers)
    finally:
        found.watch.ended.set()
        found.watch.join()
    return found


def _use(found: Told, envctl: Envctl, servers: Servers) -> None:
    models = found.models
    with Path(f"{found.root}.said").open("w+") as said:
        daemon = subprocess.Popen(
            ["/bin/sh", "-c", f"ulimit -c unlimited; exec {PROGRAMS}/envd -v"], env=envctl.env,
            stdout=subprocess.PIPE, stderr=said, text=True, cwd=found.models,
        )  # fmt: skip
        try:
            assert daemon.stdout
            assert daemon.stdout.readline().startswith("envd ")
            _call(found, envctl, servers)
            found.limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        finally:
            daemon.send_signal(signal.SIGABRT)
            rest, _ = daemon.communicate(timeout=60)
            said.seek(0)
            found.texts["the daemon"] = rest + said.read()
    servers.mirror.faults["*"] = want("another", 403)
    servers.index.login = "another:password"
    # By itself, where everything is refused.
    _tell(found, envctl)
    for asked in (
        ("build", "--retry", models / "refused"),
        ("lock", "--upgrade", models / "plain"),
    ):
        refused = envctl(asked[0], asked[1], "-m", asked[2])
        assert refused.returncode == 1, refused
        found.add("alone", refused)


def _call(found: Told, envctl: Envctl, servers: Servers) -> None:
    models, add = found.models, found.add
    ready = envctl("build", models / "plain", models / "given", models / "source", "--json")
    built = json.loads(add("build", ready))
    assert [one["state"] for one in built] == ["ready"] * 3, ready
    assert canary("index-password") in str(servers.index.logins)
    assert canary("links-password") in str(servers.pages.logins)
    assert canary("page-query") in str(servers.pages.requests)
    assert canary("netrc") in str(servers.by_netrc.logins)
    assert canary("index-token") in str(servers.tokens.requests)
    conda = envctl("build", models / "conda", "--env-manager", "conda", "--json")
    assert json.loads(add("build", conda))["state"] == "ready", conda
    add("predict", envctl("predict", "-m", models / "plain", "-v", stdin='{"inputs": 1}'))
    raised = envctl("predict", "-m", "given", "-v", stdin='{"inputs": {"inputs": "!"}}')
    assert "ValueError" in add("predict", raised) + raised.stderr
    _fail(found, envctl)
    add("explain", envctl("explain", "-m", models / "refused", "--json"))
    for one in built:
        add("show", envctl("show", one["id"]))
        add("show --json", envctl("show", one["id"], "--json"))
        add("logs", envctl("logs", one["id"]))
    add("explain", envctl("explain", "-m", models / "plain", "-m", models / "source"))
    add("lock", envctl("lock", "-m", models / "plain"))
    add("lock", envctl("lock", "-m", models / "conda", "--env-manager", "conda"))
    for verb in ("list", "show"):
        add("models", envctl("models", verb, *(["given"] if verb == "show" else []), "--json"))
    add("workers", envctl("workers", "list", "--json"))
    add("gc", envctl("gc", "--dry-run", "--json"))
    _tell(found, envctl)
    document = json.loads((found.root / "daemon.json").read_text())
    _ask_with_tokens(found, envctl, document)
    # Settings that are wrong are said to be.
    config = Path(envctl.env["ENVD_CONFIG"])
    text = config.read_text()
    for setting in ("urls = [", "conda-forge = [", "other = ["):
        config.write_text(re.sub(rf'({re.escape(setting)}\s*)"http', r'\1"gopher', text))
        os.kill(document["pid"], signal.SIGHUP)
        add("config", envctl("config"))
    config.write_text(text)


def _fail(found: Told, envctl: Envctl) -> None:
    asked = [
        ("build", "-m", found.models / name, "--env-manager", manager)
        for name, manager in (
            ("refused", "virtualenv"), ("by_proxy", "virtualenv"), ("conda_refused", "conda"),
            ("conda_own", "conda"),
        )
    ]  # fmt: skip
    asked.append(("predict", "-m", "models:/fraud/1"))
    # All of them are tried for a while before they fail.
    with ThreadPoolExecutor() as pool:
        for failed in pool.map(lambda one: envctl(*one, stdin='{"inputs": 1}'), asked):
            assert failed.returncode == 1, failed
            found.add("failed", failed)


def _ask_with_tokens(found: Told, envctl: Envctl, document: dict[str, str]) -> None:
    """Ask as a caller over TCP, whose token the daemon knows or not, by gRPC and by HTTP."""
    for kind, refusal in (("bearer", ""), ("wrong-bearer", "is not one of the daemon's")):
        over = {
            "ENVD_SOCKET": document["grpc"], "ENVD_TLS_CA": str(found.folder / "ca.pem"),
            "ENVD_TOKEN_FILE": str(found.folder / f"{kind}.token"),
        }  # fmt: skip
        for asked in (("models", "unload", "given", "--json"), ("predict", "-m", "given", "-v")):
            done = envctl(*asked, stdin="{}", **over)
            found.add(f"{kind} gRPC", done)
            assert refusal in done.stderr
        for path, body in (("/metrics", None), ("/v2/repository/models/given/unload", b"{}")):
            text = _asked(found, f"{document['http']}{path}", kind, body)
            found.texts[f"{kind} {path}"] = text
            assert refusal in text
    assert "envd_" in found.texts["bearer /metrics"]


def _asked(found: Told, url: str, kind: str, body: bytes | None) -> str:
    headers = {"Authorization": f"Bearer {canary(kind)}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers)
    context = ssl.create_default_context(cafile=found.folder / "ca.pem")
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return f"{answer.status} {answer.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


def _tell(found: Told, envctl: Envctl) -> None:
    for asked in (
        ("config",), ("config", "--json"), ("doctor",), ("doctor", "--json"), ("list", "--all"),
        ("list", "--all", "--json"),
    ):  # fmt: skip
        done = envctl(*asked)
        assert done.stdout, done
        found.add(" ".join(asked), done)


@pytest.mark.parametrize("kind", ALL)
def test_a_secret_is_nowhere_in_the_root(told: Told, kind: str) -> None:
    written = spellings(told.secret(kind))
    files = [path for path in told.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 100
    if kind in {"index-token", "page-query"}:
        # Nobody can tell uv that a part of a path or a query is secret (see `docs/security.md`).
        files = [path for path in files if not path.is_relative_to(told.root / "cache" / "uv")]

    found = [
        path for path in files
        if any(one in path.read_bytes() or one in bytes(path) for one in written)
    ]  # fmt: skip

    assert found == []


@pytest.mark.parametrize("kind", ALL)
def test_a_secret_is_nowhere_in_what_is_said(told: Told, kind: str) -> None:
    assert len(told.texts) > 30
    assert {name for name, text in told.texts.items() if not text} == set()

    secret = told.secret(kind)
    found = [(name, _around(text, secret)) for name, text in told.texts.items() if secret in text]
    assert found == []


def _around(text: str, secret: str) -> str:
    place = text.index(secret)
    return text[max(0, place - 150) : place + 60]


def test_what_callers_with_tokens_did_was_written_down(told: Told) -> None:
    lines = [one for one in told.texts["the daemon"].splitlines() if one.startswith("{")]
    audited = [one["audit"] for one in map(json.loads, lines) if "audit" in one]

    assert {one.get("by") for one in audited} >= {"token operator", None}
    assert "UNAUTHENTICATED" in {one["outcome"] for one in audited}


def test_no_secret_is_in_the_arguments_of_any_process(told: Told) -> None:
    assert told.watch.seen > 10
    assert told.watch.arguments == set()


def test_workers_have_their_own_secrets_and_no_others(told: Told) -> None:
    found = {kind for kind in KINDS for text in told.watch.variables if canary(kind) in text}

    assert found == set(OURS)


def test_where_the_daemon_was_killed_its_stacks_are_told_and_no_core_is_left(told: Told) -> None:
    assert "Fatal Python error: Aborted" in told.texts["the daemon"]
    # 1 is what keeps the kernel from giving it to a program, as well.
    assert re.search(r"^Max core file size +1 +1 ", told.limits, re.MULTILINE)
    assert not list(told.models.glob("core*"))
