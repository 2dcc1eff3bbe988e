"""`envctl models`: which models have a name or are loaded, and what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from envd import plain
from envd.cli import names
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _model(command: _Command) -> _Command:
    argument = click.argument("model", type=names.MODEL, metavar="MODEL", required=False)
    option = click.option("-m", "--model", "named", type=names.MODEL, help=names.MEANING)
    return argument(option(command))


def _one(model: str | None, named: str | None) -> str:
    if (model is None) == (named is None):
        message = "give one model: its name, its directory or its URI"
        raise click.UsageError(message)
    return names.model(model or named or "")


@click.group("models")
@where
def command() -> None:
    """List, load, unload and show models.

    A model has a name by a table `[models.NAME]` of the settings, or because it was loaded
    with one. What is loaded, is so in the daemon.

    \b
    Examples:
      envctl models list
      envctl models show ./model
      envctl models load ./model --name iris
    """


@command.command("list")
@as_json
@where
@click.pass_obj
def _list(place: Place, is_json: bool) -> None:  # noqa: FBT001
    """List the models that have a name, were loaded, or have a worker.

    READY ones were loaded; where one has no worker any more, a prediction starts one.

    \b
    Examples:
      envctl models list
      envctl models list --json | jq -r '.[] | select(.ready).name'
    """
    found = list(place.engine().list_models())
    if is_json:
        click.echo(json.dumps(found, indent=1))
    elif found:
        _show_all(found)
    else:
        message = "no models; `[models]` in the settings or `envctl models load --name` names one"
        click.echo(message, err=True)


@command.command("load")
@_model
@click.option("--name", default="", help="Serve it by this name as long as the daemon runs.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is loaded.", show_default=True)
@as_json
@where
@click.pass_obj
def _load(
    place: Place,
    model: str | None,
    named: str | None,
    name: str,
    wait: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Build the environment of a model and load it, so that it answers at once.

    A name that another model was loaded by is this one's as soon as it is loaded. When
    nobody asks for it, its worker is stopped after a while (`workers.idle_timeout`), unless
    the settings say `preload` of it.

    \b
    Examples:
      envctl models load iris
      envctl models load ./model --name iris
      envctl models load models:/iris@champion --no-wait
    """
    _say(place.engine().load_model(_one(model, named), name, wait=wait), is_json=is_json)


@command.command("unload")
@_model
@as_json
@where
@click.pass_obj
def _unload(place: Place, model: str | None, named: str | None, is_json: bool) -> None:  # noqa: FBT001
    """Stop the workers of a model, each when it has answered what it was asked.

    A name that it was loaded by is gone. A prediction loads it again. One that has no name
    is called by its path or its URI, as `envctl models list` shows it; if loading it had
    failed, that is forgotten.

    \b
    Examples:
      envctl models unload iris
      envctl models unload /srv/models/iris
    """
    _say(place.engine().unload_model(_one(model, named)), is_json=is_json)


@command.command("show")
@_model
@as_json
@where
@click.pass_obj
def _show(place: Place, model: str | None, named: str | None, is_json: bool) -> None:  # noqa: FBT001
    """Show what a model says of itself: its signature, its example, what it reads and holds.

    \b
    Examples:
      envctl models show iris
      envctl models show ./model --json | jq -r .input_example | envctl predict -m ./model
    """
    found = place.engine().show_model(_one(model, named))
    if is_json:
        click.echo(json.dumps(found, indent=1))
        return
    for title, value in _rows(found):
        if value:
            click.echo(f"{title:<14} {plain.printable(value)}")
    if found["input_example"]:
        click.echo(f"input example  {found['input_example_path']}:")
        for line in found["input_example"].splitlines():
            click.echo(plain.printable(line))


def _rows(found: Document) -> list[tuple[str, str]]:
    rows = [
        ("name", found["name"]),
        ("uri", found["uri"]),
        ("path", found["path"]),
        ("digest", found["digest"]),
        ("environment", found["environment_id"]),
        ("state", found["state"]),
        ("why", (found["failure"] or {}).get("message")),
        ("workers", str(found["workers"] or "")),
        ("logged", found["utc_time_created"]),
        ("mlflow", found["mlflow_version"]),
        ("python", found["python_version"]),
        ("code", found["code_path"]),
    ]
    rows += [("variable", one) for one in found["env_vars"]]
    rows += [("batch", "yes: its answer to a row depends on that row alone")] * found["batch"]
    rows += [("flavor", one) for one in found["flavors"]]
    signature = found["signature"] if isinstance(found["signature"], dict) else {}
    for part in ("inputs", "outputs", "params"):
        columns = signature.get(part)
        if isinstance(columns, list):
            rows += [(part.removesuffix("s"), _column(one)) for one in columns]
    return rows


def _column(one: Any) -> str:
    """Write a column of a signature, `name: type`, or whatever it is."""
    if not isinstance(one, dict):
        return json.dumps(one)
    name, kind = one.get("name"), one.get("type")
    if kind == "tensor" and isinstance(one.get("tensor-spec"), dict):
        spec = one["tensor-spec"]
        kind = f"{spec.get('dtype')} {spec.get('shape')}"
    optional = "" if one.get("required", True) else ", optional"
    default = f" = {json.dumps(one['default'])}" if "default" in one else ""
    return f"{f'{name}: ' if name else ''}{kind}{default}{optional}"


def _say(found: Document, *, is_json: bool) -> None:
    if is_json:
        click.echo(json.dumps(found, indent=1))
        return
    for note in found["notes"]:
        click.echo(f"note: {note['message']}", err=True)
    click.echo(f"{plain.printable(found['name'] or found['uri'])}  {found['state']}")


def _show_all(found: list[Document]) -> None:
    from envd.cli.table import Table  # noqa: PLC0415

    table = Table()
    table.columns("NAME", "STATE")
    table.numbers("WORKERS")
    table.columns("ENVIRONMENT")
    table.text("MODEL")
    for one in found:
        failure = one["failure"]
        table.row(
            plain.printable(one["name"] or ""),
            f"{one['state']}: {failure['reason']}" if failure else one["state"],
            str(one["workers"]),
            plain.short_id(one["environment_id"] or ""),
            plain.printable(one["uri"]),
        )
    table.show()
