"""`envctl predict`: one model, one input, one answer."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envd.cli import names
from envd.cli.output import output as output_option
from envd.cli.place import Place, as_json, where
from envd.cli.terms import Terms
from envd.cli.terms import terms as with_terms

if TYPE_CHECKING:
    from envd.cli.engine import Predicted
    from envd.cli.progress import Progress

_TYPES = {
    "json": "application/json",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}


def as_object(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> dict[str, object] | None:
    """Return the JSON object that the option *text* is."""
    try:
        found = json.loads(text) if text else None
    except ValueError as error:
        message = f"it is not JSON: {error}"
        raise click.BadParameter(message, ctx, parameter) from error
    if found is not None and not isinstance(found, dict):
        message = "it is not a JSON object"
        raise click.BadParameter(message, ctx, parameter)
    return found


@click.command("predict")
@names.option
@click.option("-i", "--input", "source", type=click.Path(), metavar="FILE", default="-",
              help="The input; `-` is standard input.")  # fmt: skip
@output_option("Write the answer there.")
@click.option("-t", "--type", "kind", type=click.Choice(list(_TYPES)), help="The input's form.")
@click.option(
    "--params", metavar="JSON", callback=as_object, help="Inference parameters, an object."
)
@click.option(
    "--model-config", metavar="JSON", callback=as_object, help="What the model is loaded with."
)
@click.option("--stream", "is_stream", is_flag=True, help="Ask item by item, a line each.")
@with_terms
@click.option("-v", "--verbose", is_flag=True, help="Say what took how long.")
@as_json
@where
@click.pass_obj
def command(
    place: Place,
    model: str,
    source: str,
    output: Path | None,
    kind: str | None,
    params: dict[str, object] | None,
    model_config: dict[str, object] | None,
    is_stream: bool,  # noqa: FBT001
    terms: Terms,
    verbose: bool,  # noqa: FBT001
    is_json: bool,  # noqa: FBT001
) -> None:
    """Run a model on an input, inside the environment the model asks for.

    The environment is built if it is not there. The answer, MLflow's
    `{"predictions": ...}`, is all that goes to standard output; with --json it stands
    under "answer", beside how it came about. With --stream it is what the model's
    `predict_stream` yields, a line of JSON as soon as each is there.

    \b
    Examples:
      envctl predict -m ./model -i input.json
      envctl predict -m models:/iris@champion -i rows.csv -o answer.json
      echo '{"inputs": [1, 2]}' | envctl predict -m ./model
      envctl predict -m ./model -i input.json --pip-requirements-override bs4,six==1.17.0
      envctl predict -m ./chat -i question.json --stream
    """
    from envd.cli.engine import Input, Order  # noqa: PLC0415
    from envd.cli.progress import Progress  # noqa: PLC0415

    if is_stream and is_json:
        message = "with --stream every line is JSON already; leave out --json"
        raise click.UsageError(message)
    engine = place.engine()
    content_type = _TYPES[kind] if kind else content_type_of(source)
    given = Input(read(source), content_type, params, model_config)
    order = Order(names.model(model), **terms)
    with Progress() as progress:
        if is_stream:
            with _lines(output, progress) as write:
                answer = engine.predict_stream(order, given, progress, write)
        else:
            answer = engine.predict(order, given, progress)
    if not is_stream:
        _write(_document(answer) if is_json else answer.payload, output)
    for note in answer.notes:
        click.echo(f"note: {note.message}", err=True)
    if verbose:
        _say(answer)


def read(source: str) -> bytes:
    """Return the input that *source* is: a file, or `-` for standard input."""
    if source == "-":
        if sys.stdin.isatty():
            click.echo("reading the input from the terminal; end it with Ctrl-D", err=True)
        if not (given := sys.stdin.buffer.read()):
            message = "nothing came on standard input; give the input by -i FILE"
            raise click.UsageError(message)
        return given
    try:
        return Path(source).read_bytes()
    except OSError as error:
        message = f"cannot read the input `{source}`: {error.strerror}"
        raise click.UsageError(message) from error


def content_type_of(source: str) -> str:
    """Return what the file *source* holds, by its name."""
    return _TYPES.get(source.rpartition(".")[2], _TYPES["json"])


def _document(answer: Predicted) -> bytes:
    document = {
        "answer": json.loads(answer.payload),
        "id": answer.environment_id,
        "worker": answer.origin,
        "worker_reason": answer.why,
        "seconds": answer.stage_seconds,
        "notes": [note.document() for note in answer.notes],
    }
    return json.dumps(document, indent=1).encode()


def _write(text: bytes, output: Path | None) -> None:
    if output:
        output.write_bytes(text)
    else:
        click.echo(text)


@contextlib.contextmanager
def _lines(output: Path | None, progress: Progress) -> Iterator[Callable[[bytes], None]]:
    """Yield what writes items, each at once."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(output.open("wb")) if output else sys.stdout.buffer

        def write(item: bytes) -> None:
            progress.clear()
            file.write(item + b"\n")
            file.flush()

        yield write


def _say(answer: Predicted) -> None:
    seconds = answer.stage_seconds
    parts = [f"environment {seconds['build']:.2f} s", f"{answer.origin} worker"]
    if seconds["start"]:
        parts[-1] += f" {seconds['start']:.2f} s"
    parts.append(f"prediction {seconds['predict']:.3f} s")
    click.echo(f"{answer.environment_id[:8]}: " + ", ".join(parts), err=True)
