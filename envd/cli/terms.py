"""The options that change what a model's dependencies are taken for, for one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypedDict

import click


class Terms(TypedDict):
    """What they give, as `envd.cli.engine.Wanted` takes it."""

    override: list[str]
    env_manager: str


def _split(_: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> list[str]:
    del parameter
    if not texts:
        return []
    # It brings all that reads requirements, a third of what a call takes.
    from envd.spec.overrides import split  # noqa: PLC0415

    return [one for text in texts for one in split(text)]


_OVERRIDE = click.option(
    "-r",
    "--pip-requirements-override",
    "override",
    metavar="REQ",
    multiple=True,
    callback=_split,
    help="Put these in the place of the model's requirements of the same names: "
    "several times, or separated by commas.",
)
_ENV_MANAGER = click.option(
    "--env-manager",
    type=click.Choice(["virtualenv", "conda", "auto"]),
    help="What makes the environment; `auto` is conda for a model whose conda packages "
    "PyPI does not have.  [default: as the settings say]",
)


def terms(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--pip-requirements-override` and `--env-manager`, as `mlflow models predict` has them.

    The command gets both as `terms`.
    """

    @functools.wraps(command)
    def collected(
        *arguments: Any, override: list[str], env_manager: str | None, **more: Any
    ) -> None:
        command(*arguments, terms=Terms(override=override, env_manager=env_manager or ""), **more)

    return _OVERRIDE(_ENV_MANAGER(collected))
