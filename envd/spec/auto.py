"""The manager `auto`: which one a model needs, and what its virtualenv needs from conda's file.

The `conda.yaml` decides, also where MLflow's virtualenv would not read it. Since 1.18 MLflow
writes its pip section as `requirements.txt` (`_process_conda_env` in
mlflow/utils/environment.py), and since 1.26 a `python_env.yaml` that names that; what the
`conda.yaml` asks of conda is in neither. So where it asks for packages that PyPI does not have,
it is conda. Else it is a virtualenv of the files that MLflow would read, and of those conda
packages that these do not name, from PyPI: MLflow leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from packaging.utils import canonicalize_name

from envd.config import Settings
from envd.errors import ModelInvalidError
from envd.events import Note
from envd.model import Model, files
from envd.model.texts import shown
from envd.spec import conda_forge, conda_pypi, conda_yaml, requirement_file
from envd.spec.conda_names import pypi_name
from envd.spec.conda_yaml import CondaYaml
from envd.spec.dependencies import Dependencies
from envd.spec.match_spec import MatchSpec
from envd.spec.policy import Policy

_MOST_NAMES = 5


@dataclass(frozen=True, slots=True)
class Choice:
    """What makes the environment of a model, by its `conda.yaml` if that is one."""

    manager: Literal["virtualenv", "conda"]
    conda: CondaYaml | None = None
    notes: tuple[Note, ...] = ()


def choice(model: Model) -> Choice:
    """Return what makes the environment of *model*.

    Raises:
        ModelInvalidError: its `conda.yaml` cannot be used, and MLflow would read no other file.
    """
    if model.conda_file is None:
        return Choice("virtualenv")
    try:
        found = conda_yaml.read(model.path, model.conda_file)
    except ModelInvalidError as error:
        if not (model.virtualenv_file or files.exists(model.path, "requirements.txt")):
            raise
        message = f"`auto` takes a virtualenv and passes over what cannot be read: {error.message}"
        note = Note("CONDA_YAML_PASSED_OVER", message, model.conda_file)
        return Choice("virtualenv", notes=(note,))
    # Without what only an export pins, and no model asks for.
    asked = conda_forge.rewritten(found, "rewrite").packages
    names = list(dict.fromkeys(shown(one.name) for _, one in asked if _is_only_condas(one)))
    if not names:
        return Choice("virtualenv", found)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    listed = ", ".join(f"`{one}`" for one in names[:_MOST_NAMES])
    message = f"`auto` takes conda: {listed}{more} cannot be had from PyPI as asked for"
    return Choice("conda", found, (Note("CONDA_CHOSEN", message, names[0]),))


def completed(
    found: Dependencies, conda: CondaYaml, model: Model, rules: Policy, settings: Settings
) -> Dependencies:
    """Return *found*, for a virtualenv, with what of *conda*'s packages it does not name.

    Raises:
        PolicyDeniedError: the settings do not allow the channel that one is of.
    """
    named = {one.name for one in (*found.build, *found.asked.requirements)}
    lacking = tuple(
        (place, one)
        for place, one in conda.packages
        if one.name != "python" and (name := pypi_name(one.name)) and _canonical(name) not in named
    )
    translated = conda_pypi.translated(replace(conda, packages=lacking))
    entries = requirement_file.read_entries(
        model.path, conda.place.file, translated.packages, rules
    )
    judged = conda_pypi.judged(translated, settings.conda.defaults, rules)
    return replace(
        found,
        asked=found.asked + entries,
        notes=(*found.notes, *translated.notes, *judged),
    )


def _is_only_condas(one: MatchSpec) -> bool:
    """Whether PyPI does not have the package, or cannot be asked for its versions."""
    return pypi_name(one.name) is None or "|" in one.version


def _canonical(name: str) -> str:
    return str(canonicalize_name(name))
