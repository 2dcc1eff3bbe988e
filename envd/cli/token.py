"""`envctl token`: a new token for somebody who asks a daemon over TCP."""

from __future__ import annotations

import json

import click

from envd.access import roles
from envd.cli.place import as_json


@click.command("token")
@click.argument("role", type=click.Choice(roles.NAMES))
@click.option("--name", default="", help="How the log calls whoever has it.")
@as_json
def command(role: str, name: str, is_json: bool) -> None:  # noqa: FBT001
    """Make a token: itself on standard output, its line for `access.tokens` on standard error.

    Whoever asks a daemon over TCP sends it, and may do what ROLE may: `predict` asks models
    by their names, `build` has environments built as well, `admin` does anything. The daemon
    knows a token by the line alone, once SIGHUP has it read its file again.

    \b
    Examples:
      install -m 600 /dev/null frontend.token
      envctl token predict --name frontend > frontend.token 2> line
      cat line >> /etc/envd/tokens
      envctl token admin --json | jq -r .line
    """
    from envd.access import tokens  # noqa: PLC0415

    token, line = tokens.made(roles.Role(role), name)
    if is_json:
        click.echo(json.dumps({"token": token, "line": line}, indent=1))
        return
    click.echo(token)
    click.echo(line, err=True)
