"""Gathers what a model depends on from whichever of its files say so.

The order is MLflow's (`mlflow/utils/virtualenv.py`, `_get_python_env`): `python_env.yaml`;
else `requirements.txt` with the Python of `conda.yaml`; else `conda.yaml` alone, whose
conda packages MLflow drops and envd translates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from envd.errors import ModelInvalidError
from envd.events import Note
from envd.model import Model, documents, files
from envd.spec import conda_yaml, requirements
from envd.spec.python import first_version, release
from envd.spec.requirements import Place, Requirement, Requirements

_MLFLOW = {"mlflow", "mlflow-skinny"}
_FIRST_PYTHON_WITHOUT_SETUPTOOLS = (3, 12)


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What a model asks for, before an interpreter is chosen.

    `python` is a version of one to three numbers, or None where the model names none.
    """

    python: str | None
    build: tuple[Requirement, ...]
    asked: Requirements
    notes: tuple[Note, ...]


def read(model: Model) -> Dependencies:
    """Read the dependency files of *model*.

    Raises:
        ModelInvalidError: a file cannot be used, or there is none.
    """
    return _with_mlflow(model, _with_setuptools(_with_python(model, _from_files(model))))


def _from_files(model: Model) -> Dependencies:
    if model.virtualenv_file:
        return _from_python_env(model.path, model.virtualenv_file)
    has_requirements = files.exists(model.path, "requirements.txt")
    if model.conda_file is None:
        if not has_requirements:
            message = (
                f"the model `{model.path}` does not say what it depends on: it has no "
                "`conda.yaml`, `python_env.yaml` or `requirements.txt`"
            )
            raise ModelInvalidError(message, model=model.path)
        return Dependencies(None, (), requirements.read(model.path, "requirements.txt"), ())
    conda = conda_yaml.read(model.path, model.conda_file)
    build = requirements.read_entries(model.path, model.conda_file, conda.build)
    if has_requirements:
        asked = requirements.read(model.path, "requirements.txt")
        return Dependencies(conda.python, build.requirements, asked, ())
    asked = requirements.read_entries(model.path, model.conda_file, conda.packages + conda.pip)
    return Dependencies(conda.python, build.requirements, asked, conda.notes)


def _from_python_env(path: Path, name: str) -> Dependencies:
    document = documents.read(path, name)
    python = document.get("python")
    build = _texts(path, name, document, "build_dependencies")
    asked = _texts(path, name, document, "dependencies")
    return Dependencies(
        first_version(python) if isinstance(python, str) else None,
        requirements.read_entries(path, name, build).requirements,
        requirements.read_entries(path, name, asked),
        (),
    )


def _texts(path: Path, name: str, document: documents.Document, key: str) -> tuple[str, ...]:
    value = (document.get(key) if isinstance(document, dict) else None) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        message = f"`{path / name}`: `{key}` is not a list of texts"
        raise ModelInvalidError(message, model=path, path=name, key=key)
    return tuple(str(item) for item in value)


def _with_python(model: Model, found: Dependencies) -> Dependencies:
    version = first_version(model.python_version or "")
    if found.python or version is None:
        return found
    message = f"the model's files name no Python; it was logged with {version}"
    return replace(
        found, python=version, notes=(*found.notes, Note("PYTHON_FROM_MLMODEL", message))
    )


def _with_setuptools(found: Dependencies) -> Dependencies:
    """Add setuptools where MLflow's own environments have it without being asked."""
    named = {one.name for one in (*found.build, *found.asked.requirements)}
    version = release(found.python or "")
    if "setuptools" in named or not version or version >= _FIRST_PYTHON_WITHOUT_SETUPTOOLS:
        return found
    # setuptools 82 dropped pkg_resources, which mlflow before 2.16 imports (mlflow#11330).
    added = Requirement("setuptools", "setuptools<81")
    message = "setuptools is added, as every virtualenv of this Python has it"
    note = Note("SETUPTOOLS_ADDED", message, "setuptools")
    return replace(found, build=(*found.build, added), notes=(*found.notes, note))


def _with_mlflow(model: Model, found: Dependencies) -> Dependencies:
    """Add mlflow at the model's own version where its loader needs it and nothing names it."""
    named = {one.name for one in found.asked.requirements}
    if named & _MLFLOW or model.loader_module.split(".")[0] != "mlflow":
        return found
    text = f"mlflow=={model.mlflow_version}" if model.mlflow_version else "mlflow"
    added = requirements.requirement(Place(model.path, "MLmodel", 1), text)
    message = f"`{added.text}` is added: `{model.loader_module}` needs it and nothing names it"
    note = Note("MLFLOW_ADDED", message, "mlflow")
    return replace(found, asked=found.asked + Requirements((added,)), notes=(*found.notes, note))
