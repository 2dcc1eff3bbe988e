"""Environments that a verb takes one after another: what fails does not stop the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from envd.cli.engine import Document

_FAILED, _USAGE = 1, 2


def each(
    env_ids: Iterable[str],
    verb: str,
    act: Callable[[str], Document],
    say: Callable[[Document], str],
    *,
    is_json: bool,
) -> NoReturn:
    """Have *act* *verb* each of *env_ids*, tell what came of it, by *say* or as JSON, and exit."""
    found = []
    for one in env_ids:
        document = attempt(one, act)
        found.append(document)
        if is_json:
            continue
        if document["error"]:
            say_error(document, verb)
        else:
            click.echo(say(document))
    if is_json:
        click.echo(json.dumps(found, indent=1))
    sys.exit(status(found))


def attempt(env_id: str, act: Callable[[str], Document]) -> Document:
    """Return what *act* says of *env_id*, with its `error`: the reason and the message, or None.

    Raises:
        UnreachableError: the daemon has gone, and with it what the others would be asked.
    """
    from envd.errors import EnvdError, InternalError  # noqa: PLC0415

    try:
        return act(env_id) | {"error": None}
    except EnvdError as error:
        if error.reason == "DAEMON_UNREACHABLE":
            raise
        failure = error
    except Exception as error:  # noqa: BLE001 - it must not cost the others their turn
        failure = InternalError(f"envd failed unexpectedly: {error!r}")
    told = {"reason": failure.reason, "message": failure.message}
    return {"id": env_id, "error": told | _log_of(failure.metadata)}


def _log_of(metadata: dict[str, str]) -> dict[str, str]:
    return {"log": metadata["log"]} if "log" in metadata else {}


def say_error(document: Document, verb: str) -> None:
    """Say why `envctl` cannot *verb* what *document* is of."""
    error = document["error"]
    click.echo(f"envctl: cannot {verb} {document['id']}: {error['message']}", err=True)
    if "log" in error:
        click.echo(f"the log is in {error['log']}", err=True)


def status(found: list[Document]) -> int:
    """Return the status that the errors of *found* end with, 0 where there is none."""
    reasons = {one["error"]["reason"] for one in found if one["error"]}
    if "REQUEST_INVALID" in reasons:
        return _USAGE
    return _FAILED if reasons else 0
