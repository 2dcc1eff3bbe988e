"""Secrets of every kind, whom envd has to give them to, and what watches where they come to."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import tiny
from tests.authority import HERE as THIS_MACHINE
from tests.authority import Authority
from tests.conda_channel import Channel, Package
from tests.conda_forge import CondaForge
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
    "bearer", "wrong-bearer", "page-query",
)  # fmt: skip
# What a worker has of them.
OURS = ("env", "env-file")


def canary(kind: str) -> str:
    """Return the secret of *kind*: no text that anybody would write by chance."""
    return f"canary{KINDS.index(kind):02}x{kind.replace('-', '')}"


def spellings(secret: str) -> list[bytes]:
    """Return how *secret* may stand in a file: as it is, and in base64."""
    found = [secret.encode()]
    for shift in range(3):
        # As a part of what is encoded, wherever it begins.
        whole = base64.b64encode(b"x" * shift + secret.encode())
        found.append(whole[4 if shift else 0 : len(whole) // 4 * 4 - 4])
    return found


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
class Servers:
    """Who asks envd for its secrets."""

    index: Index
    tokens: Index
    pages: Index
    by_netrc: Index
    mirror: Mirror
    other: Mirror


@contextmanager
def serving(folder: Path, conda_forge: CondaForge) -> Iterator[Servers]:
    """Serve packages of every kind to whoever has the secrets."""
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
        made = folder / "packages"
        made.mkdir()
        found.index.add(wheel(made, "tiny-a", "1.0", tiny_a="VERSION = '1.0'\n"))
        found.tokens.add(wheel(made, "tiny-b", "1.0", tiny_b="VERSION = '1.0'\n"))
        found.tokens.add(tiny.sdist(made, "tiny-d", "1.0", "import os; print(dict(os.environ))"))
        found.tokens.add(wheel(made, "setuptools", "68.0", setuptools=""))
        found.pages.add(wheel(made, "tiny-c", "1.0", tiny_c="VERSION = '1.0'\n"))
        found.by_netrc.add(wheel(made, "tiny-e", "1.0", tiny_e="VERSION = '1.0'\n"))
        yield found


def settings(folder: Path, servers: Servers) -> dict[str, str]:
    """Write the settings, with files of secrets, and return the variables of the daemon."""
    one, other = servers.mirror, servers.other
    netrc_port = servers.by_netrc.host.rpartition(":")[2]
    (folder / "netrc").write_text(f"machine localhost login me password {canary('netrc')}\n")
    (folder / "env").write_text(f"FROM_FILE={canary('env-file')}\n")
    (folder / "env").chmod(0o600)
    digest = hashlib.sha256(canary("bearer").encode()).hexdigest()
    (folder / "tokens").write_text(f"admin sha256:{digest} operator\n")
    (folder / "tokens").chmod(0o600)
    for kind in ("bearer", "wrong-bearer"):
        (folder / f"{kind}.token").write_text(canary(kind))
    served = Authority(folder).certify("server", *THIS_MACHINE)
    login = {"username": "me", "password": canary("auth-file")}
    (folder / "auth.json").write_text(json.dumps({"auth.invalid": {"BasicHTTP": login}}))
    (folder / "envd.toml").write_text(f"""
        [index]
        urls = [
            "http://{canary("index-user")}:{canary("index-password")}@{servers.index.host}/simple",
            "http://{servers.tokens.host}/t/{canary("index-token")}/simple",
            "http://localhost:{netrc_port}/simple",
        ]
        find_links = ["http://me:{canary("links-password")}@{servers.pages.host}/simple/tiny-c/?sig={canary("page-query")}"]
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
        tls_cert = "{served.cert}"
        tls_key = "{served.key}"
        [http]
        listen = "127.0.0.1:0"
        [daemon]
        grpc = "127.0.0.1:0"
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


def models(folder: Path, tiny: Tiny, servers: Servers) -> Path:
    """Write models that are built, and others that are not."""
    found = folder / "models"
    own = f"someone:{canary('model-file')}@{servers.tokens.host}"
    tiny.model(found / "plain", "tiny-a", "tiny-b", "tiny-c", "tiny-e")
    body = "        import os; raise ValueError('no ' + os.environ['GIVEN'] + data['inputs'])"
    tiny.model(found / "given", "tiny-a", body=body)
    tiny.model(found / "source", "tiny-a", "tiny-d")
    tiny.model(
        found / "refused",
        f"--extra-index-url http://{own}/simple",
        f"--extra-index-url http://${{CANARY_VARIABLE}}:x@{servers.tokens.host}/other/simple",
        f"nothing @ http://{own}/nothing-1.0-py3-none-any.whl",
        "tiny-a",
        "no-such-package",
    )
    tiny.model(found / "by_proxy", "--extra-index-url https://canary.invalid/simple", "nowhere")
    packages = f"channels: [conda-forge, other]\ndependencies: [python={HERE}, word, verb]\n"
    conda_model(found / "conda", packages)
    conda_model(found / "conda_refused", packages.replace("verb", "adverb"))
    channel = f"http://me:{canary('model-file')}@127.0.0.1:{servers.mirror.port}/t/{canary('model-file')}/mine"
    conda_model(found / "conda_own", f"channels: ['{channel}']\ndependencies: ['word']\n")
    return found
