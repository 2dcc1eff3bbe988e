"""A daemon of envd for a benchmark, on a root below `.bench`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

BIN = Path(sys.executable).parent


class Daemon:
    """A daemon that runs."""

    def __init__(self, root: Path, **settings: str) -> None:
        """Start it, and wait until it says that it serves."""
        self.socket = root / "predict.sock"
        self.process = started([BIN / "envd"], environ(root) | settings, "envd ")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.communicate()

    def kill(self) -> None:
        """End it without notice."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def running(root: Path, **settings: str) -> Iterator[Daemon]:
    """Have a daemon for a while."""
    daemon = Daemon(root, **settings)
    try:
        yield daemon
    finally:
        daemon.stop()


def started(
    argv: list[str | Path], variables: dict[str, str], greeting: str
) -> subprocess.Popen[str]:
    """Start a server and return it once it has written a line that begins with *greeting*.

    Raises:
        click.ClickException: it wrote another.
    """
    server = subprocess.Popen(argv, env=variables, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    if not server.stdout.readline().startswith(greeting):
        server.kill()
        message = f"`{argv[0]}` does not start"
        raise click.ClickException(message)
    return server


def environ(root: Path) -> dict[str, str]:
    """Return the variables of a process that works on *root*."""
    kept = ("PATH", "HOME", "PYENV_ROOT", "SSL_CERT_FILE", "SSL_CERT_DIR", "LANG")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "ENVD_ROOT": str(root)
    }
