"""The option that says where a verb writes what it would print, and what writes it there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def writable(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """See that *path* can be written, before the work, which would be lost.

    Raises:
        click.BadParameter: there is nothing that it could lie in.
        OSError: it cannot be written.
    """
    if path and not path.parent.is_dir():
        message = f"there is no directory `{path.parent}`"
        raise click.BadParameter(message, ctx, parameter)
    if path:
        _try(path)
    return path


def _try(path: Path) -> None:
    import tempfile  # noqa: PLC0415

    try:
        if not os.path.lexists(path):
            tempfile.TemporaryFile(dir=path.parent).close()
        # Whoever reads a pipe would take this for its end.
        elif stat.S_ISREG(path.lstat().st_mode):
            path.open("ab").close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def output(meaning: str) -> Callable[[_Command], _Command]:
    """Add `--output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=writable,
        help=meaning,
    )


def write(path: Path, text: str) -> None:
    """Write *text* to *path*: a file is whole at any moment, and what is none stays what it is.

    Raises:
        OSError: it cannot be written.
    """
    from envd import durable  # noqa: PLC0415

    # In the place of a link or a device (`/dev/stdout`) a file would be nothing but damage.
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        path.write_text(text)
        return
    try:
        durable.write_text(path, text)
    except OSError as error:
        # Not of the file that was to become it.
        raise OSError(error.errno, error.strerror, str(path)) from error
