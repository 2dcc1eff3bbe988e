"""`envctl unpin`: environments that gc may have again."""

from __future__ import annotations

import click

from envd.cli import several
from envd.cli.place import Place, as_json, where


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
    several.each(
        environment_ids,
        "unpin",
        place.engine().unpin,
        lambda one: f"{one['id']} unpinned",
        is_json=is_json,
    )
