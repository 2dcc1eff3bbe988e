"""`envctl serve`: one model over HTTP, in the foreground."""

from __future__ import annotations

import dataclasses
import logging
import sys
from typing import TYPE_CHECKING

import click

from envd.cli import names
from envd.cli.place import Place, where

if TYPE_CHECKING:
    from envd.config import Settings
    from envd.settings.served import Served

_FAILED = 1


@click.command("serve", context_settings={"help_option_names": ["--help"]})
@names.option
@click.option("-p", "--port", type=click.IntRange(0, 65535), default=5000, show_default=True,
              help="The port; 0 takes one that is free.")  # fmt: skip
@click.option("-h", "--host", default="127.0.0.1", show_default=True,
              help="An address; one that others reach takes what `[access]` has.")  # fmt: skip
@click.option("-w", "--workers", metavar="N|auto", help="How many processes have it loaded.")
@click.option("-t", "--timeout", metavar="SECONDS",
              help="The longest a request may take.  [default: as the settings say]")  # fmt: skip
@click.option("--name", help="What it is called below /models/ and /v2/models/.")
@click.option("--env-manager", type=click.Choice(["virtualenv", "conda", "auto"]),
              help="What makes the environment.  [default: as the settings say]")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Log every request.")
@where
@click.pass_obj
def command(
    place: Place,
    model: str,
    port: int,
    host: str,
    workers: str | None,
    timeout: str | None,
    name: str | None,
    env_manager: str | None,
    verbose: bool,  # noqa: FBT001
) -> None:
    """Serve one model over HTTP, as `mlflow models serve` does, until SIGTERM or Ctrl-C.

    Its environment is built if it is not there, and the model is loaded; then the URL goes
    to standard output. No daemon is needed, and one that runs on the root does not mind.
    Requests under way may end before it stops.

    \b
    Examples:
      envctl serve -m ./model -p 5000
      envctl serve -m models:/iris@champion -p 0 --workers auto
      curl -d '{"inputs": [1]}' -H 'Content-Type: application/json' \\
        http://127.0.0.1:5000/invocations
    """
    from envd import config  # noqa: PLC0415
    from envd.errors import SettingsInvalidError  # noqa: PLC0415
    from envd.model import repository  # noqa: PLC0415
    from envd.run.processes import Processes  # noqa: PLC0415
    from envd.sandbox import cores  # noqa: PLC0415
    from envd.settings.served import refused_name  # noqa: PLC0415

    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = repository.with_newest(place.settings())
    if env_manager:
        manager = config.value("resolve", "env_manager", env_manager, "--env-manager")
        resolve = dataclasses.replace(settings.resolve, env_manager=manager)
        settings = dataclasses.replace(settings, resolve=resolve)
    served = _served(settings, names.model(model), name, workers)
    if refused := refused_name(served.name):
        raise SettingsInvalidError(refused, setting="--name")
    listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    settings = _open_to(_only(settings, served, listen, timeout))
    cores.leave_none()
    # Before anything that imports grpc: nothing is ever forked from a process that runs it.
    processes = Processes.create()
    try:
        _build(settings, served.name)
        from envd.serve import single  # noqa: PLC0415

        is_well = single.serve(settings, processes, lambda url: _say(served, url))
    finally:
        processes.close()
    sys.exit(0 if is_well else _FAILED)


def _served(settings: Settings, model: str, name: str | None, workers: str | None) -> Served:
    """Return the model as it is to be served: as the settings know it, if they do."""
    from envd import config  # noqa: PLC0415
    from envd.model import naming  # noqa: PLC0415
    from envd.settings.served import Served  # noqa: PLC0415
    from envd.settings.values import ModelUri  # noqa: PLC0415

    found = naming.find(model, settings.served)
    if found is None:
        # Raises where it is a name, for nobody has it.
        found = Served("", ModelUri(naming.uri_of(model, settings.served)))
    count = config.value("workers", "per_model", workers, "--workers") if workers else found.workers
    called = name or found.name or naming.likely(found.uri)
    return dataclasses.replace(found, name=called, preload=True, workers=count)


def _only(settings: Settings, served: Served, listen: str, timeout: str | None) -> Settings:
    """Return *settings* for *served* alone, without what a daemon beside this has."""
    from envd import config  # noqa: PLC0415
    from envd.settings.values import Address, Location, Loopback  # noqa: PLC0415

    given = {"listen": config.value("http", "listen", listen, "--host"), "model": served.name}
    places = dict(settings.places) | {"http.listen": "--host"}
    if timeout:
        given["timeout"] = config.value("http", "timeout", timeout, "--timeout")
    return dataclasses.replace(
        settings,
        served=(served,),
        places=places,
        http=dataclasses.replace(settings.http, **given),
        models=dataclasses.replace(settings.models, repository=Location("")),
        daemon=dataclasses.replace(settings.daemon, metrics=Loopback(""), grpc=Address("")),
    )


def _open_to(settings: Settings) -> Settings:
    """Return *settings* as they are for whoever can reach the model.

    On this machine alone, it is whoever serves it that says which model runs: their own deed.
    """
    from envd.access import credentials, exposure  # noqa: PLC0415
    from envd.settings import values  # noqa: PLC0415

    exposure.check(settings)
    credentials.load(settings)
    is_ours = values.is_loopback(settings.http.listen)
    return settings if is_ours else exposure.settled(settings)


def _build(settings: Settings, name: str) -> None:
    from envd.cli.engine import Order  # noqa: PLC0415
    from envd.cli.local import Local  # noqa: PLC0415
    from envd.cli.progress import Progress  # noqa: PLC0415
    from envd.errors import from_document  # noqa: PLC0415

    with Progress() as progress:
        built = Local(settings).build(Order(name), progress)
    if failure := built["failure"]:
        raise from_document(failure)
    for note in built["notes"]:
        click.echo(f"note: {note['message']}", err=True)


def _say(served: Served, url: str) -> None:
    from envd import plain  # noqa: PLC0415

    click.echo(url)
    click.echo(f"serving {plain.printable(served.name)}; Ctrl-C stops it", err=True)
    sys.stdout.flush()
