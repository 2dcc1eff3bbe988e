"""`envctl requirements`: what models ask for, shown and edited in their files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envd.cli import names, requirements_infer
from envd.cli.editable import local, readable
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document
    from envd.mend.editing import Editing, Replacements
    from envd.spec.policy import Policy

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FAILED = 1


@click.group("requirements")
@where
def command() -> None:
    """Show and edit what models ask for, in all their files at once.

    \b
    Examples:
      envctl requirements show -m ./model
      envctl requirements add -m ./model beautifulsoup4==4.12.3
      envctl requirements remove -m ./model -m ./other pandas
      envctl requirements set -m ./models numpy==1.26.4 --dry-run
      envctl requirements infer -m ./model
    """


command.add_command(requirements_infer.command)


def _models(verb: _Command) -> _Command:
    return click.option(
        "-m",
        "--model",
        "models",
        type=names.MODEL,
        multiple=True,
        required=True,
        help="A model directory, or a folder of them; several times for several.",
    )(verb)


def _dry(verb: _Command) -> _Command:
    return click.option("--dry-run", is_flag=True, help="Only show what would change.")(verb)


@command.command("add", short_help="Add requirements to models.")
@click.argument("texts", metavar="REQ...", nargs=-1, required=True)
@_models
@_dry
@as_json
@where
@click.pass_obj
def _add(
    place: Place,
    texts: tuple[str, ...],
    models: tuple[str, ...],
    dry_run: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Add requirements to models, in the place of those of the same names.

    Names are the same however they are written (`Scikit_Learn`, `scikit-learn`).
    `requirements.txt` and the pip section of `conda.yaml` ask for the same afterwards, no
    constraint contradicts it, and every other line, comment and option stays. All files of
    a model change together, and each original lies beside its file, as
    `requirements.txt.orig`. The diff goes to standard output.

    \b
    Examples:
      envctl requirements add -m ./model beautifulsoup4==4.12.3
      envctl requirements add -m ./model 'numpy>=1.26,<2' 'tomli; python_version < "3.11"'
      envctl requirements add -m ./models --dry-run setuptools==80.9.0
    """
    from envd.mend import editing  # noqa: PLC0415

    wanted = editing.put(texts, _rules(place))
    _edit(place, ("add", *texts), wanted, models, dry_run=dry_run, is_json=is_json)


@command.command("set", short_help="Change requirements that models have.")
@click.argument("texts", metavar="REQ...", nargs=-1, required=True)
@_models
@_dry
@as_json
@where
@click.pass_obj
def _set(
    place: Place,
    texts: tuple[str, ...],
    models: tuple[str, ...],
    dry_run: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Change requirements that models have: as `add`, but nothing new comes in.

    A model that does not ask for one of them is left as it is, and the status is 1: a name
    that was misspelt adds nothing.

    \b
    Examples:
      envctl requirements set -m ./model scikit-learn==1.5.2
      envctl requirements set -m ./models numpy==1.26.4 --json
    """
    from envd.mend import editing  # noqa: PLC0415

    wanted = editing.put(texts, _rules(place), only_there=True)
    _edit(place, ("set", *texts), wanted, models, dry_run=dry_run, is_json=is_json)


@command.command("remove", short_help="Remove requirements from models.")
@click.argument("texts", metavar="NAME...", nargs=-1, required=True)
@_models
@_dry
@as_json
@where
@click.pass_obj
def _remove(
    place: Place,
    texts: tuple[str, ...],
    models: tuple[str, ...],
    dry_run: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Remove requirements from models, by the names of their distributions.

    Constraints stay: they ask for nothing.

    \b
    Examples:
      envctl requirements remove -m ./model pandas
      envctl requirements remove -m ./models --dry-run pandas pyarrow
    """
    from envd.mend import editing  # noqa: PLC0415

    wanted = editing.without(texts)
    _edit(place, ("remove", *texts), wanted, models, dry_run=dry_run, is_json=is_json)


@command.command("show", short_help="Show what models ask for.")
@_models
@as_json
@where
@click.pass_obj
def _show(place: Place, models: tuple[str, ...], is_json: bool) -> None:  # noqa: FBT001
    """Show what models ask for, file by file, and where their files do not agree.

    One that lies elsewhere is downloaded, as for a prediction.

    \b
    Examples:
      envctl requirements show -m ./model
      envctl requirements show -m models:/iris@champion
      envctl requirements show -m ./models --json | jq '.[] | select(.disagreements != [])'
    """
    settings = place.settings()
    asked = [pair for one in models for pair in readable(one, settings).items()]
    found = [_shown(*pair) for pair in asked]
    if is_json:
        click.echo(json.dumps(found, indent=1))
    for one in () if is_json else found:
        _say_shown(one, is_one=len(found) == 1)
    if any(one["error"] for one in found):
        sys.exit(_FAILED)


def _rules(place: Place) -> Policy:
    from envd.spec import policy  # noqa: PLC0415

    return policy.of(place.settings().security)


def _edit(
    place: Place,
    asked: Sequence[str],
    wanted: Replacements,
    models: tuple[str, ...],
    *,
    dry_run: bool,
    is_json: bool,
) -> None:
    settings = place.settings()
    found = []
    for model in [model for one in models for model in local(one, asked, settings)]:
        found.append(_edited(model, wanted, dry_run=dry_run))
        if not is_json:
            _say(found[-1])
    if is_json:
        click.echo(json.dumps(found, indent=1))
    if any(one["error"] for one in found):
        sys.exit(_FAILED)


def _edited(model: str, wanted: Replacements, *, dry_run: bool) -> Document:
    from envd.errors import EnvdError  # noqa: PLC0415
    from envd.mend import editing  # noqa: PLC0415

    plan: Editing | None = None
    error = None
    try:
        plan = (editing.plan if dry_run else editing.edit)(Path(model), wanted)
    except EnvdError as failure:
        error = {"reason": failure.reason, "message": failure.message}
    changes = plan.changes if plan else ()
    return {
        "model": names.shown(model),
        "changed": bool(changes) and error is None and not dry_run,
        "files": [{"path": one.file, "diff": one.diff(Path(model))} for one in changes],
        "notes": [one.document() for one in (plan.notes if plan else ())],
        "error": error,
    }


def _say(found: Document) -> None:
    from envd import plain  # noqa: PLC0415
    from envd.cli.migrate import show_diff  # noqa: PLC0415

    model = plain.printable(found["model"])
    if found["error"]:
        message = plain.printable(found["error"]["message"])
        click.echo(f"envctl: cannot edit {model}: {message}", err=True)
        return
    for one in found["files"]:
        show_diff(one["diff"])
    if not found["files"]:
        click.echo(f"{model}: nothing to change", err=True)
    for note in found["notes"]:
        click.echo(f"note: {model}: {note['message']}", err=True)


def _shown(model: str, directory: str) -> Document:
    from envd.errors import EnvdError  # noqa: PLC0415
    from envd.mend import showing  # noqa: PLC0415

    try:
        found = showing.show(Path(directory))
    except EnvdError as failure:
        error = {"reason": failure.reason, "message": failure.message}
        return {"model": names.shown(model), "files": [], "disagreements": [], "error": error}
    return {
        "model": names.shown(model),
        "files": [
            {
                "path": one.file,
                "key": one.key or None,
                "lines": [
                    {"line": line.number, "text": line.text, "name": line.name or None}
                    for line in one.lines
                ],
            }
            for one in found.lists
        ],
        "disagreements": [
            {"name": one.name, "files": one.files, "first": one.first or None,
             "second": one.second or None, "message": one.message}
            for one in found.disagreements
        ],
        "error": None,
    }  # fmt: skip


def _say_shown(found: Document, *, is_one: bool) -> None:
    from envd import plain  # noqa: PLC0415
    from envd.model.texts import shown  # noqa: PLC0415

    model = plain.printable(found["model"])
    if found["error"]:
        click.echo(f"envctl: cannot show {model}: {found['error']['message']}", err=True)
        return
    if not is_one:
        click.echo(f"{model}:")
    for one in found["files"]:
        key = f" ({one['key']})" if one["key"] else ""
        click.echo(f"{plain.printable(one['path'])}{key}")
        for line in one["lines"]:
            click.echo(f"  {shown(line['text'])}")
    for one in found["disagreements"]:
        click.echo(f"note: {model}: {plain.printable(one['message'])}", err=True)
