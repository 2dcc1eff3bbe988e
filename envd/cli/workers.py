"""`envctl workers`: the processes that have a model loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from envd import plain
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document


@click.group("workers")
@where
def command() -> None:
    """List and restart workers: the processes that have a model loaded, in the daemon.

    \b
    Examples:
      envctl workers list
      envctl workers restart 12345
    """


@command.command("list")
@as_json
@where
@click.pass_obj
def _list(place: Place, is_json: bool) -> None:  # noqa: FBT001
    """List the workers, the one used last first.

    NOW counts the requests a worker has, WAITING those that wait for any worker of its model.
    MEMORY is a worker's share: what it has in common with others is divided among them.

    \b
    Examples:
      envctl workers list
      envctl workers list --json | jq -r '.[] | select(.state == "busy").pid'
    """
    found = list(place.engine().list_workers())
    if is_json:
        click.echo(json.dumps(found, indent=1))
    elif found:
        _show(found)
    else:
        click.echo("no workers; a prediction in the daemon starts one", err=True)


@command.command("restart")
@click.argument("pids", metavar="PID...", type=int, nargs=-1, required=True)
@as_json
@where
@click.pass_obj
def _restart(place: Place, pids: tuple[int, ...], is_json: bool) -> None:  # noqa: FBT001
    """Start workers in the place of others, which end when they have answered.

    \b
    Examples:
      envctl workers restart 12345
    """
    engine = place.engine()
    restarted = []
    for pid in pids:
        restarted.append(engine.restart_worker(pid))
        if not is_json:
            click.echo(f"{pid} of {plain.printable(restarted[-1]['model'])} is replaced")
    if is_json:
        click.echo(json.dumps(restarted, indent=1))


def _show(found: list[Document]) -> None:
    from envd.cli.table import Table  # noqa: PLC0415

    table = Table()
    table.numbers("PID")
    table.columns("STATE", "STARTED")
    table.numbers("SANDBOX", "ANSWERS", "NOW", "WAITING", "MEMORY")
    table.columns("ENVIRONMENT")
    table.text("MODEL")
    for one in found:
        table.row(
            str(one["pid"]),
            one["state"],
            one["origin"],
            str(one["sandbox"]),
            str(one["answers"]),
            str(one["under_way"]),
            str(one["waiting"]),
            plain.size(one["memory"]) if one["memory"] else "",
            plain.short_id(one["environment_id"]),
            plain.printable(one["model"]),
        )
    table.show()
