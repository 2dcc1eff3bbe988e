"""The option that says where a verb writes what it would print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _checked(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    # Before the work, which may take long and would be lost.
    if path and not path.parent.is_dir():
        message = f"there is no directory `{path.parent}`"
        raise click.BadParameter(message, ctx, parameter)
    return path


def output(meaning: str) -> Callable[[_Command], _Command]:
    """Add `--output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=_checked,
        help=meaning,
    )
