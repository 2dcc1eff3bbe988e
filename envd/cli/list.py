"""`envctl list`: what is on this machine."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from envd import plain
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document

_YES_NO = {"yes": True, "no": False}
# What is listed with all only, too.
_STATES = ("ready", "absent", "building", "deleting", "failed")
_CHOICES = {
    "state": _STATES, "manager": ("virtualenv", "conda"),
    "pinned": (*_YES_NO,), "leased": (*_YES_NO,),
}  # fmt: skip
# What each order goes by, and whether the largest comes first.
_ORDERS: dict[str, tuple[Callable[[Document], Any], bool]] = {
    "used": (lambda one: one["last_used"] or "", True),
    "created": (lambda one: one["created"] or "", True),
    "size": (lambda one: one["bytes"], True),
    "own": (lambda one: one["bytes_exclusive"], True),
    "uses": (lambda one: one["uses"], True),
    "id": (lambda one: (one["id"] is None, one["id"] or one["spec_key"]), False),
}
_FILTERS: dict[str, Callable[[Document, str], bool]] = {
    "state": lambda one, text: one["state"] == text,
    "manager": lambda one, text: one["manager"] == text,
    "python": lambda one, text: (one["python"]["actual"] or "").startswith(text),
    "model": lambda one, text: any(text in model for model in one["models"]),
    "pinned": lambda one, text: one["pinned"] == _YES_NO[text],
    "leased": lambda one, text: bool(one["leases"]) == _YES_NO[text],
}


def _filters(
    ctx: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> list[tuple[str, str]]:
    found = []
    for text in texts:
        key, equals, wanted = text.partition("=")
        if not equals or key not in _FILTERS:
            keys = ", ".join(f"`{one}=`" for one in _FILTERS)
            message = f"`{text}` is no filter; give one of {keys} and what it is to be"
            raise click.BadParameter(message, ctx, parameter)
        choices = _CHOICES.get(key, (wanted,))
        if wanted not in choices:
            *some, last = (f"`{one}`" for one in choices)
            message = f"`{key}=` takes {', '.join(some)} or {last}, not `{wanted}`"
            raise click.BadParameter(message, ctx, parameter)
        found.append((key, wanted))
    return found


@click.command("list")
@click.option(
    "--all", "show_all", is_flag=True, help="What is being built, is going or failed, too."
)
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(_ORDERS)),
    default="used",
    show_default=True,
    help="The latest, the largest or the most first; ids ascend.",
)
@click.option(
    "--filter",
    "filters",
    metavar="KEY=TEXT",
    multiple=True,
    callback=_filters,
    help="Only those that fit: state, manager, python (its beginning), model (a part "
    "of its path), pinned or leased (yes or no). Given several times, all must fit.",
)
@as_json
@where
@click.pass_obj  # fmt: skip
def command(
    place: Place,
    show_all: bool,  # noqa: FBT001
    order: str,
    filters: list[tuple[str, str]],
    is_json: bool,  # noqa: FBT001
) -> None:
    """List the environments of this machine, the latest used first.

    SIZE counts every file, OWN those that no cache and no other environment shares. USES
    counts predictions, LEASES the processes that use it now. What failed says when it is
    tried again.

    \b
    Examples:
      envctl list
      envctl list --all --sort own
      envctl list --filter python=3.11 --filter pinned=no
      envctl list --json | jq -r '.[].id'
    """
    show_all = show_all or any(key == "state" for key, _ in filters)
    found = place.engine().list(show_all=show_all)
    fitting = [one for one in found if all(_FILTERS[key](one, text) for key, text in filters)]
    by, is_descending = _ORDERS[order]
    fitting.sort(key=by, reverse=is_descending)
    if is_json:
        click.echo(json.dumps(fitting, indent=1))
    elif fitting:
        _show(fitting)
    elif found:
        click.echo("no environment fits", err=True)
    else:
        click.echo("no environments; `envctl build -m MODEL` builds one", err=True)


def _show(found: list[Document]) -> None:
    from envd.cli.table import Table  # noqa: PLC0415

    table = Table()
    table.columns("ID", "STATE", "MANAGER", "PYTHON")
    table.numbers("SIZE", "OWN", "CREATED", "USED", "USES", "LEASES")
    table.columns("PIN")
    table.text("MODELS")
    now = dt.datetime.now(dt.UTC)
    for one in found:
        table.row(
            plain.short_id(one["id"] or one["spec_key"]),
            _state(one),
            one["manager"] or "",
            one["python"]["actual"] or "",
            *(_of(one, plain.size(one[key])) for key in ("bytes", "bytes_exclusive")),
            *(_ago(one[key], now) for key in ("created", "last_used")),
            _of(one, str(one["uses"])),
            _of(one, str(len(one["leases"]))),
            "pinned" if one["pinned"] else "",
            "\n".join(map(plain.printable, one["models"])),
        )
    table.show()


def _state(one: Document) -> str:
    failure = one["failure"]
    if not failure:
        return str(one["state"])
    wait_s = failure["retry_after_s"] if one["state"] == "failed" else 0
    again = f", again in {plain.age(wait_s)}" if wait_s else ""
    return f"{one['state']}: {failure['reason']}{again}"


def _of(one: Document, figure: str) -> str:
    # What was never published has no figures.
    return figure if one["created"] else ""


def _ago(moment: str | None, now: dt.datetime) -> str:
    if moment is None:
        return ""
    return f"{plain.age((now - dt.datetime.fromisoformat(moment)).total_seconds())} ago"
