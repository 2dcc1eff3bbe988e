"""`envctl run`: a command inside the environment of a model."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from envd.cli import names
from envd.cli.place import Place, where
from envd.cli.terms import Terms
from envd.cli.terms import terms as with_terms

if TYPE_CHECKING:
    from envd.cli.engine import Document, Order
    from envd.store import Environment, Lease

_ATTEMPTS = 3
_NOT_EXECUTABLE, _NOT_FOUND, _SIGNALLED = 126, 127, 128
# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
# They would make another Python of the environment's.
_FOREIGN = (
    "CONDA_PREFIX",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "VIRTUAL_ENV",
)


@click.command("run", context_settings={"allow_interspersed_args": False})
@names.option
@click.argument("argv", metavar="-- CMD [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@with_terms
@where
@click.pass_obj
def command(place: Place, model: str, argv: tuple[str, ...], terms: Terms) -> None:
    """Run a command inside the environment of a model, which is built if it is not there.

    The command has your environment and your directory, with the environment's programs
    first on PATH. As long as it runs, nobody removes the environment. Do not install into
    it: other models may share it, and `envctl verify` calls what was added a fault.

    The status is the command's, 128 and the number of the signal that ended it, 126 if it
    cannot be executed, or 127 if there is none.

    \b
    Examples:
      envctl run -m ./model -- python
      envctl run -m ./model -- python -c 'import sklearn; print(sklearn.__version__)'
      envctl run -m ./model --pip-requirements-override six==1.17.0 -- pytest tests
    """
    from envd.cli.engine import Order  # noqa: PLC0415

    environment, lease = _leased(place, Order(names.model(model), **terms))
    try:
        sys.exit(run(argv, inside(environment.prefix, environment.variables)))
    finally:
        lease.close()


def _leased(place: Place, order: Order) -> tuple[Environment, Lease]:
    """Build the environment and take the lease of it, which this process itself holds."""
    from envd.errors import EnvironmentNotFoundError  # noqa: PLC0415
    from envd.store import Store  # noqa: PLC0415

    store = Store(place.settings().root)
    for _ in range(_ATTEMPTS):
        built = _built(place, order)
        # It may have been removed as soon as it was built.
        if found := store.lease(built["id"]):
            return found
    message = (
        f"the environment {built['id']} is not in `{store.layout.root}` (any more); "
        "give the daemon's root with `--root`, or try again"
    )
    raise EnvironmentNotFoundError(message, id=built["id"], root=store.layout.root)


def _built(place: Place, order: Order) -> Document:
    from envd.cli.progress import Progress  # noqa: PLC0415
    from envd.errors import from_document  # noqa: PLC0415

    with Progress() as progress:
        built = place.engine().build(order, progress)
    if failure := built["failure"]:
        raise from_document(failure)
    for note in built["notes"]:
        click.echo(f"note: {note['message']}", err=True)
    return built


def inside(
    prefix: Path, variables: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables of a command in the environment at *prefix*, which sets *variables*."""
    kept = {name: value for name, value in environ.items() if name not in _FOREIGN}
    return {
        **kept,
        **variables,
        "PATH": os.pathsep.join([f"{prefix}/bin", environ.get("PATH", os.defpath)]),
        # Bytecode written into the environment would be a fault of it.
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run *argv* to its end, as a shell does, and return its status as a shell has it.

    SIGTERM and SIGHUP are passed on to it; SIGINT the terminal sends to both.
    """
    missed: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: FrameType | None) -> None:
        if child is None:
            missed.append(number)
        else:
            child.send_signal(number)

    # A handler, not SIG_IGN: the child would inherit that.
    _handle((signal.SIGINT,), lambda _number, _frame: None)
    _handle(_FORWARDED, forward)
    try:
        child = subprocess.Popen(argv, env=env, preexec_fn=_dying_with(os.getpid()))  # noqa: PLW1509
    except OSError as error:
        click.echo(f"envctl: cannot run `{argv[0]}`: {error.strerror}", err=True)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    for number in missed:
        child.send_signal(number)
    status = child.wait()
    return status if status >= 0 else _SIGNALLED - status


def _dying_with(parent: int) -> Callable[[], None]:
    """Let a child be killed when *parent* is: nobody would hold the lease for it any more."""
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


def _handle(numbers: Sequence[signal.Signals], handler: signal._HANDLER) -> None:
    for number in numbers:
        # What the caller ignores, as nohup does SIGHUP, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
