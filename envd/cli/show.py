"""`envctl show`: everything about one environment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from envd import plain
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document


@click.command("show")
@click.argument("environment_id", metavar="ID")
@as_json
@where
@click.pass_obj
def command(place: Place, environment_id: str, is_json: bool) -> None:  # noqa: FBT001
    """Show one environment, build or failure: what it is made of, and who uses it.

    ID is an environment's id, a spec key, or the first four digits or more of either.

    \b
    Examples:
      envctl show a8461d26
      envctl show a846 --json | jq .packages
    """
    found = place.engine().show(environment_id)
    if is_json:
        click.echo(json.dumps(found, indent=1))
        return
    rows = [*_about(found), *_failed(found), *_figures(found)]
    rows += [("built", _rules(found)), ("log", found["log"])]
    rows += [("model", one) for one in found["models"]]
    rows += [("note", one["message"]) for one in found["notes"]]
    rows += [("package", f"{one['name']} {one['version']}") for one in found["packages"]]
    for title, value in rows:
        if value:
            click.echo(f"{title:<10} {plain.printable(value)}")


def _about(found: Document) -> list[tuple[str, str]]:
    python = found["python"]
    asked = f" (asked for: {python['requested']})" if python["requested"] else ""
    state = found["state"]
    if state == "building":
        state = f"building for {plain.age(found['seconds'])}"
    return [
        ("id", found["id"]),
        ("spec key", found["spec_key"]),
        ("state", state),
        ("manager", found["manager"]),
        ("python", f"{python['actual']}{asked}" if python["actual"] else ""),
        ("as of", found["as_of"] or ("the day it was locked" if found["created"] else "")),
        ("prefix", found["prefix"]),
    ]


def _rules(found: Document) -> str:
    return f"as {found['profile']}, in sandbox {found['sandbox']}" if found["profile"] else ""


def _failed(found: Document) -> list[tuple[str, str]]:
    failure = found["failure"]
    if not failure:
        return []
    wait_s = failure["retry_after_s"] if found["state"] == "failed" else 0
    again = f"in {plain.age(wait_s)}, or at once with `envctl build --retry`" if wait_s else ""
    return [
        ("why", f"{failure['reason']} ({failure['class']})"),
        ("", failure["message"]),
        ("again", again),
    ]


def _figures(found: Document) -> list[tuple[str, str]]:
    """Return what only an environment has that was published."""
    if not found["created"]:
        return []
    from envd.store.leases import Holder  # noqa: PLC0415

    own = plain.size(found["bytes_exclusive"])
    holders = ", ".join(str(Holder(**one)) for one in found["leases"])
    return [
        ("size", f"{plain.size(found['bytes'])}, {own} of it its own"),
        ("created", f"{found['created']}, in {found['seconds']:.1f} s"),
        ("last used", found["last_used"]),
        ("uses", str(found["uses"])),
        ("held by", holders or "nobody"),
        ("pinned", "yes, gc leaves it" if found["pinned"] else "no"),
    ]
