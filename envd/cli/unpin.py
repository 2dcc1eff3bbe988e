"""`envctl unpin`: environments that gc may have again."""

from __future__ import annotations

import json

import click

from envd.cli.place import Place, as_json, where


@click.command("unpin")
@click.argument("environment_ids", metavar="ID...", nargs=-1, required=True)
@as_json
@where
@click.pass_obj
def command(place: Place, environment_ids: tuple[str, ...], is_json: bool) -> None:  # noqa: FBT001
    """Unpin environments: gc may remove them again.

    \b
    Examples:
      envctl unpin a8461d26
    """
    engine = place.engine()
    unpinned = []
    for one in environment_ids:
        unpinned.append(engine.unpin(one))
        if not is_json:
            click.echo(f"{unpinned[-1]['id']} unpinned")
    if is_json:
        click.echo(json.dumps(unpinned, indent=1))
