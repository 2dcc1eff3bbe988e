"""Reads what a model asks for where conda makes its environment."""

from __future__ import annotations

from dataclasses import replace

from envd.config import Settings
from envd.events import Note
from envd.model import Model
from envd.spec import channels, conda_forge, conda_yaml, match_spec, requirement_file
from envd.spec.channels import CONDA_FORGE
from envd.spec.conda_yaml import CondaYaml
from envd.spec.dependencies import Dependencies
from envd.spec.match_spec import MatchSpec
from envd.spec.mirrors import Mirrors
from envd.spec.policy import Policy
from envd.spec.python import first_version


def read(model: Model, name: str, rules: Policy, settings: Settings) -> Dependencies:
    """Read the `conda.yaml` *name* of *model*.

    Raises:
        ModelInvalidError: it cannot be used.
        PolicyDeniedError: its packages come from where the settings do not allow.
        SettingsInvalidError: they name mirrors of what is no channel.
    """
    found = conda_forge.rewritten(conda_yaml.read(model.path, name), settings.conda.defaults)
    judged = conda_yaml.judged(found, rules)
    _check_reach(found, Mirrors.of(settings.conda))
    cut = tuple(note for one in found.places() for note in channels.cut(one))
    packages = tuple(one for _, one in found.packages)
    python = next((first_version(one.version) for one in packages if one.name == "python"), None)
    dependencies = Dependencies(
        python,
        (),
        requirement_file.read_entries(model.path, name, found.pip, rules),
        (*found.notes, *judged, *cut),
        manager="conda",
        # As conda does it, that of `channel::package` comes after those that are listed.
        channels=tuple(one.name for one in found.places()),
        packages=packages,
        variables=found.variables,
    )
    return _with_python(model, dependencies)


def of_virtualenv(found: Dependencies) -> Dependencies:
    """Return what a model without a `conda.yaml` asks for as conda gets it: Python, and pip's."""
    python = _python(found.python)
    message = "the model has no conda.yaml; Python comes from conda-forge, all else from PyPI"
    return replace(
        found,
        build=(),
        notes=(*found.notes, Note("CONDA_YAML_MISSING", message)),
        manager="conda",
        channels=(CONDA_FORGE.name,),
        packages=(python, MatchSpec("pip")),
    )


def _check_reach(found: CondaYaml, mirrors: Mirrors) -> None:
    for channel, place in found.places().items():
        if not mirrors.reach(channel):
            why = (
                f"the channel `{channel.name}` lies where envd cannot fetch from (only http, https "
                "and file); name another, or give it a mirror in `conda.mirrors`"
            )
            raise place.invalid(why, channel=channel.name)


def _with_python(model: Model, found: Dependencies) -> Dependencies:
    if any(one.name == "python" for one in found.packages):
        return found
    version = first_version(model.python_version or "")
    python = _python(version)
    message = f"the model's conda.yaml names no Python; `{python.text}` is added"
    return replace(
        found,
        python=version,
        packages=(*found.packages, python),
        notes=(*found.notes, Note("PYTHON_ADDED", message, python.text)),
    )


def _python(version: str | None) -> MatchSpec:
    """Return what asks for Python *version*, of which the patch release may be missing."""
    return match_spec.parse(f"python={version}" if version else "python")
