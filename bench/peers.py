"""Starts the servers that envd is compared with: MLflow's and MLServer.

Both serve a model of MLflow's format with the packages that `examples/iris` asks for. MLServer is
in a virtualenv of its own (`.bench/mlserver`), with its runtime for MLflow's models; its uvloop
is the last one with which its workers start
(https://github.com/SeldonIO/MLServer/blob/1.7.1/mlserver/parallel/worker.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import daemon
import served
from rounds import run, say
from setup import BENCH, IRIS
from uv import find_uv_bin

_MLSERVER, _HOME = BENCH / "mlserver", BENCH / "serving"
_PINS = ("mlserver==1.7.1", "mlserver-mlflow==1.7.1", "uvloop==0.21.0")
_LONGEST_START_S = 120


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that runs: its process, and the ports that it was given."""

    pid: int
    http: int
    grpc: int = 0


def mlflow() -> Path:
    """Return the program of MLflow in the environment of `examples/iris`."""
    return served.environment().prefix / "bin" / "mlflow"


@contextlib.contextmanager
def mlflow_serving(program: Path, model: Path) -> Iterator[Peer]:
    """Have `mlflow models serve --env-manager local` serve *model*, from the environment."""
    port = free_port()
    argv: list[str | Path] = [program, "models", "serve", "--model-uri", model]
    argv += ["--env-manager", "local", "--port", str(port)]
    variables = daemon.environ(served.ROOT)
    variables["PATH"] = f"{program.parent}:{variables['PATH']}"
    with _group(argv, variables) as server:
        _await(f"http://127.0.0.1:{port}/ping")
        yield Peer(server.pid, port)


@contextlib.contextmanager
def mlserver_serving(model: Path, workers: int) -> Iterator[Peer]:
    """Have MLServer serve *model* as `iris`, with so many processes for inference beside it."""
    peer = Peer(0, free_port(), free_port())
    folder = _HOME / f"mlserver-{workers}"
    (folder / "iris").mkdir(parents=True, exist_ok=True)
    ports = {"http_port": peer.http, "grpc_port": peer.grpc, "metrics_port": free_port()}
    settings = {"host": "127.0.0.1", "parallel_workers": workers, "debug": False, **ports}
    runtime = {"implementation": "mlserver_mlflow.MLflowRuntime", "parameters": {"uri": str(model)}}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "iris" / "model-settings.json").write_text(json.dumps({"name": "iris", **runtime}))
    variables = dict(os.environ, PATH=f"{_installed() / 'bin'}:{os.environ['PATH']}")
    with _group([_installed() / "bin" / "mlserver", "start", folder], variables) as server:
        _await(f"http://127.0.0.1:{peer.http}/v2/models/iris/ready")
        yield Peer(server.pid, peer.http, peer.grpc)


def _installed() -> Path:
    """Return the virtualenv that has MLServer, made if it must be."""
    marker, pins = _MLSERVER / "pins", "\n".join(_PINS)
    if not marker.exists() or marker.read_text() != pins:
        say("installing MLServer")
        uv: list[str | Path] = [find_uv_bin(), "--no-config", "--quiet"]
        environ = dict(os.environ, UV_SYSTEM_CERTS="1", UV_CACHE_DIR=str(BENCH / "uv"))
        run([*uv, "venv", "--clear", "--python", sys.executable, _MLSERVER], environ)
        install = ["pip", "install", "--python", f"{_MLSERVER}/bin/python", *_PINS]
        run([*uv, *install, "--requirement", IRIS / "requirements.txt"], environ)
        marker.write_text(pins)
    return _MLSERVER


@contextlib.contextmanager
def _group(argv: list[str | Path], variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server where it may leave files, and end all of its processes."""
    quiet = subprocess.DEVNULL
    _HOME.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen(
        argv, cwd=_HOME, env=variables, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _await(url: str) -> None:
    """Ask until there is an answer."""
    until = time.monotonic() + _LONGEST_START_S
    while time.monotonic() < until:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url).read()
            return
        time.sleep(0.01)
    message = f"nothing answers at `{url}`"
    raise click.ClickException(message)
