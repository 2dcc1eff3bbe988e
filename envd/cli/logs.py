"""`envctl logs`: what a build said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from envd.cli.place import Place, as_json, where

_SPEC_KEY = re.compile(r"[0-9a-f]{64}")
_MIN_PREFIX = 4


@click.command("logs")
@click.argument("environment_id", metavar="ID")
@as_json
@where
@click.pass_obj
def command(place: Place, environment_id: str, is_json: bool) -> None:  # noqa: FBT001
    """Print the log of an environment's last build, failed ones included.

    ID is an environment's id, a spec key, or the first four digits or more of either.

    \b
    Examples:
      envctl logs a8461d26
    """
    text = _log(place, environment_id).read_text(errors="replace")
    click.echo(json.dumps(text.splitlines(), indent=1) if is_json else text, nl=is_json)


def _log(place: Place, environment_id: str) -> Path:
    # A build that failed has a log and no environment.
    logs = (place.settings().root / "logs").glob("*.log")
    known = [path for path in logs if _SPEC_KEY.fullmatch(path.stem)]
    fitting = [path for path in known if path.stem.startswith(environment_id)]
    if len(fitting) == 1 and len(environment_id) >= _MIN_PREFIX:
        return fitting[0]
    return Path(place.engine().show(environment_id)["log"])
