"""The `envd` command: starts the daemon and says where it listens."""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

import envd
from envd import addresses, config, streams
from envd.access import credentials, exposure
from envd.errors import EnvdError, from_os
from envd.run.processes import Processes
from envd.sandbox import cores
from envd.serve import log_lines
from envd.store import Store, sweep

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from envd.serve.daemon import Daemon


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", type=click.Path(path_type=Path), help="Where everything is kept.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="The settings file.")
@click.option("--socket", help="The predict socket.  [env: ENVD_SOCKET]")
@click.option("--admin-socket", help="The admin socket; else admin.sock beside the other.")
@click.option("--http", metavar="HOST:PORT", help="Serve MLflow's HTTP there, or at a socket.")
@click.option("--grpc", metavar="HOST:PORT", help="Serve gRPC there, too.")
@click.option("-v", "--verbose", is_flag=True, help="Log more, every request among it.")
@click.version_option(envd.__version__, prog_name="envd")
def main(
    root: Path | None,
    file: Path | None,
    socket: str | None,
    admin_socket: str | None,
    http: str | None,
    grpc: str | None,
    verbose: bool,  # noqa: FBT001
) -> None:
    """Build the environments of MLflow models and run predictions in them.

    The daemon serves one root on two Unix sockets: the predict socket for frontends, the
    admin socket for whoever administers the machine. SIGTERM lets the requests under way
    end and stops it; SIGHUP has the settings read again.

    \b
    Examples:
      envd
      envd --root /var/lib/envd --socket /run/envd/predict.sock
      envd --http 127.0.0.1:5000
      envd --grpc 127.0.0.1:8001
      ENVD_WORKERS__IDLE_TIMEOUT=1h envd
    """
    streams.fill()
    options = {("http", "listen"): (http, "--http"), ("daemon", "grpc"): (grpc, "--grpc")}

    def read() -> config.Settings:
        found = config.load(root=root, file=file, options=options)
        exposure.check(found)
        credentials.load(found)
        return exposure.settled(found)

    try:
        settings = read()
        log_lines.begin(settings.daemon.log_format, verbose=verbose)
        chosen = addresses.sockets(settings.root, predict=socket, admin=admin_socket)
        chosen.check()
        _serve(settings, chosen, read)
    except EnvdError as error:
        click.echo(f"envd: {error.message}", err=True)
        sys.exit(2 if error.reason == "SETTINGS_INVALID" else 1)
    except OSError as error:
        click.echo(f"envd: {error}", err=True)
        sys.exit(1)


def _serve(
    settings: config.Settings, chosen: addresses.Sockets, read: Callable[[], config.Settings]
) -> None:
    _allow_many_files()
    cores.leave_none()
    # A watchdog ends it by SIGABRT: the log is to say where it stood.
    faulthandler.enable()
    store = Store(settings.root)
    try:
        store.create()
    except OSError as error:
        raise from_os(error, settings.root) from error
    with addresses.owned(settings, chosen):
        sweep.leftovers(store)
        # Before grpc is imported: nothing is ever forked from a process that runs it.
        processes = Processes.create()
        try:
            loop, daemon = _daemon(settings, chosen, processes, read)
            went_well = loop.run_until_complete(daemon.run(lambda: _say(settings, chosen, daemon)))
        finally:
            processes.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing of gRPC is taken down: it would answer with CANCELLED what comes in meanwhile.
    os._exit(0 if went_well else 1)


def _daemon(
    settings: config.Settings,
    chosen: addresses.Sockets,
    processes: Processes,
    read: Callable[[], config.Settings],
) -> tuple[AbstractEventLoop, Daemon]:
    # Else it writes a line for each connection that fails, which anybody can make.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    import uvloop  # noqa: PLC0415

    from envd.serve import calls  # noqa: PLC0415
    from envd.serve.daemon import Daemon  # noqa: PLC0415

    for handler in logging.getLogger().handlers:
        handler.addFilter(calls.mark)
    return uvloop.new_event_loop(), Daemon(settings, chosen, processes, read)


def _allow_many_files() -> None:
    """Take all the descriptors there may be: a worker needs two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _say(settings: config.Settings, chosen: addresses.Sockets, daemon: Daemon) -> None:
    click.echo(f"envd {envd.__version__} serves {settings.root}")
    click.echo(f"  predict  unix:{chosen.predict}")
    click.echo(f"  admin    unix:{chosen.admin}")
    if daemon.grpc_address:
        click.echo(f"  grpc     {daemon.grpc_address}")
    if daemon.core.sandbox.best is not None:
        click.echo(f"  models   {daemon.core.sandbox.sentence()}")
    if daemon.core.http_url:
        click.echo(f"  http     {daemon.core.http_url}")
    if daemon.core.metrics_url:
        click.echo(f"  metrics  {daemon.core.metrics_url}")
