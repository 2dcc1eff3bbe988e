"""`envctl verify`: whether environments are still what was published."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from envd.cli import several
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document, Engine

_FAILED = 1
_WIDTH = len("changed")


@click.command("verify")
@click.argument("environment_ids", metavar="[ID]...", nargs=-1)
@click.option("--repair", is_flag=True, help="Build anew what is not as it was published.")
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    environment_ids: tuple[str, ...],
    repair: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Compare environments, all if none is named, with the record of their publication.

    Every file that was changed, removed or added is named, and so is every other
    environment that shares a changed one. With --repair such an environment is built anew,
    and the download it was made of is fetched again. The status is 1 if something was
    found that was not repaired. What cannot be compared does not stop the others; in the
    JSON it has an `error`.

    \b
    Examples:
      envctl verify
      envctl verify a8461d26 --repair
      envctl verify --json | jq '.[] | select(.faults != [])'
    """
    found = []
    for one in _verified(place.engine(), environment_ids, repair=repair):
        found.append(one)
        if not is_json:
            _say(one)
    if is_json:
        click.echo(json.dumps(found, indent=1))
    elif not found:
        click.echo("no environments; `envctl build -m MODEL` builds one", err=True)
    status = several.status(found)
    if any(one["faults"] and not one["repaired"] for one in found if not one["error"]):
        click.echo("`envctl verify --repair` builds anew what has changed", err=True)
        status = status or _FAILED
    sys.exit(status)


def _verified(engine: Engine, named: tuple[str, ...], *, repair: bool) -> Iterator[Document]:
    def verify(one: str) -> Document:
        from envd.cli.progress import Progress  # noqa: PLC0415

        with Progress() as progress:
            return engine.verify(one, progress, repair=repair)

    listed = [] if named else engine.list()
    # Those that cannot be used are at fault as a whole, and the next use builds them anew.
    yield from (_absent(one) for one in listed if one["state"] != "ready")
    for one in named or [one["id"] for one in listed if one["state"] == "ready"]:
        found = several.attempt(one, verify)
        if listed and found["error"] and found["error"]["reason"] == "ENVIRONMENT_NOT_FOUND":
            # It was removed after it was listed, or was found to be damaged.
            again = [that for that in engine.list() if that["id"] == one and that["failure"]]
            yield from map(_absent, again)
        else:
            yield found


def _absent(one: Document) -> Document:
    fault = {"path": "", "kind": "missing", "detail": one["failure"]["message"]}
    return {
        "id": one["id"],
        "faults": [fault],
        "also_affected": [],
        "repaired": False,
        "error": None,
    }


def _say(found: Document) -> None:
    if found["error"]:
        several.say_error(found, "verify")
        return
    faults = found["faults"]
    count = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"
    if not faults:
        outcome = click.style("ok", fg="green")
    elif found["repaired"]:
        outcome = f"{click.style(count, fg='red')}, {click.style('built anew', fg='green')}"
    else:
        outcome = click.style(count, fg="red")
    click.echo(f"{found['id']}  {outcome}")
    for one in faults:
        detail = f": {one['detail']}" if one["detail"] else ""
        click.echo(f"  {one['kind']:<{_WIDTH}} {one['path']}{detail}")
    for other in found["also_affected"]:
        click.echo(f"  also in: {other}")
