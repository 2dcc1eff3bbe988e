"""`envctl pin`: environments that stay."""

from __future__ import annotations

import click

from envd.cli import several
from envd.cli.place import Place, as_json, where


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
    several.each(
        environment_ids,
        "pin",
        place.engine().pin,
        lambda one: f"{one['id']} pinned",
        is_json=is_json,
    )
