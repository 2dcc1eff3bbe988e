"""`envctl lock`: what a model's dependencies come to, every artifact with its hash."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import click

from envd.cli import names
from envd.cli import output as outputs
from envd.cli.place import Place, as_json, where
from envd.cli.terms import Terms
from envd.cli.terms import terms as with_terms


@click.command("lock")
@names.option
@outputs.output("Write the lock there.")
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="PLATFORM",
    help="Lock a conda environment for this platform as well, such as osx-arm64.",
)
@click.option("--upgrade", is_flag=True, help="Lock it anew, whatever was locked before.")
@with_terms
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    model: str,
    output: Path | None,
    terms: Terms,
    platforms: tuple[str, ...],
    upgrade: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Lock a model: print its lock as a `pylock.toml` (PEP 751), or as a `conda-lock.yml`.

    A lock is made once and kept. Laid into the model under that name it goes with it:
    from then on the model gets those packages wherever its Python is. With --upgrade a new one is
    made and its environment built, while the old one serves. The second form is that of
    conda environments, which can be locked for several platforms at once.

    \b
    Examples:
      envctl lock -m ./model
      envctl lock -m ./model -o ./model/pylock.toml
      envctl lock -m ./model --upgrade --json
      envctl lock -m ./model --env-manager conda --platform osx-arm64 -o conda-lock.yml
    """
    from envd.cli.engine import Order  # noqa: PLC0415
    from envd.cli.progress import Progress  # noqa: PLC0415

    with Progress() as progress:
        order = Order(names.model(model), **terms, upgrade=upgrade)
        name, text = place.engine().lock(order, platforms, progress)
    text = _as_json(name, text) if is_json else text
    if output:
        outputs.write(output, text)
    else:
        click.echo(text, nl=False)


def _as_json(name: str, text: str) -> str:
    import yaml  # noqa: PLC0415

    document = tomllib.loads(text) if name.endswith(".toml") else yaml.safe_load(text)
    return json.dumps(document, indent=1) + "\n"
