"""An image of real models, built by buildah on Debian's own packages, answers as a daemon does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Daemon, Envctl
from tests.web import Web

ROOT = Path(__file__).parent.parent
IRIS = ROOT / "examples" / "iris"
INPUT = json.loads((ROOT / "examples" / "iris.json").read_text())
CANARY = "c4n4ry"
CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
PACKAGES = "python3,python3-venv,ca-certificates"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Buildah:
    """buildah with a storage of its own: what it made goes with the folder."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        # In a sandbox of its own, chroot is all the isolation that can be had.
        return {
            "BUILDAH_ISOLATION": "chroot",
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["buildah", *arguments],
            env=os.environ | self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def config(self, image: str) -> dict[str, object]:
        found = json.loads(self("inspect", "--type", "image", image))["Docker"]["config"]
        return dict(found)

    @contextmanager
    def container(self, image: str) -> Iterator[str]:
        name = self("from", image)
        try:
            yield name
        finally:
            self("rm", name)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    missing = [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]
    if missing or os.getuid():
        pytest.skip(f"{' and '.join(missing) or 'root'} is missing: an image cannot be built")
    folder = tmp_path_factory.mktemp("buildah")
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    found = Buildah(folder)
    yield found
    found("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def base(buildah: Buildah) -> str:
    """Return an image of Debian's packages, for no registry is reached."""
    folder = buildah.folder / "base"
    folder.mkdir()
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm",
         folder / "base.tar"],
        check=True,
    )  # fmt: skip
    shutil.copyfile(CERTIFICATES, folder / "certificates.crt")
    (folder / "Dockerfile").write_text(
        "FROM scratch\nADD base.tar /\n"
        "COPY certificates.crt /etc/ssl/certs/ca-certificates.crt\n"
        "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt\n"
    )
    buildah("build", "-t", "localhost/base", str(folder))
    (folder / "base.tar").unlink()
    return "localhost/base"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    uv = Path(sys.executable).parent / "uv"
    argv = [uv, "build", "-q", "--wheel", "--all-packages", "--out-dir", folder]
    subprocess.run(argv, cwd=ROOT, env=os.environ | {"UV_SYSTEM_CERTS": "1"}, check=True)
    return folder


@contextmanager
def running(buildah: Buildah, container: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["buildah", "run", container, "--", *argv],
        env=os.environ | buildah.variables,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def test_an_image_answers_as_the_daemon_does(
    buildah: Buildah,
    base: str,
    wheels: Path,
    shared_envctl: Envctl,
    shared_root: Path,
    start_daemon: Callable[..., Daemon],
) -> None:
    image = "localhost/iris:1"

    argv = shared_envctl.argv(
        "build-image", "-m", IRIS, "-t", image, "--base", base, "--wheels", wheels,
        "--with", "buildah", "--", "--layers",
    )  # fmt: skip
    mirrors = f"unused=https://user:{CANARY}@host.example/c"
    done = subprocess.run(
        argv,
        env=shared_envctl.env | buildah.variables | {"ENVD_CONDA__MIRRORS": mirrors},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, f"{image}\n"), done.stderr
    config = buildah.config(image)
    assert config["User"] == "10001:10001"
    assert list(config["ExposedPorts"]) == ["8080/tcp"]  # type: ignore[call-overload]
    assert config["Healthcheck"]
    *command, port = config["Cmd"]  # type: ignore[misc]
    assert (command[:2], port) == (["envctl", "serve"], "8080")
    with buildah.container(image) as container:
        mounted = Path(buildah("mount", container))
        found = subprocess.run(
            ["grep", "-rlI", CANARY, mounted, buildah.folder / "graph"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.stdout == ""
        assert not (mounted / "var/lib/envd/cache").exists()
        buildah("umount", container)
        with running(buildah, container, *command, "0") as process:
            url = process.stdout.readline().strip() if process.stdout else ""
            answer = Web(None, url)("POST", "/invocations", INPUT)  # type: ignore[arg-type]
            health = config["Healthcheck"]["Test"][1:]  # type: ignore[index]
            asked = [one.replace(":8080", f":{url.rpartition(':')[2]}") for one in health]
            buildah("run", container, "--", *asked)
            uid = buildah("run", container, "--", "id", "-u")
    daemon = start_daemon(shared_root, ENVD_HTTP__LISTEN="127.0.0.1:0")
    with daemon.client() as client:
        client.load_model(IRIS, name="iris")
    url = json.loads((shared_root / "daemon.json").read_text())["http"]
    expected = Web(daemon, url)("POST", "/invocations", INPUT)

    assert uid == "10001"
    assert (answer.status, answer.body) == (200, expected.body)
