"""`envctl build`: environments made ready before anybody asks for them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from envd.cli import names
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document, Engine
    from envd.events import OnEvent


@click.command("build")
@click.option("-m", "--model", "named", multiple=True, help="A model directory or URI.")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    named: tuple[str, ...],
    models: tuple[str, ...],
    is_json: bool,  # noqa: FBT001
) -> None:
    """Build the environments of models, those that are not there yet.

    With one model the JSON is an object, with several an array, in their order.

    \b
    Examples:
      envctl build -m ./model
      envctl build models/* --json
    """
    from envd.cli.progress import Progress  # noqa: PLC0415

    asked = [names.model(one) for one in (*named, *models)]
    if not asked:
        message = "give at least one model"
        raise click.UsageError(message)
    engine = place.engine()
    found = []
    for one in asked:
        with Progress() as progress:
            found.append(_built(engine, one, progress))
        if not is_json:
            _say(one, found[-1])
    if is_json:
        click.echo(json.dumps(found if len(asked) > 1 else found[0], indent=1))
    if any(one["state"] != "ready" for one in found):
        sys.exit(1)


def _built(engine: Engine, model: str, on_event: OnEvent) -> Document:
    from envd.cli import documents  # noqa: PLC0415
    from envd.errors import EnvdError  # noqa: PLC0415

    try:
        return engine.build(model, on_event)
    except EnvdError as error:
        if error.reason == "DAEMON_UNREACHABLE":
            raise
        return documents.failed(error)


def _say(model: str, document: Document) -> None:
    for note in document["notes"]:
        click.echo(f"note: {note['message']}", err=True)
    if document["failure"]:
        click.echo(f"envctl: {document['failure']['message']}", err=True)
        if document["spec_key"]:
            click.echo(f"see `envctl logs {document['spec_key'][:8]}`", err=True)
        return
    how = "was ready" if document["cached"] else f"was built in {document['seconds']:.1f} s"
    click.echo(f"{document['id']}  {how}  {model}")
