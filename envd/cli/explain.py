"""`envctl explain`: why a model has the environment it has, or not that of another one."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from envd.cli import names
from envd.cli.place import Place, as_json, where
from envd.cli.terms import Terms
from envd.cli.terms import terms as with_terms

if TYPE_CHECKING:
    from envd.cli.engine import Document, Engine

_ID = re.compile(r"[0-9a-f]{4,64}")
_MOST = 2
_SWITCHES = (
    ("no_index", "no index", "only the links are looked in"),
    ("best_match", "best match", "every index is asked for every package"),
    ("prereleases", "prereleases", "are taken"),
    ("closed", "closed", "the requirements are a whole lock"),
)
_NAMES = (("only_binary", "wheels only"), ("no_binary", "no wheels"))


@click.command("explain")
@click.option("-m", "--model", "named", multiple=True, help="A model directory or URI.")
@click.argument("models", nargs=-1, metavar="[MODEL] [MODEL|ID]")
@with_terms
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    named: tuple[str, ...],
    models: tuple[str, ...],
    terms: Terms,
    is_json: bool,  # noqa: FBT001
) -> None:
    """Explain the keys of a model: its canonical spec, and every change envd made.

    With two models, or a model and the id of an environment, say what makes their keys
    differ. An override is the first one's. Where a served model is called as the id of
    an environment begins, it is the model that is meant: give more of the id.

    \b
    Examples:
      envctl explain -m ./model
      envctl explain ./model ./other
      envctl explain ./model a8461d26 --json
    """
    from envd.spec.differences import Difference, between  # noqa: PLC0415

    asked = (*named, *models)
    if not 1 <= len(asked) <= _MOST:
        message = "give one model, or two, or a model and the id of an environment"
        raise click.UsageError(message)
    engine = place.engine()
    of_other = Terms(override=[], env_manager=terms["env_manager"])
    found = [
        _explained(engine, one, of_other if number else terms) for number, one in enumerate(asked)
    ]
    differences = between(found[0]["spec"], found[-1]["spec"])
    ids = [one["env_id"] for one in found]
    if not differences and ids[0] != ids[-1] and all(ids):
        # Where a month has no answer, each day has its own.
        differences = [Difference("lock of its day", ids[0], ids[-1])]
    if is_json:
        document = found[0] | {"differences": [one.document() for one in differences]}
        others = {"other": found[1]} if len(found) == _MOST else {}
        click.echo(json.dumps(document | others, indent=1))
    elif len(found) == 1:
        _say(found[0])
    else:
        _compare(found, [one.message for one in differences])


def _explained(engine: Engine, name: str, terms: Terms) -> Document:
    from envd.cli.engine import Order  # noqa: PLC0415
    from envd.errors import ModelNotFoundError  # noqa: PLC0415

    model = names.model(name)
    try:
        return engine.explain(Order(model, **terms))
    except ModelNotFoundError as error:
        # Of a served one that is missing, the path is said.
        is_served = error.metadata.get("model") != name
        if is_served or not _ID.fullmatch(name):
            raise
    return _explained_environment(engine, name, terms)


def _explained_environment(engine: Engine, name: str, terms: Terms) -> Document:
    from envd.errors import EnvironmentNotFoundError  # noqa: PLC0415

    if terms["override"]:
        message = f"an override is for a model, and `{name}` is an environment"
        raise click.UsageError(message)
    shown = engine.show(name)
    if shown["spec"] is None:
        message = f"the spec of the environment {shown['id']} is not kept any more"
        raise EnvironmentNotFoundError(message, id=shown["id"])
    return {"spec_key": shown["spec_key"], "env_id": shown["id"],
            "spec": shown["spec"], "notes": shown["notes"]}  # fmt: skip


def _say(found: Document) -> None:
    from envd.spec.urls import PYPI  # noqa: PLC0415

    spec = found["spec"]
    python = spec["python"]
    rows: list[tuple[str, Any]] = [
        ("spec key", found["spec_key"]),
        ("env id", found["env_id"] or "not locked yet: `envctl lock` or `envctl build`"),
        ("manager", spec["manager"]),
        ("python", f"{python['version'] or 'any'} ({python['abi']}, {python['libc']})"),
        ("as of", spec["as_of"] or "today"),
        ("index", ", ".join(spec["indexes"]["urls"]) or PYPI),
    ]
    rows += [("channel", one) for one in spec.get("channels", ())]
    rows += [("package", one) for one in spec.get("packages", ())]
    rows += [("variable", name) for name, _ in spec.get("variables", ())]
    rows += [("links", one) for one in spec["indexes"]["find_links"]]
    rows += [(title, meaning) for key, title, meaning in _SWITCHES
             if spec.get(key) or spec["indexes"].get(key)]  # fmt: skip
    rows += [(title, ", ".join(spec[key])) for key, title in _NAMES if spec[key]]
    rows += [("build", _text(one)) for one in spec["build"]]
    rows += [("build limit", one) for one in spec["build_constraints"]]
    rows += [("asks for", _text(one)) for one in spec["requirements"]]
    rows += [("constraint", _text(one)) for one in spec["constraints"]]
    rows += [("bound", one) for one in spec.get("bounds", ())]
    rows += [("note", one["message"]) for one in found["notes"]]
    for title, value in rows:
        click.echo(f"{title:<11} {value}")


def _text(one: Document) -> str:
    source = f" @ {one['source']}" if one["source"] else ""
    count = len(one["hashes"])
    hashes = f" ({count} hash{'es' if count > 1 else ''})" if count else ""
    return f"{one['text'] if one['name'] else ''}{source}".strip(" @") + hashes


def _compare(found: list[Document], messages: list[str]) -> None:
    for title, one in zip(("first", "second"), found, strict=True):
        click.echo(f"{title:<7} spec {one['spec_key'][:12]}  env {one['env_id'] or 'not locked'}")
    for message in messages:
        click.echo(f"- {message}")
    ids = {one["env_id"] for one in found}
    if not messages:
        click.echo("their specs are the same, and so is their environment")
    elif len(ids) == 1 and None not in ids:
        click.echo("their specs differ and resolve to the same lock: they share one environment")
