"""`envctl rm`: environments removed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from envd import plain
from envd.cli import several
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document


@click.command("rm")
@click.argument("environment_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove what is pinned or in use, too, and wait.")
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    environment_ids: tuple[str, ...],
    force: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Remove environments; one that is pinned or in use is refused.

    A worker of the daemon's that nobody asks anything is no use of it, and ends.

    With --force nobody can begin to use it any more, and it goes when the last one who
    uses it has ended. The next prediction of a model whose environment is gone builds it
    again.

    What fails does not stop the others; in the JSON it has an `error`.

    \b
    Examples:
      envctl rm a8461d26
      envctl rm a8461d26 03bb --force
    """
    engine = place.engine()

    def remove(one: str) -> Document:
        if force:
            click.echo(f"removing {one} as soon as nobody uses it", err=True)
        return engine.remove(one, force=force)

    several.each(environment_ids, "remove", remove, _removed, is_json=is_json)


def _removed(document: Document) -> str:
    own = plain.size(document["bytes_exclusive"])
    return f"{document['id']} removed, {own} of its own freed"
