"""`envctl list`: what is on this machine."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import click

from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document

_UNITS = ("B", "kB", "MB", "GB", "TB")
_THOUSAND = 1000
_AGES = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_SHORT = 12
_WIDE = 1000


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
    found.sort(key=lambda one: str(one["last_used"]), reverse=True)
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
    for title in ("SIZE", "OWN", "USED", "LEASES"):
        table.add_column(title, no_wrap=True, justify="right")
    table.add_column("MODELS", overflow="fold")
    now = dt.datetime.now(dt.UTC)
    for one in found:
        table.add_row(
            one["id"][:_SHORT],
            one["state"],
            one["manager"],
            one["python"]["actual"],
            size(one["bytes"]),
            size(one["bytes_exclusive"]),
            age((now - dt.datetime.fromisoformat(one["last_used"])).total_seconds()),
            str(len(one["leases"])),
            "\n".join(one["models"]),
        )
    console = Console()
    if not console.is_terminal:
        # Piped, a line must not be cut at a width that nobody sees.
        console = Console(width=_WIDE)
    console.print(table)


def age(seconds: float) -> str:
    """Write how long ago something was, for people."""
    for unit, length in _AGES:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"


def size(count: float) -> str:
    """Write a number of bytes for people."""
    for unit in _UNITS:
        if count < _THOUSAND or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _THOUSAND
    return ""
