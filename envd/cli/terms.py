"""The options that change what a model's dependencies are taken for, for one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypedDict

import click

from envd.cli.place import Place


class Terms(TypedDict):
    """What they give, as `envd.cli.engine.Order` takes it."""

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


_CONDA_EXE = click.option(
    "--conda-exe",
    metavar="PROGRAM",
    help="Lock a conda environment with this conda, mamba or micromamba in the place of rattler. "
    "What is locked already stays so; a daemon goes by its own settings.  "
    "[default: as the settings say]",
)


def terms(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--pip-requirements-override` and `--env-manager`, as `mlflow models predict` has them.

    The command gets both as `terms`. With them comes `--conda-exe`, which is no term: it is
    a setting of whatever does the work, for one call.
    """

    @functools.wraps(command)
    def collected(
        *arguments: Any,
        override: list[str],
        env_manager: str | None,
        conda_exe: str | None,
        **more: Any,
    ) -> None:
        found = Terms(override=override, env_manager=env_manager or "")
        if conda_exe is not None:
            place = click.get_current_context().find_root().ensure_object(Place)
            place.solve_with(conda_exe, found["env_manager"])
        command(*arguments, terms=found, **more)

    return _OVERRIDE(_ENV_MANAGER(_CONDA_EXE(collected)))
