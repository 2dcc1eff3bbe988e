"""`envctl dockerfile`: the directory that an image of models is built from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from envd.cli import imaging
from envd.cli.output import writable
from envd.cli.place import Place, as_json, where


@click.command("dockerfile")
@imaging.options
@click.option("-o", "--output", type=click.Path(path_type=Path), default="envd-image",
              show_default=True, callback=writable,
              help="The directory to write; it must not be there.")  # fmt: skip
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    models: tuple[str, ...],
    base: str | None,
    debian: tuple[str, ...],
    wheels: Path | None,
    output: Path,
    is_json: bool,  # noqa: FBT001
) -> None:
    """Write a Dockerfile and what it copies: the models, each with its lock.

    The image has the environments that the locks say, built once, and models that agree share
    one. It runs `envctl serve` on port 8080 as a user of its own; with several models it is
    `envd`, which serves each below /models/NAME/. It takes nothing from this machine's
    environments, and nothing is built before the image is.

    \b
    Examples:
      envctl dockerfile -m ./model -o image
      docker build -t iris image
      docker run --rm -p 8080:8080 iris
      envctl dockerfile -m ./a -m ./b --base registry.local/python:3.12 --apt libgomp1
    """
    from envd.image import context  # noqa: PLC0415

    context.must_be_new(output)
    found = imaging.plan(place, models, base, debian, wheels)
    context.write(output, found.image, found.models, found.wheels)
    if is_json:
        click.echo(json.dumps({"directory": str(output), **found.document()}, indent=1))
    else:
        click.echo(output)
    if found.secret:
        names = ", ".join(sorted(found.secret))
        message = f"note: the build needs {names} in a file: --secret id=envd,src=FILE"
        click.echo(message, err=True)
