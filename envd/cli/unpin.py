"""`envctl unpin`: environments that gc may have again."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from envd.cli import several
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document


@click.command("unpin")
@click.argument("environment_ids", metavar="ID...", nargs=-1, required=True)
@as_json
@where
@click.pass_obj
def command(place: Place, environment_ids: tuple[str, ...], is_json: bool) -> None:  # noqa: FBT001
    """Unpin environments: gc may remove them again.

    What fails does not stop the others; in the JSON it has an `error`.

    \b
    Examples:
      envctl unpin a8461d26
    """
    engine = place.engine()
    unpinned = []
    for one in environment_ids:
        unpinned.append(several.attempt(one, engine.unpin))
        if not is_json:
            _say(unpinned[-1])
    if is_json:
        click.echo(json.dumps(unpinned, indent=1))
    sys.exit(several.status(unpinned))


def _say(document: Document) -> None:
    if document["error"]:
        several.say_error(document, "unpin")
    else:
        click.echo(f"{document['id']} unpinned")
