"""Gathers what a model depends on from whichever of its files say so.

A lock that lies in the model goes before everything. Else the order is MLflow's
(`mlflow/utils/virtualenv.py`, `_get_python_env`): `python_env.yaml`; else
`requirements.txt` with the Python of `conda.yaml`; else `conda.yaml` alone, whose conda
packages MLflow drops and envd translates. Where there is none of these, the flavors say
with which versions the model was made. With conda as the manager it is `conda.yaml` alone;
which of both `auto` takes, and by what, `envd.spec.auto` says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from envd.config import Settings
from envd.errors import ModelInvalidError, RequestInvalidError
from envd.events import Note
from envd.model import Model, documents, files
from envd.model.texts import shown
from envd.spec import (
    auto,
    conda_model,
    conda_model_lock,
    conda_pypi,
    conda_yaml,
    dates,
    flavors,
    model_lock,
    overrides,
    policy,
    repairs,
    requirement_file,
)
from envd.spec.dependencies import Dependencies
from envd.spec.policy import Policy
from envd.spec.python import first_version
from envd.spec.requirement_file import Requirements
from envd.spec.terms import Terms

_DEFAULT = Terms()
_MANAGERS = ("virtualenv", "conda", "auto")


def read(model: Model, settings: Settings, terms: Terms = _DEFAULT) -> Dependencies:
    """Read what *model* depends on, on *terms*.

    Raises:
        ModelInvalidError: a file cannot be used, or there is none.
        PolicyDeniedError: the settings do not allow what a file asks for.
        RequestInvalidError: an override is no requirement, or there is no such manager.
    """
    rules = policy.of(settings.security).for_one_reading()
    found = _for_manager(_wanted(settings, terms), model, rules, settings)
    if settings.resolve.as_of == "month":
        found = dates.with_day(model, found)
    found = replace(found, overrides=overrides.read(model.path, terms.override, rules))
    if terms.fresh:
        return _repaired(model, found, settings)
    found = replace(found, notes=(*found.notes, *model_lock.passed_over(model.path, found.manager)))
    if found.manager == "conda":
        wanted = _repaired(model, found, settings)
        return conda_model_lock.honoured(model, found, wanted, rules, settings)
    if lock := model_lock.read(model.path, rules):
        needing = repairs.with_mlflow(model, found) or found
        locked = (one for part in lock.contents.found.values() for one in part.requirements)
        limits = repairs.build_limits(locked) if settings.resolve.repair else ()
        found = replace(found, asked=needing.asked, build_constraints=limits)
        return model_lock.honoured(lock, found)
    return _repaired(model, found, settings)


def _repaired(model: Model, found: Dependencies, settings: Settings) -> Dependencies:
    return repairs.applied(model, found) if settings.resolve.repair else found


def _wanted(settings: Settings, terms: Terms) -> str:
    wanted = terms.env_manager or settings.resolve.env_manager
    if wanted not in _MANAGERS:
        message = f"`{shown(wanted)}` makes no environments; give {', '.join(_MANAGERS)}"
        raise RequestInvalidError(message, env_manager=shown(wanted))
    return wanted


def _for_manager(manager: str, model: Model, rules: Policy, settings: Settings) -> Dependencies:
    if manager == "auto":
        chosen = auto.choice(model)
        found = _for_manager(chosen.manager, model, rules, settings)
        if chosen.manager == "virtualenv" and chosen.conda:
            found = auto.completed(found, chosen.conda, model, rules, settings)
        return replace(found, notes=(*chosen.notes, *found.notes))
    if manager == "conda" and model.conda_file:
        return conda_model.read(model, model.conda_file, rules, settings)
    found = _with_python(model, _from_files(model, rules, settings))
    return conda_model.of_virtualenv(found) if manager == "conda" else found


def _from_files(model: Model, rules: Policy, settings: Settings) -> Dependencies:
    if model.virtualenv_file:
        return _from_python_env(model, model.virtualenv_file, rules, settings)
    has_requirements = files.exists(model.path, "requirements.txt")
    if model.conda_file is None:
        if has_requirements:
            asked = requirement_file.read(model.path, "requirements.txt", rules)
            return Dependencies(None, (), asked, ())
        return _from_flavors(model, settings)
    conda = conda_pypi.translated(conda_yaml.read(model.path, model.conda_file))
    build = requirement_file.read_entries(model.path, model.conda_file, conda.build, rules)
    if has_requirements:
        # Beside it no conda package is installed: no channel is to be judged.
        asked = requirement_file.read(model.path, "requirements.txt", rules)
        return Dependencies(conda.python, build.requirements, asked, ())
    entries = (*conda.packages, *conda.source.pip)
    asked = requirement_file.read_entries(model.path, model.conda_file, entries, rules)
    notes = (*conda.notes, *conda_pypi.judged(conda, settings.conda.defaults, rules))
    return Dependencies(conda.python, build.requirements, asked, notes)


def _from_python_env(model: Model, name: str, rules: Policy, settings: Settings) -> Dependencies:
    document = documents.read(model.path, name)
    python = document.get("python")
    build = _texts(model, name, document, "build_dependencies")
    asked = _texts(model, name, document, "dependencies")
    built = requirement_file.read_entries(model.path, name, build, rules)
    notes: tuple[Note, ...] = ()
    if settings.resolve.repair and model.conda_file and _names_what_is_lost(model, asked):
        name = model.conda_file
        asked, notes = _from_conda(model, name, rules, settings)
    # An option says where all packages come from, whichever list it stands in.
    return Dependencies(
        first_version(python) if isinstance(python, str) else None,
        built.requirements,
        replace(built, requirements=())
        + requirement_file.read_entries(model.path, name, asked, rules),
        notes,
    )


def _names_what_is_lost(model: Model, asked: Sequence[str]) -> bool:
    # Three of 127 public models lack the file; their conda.yaml holds the same lines.
    includes = any(re.fullmatch(r"-r\s*requirements\.txt", one.strip()) for one in asked)
    return includes and not files.exists(model.path, "requirements.txt")


def _from_conda(
    model: Model, name: str, rules: Policy, settings: Settings
) -> tuple[tuple[str, ...], tuple[Note, ...]]:
    conda = conda_pypi.translated(conda_yaml.read(model.path, name))
    notes = conda_pypi.judged(conda, settings.conda.defaults, rules)
    message = f"`requirements.txt` is not in the model; what `{name}` names is used"
    note = Note("REQUIREMENTS_FROM_CONDA", message, name)
    return (*conda.packages, *conda.source.pip), (note, *conda.notes, *notes)


def _texts(
    model: Model, name: str, document: dict[str, documents.Document], key: str
) -> tuple[str, ...]:
    value = document.get(key) or []
    texts = tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()
    if not isinstance(value, list) or len(texts) != len(value):
        message = f"`{model.path / name}`: `{key}` is not a list of texts"
        raise ModelInvalidError(message, model=model.path, path=name, key=key)
    return texts


def _from_flavors(model: Model, settings: Settings) -> Dependencies:
    inferred = flavors.requirements(model) if settings.resolve.repair else ()
    if not inferred:
        message = (
            f"the model `{model.path}` does not say what it depends on: it has no "
            "`conda.yaml`, `python_env.yaml` or `requirements.txt`"
        )
        raise ModelInvalidError(message, model=model.path)
    texts = ", ".join(one.text for one in inferred)
    message = f"the model has no file of dependencies; its flavors were logged with {texts}"
    note = Note("INFERRED_FROM_FLAVORS", message)
    return Dependencies(None, (), Requirements(inferred), (note,))


def _with_python(model: Model, found: Dependencies) -> Dependencies:
    version = first_version(model.python_version or "")
    if found.python or version is None:
        return found
    message = f"the model's files name no Python; it was logged with {version}"
    note = Note("PYTHON_FROM_MLMODEL", message)
    return replace(found, python=version, notes=(*found.notes, note))
