"""`envctl build`: environments made ready before anybody asks for them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from envd.cli import names
from envd.cli.place import Place, as_json, where
from envd.cli.terms import Terms
from envd.cli.terms import terms as with_terms

if TYPE_CHECKING:
    from envd.cli.engine import Document, Engine, Order


_FAILED, _USAGE = 1, 2


@click.command("build")
@click.option("-m", "--model", "named", type=names.MODEL, multiple=True,
              help=names.MEANING)  # fmt: skip
@click.argument("models", type=names.MODEL, nargs=-1, metavar="[MODEL|FOLDER]...")
@with_terms
@click.option("--retry", is_flag=True, help="Try again what has failed a short time ago.")
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    named: tuple[str, ...],
    models: tuple[str, ...],
    terms: Terms,
    retry: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Build the environments of models, those that are not there yet.

    A FOLDER stands for every model in it. With one model the JSON is an object, with
    several an array, in their order; what fails does not stop the others. A failure is
    kept for a while and answered again, unless --retry tries anew.

    \b
    Examples:
      envctl build -m ./model
      envctl build ./models --json
      envctl build -m ./model --retry
    """
    from envd.cli.engine import Order  # noqa: PLC0415

    given = [*named, *models]
    asked = [model for one in given for model in names.models(one)]
    if not asked:
        message = f"there is no model in {', '.join(given)}" if given else "give at least one model"
        raise click.UsageError(message)
    is_one = [names.model(one) for one in given] == asked and len(asked) == 1
    engine = place.engine()
    found = []
    for model in asked:
        found.append(_built(engine, Order(model, **terms, retry=retry), is_one=is_one))
        if not is_json:
            _say(found[-1])
    if is_json:
        click.echo(json.dumps(found[0] if is_one else found, indent=1))
    if not is_one:
        _say_outcomes(found)
    if any(one["state"] != "ready" for one in found):
        sys.exit(_USAGE if any(_is_misused(one) for one in found) else _FAILED)


def _built(engine: Engine, order: Order, *, is_one: bool) -> Document:
    from envd.cli import documents  # noqa: PLC0415
    from envd.cli.progress import Progress  # noqa: PLC0415
    from envd.errors import EnvdError, InternalError  # noqa: PLC0415

    with Progress() as progress:
        try:
            built = engine.build(order, progress)
        except EnvdError as error:
            if error.reason == "DAEMON_UNREACHABLE":
                raise
            built = documents.failed(error)
        except Exception as error:
            # What is wrong with envd or this machine must not cost the others their turn.
            if is_one:
                raise
            built = documents.failed(InternalError(f"envd failed unexpectedly: {error!r}"))
    return {"model": names.shown(order.model)} | built


def _is_misused(document: Document) -> bool:
    failure = document["failure"]
    return failure is not None and failure["reason"] == "REQUEST_INVALID"


def _say(document: Document) -> None:
    from envd import plain  # noqa: PLC0415

    model = plain.printable(document["model"])
    for note in document["notes"]:
        click.echo(f"note: {note['message']}", err=True)
    if document["failure"]:
        click.echo(f"envctl: cannot build {model}: {document['failure']['message']}", err=True)
        if document["spec_key"]:
            click.echo(f"see `envctl logs {document['spec_key'][:8]}`", err=True)
        _say_when_again(document["failure"])
        return
    how = "was ready" if document["cached"] else f"was built in {document['seconds']:.1f} s"
    click.echo(f"{document['id']}  {how}  {model}")


def _say_when_again(failure: dict[str, Any]) -> None:
    from envd import plain  # noqa: PLC0415

    if failure["class"] != "local" and (wait_s := failure["retry_after_s"]):
        message = f"it is not tried again for {plain.age(wait_s)}, unless with --retry"
        click.echo(message, err=True)


def _say_outcomes(found: list[Document]) -> None:
    """Say how many models came out how: a line per class and reason, the most first."""
    counted = Counter(_outcome(one) for one in found)
    click.echo("1 model:" if len(found) == 1 else f"{len(found)} models:", err=True)
    for (outcome, reason), count in counted.most_common():
        click.echo(f"{count:6}  {outcome:<10} {reason}".rstrip(), err=True)


def _outcome(document: Document) -> tuple[str, str]:
    if failure := document["failure"]:
        return failure["class"], failure["reason"]
    return ("ready", "") if document["cached"] else ("built", "")
