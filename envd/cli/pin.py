"""`envctl pin`: environments that stay."""

from __future__ import annotations

import json

import click

from envd.cli.place import Place, as_json, where


@click.command("pin")
@click.argument("environment_ids", metavar="ID...", nargs=-1, required=True)
@as_json
@where
@click.pass_obj
def command(place: Place, environment_ids: tuple[str, ...], is_json: bool) -> None:  # noqa: FBT001
    """Pin environments: gc never removes them, and `envctl rm` only with --force.

    A pin outlives the daemon; `envctl unpin` takes it off.

    \b
    Examples:
      envctl pin a8461d26
    """
    engine = place.engine()
    pinned = []
    for one in environment_ids:
        pinned.append(engine.pin(one))
        if not is_json:
            click.echo(f"{pinned[-1]['id']} pinned")
    if is_json:
        click.echo(json.dumps(pinned, indent=1))
