"""`envctl check`: whether a model does what it was logged for; with `--fix`, what it lacks."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from envd.cli import names
from envd.cli.place import Place, as_json, where
from envd.cli.terms import Terms
from envd.cli.terms import terms as with_terms

if TYPE_CHECKING:
    from envd.cli.engine import Document, Engine
    from envd.config import Settings
    from envd.mend.checking import Built
    from envd.mend.failures import Diagnosis
    from envd.mend.fixing import Fixed
    from envd.mend.report import Report
    from envd.mend.subject import Subject

_STATUS = {"ok": 0, "trouble": 1, "unchecked": 4}
_MARKS = {"ok": "ok", "trouble": "FAILED", "unknown": "?", "skipped": "-"}
_COLORS = {"ok": "green", "trouble": "red", "unknown": "yellow"}


@click.command("check")
@click.option("-m", "--model", required=True, help="A model: directory, URI or served name.")
@click.option("-i", "--input", "source", help="Ask it this, not its own input example; `-` is "
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
    from envd import plain  # noqa: PLC0415
    from envd.cli.editable import local  # noqa: PLC0415
    from envd.errors import EnvdError  # noqa: PLC0415
    from envd.mend import editing, fixing  # noqa: PLC0415
    from envd.mend.checking import check, unread  # noqa: PLC0415
    from envd.spec import policy  # noqa: PLC0415

    _must_fit(source, fixes=fixes, yes=yes, write=write, only_load=only_load)
    engine, name = place.engine(), names.model(model)
    if yes:
        # What is none is usage, before anything is built.
        editing.put(yes, policy.of(place.settings().security))
    if write:
        # Else one would hear at the end that nothing can be written there.
        local(name, ("add", "REQ"), place.settings())
    try:
        subject = _subject(engine, name, source, expect, only_load=only_load)
    except EnvdError as error:
        if error.reason in {"REQUEST_INVALID", "DAEMON_UNREACHABLE"}:
            raise
        _end(unread(name, error), is_json=is_json)
    override = terms["override"]
    trial = _Trial(engine, name, terms["env_manager"], place.settings())
    if not fixes:
        _end(check(subject, trial, override), is_json=is_json)

    def say(found: Diagnosis, remedy: str) -> None:
        if not is_json:
            click.echo(f"{plain.printable(found.message)}; trying with `{remedy}`", err=True)

    fixed = fixing.fix(subject, trial, override, yes=yes, on_round=say)
    written = _written(place, subject, fixed) if write and fixed.is_fixed else []
    _end_fixed(name, fixed, written, is_json=is_json)


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
    if expect:
        try:
            given["answer"] = json.loads(expect.read_bytes())
        except (OSError, ValueError) as error:
            message = f"cannot read the answer `{expect}`: {error}"
            raise click.UsageError(message) from error
    return Subject.of(name, found, **given)


class _Trial:
    """Builds and asks by the daemon, or in this process."""

    def __init__(self, engine: Engine, model: str, env_manager: str, settings: Settings) -> None:
        self._engine, self._model, self._env_manager = engine, model, env_manager
        self._settings = settings
        self._prefix = Path()

    def build(self, override: Sequence[str]) -> Built:
        """Build the environment of the model with *override*."""
        from envd.cli.engine import Wanted  # noqa: PLC0415
        from envd.cli.progress import Progress  # noqa: PLC0415
        from envd.errors import from_document  # noqa: PLC0415
        from envd.mend.checking import Built  # noqa: PLC0415

        wanted = Wanted(self._model, list(override), self._env_manager)
        with Progress() as progress:
            built = self._engine.build(wanted, progress)
        if failure := built["failure"]:
            raise from_document(failure)
        shown = self._engine.show(built["id"])
        spec = shown["spec"] or {}
        self._prefix = Path(shown["prefix"])
        return Built(
            built["id"],
            self._prefix,
            built["python"]["actual"] or "",
            {one["name"]: one["version"] for one in shown["packages"]},
            tuple(one["text"] for one in spec.get("requirements", ())),
        )

    def ask(self, override: Sequence[str], payload: bytes, content_type: str) -> bytes:
        """Return what the model answers with *override*."""
        from envd.cli.engine import Input, Wanted  # noqa: PLC0415
        from envd.cli.progress import Progress  # noqa: PLC0415

        wanted = Wanted(self._model, list(override), self._env_manager)
        with Progress() as progress:
            given = Input(payload, content_type, None)
            return self._engine.predict(wanted, given, progress).payload

    def bringing(self, module: str) -> tuple[str, ...]:
        """Return the distributions in this root's environments that bring *module*."""
        from envd.mend import installed  # noqa: PLC0415
        from envd.store import Store  # noqa: PLC0415

        store = Store(self._settings.root)
        found: dict[str, None] = {}
        # They may go meanwhile, or be another user's.
        with contextlib.suppress(OSError):
            for one in filter(None, map(store.read, store.ids())):
                found |= dict.fromkeys(installed.bringing(one.prefix, module))
        return tuple(found)

    def offered(self, module: str) -> tuple[str, ...]:
        """Return the distribution that the index has under its name, if it brings *module*."""
        from envd.lock import offered  # noqa: PLC0415
        from envd.lock.uv import Uv  # noqa: PLC0415
        from envd.spec import options, spec  # noqa: PLC0415

        indexes = spec.indexes(options.NO_OPTIONS, self._settings.index)
        python = self._prefix / "bin" / "python"
        found = offered.look(Uv(self._settings), python, indexes, module)
        return (found.name,) if found and module in found.modules else ()


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


def _end_fixed(name: str, fixed: Fixed, written: list[str], *, is_json: bool) -> NoReturn:
    """Say what became of --fix, and end with its status."""
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
    sys.exit(_STATUS[fixed.report.verdict.value])


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


def _written(place: Place, subject: Subject, fixed: Fixed) -> list[str]:
    """Write what helped into the files of the model, and return those that changed."""
    from envd.cli.editable import local  # noqa: PLC0415
    from envd.mend import editing  # noqa: PLC0415
    from envd.spec import policy  # noqa: PLC0415

    settings = place.settings()
    (path,) = local(subject.name, ("add", *fixed.requirements), settings)
    plan = editing.plan(Path(path), editing.put(fixed.requirements, policy.of(settings.security)))
    editing.carry_out(plan)
    for note in plan.notes:
        click.echo(f"note: {note.message}", err=True)
    return [one.file for one in plan.changes]
