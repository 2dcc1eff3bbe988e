"""Where models lie: directories, and what a real MLflow server knows.

The server takes a quarter of a minute to start and each question to MLflow two seconds of
import. So the server starts first, the tests that need none run meanwhile, and the rest
shares what was downloaded.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from envd import durable, held
from envd.config import Settings
from envd.errors import (
    EnvdError,
    ModelNotFoundError,
    ModelUnreachableError,
    RequestInvalidError,
    SettingsInvalidError,
)
from envd.model.location import locate, lock_of
from envd.secrets import redact
from envd.settings.sections import Build, Models
from envd.settings.values import Seconds
from envd.store import Store
from tests.called import Called
from tests.conftest import environment, wait_for

LOG_MODELS = """
import json, pathlib, sys, time, urllib.request
import mlflow

url, folder = sys.argv[1], pathlib.Path(sys.argv[2])
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input

def answers():
    try:
        return urllib.request.urlopen(url + "/health", timeout=5).status == 200
    except OSError:
        return False

while not answers():
    time.sleep(0.1)
mlflow.set_tracking_uri(url)
with mlflow.start_run() as run:
    for number in (1, 2):
        logged = mlflow.pyfunc.log_model(
            name=f"echo{number}", python_model=Echo(), registered_model_name="echo",
            pip_requirements=["mlflow"], metadata={"number": number},
        )
    folder.mkdir()
    (folder / "MLmodel").write_text("metadata:\\n  number: 3\\n")
    mlflow.log_artifacts(str(folder), "as-mlflow-2-did")
print(json.dumps({"run": run.info.run_id, "second": logged.model_id}))
"""

LOCATE = """
import sys
from pathlib import Path
from envd.config import Settings
from envd.settings.sections import Models
from envd.settings.values import Seconds
from envd.errors import EnvdError
from envd.model.location import locate

root, uri, tracking_uri = sys.argv[1:]
try:
    print(locate(uri, Settings(Path(root), models=Models(tracking_uri=tracking_uri))))
except EnvdError as error:
    print(error.reason, error.message)
"""


@dataclass(frozen=True, slots=True)
class Server:
    """An MLflow server, and the process that logs models there once it answers."""

    url: str
    process: subprocess.Popen[bytes]
    logging: subprocess.Popen[str]
    log: Path

    def stop(self) -> None:
        """End the server as a crash would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def point(self, alias: str, *, version: int) -> None:
        """Let *alias* of the registered model mean *version*."""
        body = json.dumps({"name": "echo", "alias": alias, "version": str(version)}).encode()
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/registered-models/alias",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()


@dataclass(frozen=True, slots=True)
class Logged:
    """What the server knows."""

    server: Server
    run: str
    second: str


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server, and do not wait for it."""
    home = tmp_path_factory.mktemp("mlflow")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    # Its job runners leave its process group, and nothing here needs them.
    env = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    python = [sys.executable, "-W", "ignore"]
    store = ["--backend-store-uri", f"sqlite:///{home}/db", "--artifacts-destination", f"{home}/a"]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*python, "-m", "mlflow", "server", *store, *address],
            cwd=home, env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        logging = subprocess.Popen(
            [*python, "-c", LOG_MODELS, url, str(home / "folder")],
            cwd=home, env=env, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    started = Server(url, process, logging, home / "log")
    yield started
    started.stop()
    logging.kill()
    logging.communicate()


@pytest.fixture(scope="module")
def logged(server: Server) -> Logged:
    """Wait until the models are logged."""
    out, _ = server.logging.communicate(timeout=100)
    assert server.logging.returncode == 0, server.log.read_text()
    told = json.loads(out.splitlines()[-1])
    return Logged(server, told["run"], told["second"])


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root whose downloads several tests use."""
    return tmp_path_factory.mktemp("root")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _settings(root: Path, tracking_uri: str, *, refresh: float = 60) -> Settings:
    return Settings(root, models=Models(refresh=Seconds(refresh), tracking_uri=tracking_uri))


def _number(model: Path) -> str:
    return (model / "MLmodel").read_text().partition("number: ")[2][:1]


def _attempts(root: Path) -> set[str]:
    return {path.name for path in (root / "models").glob("*/*/")}


@pytest.mark.parametrize("prefix", ["", "file:", "file://", "file://localhost", "FILE:"])
def test_a_path_and_a_file_uri_are_that_directory(tmp_path: Path, prefix: str) -> None:
    model = tmp_path / "a model"
    model.mkdir()
    name = f"{prefix}{model}".replace(" ", "%20" if prefix else " ")

    assert locate(name, Settings(tmp_path)) == model


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_path_that_is_no_directory_holds_no_model(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "file").touch()

    for name in ("missing", "file", "file/below", "x" * 300):
        with pytest.raises(ModelNotFoundError, match="give the directory that holds"):
            locate(f"{prefix}{tmp_path}/{name}", Settings(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["", "./model", "models/mine", ".", "1:2", "file:model", "file://other/model", "/a\0b",
     "s3://" + "x" * 5000, "http://[", "file://[/model"],
)  # fmt: skip
def test_what_is_neither_an_absolute_path_nor_a_uri_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestInvalidError):
        locate(name, Settings(tmp_path))


@pytest.mark.parametrize("uri", ["https://x.invalid/m", "odd://x/m"])
def test_a_uri_that_mlflow_does_not_know_says_what_may_be_given(tmp_path: Path, uri: str) -> None:
    with pytest.raises(RequestInvalidError) as raised:
        locate(uri, Settings(tmp_path))

    assert raised.value.message.startswith(f"`{uri}` is no URI that MLflow's resolver knows; give")
    assert "`models:/NAME/VERSION`" in raised.value.message


def test_a_root_that_a_download_makes_is_envds_own(tmp_path: Path) -> None:
    root = tmp_path / "root"
    before = os.umask(0o022)
    try:
        with pytest.raises(RequestInvalidError):
            locate("odd://x/m", Settings(root))
    finally:
        os.umask(before)

    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    Store(root).create()


def test_a_bare_name_is_no_served_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no served model is called `wine`"):
        locate("wine", Settings(tmp_path))


@pytest.mark.parametrize("uri", ["models:/echo/1", "runs:/0123/model"])
def test_a_uri_of_a_server_needs_the_setting_that_names_one(tmp_path: Path, uri: str) -> None:
    with pytest.raises(SettingsInvalidError, match="tracking_uri"):
        locate(uri, Settings(tmp_path), environ={})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:se/cr@t@bucket/m", "s3://***@bucket/m"),
        ("https://token@host/m?sig=abc", "https://***@host/m?***"),
        ("no http://u:12345@host:80/m, no", "no http://***@host:80/m, no"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("models:/wine@champion", "models:/wine@champion"),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_the_credentials_of_a_uri_are_not_shown_where_they_stand_alone() -> None:
    assert (
        redact('no bucket "k:s%2Ft@b" for s/t', "s3://k:s%2Ft@b/m") == 'no bucket "***@b" for ***'
    )


def test_without_mlflow_the_extra_is_named(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("mlflow"):
            (packages / entry.name).symlink_to(entry)
    python = tmp_path / "venv" / "bin" / "python"

    said = subprocess.run(
        [python, "-c", LOCATE, tmp_path / "root", "models:/echo/1", "http://127.0.0.1:1"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip

    assert said.stdout.startswith("RESOLVER_MISSING")
    assert "pip install 'envd-daemon[mlflow]'" in said.stdout


def test_a_server_that_is_away_is_unreachable_at_once(tmp_path: Path) -> None:
    url = f"http://someone:s3cret@127.0.0.1:{_free_port()}"
    before = time.monotonic()

    with pytest.raises(ModelUnreachableError, match="Connection refused") as caught:
        locate("models:/echo/1", _settings(tmp_path, url))

    # Mostly import, while the server starts; MLflow left to itself tries for minutes.
    assert time.monotonic() - before < 30
    assert "s3cret" not in json.dumps(caught.value.document())
    assert not _attempts(tmp_path)


def test_a_fetch_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    models = Models(tracking_uri="http://127.0.0.1:1")
    settings = Settings(tmp_path, build=Build(timeout=Seconds(0.3)), models=models)

    with pytest.raises(ModelUnreachableError, match="took too long"):
        locate("models:/echo/1", settings)

    assert not _attempts(tmp_path)


def test_who_waits_while_gc_removes_a_download_asks_for_it(tmp_path: Path) -> None:
    asked = [tmp_path, "models:/echo/1", "http://127.0.0.1:1"]
    subprocess.run([sys.executable, "-c", LOCATE, *asked], check=True, capture_output=True)
    (home,) = (tmp_path / "models").iterdir()

    with held.if_free(lock_of(home)) as is_free:
        waiting = subprocess.Popen(
            [sys.executable, "-c", LOCATE, *asked], stdout=subprocess.PIPE, text=True
        )
        inode = f":{lock_of(home).stat().st_ino} "
        wait_for(lambda: [one for one in _waiting() if inode in one], limit_s=20)
        durable.discard(home, tmp_path / "trash")
    said, _ = waiting.communicate(timeout=30)

    assert is_free
    assert said.startswith("MODEL_UNREACHABLE")
    assert home.exists()


def _waiting() -> list[str]:
    """Return what /proc/locks says of each process that waits for a lock."""
    return [one for one in Path("/proc/locks").read_text().splitlines() if "->" in one]


def test_a_fetch_dies_with_whoever_asked_for_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asking = subprocess.Popen(
            [sys.executable, "-c", LOCATE, tmp_path, "models:/echo/1", url],
            stdout=subprocess.DEVNULL,
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        asking.kill()
        asking.wait()
        with connection:
            # Well before the child would give up of itself.
            connection.settimeout(3)
            while connection.recv(4096):
                pass

    assert not list(tmp_path.glob("models/*/current.json"))


def test_every_kind_of_uri_leads_to_its_files(logged: Logged, shared_root: Path) -> None:
    numbers = {
        "models:/echo/1": "1",
        f"models:/{logged.second}": "2",
        f"runs:/{logged.run}/echo1": "1",
        f"runs:/{logged.run}/as-mlflow-2-did": "3",
    }
    settings = _settings(shared_root, logged.server.url)

    with ThreadPoolExecutor(2) as pool:
        found = dict(
            zip(numbers, pool.map(lambda uri: locate(uri, settings), numbers), strict=True)
        )

    assert {uri: _number(path) for uri, path in found.items()} == numbers
    assert all(path.is_relative_to(shared_root / "models") for path in found.values())


def test_unknown_models_are_not_found(logged: Logged, tmp_path: Path) -> None:
    settings = _settings(tmp_path, logged.server.url)

    def reason(uri: str) -> str:
        with pytest.raises(EnvdError) as caught:
            locate(uri, settings)
        return caught.value.reason

    unknown = ["models:/echo@nobody", f"runs:/{logged.run}/echo9"]
    with ThreadPoolExecutor(2) as pool:
        reasons = list(pool.map(reason, unknown))

    assert reasons == ["MODEL_NOT_FOUND"] * len(unknown)
    assert not _attempts(tmp_path)


@pytest.mark.slow
def test_an_alias_is_asked_again_when_its_time_is_over(logged: Logged, tmp_path: Path) -> None:
    settings = _settings(tmp_path, logged.server.url, refresh=60)
    uri = "models:/echo@moving"

    logged.server.point("moving", version=1)
    first = locate(uri, settings, clock=lambda: 1000)
    logged.server.point("moving", version=2)
    (first.parent / "left-by-a-killed-download").mkdir()
    soon = locate(uri, settings, clock=lambda: 1059)
    second = locate(uri, settings, clock=lambda: 1060)
    files_of_the_first = _number(first)
    logged.server.point("moving", version=1)
    # The clock was set back, so nobody knows how old the answer is.
    third = locate(uri, settings, clock=lambda: 500)

    assert soon == first
    assert (files_of_the_first, _number(second), _number(third)) == ("1", "2", "1")
    assert _attempts(tmp_path) == {second.name, third.name}


def test_two_processes_at_once_download_once(logged: Logged, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", LOCATE, str(tmp_path), "models:/echo/latest", logged.server.url]

    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in both}

    path = Path(paths.pop())
    assert not paths
    assert _number(path) == "2"
    assert _attempts(tmp_path) == {path.name}


def test_what_a_model_of_a_registry_asks_for_is_shown(
    logged: Logged, shared_root: Path, home: Path
) -> None:
    more = {"ENVD_MODELS__TRACKING_URI": logged.server.url}
    envctl = Called(shared_root, environment(shared_root, home, **more))

    done = envctl("requirements", "show", "-m", "models:/echo/1", "--json")
    said = envctl("requirements", "show", "-m", "models:/echo/1")

    assert done.returncode == said.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)
    assert (shown["model"], shown["error"]) == ("models:/echo/1", None)
    assert [one["path"] for one in shown["files"]] == [
        "python_env.yaml", "requirements.txt", "conda.yaml"
    ]  # fmt: skip
    assert "mlflow" in said.stdout


@pytest.mark.slow
def test_the_last_download_serves_while_the_server_is_away(
    logged: Logged, shared_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Stands last: the server does not come back.
    uri = f"runs:/{logged.run}/echo1"
    old = locate(uri, _settings(shared_root, logged.server.url))
    asking = _settings(shared_root, logged.server.url, refresh=0)

    unchanged = locate(uri, asking)
    assert not caplog.records
    logged.server.stop()
    away = locate(uri, asking)

    assert (unchanged, away) == (old, old)
    assert _number(away) == "1"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    kept = json.loads((away.parent / "current.json").read_text())
    assert kept["asked_at"] > kept["fetched_at"]
