"""The `envctl` command: finds the verb, and turns every failure into a message and a status."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading

import click

import envd
from envd import streams
from envd.cli.place import Place, where

# name: what stands in `envctl --help`. The module of a verb is imported when it runs.
_VERBS = {
    "predict": "Run a model on an input.",
    "serve": "Serve one model over HTTP.",
    "run": "Run a command inside the environment of a model.",
    "build": "Build the environments of models.",
    "cancel": "Cancel a build.",
    "logs": "Print or follow the log of a build.",
    "dockerfile": "Write what an image of models is built from.",
    "build-image": "Build an image that serves models.",
    "lock": "Lock what a model depends on.",
    "check": "See whether a model does what it was logged for, and what it lacks.",
    "requirements": "Show and edit what models ask for.",
    "record": "Record a Python model in MLflow's format.",
    "migrate": "Name conda-forge in the files of models.",
    "explain": "Explain the environment of a model, or why two differ.",
    "list": "List the environments of this machine.",
    "show": "Show one environment.",
    "pin": "Keep environments from gc.",
    "unpin": "Let gc have environments again.",
    "rm": "Remove environments.",
    "gc": "Remove what is not worth its place.",
    "verify": "See whether environments are as they were published.",
    "models": "List, load, unload and show models.",
    "workers": "List and restart the processes that have a model loaded.",
    "token": "Make a token for somebody who asks over TCP.",
    "config": "Show the settings.",
    "doctor": "See whether this machine has what envd needs.",
}
_FAILED, _USAGE, _UNREACHABLE, _INTERRUPTED, _SIGNALLED = 1, 2, 3, 130, 128


class Verbs(click.Group):
    """A group whose commands are modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of `_VERBS`."""
        del ctx
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb *cmd_name*."""
        del ctx
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"envd.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(envd.__version__, prog_name="envctl")
@where
@click.pass_context
def group(ctx: click.Context) -> None:
    """Run MLflow models, each in the environment it asks for, built once and kept.

    envctl asks the daemon of its root, whose settings count then; where none runs, it
    does the work itself.

    \b
    Examples:
      envctl predict -m ./model -i input.json
      envctl build -m ./model
      envctl list
      envctl gc --dry-run

    \b
    Completion of verbs and options:
      eval "$(_ENVCTL_COMPLETE=bash_source envctl)"
    """
    ctx.ensure_object(Place)


def main() -> None:
    """Run envctl; the exit status is 0, 1 failed, 2 usage, or 3 daemon not reachable.

    That of `run` is its command's.
    """
    streams.fill()
    # As Ctrl-C: a build that is stopped ends its installer and leaves nothing.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has SIGHUP ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    # https://no-color.org: click asks for a terminal only.
    color = False if os.environ.get("NO_COLOR") else None
    try:
        status = group.main(standalone_mode=False, color=color)
        sys.stdout.flush()
    except click.exceptions.Abort:
        status = _INTERRUPTED
    except _SignalledError as ended:
        # As a build ends that somebody else cancels. The terminal may have gone.
        with contextlib.suppress(OSError):
            click.echo(f"envctl: ended by {signal.Signals(ended.number).name}", err=True)
        status = _SIGNALLED + ended.number
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except BrokenPipeError:
        # Whoever read the output has enough; the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _FAILED
    except Exception as error:  # noqa: BLE001
        status = _status_of(error)
    sys.exit(status if isinstance(status, int) else 0)


class _SignalledError(SystemExit):
    """A signal is to end it."""

    def __init__(self, number: int) -> None:
        super().__init__(_SIGNALLED + number)
        self.number = number


def _end(number: int, _: object) -> None:
    raise _SignalledError(number)


def script() -> None:
    """Run envctl as a process of its own, and end that at once when it is done.

    Taking gRPC and all modules down first is an eighth of what a command takes.
    """
    try:
        main()
    except SystemExit as ended:
        others = [one for one in threading.enumerate() if one is not threading.main_thread()]
        if not isinstance(ended.code, int) or not all(one.daemon for one in others):
            raise
        os._exit(ended.code)


def _status_of(error: Exception) -> int:
    from envd.errors import EnvdError  # noqa: PLC0415

    if isinstance(error, OSError) and not isinstance(error, EnvdError):
        click.echo(f"envctl: {_told(error)}", err=True)
        return _FAILED
    if not isinstance(error, EnvdError):
        raise error
    click.echo(f"envctl: {error.message}", err=True)
    if log := error.metadata.get("log"):
        click.echo(f"the log is in {log}", err=True)
    if error.reason in {"SETTINGS_INVALID", "REQUEST_INVALID"}:
        return _USAGE
    return _UNREACHABLE if error.reason == "DAEMON_UNREACHABLE" else _FAILED


def _told(error: OSError) -> str:
    """Return what *error* says to people: what failed and on what, without a number."""
    if not error.strerror:
        return str(error)
    return f"`{error.filename}`: {error.strerror}" if error.filename else error.strerror


if __name__ == "__main__":
    script()
