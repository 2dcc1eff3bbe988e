"""`envctl cancel`: a build ended by hand."""

from __future__ import annotations

import json

import click

from envd.cli.place import Place, as_json, where


@click.command("cancel")
@click.argument("build_id", metavar="ID")
@as_json
@where
@click.pass_obj
def command(place: Place, build_id: str, is_json: bool) -> None:  # noqa: FBT001
    """Cancel a build: end every process of it, for everybody who waits for it.

    ID is a spec key, an environment's id, or the first four digits or more of either;
    `envctl list --all` shows what is being built. Nothing of the build is left, and the
    next one who asks for the environment starts anew.

    \b
    Examples:
      envctl cancel 5f0c
    """
    cancelled = place.engine().cancel(build_id)
    if is_json:
        click.echo(json.dumps(cancelled, indent=1))
    else:
        click.echo(f"{cancelled['id'] or cancelled['spec_key']} cancelled")
