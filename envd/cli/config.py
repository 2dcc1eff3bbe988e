"""`envctl config`: every setting, its value and its meaning."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import click

from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.settings.served import Served


@click.command("config")
@click.option("--example", "is_example", is_flag=True, help="Print a file to begin with.")
@as_json
@where
@click.pass_obj
def command(place: Place, is_json: bool, is_example: bool) -> None:  # noqa: FBT001
    """Show the settings: the variable that sets each, its value, and what it means.

    Settings come from a TOML file (`--config`, ENVD_CONFIG) and from variables, which
    win. In a variable, commas separate the items of a list. `*` marks what is not the
    default. A model gets a name, and settings of its own, by a table `[models.NAME]` in
    the file, or in short by `NAME = "URI"` under `[models]`. `--example` prints a file
    with every setting in a comment.

    \b
    Examples:
      envctl config
      ENVD_PYTHON__MATCH=exact envctl config --json
      envctl config --example > ~/.config/envd/config.toml
    """
    from envd import config  # noqa: PLC0415
    from envd.cli import example  # noqa: PLC0415
    from envd.settings import served, values  # noqa: PLC0415

    if is_example:
        click.echo(example.text(), nl=False)
        return
    settings = place.settings()
    rows = [
        (row, _shown(getattr(getattr(settings, row.section), row.name))) for row in config.fields()
    ]
    if is_json:
        document = {
            f"{row.section}.{row.name}": {"value": _plain(value), "variable": row.variable,
                                          "default": _plain(row.default), "meaning": row.meaning}
            for row, value in rows
        }  # fmt: skip
        keys = {
            row.name: {"default": _plain(row.default), "meaning": row.meaning}
            for row in served.ROWS.values()
        }
        models = {one.name: _set(one) for one in settings.served}
        whole = {"root": str(settings.root), "settings": document, "models": models,
                 "model_settings": keys}  # fmt: skip
        click.echo(json.dumps(whole, indent=1))
        return
    click.echo(f"root = {settings.root}")
    for row, value in rows:
        mark = " " if value == row.default else "*"
        click.echo(f"{mark} {row.variable}={values.show(example.in_units(row, value))}")
        click.echo(f"      {row.meaning}")
    for row in served.ROWS.values():
        for one in settings.served:
            if row.name in (given := _set(one)):
                set_to = example.toml(example.in_units(row, given[row.name]))
                click.echo(f"* [models.{one.name}] {row.name} = {set_to}")
        click.echo(f"  [models.NAME] {row.name}\n      {row.meaning}")


def _set(one: Served) -> dict[str, object]:
    """Return what the table of a served model sets; of what is secret, only that it is set."""
    from envd.settings import served  # noqa: PLC0415

    values = {name: _plain(_shown(getattr(one, name))) for name, row in served.ROWS.items()
              if name == "uri" or getattr(one, name) != row.default}  # fmt: skip
    changed: dict[str, object] = {}
    if one.env:
        changed["env"] = {name: str(value) for name, value in one.env}
    if one.model_config:
        changed["model_config"] = json.loads(one.model_config)
    return values | changed


def _shown(value: object) -> object:
    """Return the value of a setting, without what is secret in it."""
    from envd.secrets import hide  # noqa: PLC0415

    if isinstance(value, tuple):
        return tuple(map(_shown, value))
    return hide(value) if isinstance(value, str) else value


def _plain(value: object) -> object:
    """Return *value* as JSON has it, which knows no infinity."""
    from envd.settings import values  # noqa: PLC0415

    return values.show(value) if value == math.inf else value
