"""`envctl lock`: what a model's dependencies come to, every artifact with its hash."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import click

from envd.cli import names
from envd.cli.output import output as output_option
from envd.cli.override import override as override_option
from envd.cli.place import Place, as_json, where


@click.command("lock")
@click.option("-m", "--model", required=True, help="A model directory or URI.")
@output_option("Write the lock there.")
@click.option("--upgrade", is_flag=True, help="Lock it anew, whatever was locked before.")
@override_option
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    model: str,
    output: Path | None,
    override: list[str],
    upgrade: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Lock a model: print its lock as a `pylock.toml` (PEP 751).

    A lock is made once and kept. Laid into the model as `pylock.toml` it goes with it:
    from then on the model gets those packages wherever its Python is. With --upgrade a new one is
    made and its environment built, while the old one serves.

    \b
    Examples:
      envctl lock -m ./model
      envctl lock -m ./model -o ./model/pylock.toml
      envctl lock -m ./model --upgrade --json
    """
    from envd import durable  # noqa: PLC0415
    from envd.cli.engine import Wanted  # noqa: PLC0415
    from envd.cli.progress import Progress  # noqa: PLC0415

    with Progress() as progress:
        text = place.engine().lock(Wanted(names.model(model), override, upgrade), progress)
    if is_json:
        text = json.dumps(tomllib.loads(text), indent=1) + "\n"
    if output:
        durable.write_text(output, text)
    else:
        click.echo(text, nl=False)
