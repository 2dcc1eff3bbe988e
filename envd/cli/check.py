"""`envctl check`: whether a model does what it was logged for; with `--fix`, what it lacks."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from envd.cli import names
from envd.cli.place import Place, as_json, where
from envd.cli.terms import Terms
from envd.cli.terms import terms as with_terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envd.cli.engine import Document, Engine
    from envd.cli.trial import Trial
    from envd.errors import EnvdError
    from envd.mend.failures import Diagnosis
    from envd.mend.fixing import Fixed
    from envd.mend.report import Report
    from envd.mend.subject import Subject

_STATUS = {"ok": 0, "trouble": 1, "unchecked": 4}
_MARKS = {"ok": "ok", "trouble": "FAILED", "unknown": "?", "skipped": "-"}
_COLORS = {"ok": "green", "trouble": "red", "unknown": "yellow"}


@click.command("check")
@names.option
@click.option("-i", "--input", "source", type=click.Path(), metavar="FILE",
              help="Ask it this, not its own input example; `-` is "
              "standard input.")  # fmt: skip
@click.option("--expect", type=click.Path(path_type=Path, dir_okay=False),
              help="The JSON it is to answer.  [default: its `output_example.json`]")  # fmt: skip
@click.option("--only-load", is_flag=True, help="Load it, and ask it nothing.")
@click.option("--fix", "fixes", is_flag=True, help="Find out what it lacks, by trying.")
@click.option("--yes", "yes", multiple=True, metavar="REQ",
              help="With --fix: take this for a module that is not known.")  # fmt: skip
@click.option("--write", is_flag=True, help="With --fix: write what it lacks into its files.")
@with_terms
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    model: str,
    source: str | None,
    expect: Path | None,
    only_load: bool,  # noqa: FBT001
    fixes: bool,  # noqa: FBT001
    yes: tuple[str, ...],
    write: bool,  # noqa: FBT001
    terms: Terms,
    is_json: bool,  # noqa: FBT001
) -> None:
    """See whether a model does what it was logged for, in the environment it asks for.

    The environment is built; what is installed there must fit together (`pip check`), the
    model's own code must be complete, the model must load, and answer its input example, or
    the input given, with what it answered when it was logged, where that is known. What is
    wrong is explained.

    With --fix what it lacks is put there, for this command alone, and it is asked again,
    until it answers: modules that are missing by the distributions that are known to bring
    them, at a version of the model's day. Nothing is installed because of its name. What
    helped is printed, and with --write also written, as `envctl requirements add` does.

    The status is 0 if all is well, 1 if there is trouble, 4 if it could not be checked:
    there is no input, the index does not answer, the Python is not here.

    \b
    Examples:
      envctl check -m ./model
      envctl check -m ./model -i input.json --expect answer.json
      envctl check -m ./model --fix
      envctl check -m ./model --fix --yes my-company-lib --write
      envctl check -m models:/iris@champion --json
    """
    from envd.cli.trial import Trial  # noqa: PLC0415
    from envd.errors import EnvdError  # noqa: PLC0415
    from envd.mend import checking  # noqa: PLC0415

    _must_fit(source, fixes=fixes, yes=yes, write=write, only_load=only_load)
    engine, name = place.engine(), names.model(model)
    _must_be_possible(place, name, yes=yes, write=write)
    try:
        subject = _subject(engine, name, source, expect, only_load=only_load)
    except EnvdError as error:
        if error.reason in {"REQUEST_INVALID", "DAEMON_UNREACHABLE"}:
            raise
        _end(checking.unread(name, error), is_json=is_json)
    override = terms["override"]
    trial = Trial(engine, name, terms["env_manager"], place.settings())
    if not fixes:
        _end(checking.check(subject, trial, override), is_json=is_json)
    fixed = _fixed(subject, trial, override, yes, is_json=is_json)
    is_written = write and fixed.is_fixed
    written, refused = _written(place, subject, fixed) if is_written else ([], None)
    _end_fixed(name, fixed, written, refused, is_json=is_json)


def _must_fit(
    source: str | None, *, fixes: bool, yes: tuple[str, ...], write: bool, only_load: bool
) -> None:
    message = ""
    if (yes or write) and not fixes:
        message = "--yes and --write go with --fix"
    elif source and only_load:
        message = "give -i or --only-load, not both"
    if message:
        raise click.UsageError(message)


def _must_be_possible(place: Place, name: str, *, yes: tuple[str, ...], write: bool) -> None:
    """See, before anything is built, that what is given can be taken and what is found written."""
    from envd.cli.editable import local  # noqa: PLC0415
    from envd.mend import editing  # noqa: PLC0415
    from envd.spec import policy  # noqa: PLC0415

    settings = place.settings()
    if yes:
        editing.put(yes, policy.of(settings.security))
    if write:
        local(name, ("add", "REQ"), settings)


def _fixed(
    subject: Subject, trial: Trial, override: Sequence[str], yes: tuple[str, ...], *, is_json: bool
) -> Fixed:
    from envd import plain  # noqa: PLC0415
    from envd.mend import fixing  # noqa: PLC0415

    def say(found: Diagnosis, remedy: str) -> None:
        if not is_json:
            click.echo(f"{plain.printable(found.message)}; trying with `{remedy}`", err=True)

    return fixing.fix(subject, trial, override, yes=yes, on_round=say)


def _subject(
    engine: Engine, name: str, source: str | None, expect: Path | None, *, only_load: bool
) -> Subject:
    from envd.cli.predict import content_type_of, read  # noqa: PLC0415
    from envd.mend.subject import Subject  # noqa: PLC0415
    from envd.model import read as read_model  # noqa: PLC0415

    found = read_model(Path(engine.show_model(name)["path"]))
    given: dict[str, Any] = {"only_loads": only_load}
    if source:
        given |= {"payload": read(source), "content_type": content_type_of(source)}
        _must_be_json(source, **given)
    if expect:
        try:
            given["answer"] = json.loads(expect.read_bytes())
        except (OSError, ValueError) as error:
            message = f"cannot read the answer `{expect}`: {error}"
            raise click.UsageError(message) from error
    return Subject.of(name, found, **given)


def _must_be_json(source: str, payload: bytes, content_type: str, **_: object) -> None:
    """See that an input can be read, before its model is built and found at fault."""
    if content_type != "application/json":
        return
    try:
        json.loads(payload)
    except ValueError as error:
        message = f"the input `{source}` is not JSON: {error}"
        raise click.UsageError(message) from error


def _tell(found: Document, *, is_json: bool) -> None:
    if is_json:
        click.echo(json.dumps(found, indent=1))
        return
    from envd import plain  # noqa: PLC0415

    for step in found["steps"]:
        mark = click.style(f"{_MARKS[step['state']]:<7}", fg=_COLORS.get(step["state"]))
        message = plain.printable((step["message"] or "").replace("\n", " "))
        click.echo(f"{mark} {step['name']:<13} {message}".rstrip())
    for one in found["findings"]:
        if one["candidates"] and not one["remedy"]:
            named = ", ".join(one["candidates"])
            click.echo(
                f"`{one['subject']}` may come from {named}: see whose that is, and if it is meant, "
                "--fix --yes takes it by that name",
                err=True,
            )


def _end(report: Report, *, is_json: bool) -> NoReturn:
    """Show *report*, and end with its status."""
    _tell(report.document(), is_json=is_json)
    sys.exit(_STATUS[report.verdict.value])


def _end_fixed(
    name: str, fixed: Fixed, written: list[str], refused: EnvdError | None, *, is_json: bool
) -> NoReturn:
    """Say what became of --fix, and of writing that, if it was *refused*; end with its status."""
    found = fixed.report.document() | {
        "added": list(fixed.requirements),
        "because": [one.message for _, one in fixed.added],
        "written": written,
    }
    _tell(found, is_json=is_json)
    if not is_json and fixed.requirements:
        _say_how(name, fixed, written)
    if not is_json and fixed.report.answer:
        click.echo(fixed.report.answer)
    if refused:
        click.echo(f"envctl: it was not written: {refused.message}", err=True)
    sys.exit(_STATUS["trouble"] if refused else _STATUS[fixed.report.verdict.value])


def _say_how(name: str, fixed: Fixed, written: list[str]) -> None:
    options = [f"--pip-requirements-override {shlex.quote(one)}" for one in fixed.requirements]
    quoted = " ".join(shlex.quote(one) for one in fixed.requirements)
    listed = json.dumps(list(fixed.requirements))
    model = shlex.quote(names.shown(name))
    how = {
        "ok": "it predicts with",
        "trouble": "this helped, and not enough",
        "unchecked": "this helped, and whether it is enough could not be checked",
    }[fixed.report.verdict.value]
    click.echo(f"{how}:", err=True)
    click.echo(f"  envctl predict -m {model} {' '.join(options)}", err=True)
    if written:
        click.echo(f"written into {', '.join(written)}", err=True)
    else:
        click.echo(f"  envctl requirements add -m {model} {quoted}", err=True)
    click.echo(f"  log_model(..., extra_pip_requirements={listed})", err=True)


def _written(place: Place, subject: Subject, fixed: Fixed) -> tuple[list[str], EnvdError | None]:
    """Write what helped into the files of the model; return those that changed, or why not."""
    from envd.cli.editable import local  # noqa: PLC0415
    from envd.errors import EnvdError  # noqa: PLC0415
    from envd.mend import editing  # noqa: PLC0415
    from envd.spec import policy  # noqa: PLC0415

    settings = place.settings()
    (path,) = local(subject.name, ("add", *fixed.requirements), settings)
    wanted = editing.put(fixed.requirements, policy.of(settings.security))
    try:
        done = editing.edit(Path(path), wanted)
    except EnvdError as error:
        # What was found took minutes, and is to be seen.
        return [], error
    for note in done.notes:
        click.echo(f"note: {note.message}", err=True)
    return [one.file for one in done.changes], None
