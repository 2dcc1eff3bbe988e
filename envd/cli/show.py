"""`envctl show`: everything about one environment."""

from __future__ import annotations

import json

import click

from envd.cli.list import size
from envd.cli.place import Place, as_json, where


@click.command("show")
@click.argument("environment_id", metavar="ID")
@as_json
@where
@click.pass_obj
def command(place: Place, environment_id: str, is_json: bool) -> None:  # noqa: FBT001
    """Show one environment: what it is made of, of what, and who uses it.

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
    python = found["python"]
    asked = f" (asked for: {python['requested']})" if python["requested"] else ""
    rows = [
        ("id", found["id"]),
        ("spec key", found["spec_key"]),
        ("state", found["state"]),
        ("manager", found["manager"]),
        ("python", f"{python['actual']}{asked}"),
        ("as of", found["as_of"] or "the day it was locked"),
        ("prefix", found["prefix"]),
        ("size", f"{size(found['bytes'])}, {size(found['bytes_exclusive'])} of it its own"),
        ("created", f"{found['created']}, in {found['seconds']:.1f} s"),
        ("last used", found["last_used"]),
        (
            "held by",
            ", ".join(f"{one['kind']} {one['pid']}" for one in found["leases"]) or "nobody",
        ),
        ("log", found["log"]),
    ]
    rows += [("model", one) for one in found["models"]]
    rows += [("note", one["message"]) for one in found["notes"]]
    rows += [("package", f"{one['name']} {one['version']}") for one in found["packages"]]
    for title, value in rows:
        click.echo(f"{title:<10} {value}")
