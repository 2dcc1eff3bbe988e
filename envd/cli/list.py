"""`envctl list`: what is on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document

_UNITS = ("B", "kB", "MB", "GB", "TB")
_THOUSAND = 1000


@click.command("list")
@as_json
@where
@click.pass_obj
def command(place: Place, is_json: bool) -> None:  # noqa: FBT001
    """List the environments of this machine, the latest used first.

    SIZE counts every file, OWN those that no cache and no other environment shares.

    \b
    Examples:
      envctl list
      envctl list --json | jq -r '.[].id'
    """
    found = place.engine().list()
    if is_json:
        click.echo(json.dumps(found, indent=1))
    elif found:
        _table(found)
    else:
        click.echo("no environments; `envctl build -m MODEL` builds one", err=True)


def _table(found: list[Document]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("ID", "STATE", "MANAGER", "PYTHON"):
        table.add_column(title, no_wrap=True)
    for title in ("SIZE", "OWN"):
        table.add_column(title, no_wrap=True, justify="right")
    for title in ("LAST USED", "LEASES", "MODELS"):
        table.add_column(title, no_wrap=title != "MODELS")
    for one in found:
        table.add_row(
            one["id"][:12],
            one["state"],
            one["manager"],
            one["python"]["actual"],
            size(one["bytes"]),
            size(one["bytes_exclusive"]),
            one["last_used"][:19].replace("T", " "),
            str(len(one["leases"])),
            "\n".join(one["models"]),
        )
    console = Console()
    # Piped, a line must not be cut at a width that nobody sees.
    console.print(table, width=None if console.is_terminal else 10_000, soft_wrap=False)


def size(count: float) -> str:
    """Write a number of bytes for people."""
    for unit in _UNITS:
        if count < _THOUSAND or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _THOUSAND
    return ""
