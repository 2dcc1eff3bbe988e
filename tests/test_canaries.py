"""Secrets of every kind are given to envd, which builds, answers, fails and tells with them.

Then all that it keeps, says and shows to other users is searched: they are nowhere but where
they must be.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import tiny
from tests.conda_channel import Channel, Package
from tests.conda_forge import CondaForge
from tests.conftest import Envctl, environment, one_python
from tests.index import Index
from tests.mirror import Mirror, want
from tests.test_conda_models import HERE, WORD
from tests.test_conda_models import model as conda_model
from tests.tiny import Tiny, wheel

# What each is the secret of.
KINDS = (
    "index-password", "index-user", "index-token", "links-password", "channel-token",
    "mirror-password", "auth-file", "netrc", "variable", "tracking-password", "registry-password",
    "served-uri", "query", "env", "env-file", "proxy", "model-file", "aws", "mlflow-token",
    "bearer", "wrong-bearer",
)  # fmt: skip
OURS = ("env", "env-file")
PROGRAMS = Path(sys.executable).parent


def canary(kind: str) -> str:
    """Return the secret of *kind*: no text that anybody would write by chance."""
    return f"canary{KINDS.index(kind):02}x{kind.replace('-', '')}"


@dataclass
class Watch(threading.Thread):
    """Looks at the arguments of all processes there are, and at the variables of workers."""

    arguments: set[str] = field(default_factory=set)
    variables: set[str] = field(default_factory=set)
    seen: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        while not self.ended.wait(0.03):
            for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
                self._look(Path("/proc", pid))

    def _look(self, folder: Path) -> None:
        try:
            arguments = (folder / "cmdline").read_text(errors="replace")
            if "canary" in arguments:
                self.arguments.add(arguments)
            if "envd_worker" in arguments:
                self.seen += 1
                self.variables.add((folder / "environ").read_text(errors="replace"))
        except OSError:
            return


@dataclass
class Told:
    """All that was said, by where."""

    root: Path
    models: Path
    watch: Watch
    texts: dict[str, str] = field(default_factory=dict)
    limits: str = ""

    def add(self, what: str, done: subprocess.CompletedProcess[str]) -> str:
        name = what if what not in self.texts else f"{what} {len(self.texts)}"
        self.texts[name] = done.stdout + done.stderr
        return done.stdout


@dataclass
class Servers:
    """Who asks for the secrets."""

    index: Index
    tokens: Index
    pages: Index
    by_netrc: Index
    mirror: Mirror
    other: Mirror


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, conda_forge: CondaForge) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("channels")
    Channel(folder / "conda-forge").add(*conda_forge.archives(HERE), WORD)
    Channel(folder / "other").add(Package("verb", depends=["word"]))
    with ExitStack() as stack:
        login = f"{canary('index-user')}:{canary('index-password')}"
        found = Servers(
            stack.enter_context(Index(login=login)),
            stack.enter_context(Index()),
            stack.enter_context(Index(is_dated=False, login=f"me:{canary('links-password')}")),
            stack.enter_context(Index(login=f"me:{canary('netrc')}")),
            stack.enter_context(Mirror(folder, {"*": want(canary("channel-token"), 403)})),
            stack.enter_context(Mirror(folder, {"*": want(f"me:{canary('mirror-password')}")})),
        )
        made = tmp_path_factory.mktemp("packages")
        found.index.add(wheel(made, "tiny-a", "1.0", tiny_a="VERSION = '1.0'\n"))
        found.tokens.add(wheel(made, "tiny-b", "1.0", tiny_b="VERSION = '1.0'\n"))
        found.tokens.add(tiny.sdist(made, "tiny-d", "1.0", "import os; print(dict(os.environ))"))
        found.tokens.add(wheel(made, "setuptools", "68.0", setuptools=""))
        found.pages.add(wheel(made, "tiny-c", "1.0", tiny_c="VERSION = '1.0'\n"))
        found.by_netrc.add(wheel(made, "tiny-e", "1.0", tiny_e="VERSION = '1.0'\n"))
        yield found


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, servers: Servers, home: Path, tiny: Tiny, tools: Path
) -> Told:
    folder = tmp_path_factory.mktemp("canaries")
    env = environment(folder / "root", home, **_variables(folder, servers), **one_python(tools))
    found = Told(folder / "root", _models(folder, tiny, servers), Watch())
    found.watch.start()
    try:
        _use(found, Envctl(found.root, env), servers)
    finally:
        found.watch.ended.set()
        found.watch.join()
    return found


def _variables(folder: Path, servers: Servers) -> dict[str, str]:
    one, other = servers.mirror, servers.other
    netrc_port = servers.by_netrc.host.rpartition(":")[2]
    (folder / "netrc").write_text(f"machine localhost login me password {canary('netrc')}\n")
    (folder / "env").write_text(f"FROM_FILE={canary('env-file')}\n")
    (folder / "env").chmod(0o600)
    digest = hashlib.sha256(canary("bearer").encode()).hexdigest()
    (folder / "tokens").write_text(f"admin sha256:{digest} operator\n")
    (folder / "tokens").chmod(0o600)
    login = {"username": "me", "password": canary("auth-file")}
    (folder / "auth.json").write_text(json.dumps({"auth.invalid": {"BasicHTTP": login}}))
    (folder / "envd.toml").write_text(f"""
        [index]
        urls = [
            "http://{canary("index-user")}:{canary("index-password")}@{servers.index.host}/simple",
            "http://{servers.tokens.host}/t/{canary("index-token")}/simple",
            "http://localhost:{netrc_port}/simple",
        ]
        find_links = ["http://me:{canary("links-password")}@{servers.pages.host}/simple/tiny-c/"]
        [conda]
        auth_file = "{folder}/auth.json"
        [conda.mirrors]
        conda-forge = ["http://127.0.0.1:{one.port}/t/{canary("channel-token")}/conda-forge"]
        other = ["http://me:{canary("mirror-password")}@localhost:{other.port}/other"]
        [security]
        profile = "dev"
        variables = ["CANARY_VARIABLE"]
        [access]
        tokens = "{folder}/tokens"
        [http]
        listen = "127.0.0.1:0"
        [daemon]
        log_format = "json"
        metrics = "127.0.0.1:0"
        [models]
        tracking_uri = "http://me:{canary("tracking-password")}@127.0.0.1:9"
        registry_uri = "http://me:{canary("registry-password")}@127.0.0.1:9"
        [models.remote]
        uri = "http://me:{canary("served-uri")}@127.0.0.1:9/model?sig={canary("query")}"
        [models.given]
        uri = "{folder}/models/given"
        env = {{ GIVEN = "{canary("env")}" }}
        env_file = "{folder}/env"
        """)
    return {
        "ENVD_CONFIG": str(folder / "envd.toml"),
        "NETRC": str(folder / "netrc"),
        "HTTPS_PROXY": f"http://me:{canary('proxy')}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
        "AWS_SECRET_ACCESS_KEY": canary("aws"),
        "MLFLOW_TRACKING_TOKEN": canary("mlflow-token"),
        "CANARY_VARIABLE": canary("variable"),
    }


def _models(folder: Path, tiny: Tiny, servers: Servers) -> Path:
    models = folder / "models"
    own = f"someone:{canary('model-file')}@{servers.tokens.host}"
    tiny.model(models / "plain", "tiny-a", "tiny-b", "tiny-c", "tiny-e")
    body = "        import os; raise ValueError('no ' + os.environ['GIVEN'] + data['inputs'])"
    tiny.model(models / "given", "tiny-a", body=body)
    tiny.model(models / "source", "tiny-a", "tiny-d")
    tiny.model(
        models / "refused",
        f"--extra-index-url http://{own}/simple",
        f"--extra-index-url http://${{CANARY_VARIABLE}}:x@{servers.tokens.host}/other/simple",
        f"nothing @ http://{own}/nothing-1.0-py3-none-any.whl",
        "tiny-a",
        "no-such-package",
    )
    tiny.model(models / "by_proxy", "--extra-index-url https://canary.invalid/simple", "nowhere")
    packages = f"channels: [conda-forge, other]\ndependencies: [python={HERE}, word, verb]\n"
    conda_model(models / "conda", packages)
    conda_model(models / "conda_refused", packages.replace("verb", "adverb"))
    channel = f"http://me:{canary('model-file')}@127.0.0.1:{servers.mirror.port}/t/{canary('model-file')}/mine"
    conda_model(models / "conda_own", f"channels: ['{channel}']\ndependencies: ['word']\n")
    return models


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
    assert canary("netrc") in str(servers.by_netrc.logins)
    assert canary("index-token") in str(servers.tokens.requests)
    conda = envctl("build", models / "conda", "--env-manager", "conda", "--json")
    assert json.loads(add("build", conda))["state"] == "ready", conda
    add("predict", envctl("predict", "-m", models / "plain", "-v", stdin='{"inputs": 1}'))
    raised = envctl("predict", "-m", "given", "-v", stdin='{"inputs": {"inputs": "!"}}')
    assert "ValueError" in add("predict", raised) + raised.stderr
    asked = [
        (
            "build",
            "-m",
            models / name,
            "--env-manager",
            "conda" if "conda" in name else "virtualenv",
        )
        for name in ("refused", "by_proxy", "conda_refused", "conda_own")
    ]
    # All of them are tried for a while before they fail.
    with ThreadPoolExecutor() as pool:
        for failed in pool.map(
            lambda one: envctl(*one, stdin='{"inputs": 1}'),
            [*asked, ("predict", "-m", "models:/fraud/1")],
        ):
            assert failed.returncode == 1, failed
            add("failed", failed)
    add("explain", envctl("explain", "-m", models / "refused", "--json"))
    for one in built:
        add("show", envctl("show", one["id"]))
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
    found.texts["metrics"] = _asked(f"{document['http']}/metrics", "bearer")
    found.texts["refused"] = _asked(f"{document['http']}/metrics", "wrong-bearer")
    assert "envd_" in found.texts["metrics"]
    assert "UNAUTHENTICATED" in found.texts["refused"]
    # Settings that are wrong are said to be.
    config = Path(envctl.env["ENVD_CONFIG"])
    text = config.read_text()
    for setting in ("urls = [", "conda-forge = [", "other = ["):
        config.write_text(re.sub(rf'({re.escape(setting)}\s*)"http', r'\1"gopher', text))
        os.kill(document["pid"], signal.SIGHUP)
        add("config", envctl("config"))
    config.write_text(text)


def _asked(url: str, token: str) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {canary(token)}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


def _tell(found: Told, envctl: Envctl) -> None:
    for asked in (
        ("config",), ("config", "--json"), ("doctor",), ("doctor", "--json"), ("list", "--all"),
        ("list", "--all", "--json"),
    ):  # fmt: skip
        done = envctl(*asked)
        assert done.stdout, done
        found.add(" ".join(asked), done)


def _spellings(secret: str) -> list[bytes]:
    found = [secret.encode()]
    for shift in range(3):
        # As a part of what is encoded, wherever it begins.
        whole = base64.b64encode(b"x" * shift + secret.encode())
        found.append(whole[4 if shift else 0 : len(whole) // 4 * 4 - 4])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_is_nowhere_in_the_root(told: Told, kind: str) -> None:
    spellings = _spellings(canary(kind))
    files = [path for path in told.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 100
    if kind == "index-token":
        # Nobody can tell uv that a part of a path is secret (see `docs/security.md`).
        files = [path for path in files if not path.is_relative_to(told.root / "cache" / "uv")]

    found = [
        path for path in files
        if any(one in path.read_bytes() or one in bytes(path) for one in spellings)
    ]  # fmt: skip

    assert found == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_is_nowhere_in_what_is_said(told: Told, kind: str) -> None:
    assert len(told.texts) > 30
    assert {name for name, text in told.texts.items() if not text} == set()

    secret = canary(kind)
    found = [(name, _around(text, secret)) for name, text in told.texts.items() if secret in text]
    assert found == []


def _around(text: str, secret: str) -> str:
    place = text.index(secret)
    return text[max(0, place - 150) : place + 60]


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
