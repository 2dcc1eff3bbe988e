"""`envctl build-image`: an image that serves models, by docker, podman or buildah."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from envd.cli import imaging
from envd.cli.place import Place, as_json, where


@click.command("build-image")
@imaging.options
@click.option("-t", "--tag", required=True, metavar="NAME", help="What the image is called.")
@click.option("--with", "builder", type=click.Choice(["docker", "podman", "buildah"]),
              help="What builds it.  [default: the first of them that works here]")  # fmt: skip
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTION...]")
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    models: tuple[str, ...],
    base: str | None,
    debian: tuple[str, ...],
    wheels: Path | None,
    tag: str,
    builder: str | None,
    more: tuple[str, ...],
    is_json: bool,  # noqa: FBT001
) -> None:
    """Build an image of models: envd, the locked environments, and `envctl serve` on 8080.

    What it is made of is what `envctl dockerfile` writes. Indexes and channels of the
    settings, with the credentials in them, are there while it is built and not in the image.
    What stands after `--` goes to the builder as it is.

    \b
    Examples:
      envctl build-image -m ./model -t iris
      envctl build-image -m ./a -m ./b -t both --with podman -- --no-cache
      docker run --rm -p 8080:8080 iris
    """
    from envd.image import builders, context  # noqa: PLC0415

    chosen = builders.choose(builder)
    found = imaging.plan(place, models, base, debian, wheels)
    with tempfile.TemporaryDirectory(prefix="envctl-") as folder:
        built_from = Path(folder, "image")
        context.write(built_from, found.image, found.models, found.wheels, is_passing=True)
        with imaging.secret_file(found) as secret:
            builders.build(chosen, built_from, tag, secret, more)
    if is_json:
        click.echo(json.dumps({"image": tag, "builder": chosen, **found.document()}, indent=1))
    else:
        click.echo(tag)
