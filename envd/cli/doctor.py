"""`envctl doctor`: whether this machine has what envd needs, and what to do where it has not."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.addresses import Sockets
    from envd.config import Settings

_TROUBLE = 1


@click.command("doctor")
@as_json
@where
@click.pass_obj
def command(place: Place, is_json: bool) -> None:  # noqa: FBT001
    """See whether this machine has what envd needs, and say what to do where it has not.

    Looked at are the settings, the root and its disk, Pythons, uv, conda, the sandbox, and
    the daemon with its sockets, if one runs. Nothing is changed. The exit status is 1 if
    there is something to do.

    \b
    Examples:
      envctl doctor
      envctl doctor --json | jq '.checks[] | select(.ok | not)'
    """
    from envd import plain  # noqa: PLC0415
    from envd.cli import checks  # noqa: PLC0415

    found = []

    def ask(settings: Settings, sockets: Sockets) -> None:
        place.ask(settings, str(sockets.predict), str(sockets.admin)).list_workers()

    for one in checks.everything(place.settings, place.file(), ask):
        found.append(one)
        if is_json:
            continue
        mark = "TO DO" if one.to_do else "ok"
        click.echo(f"{mark:6} {one.name:9} {plain.printable(one.found)}")
        if one.to_do:
            click.echo(f"{'':16} -> {plain.printable(one.to_do)}")
    is_well = not any(one.to_do for one in found)
    if is_json:
        document = {"ok": is_well, "checks": [one.document() for one in found]}
        click.echo(json.dumps(document, indent=1))
    if not is_well:
        sys.exit(_TROUBLE)
