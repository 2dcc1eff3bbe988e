"""`envctl requirements infer`: what a model needs, found where it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envd.cli import names
from envd.cli.editable import local
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.infer import Inferred
    from envd.infer.observing import Given, Observer
    from envd.model import Model


@click.command("infer")
@click.option("-m", "--model", "name", type=names.MODEL, required=True, help="A model directory.")
@click.option("-i", "--input", "source", type=click.Path(), metavar="FILE",
              help="What to ask it; else its own example. `-` is standard input.")  # fmt: skip
@click.option("-t", "--type", "kind", help="The input's form: json or csv.", default=None,
              type=click.Choice(["json", "csv"]))  # fmt: skip
@click.option("--python", help="The Python it was made with; else the shell's.")
@click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds for a run.")
@click.option("--write", is_flag=True, help="Write the lines into the model, for all it has.")
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    name: str,
    source: str | None,
    kind: str | None,
    python: str | None,
    timeout: float,
    write: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Find out what a model needs, with the Python it was made with.

    That is the one of --python, else of the active virtualenv, else the one on PATH. The
    model is loaded and asked there, and watched: what itself imports is pinned to the version
    that is installed; what libraries import is left to what they require, and what nothing
    requires is hidden, to see whether the answer stays the same. Nothing is installed.

    The lines of a requirement file go to standard output.

    \b
    Examples:
      envctl requirements infer -m ./model
      envctl requirements infer -m ./model -i input.json --python ./venv/bin/python
      envctl requirements infer -m ./model --write
      envctl requirements infer -m ./model --json | jq '.lines[] | {text, why}'
    """
    from envd.infer.observing import Observer, python_of  # noqa: PLC0415

    model = _model(place, name)
    observer = Observer(model, _given(model, source, kind), python_of(python), timeout_s=timeout)
    found = _inferred(observer)
    if is_json:
        click.echo(json.dumps(found.document(), indent=1))
    else:
        _say(found)
    if write:
        _write(place, model, found)


def _inferred(observer: Observer) -> Inferred:
    from envd import infer  # noqa: PLC0415
    from envd.errors import ImportFailedError  # noqa: PLC0415

    try:
        return infer.infer(observer, lambda step: click.echo(step, err=True))
    except ImportFailedError as error:
        message = (
            f"{error.message}: `{observer.python}` does not have what the model was made with; "
            "give the Python that has by --python"
        )
        raise ImportFailedError(message, **error.metadata) from error


def _model(place: Place, name: str) -> Model:
    from envd import model  # noqa: PLC0415

    found = local(name, ("infer",), place.settings())
    if len(found) > 1:
        message = f"`{name}` is a folder of models; give one of them"
        raise click.UsageError(message)
    return model.read(Path(found[0]))


def _given(model: Model, source: str | None, kind: str | None) -> Given | None:
    from envd.cli.predict import read  # noqa: PLC0415
    from envd.infer.observing import JSON, Given, given_of  # noqa: PLC0415

    if source is None:
        return given_of(model)
    content = read(source)
    is_csv = kind == "csv" or (kind is None and source.endswith(".csv"))
    return Given(content, "text/csv" if is_csv else JSON)


def _say(found: Inferred) -> None:
    for line in found.requirements:
        click.echo(line)
    for note in found.notes:
        click.echo(f"note: {note.message}", err=True)
    for module, file in found.modules:
        click.echo(f"note: `{module}` ({file}) is code that is not in the model", err=True)
    if found.without:
        click.echo(f"note: the answer is the same without {', '.join(found.without)}", err=True)


def _write(place: Place, model: Model, found: Inferred) -> None:
    """Let *model* ask for what was *found*, and of the rest for nothing but an mlflow."""
    from envd.errors import RequestInvalidError  # noqa: PLC0415
    from envd.mend import editing, showing  # noqa: PLC0415
    from envd.spec import policy  # noqa: PLC0415
    from envd.spec.dependencies import MLFLOWS  # noqa: PLC0415

    if not found.is_asked:
        message = (
            "nothing is written: what the model imports when it predicts was not seen; give -i"
        )
        raise RequestInvalidError(message, model=model.path)
    lines = [one for lists in showing.show(model.path).lists for one in lists.lines]
    # MLflow's own servers need it in the environment.
    others = {one.name for one in lines if one.name} - {*MLFLOWS}
    wanted = editing.put([one.text for one in found.lines], policy.of(place.settings().security))
    plan = editing.edit(model.path, editing.Replacements({**dict.fromkeys(others), **wanted.texts}))
    for change in plan.changes:
        click.echo("\n".join(("", change.diff(model.path))), err=True)
    for note in plan.notes:
        click.echo(f"note: {note.message}", err=True)
    for option in found.options:
        click.echo(f"note: `{option}` is to be added to requirements.txt by hand", err=True)
