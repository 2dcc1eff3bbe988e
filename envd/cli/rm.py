"""`envctl rm`: environments removed by hand."""

from __future__ import annotations

import json

import click

from envd.cli.list import size
from envd.cli.place import Place, as_json, where


@click.command("rm")
@click.argument("environment_ids", metavar="ID...", nargs=-1, required=True)
@as_json
@where
@click.pass_obj
def command(place: Place, environment_ids: tuple[str, ...], is_json: bool) -> None:  # noqa: FBT001
    """Remove environments; one that is in use is refused.

    The next prediction of a model whose environment is gone builds it again.

    \b
    Examples:
      envctl rm a8461d26
    """
    engine = place.engine()
    removed = []
    for one in environment_ids:
        removed.append(engine.remove(one))
        if not is_json:
            own = size(removed[-1]["bytes_exclusive"])
            click.echo(f"{removed[-1]['id']} removed, {own} of its own freed")
    if is_json:
        click.echo(json.dumps(removed, indent=1))
