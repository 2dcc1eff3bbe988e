"""`envctl record`: a model directory of MLflow's, from a Python model."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from envd.cli.place import as_json, where
from envd.cli.predict import as_object

_FOREVER_S = 7 * 86400.0
_NEEDED = ("packaging", "platformdirs", "yaml")


@click.command("record")
@click.argument("model", metavar="SCRIPT.py:NAME|MODULE:NAME")
@click.option("-o", "--output", required=True, help="The model directory to write.")
@click.option("--pip-requirements", multiple=True, metavar="FILE|REQ", help="All it asks for.")
@click.option("--extra-pip-requirements", multiple=True, metavar="FILE|REQ",
              help="What it asks for besides what is found out.")  # fmt: skip
@click.option("--conda-env", metavar="FILE", help="The conda environment it asks for.")
@click.option("--code-paths", multiple=True, metavar="PATH", help="Code to put into the model.")
@click.option("--infer-code-paths", is_flag=True, help="Put the code into it that it imports.")
@click.option("--artifact", "artifacts", multiple=True, metavar="NAME=PATH", help="A file it uses.")
@click.option("-i", "--input-example", metavar="FILE", help="An input, as JSON.")
@click.option("--signature", metavar="JSON", callback=as_object, help="What it takes and answers.")
@click.option("--metadata", metavar="JSON", callback=as_object, help="Metadata, an object.")
@click.option("--model-config", metavar="JSON", callback=as_object, help="What it is loaded with.")
@click.option("--script", "is_script", is_flag=True, help="Keep the script, not a pickle.")
@click.option("--allow-secrets", is_flag=True, help="Write what looks like secrets, too.")
@click.option("--check/--no-check", default=True, help="Load it once as it will be.")
@click.option("--python", help="The Python it is made with; else the shell's.")
@as_json
@where
def command(model: str, output: str, python: str | None, is_json: bool, is_script: bool,  # noqa: FBT001
            artifacts: tuple[str, ...], pip_requirements: tuple[str, ...],
            extra_pip_requirements: tuple[str, ...], **given: Any) -> None:  # fmt: skip
    """Record a Python model in MLflow's format; MLflow itself need not be installed.

    NAME is an object with a `predict`, a class of such, or a function. What it needs is found
    by running it (`envctl requirements infer`), if --pip-requirements and --conda-env do not
    say. What a script defines goes into the pickle; modules it imports go into the model by
    --code-paths, under the names they are imported by, or by --infer-code-paths. What is
    missing, and what looks like a secret, is an error now. Nothing is written then.

    \b
    Examples:
      envctl record train.py:model -o ./model -i input.json
      envctl record mine.models:Model -o ./model --infer-code-paths
      envctl record train.py:predict -o ./model --pip-requirements requirements.txt
      envctl record model.py:Model -o ./model --script --extra-pip-requirements six==1.17.0
    """
    from envd.infer.observing import python_of  # noqa: PLC0415

    arguments = given | {
        "artifacts": dict(_pair(one) for one in artifacts),
        "pip_requirements": _lines(pip_requirements),
        "extra_pip_requirements": _lines(extra_pip_requirements),
    }
    question = {"model": model, "output": output, "is_script": is_script, "arguments": arguments}
    found = _asked(python_of(python), question)
    for note in found["notes"]:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps(found, indent=1) if is_json else found["path"])


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name:
        message = f"`{text}` of --artifact is not NAME=PATH"
        raise click.UsageError(message)
    return name, path


def _lines(given: tuple[str, ...]) -> list[str] | None:
    found = [f"-r {one}" if Path(one).is_file() else one for one in given]
    return found or None


def _asked(python: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Ask *python* to record, and return its answer."""
    from envd import child, record  # noqa: PLC0415
    from envd.errors import PythonUnavailableError, from_document  # noqa: PLC0415
    from envd.record.recording import remove_left  # noqa: PLC0415

    program = Path(record.__file__).with_name("__main__.py")
    with (
        contextlib.ExitStack() as after,
        tempfile.TemporaryDirectory(prefix="envd-record-") as folder,
    ):
        # It may be killed, by whoever stops this, or for want of memory.
        after.callback(remove_left, Path(question["output"]).absolute())
        file = Path(folder) / "question.json"
        file.write_text(json.dumps(question | _paths(Path(folder))))
        finished = child.run(
            [str(python), "-B", str(program), str(file)],
            env=dict(os.environ),
            cwd=Path.cwd(),
            limits=child.Limits(time.monotonic() + _FOREVER_S),
            on_line=lambda line: click.echo(line, err=True),
        )
        if finished.status:
            message = f"`{python}` cannot record: {' '.join(finished.tail[-1:])}"
            raise PythonUnavailableError(message, python=python)
        answer: dict[str, Any] = json.loads(file.read_text())
    if failure := answer.get("failure"):
        raise from_document(failure)
    return answer


def _paths(folder: Path) -> dict[str, str]:
    """Return where envd is found and what it needs, by links in *folder* to nothing else here.

    An envd beside the model may be another version. What it needs is the model's own, if the
    Python has it; and an MLflow beside envd is none of theirs.
    """
    return {
        "own": _linked(folder / "own", ["envd"]),
        "needed": _linked(folder / "needed", _NEEDED),
    }


def _linked(folder: Path, modules: Iterable[str]) -> str:
    # By its name, it is none in which their code is looked for.
    links = folder / "site-packages"
    links.mkdir(parents=True)
    for name in modules:
        place = importlib.import_module(name).__file__
        if place:
            (links / name).symlink_to(Path(place).parent)
    return str(links)
