"""`envctl gc`: the cache kept small."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from envd import plain
from envd.cli.place import Place, as_json, where

if TYPE_CHECKING:
    from envd.cli.engine import Document


def _limit(kind: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return what reads the value of an option, spelled as the setting of that kind."""

    def read(ctx: click.Context, parameter: click.Parameter, text: str | None) -> object:
        from envd.settings import values  # noqa: PLC0415

        if text is None:
            return None
        try:
            return values.parse(getattr(values, kind), text)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, parameter) from error

    return read


@click.command("gc")
@click.option(
    "--max-age",
    metavar="AGE",
    callback=_limit("Seconds"),
    help="Remove what was built so long ago, as `30d` or `12h`.",
)
@click.option(
    "--unused-for",
    metavar="AGE",
    callback=_limit("Seconds"),
    help="Remove what no prediction has used for so long.",
)
@click.option(
    "--max-size",
    metavar="SIZE",
    callback=_limit("Bytes"),
    help="Let environments and downloads take so much together, as `20GB`.",
)
@click.option(
    "--min-free",
    metavar="SIZE|SHARE",
    callback=_limit("Share"),
    help="Leave so much of the disk free, as `50GB` or `10%`.",
)
@click.option(
    "--keep",
    metavar="N",
    callback=_limit("CountOrZero"),
    help="Keep the N latest used, whatever the limits say.",
)
@click.option("--dry-run", is_flag=True, help="Remove nothing; say what would be removed.")
@as_json
@where
@click.pass_obj  # fmt: skip
def command(
    place: Place,
    max_age: float | None,
    unused_for: float | None,
    max_size: int | None,
    min_free: str | None,
    keep: int | None,
    dry_run: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Remove the environments and downloads that are not worth their place.

    What is pinned, in use or being built stays. Of the others go those that are too old,
    then the longest unused ones until there is room enough; what a model still asks for
    is built again at its next use. What is not given is as the settings say (`envctl
    config`), and what was just built is spared; a limit that is given holds for that, too.

    OWN is what removing one frees, SHARED what others or the downloads have as well.

    \b
    Examples:
      envctl gc --dry-run
      envctl gc --unused-for 30d
      envctl gc --max-size 20GB --min-free 10% --keep 5
      envctl gc --max-age 0s --dry-run --json | jq .freed_bytes
    """
    from envd.cli.engine import Purge  # noqa: PLC0415

    asked = Purge(max_age, unused_for, max_size, min_free, keep, dry_run)
    found = place.engine().purge(asked)
    if is_json:
        click.echo(json.dumps(found, indent=1))
    else:
        _show(found)


def _show(found: Document) -> None:
    from envd.cli.table import Table  # noqa: PLC0415

    environments = found["environments"]
    if environments:
        table = Table()
        table.columns("ID", "VERDICT")
        table.numbers("OWN", "SHARED")
        table.text("WHY")
        for one in environments:
            sizes = (plain.size(one[key]) for key in ("bytes_exclusive", "bytes_shared"))
            table.row(plain.short_id(one["id"]), one["verdict"], *sizes, one["reason"])
        table.show()
    click.echo(_downloads(found))
    gone = sum(one["verdict"] == "remove" for one in environments)
    would = "would be " if found["dry_run"] else ""
    count = f"{len(environments)} environment{'' if len(environments) == 1 else 's'}"
    freed = plain.size(found["freed_bytes"])
    click.echo(f"{gone} of {count} {would}removed, {freed} {would}freed")


def _downloads(found: Document) -> str:
    downloads = found["downloads"]
    text = f"downloads: {plain.size(downloads['bytes'])}"
    if downloads["in_use"]:
        return f"{text}, left for the next time: an installer is using them"
    if not downloads["freed_bytes"]:
        return text
    would = "would go" if found["dry_run"] else "gone"
    return f"{text}, {plain.size(downloads['freed_bytes'])} of it unused and {would}"
