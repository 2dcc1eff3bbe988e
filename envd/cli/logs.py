"""`envctl logs`: what a build said."""

from __future__ import annotations

import json

import click

from envd.cli.place import Place, as_json, where


@click.command("logs")
@click.argument("environment_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on until the build is over.")
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    environment_id: str,
    follow: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Print the log of an environment's last build, failed ones included.

    ID is an environment's id, a spec key, or the first four digits or more of either.
    Leaving a log that is followed does not stop the build. The JSON is an array of lines;
    with --follow each line is a JSON text of its own.

    \b
    Examples:
      envctl logs a8461d26
      envctl logs -f a8461d26
    """
    lines = place.engine().log(environment_id, follow=follow)
    if is_json and not follow:
        click.echo(json.dumps(list(lines), indent=1))
        return
    for line in lines:
        click.echo(json.dumps(line) if is_json else line)
