"""The option that puts requirements in the place of a model's own, for one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _split(_: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> list[str]:
    del parameter
    from envd.spec.overrides import split  # noqa: PLC0415

    return [one for text in texts for one in split(text)]


def override(command: _Command) -> _Command:
    """Add `--pip-requirements-override`, as `mlflow models predict` has it."""
    return click.option(
        "-r",
        "--pip-requirements-override",
        "override",
        metavar="REQ",
        multiple=True,
        callback=_split,
        help="Put these in the place of the model's requirements of the same names: "
        "several times, or separated by commas.",
    )(command)
