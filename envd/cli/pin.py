"""`envctl pin`: environments that stay."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from envd.cli import several
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document


@click.command("pin")
@click.argument("environment_ids", metavar="ID...", nargs=-1, required=True)
@as_json
@where
@click.pass_obj
def command(place: Place, environment_ids: tuple[str, ...], is_json: bool) -> None:  # noqa: FBT001
    """Pin environments: gc never removes them, and `envctl rm` only with --force.

    A pin outlives the daemon; `envctl unpin` takes it off.
    What fails does not stop the others; in the JSON it has an `error`.

    \b
    Examples:
      envctl pin a8461d26
    """
    engine = place.engine()
    pinned = []
    for one in environment_ids:
        pinned.append(several.attempt(one, engine.pin))
        if not is_json:
            _say(pinned[-1])
    if is_json:
        click.echo(json.dumps(pinned, indent=1))
    sys.exit(several.status(pinned))


def _say(document: Document) -> None:
    if document["error"]:
        several.say_error(document, "pin")
    else:
        click.echo(f"{document['id']} pinned")
