"""`envctl migrate`: conda-forge in the place of Anaconda's own channels, in the files of models."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envd.cli import names
from envd.cli.place import as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document

_FAILED = 1
_COLORS = {"+": "green", "-": "red", "@": "cyan"}


@click.command("migrate")
@click.argument("models", type=names.MODEL, nargs=-1, required=True, metavar="MODEL|FOLDER...")
@click.option("--in-place", is_flag=True, help="Write the changes, with each original beside it.")
@click.option("--check", is_flag=True, help="Only say which models would change.")
@as_json
@where
def command(
    models: tuple[str, ...],
    in_place: bool,  # noqa: FBT001
    check: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Show what names conda-forge in the place of Anaconda's own channels in models.

    envd reads such a model so anyway; this is for those who want it in the files. A
    FOLDER stands for every model in it, and what cannot be read does not stop the others.
    Links in it are followed: a model that lies elsewhere is shown with its place, and
    changed there, where the link stays; a file that leads out of its own model is refused.
    Shown is a diff, in which passwords, tokens and the values of variables are masked.
    Written is only what changes its meaning: channels, and the builds and pins that only
    Anaconda's have. The original stays beside it, as `conda.yaml.orig`.

    The status is 1 if a model could not be read or written, and with --check also if one
    would change.

    \b
    Examples:
      envctl migrate ./model
      envctl migrate ./model --in-place
      envctl migrate ./models --check
      envctl migrate ./models --json | jq '.[] | select(.changed).model'
    """
    if in_place and check:
        message = "give --in-place or --check, not both"
        raise click.UsageError(message)
    asked = [(model, one) for one in models for model in names.models(_local(one))]
    if not asked:
        message = f"there is no model in {', '.join(models)}"
        raise click.UsageError(message)
    found = []
    for model, given in asked:
        found.append(_migrated(model, given, in_place=in_place))
        if not is_json:
            _say(found[-1], in_place=in_place, check=check)
    if is_json:
        click.echo(json.dumps(found, indent=1))
    else:
        _say_count(found, in_place=in_place)
    if any(one["error"] or (check and one["changed"]) for one in found):
        sys.exit(_FAILED)


def _local(name: str) -> str:
    from envd.model.texts import shown  # noqa: PLC0415

    if ":" in name and not names.is_there(Path(name)):
        message = f"`{shown(name)}` is a URI, and nothing can be written there; give a directory"
        raise click.UsageError(message)
    return name


def _migrated(model: str, given: str, *, in_place: bool) -> Document:
    from envd.errors import EnvdError  # noqa: PLC0415
    from envd.mend import migrating  # noqa: PLC0415

    plan, error = migrating.Migration(Path(model)), None
    # Not by `resolve`, which fails of a link that leads to itself.
    real, home = (Path(os.path.realpath(one)) for one in (model, given))
    try:
        plan = migrating.plan(plan.model)
        if in_place:
            migrating.carry_out(plan)
    except EnvdError as failure:
        error = {"reason": failure.reason, "message": failure.message}
    return {
        "model": names.shown(model),
        "outside": None if real.is_relative_to(home) else names.shown(str(real)),
        "changed": bool(plan.changes) and error is None,
        "files": [{"path": one.file, "diff": one.diff(plan.model)} for one in plan.changes],
        "notes": [one.document() for one in plan.notes],
        "error": error,
    }


def _say(found: Document, *, in_place: bool, check: bool) -> None:
    from envd import plain  # noqa: PLC0415

    model = plain.printable(found["model"])
    if found["error"]:
        message = plain.printable(found["error"]["message"])
        click.echo(f"envctl: cannot migrate {model}: {message}", err=True)
    elif found["changed"] and (in_place or check):
        click.echo(model)
    if found["changed"] and found["outside"]:
        outside = plain.printable(found["outside"])
        click.echo(f"note: {model}: a link leads out of the folder to it, to {outside}", err=True)
    if not in_place and not check:
        for one in found["files"]:
            show_diff(one["diff"])
    if not check:
        for note in found["notes"]:
            click.echo(f"note: {model}: {note['message']}", err=True)


def show_diff(diff: str) -> None:
    """Print a diff, colored on a terminal."""
    for line in diff.splitlines():
        click.secho(line, fg=_COLORS.get(line[:1]))


def _say_count(found: list[Document], *, in_place: bool) -> None:
    changed = sum(one["changed"] for one in found)
    failed = sum(one["error"] is not None for one in found)
    models = f"{len(found)} model{'' if len(found) == 1 else 's'}"
    would = "" if in_place else "would "
    count = f"{changed} of {models} {would}change{'d' if in_place else ''}"
    click.echo(count + (f", {failed} cannot be migrated" if failed else ""), err=True)
