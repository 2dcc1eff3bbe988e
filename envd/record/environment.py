"""Writes what says how a model's environment is made, as MLflow does.

See mlflow/utils/environment.py.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from envd.errors import RequestInvalidError
from envd.record import requirements
from envd.record.requirements import Asked

CondaEnv: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"

_BUILD = ("pip", "setuptools", "wheel")
_PYTHON = re.compile(r"python\s*={1,2}\s*(\d+\.\d+(?:\.\d+)?)")
_CONSTRAINTS = "-c constraints.txt"


@dataclass(frozen=True, slots=True)
class Environment:
    """What a model depends on, and the conda environment it was given as, if it was."""

    asked: Asked
    conda: Mapping[str, Any] | None = None


def of_conda(given: CondaEnv) -> Environment:
    """Read a conda environment, a mapping or a file.

    Raises:
        RequestInvalidError: it is none.
    """
    document: Any = given
    if isinstance(given, str | os.PathLike):
        try:
            document = yaml.safe_load(Path(given).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            message = f"`{given}` of `conda_env` cannot be read: {error}"
            raise RequestInvalidError(message, path=given) from error
    entries = document.get("dependencies") if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        message = "`conda_env` has no list of `dependencies`"
        raise RequestInvalidError(message)
    lines = [line for one in entries if isinstance(one, Mapping) for line in one.get("pip") or []]
    return Environment(requirements.read([str(one) for one in lines], "conda_env"), document)


def write(folder: Path, environment: Environment) -> None:
    """Write the files of *environment* into *folder*."""
    lines = list(environment.asked.lines)
    if constraints := environment.asked.constraints:
        (folder / "constraints.txt").write_text("\n".join(constraints))
        lines.append(_CONSTRAINTS)
    (folder / "requirements.txt").write_text("\n".join(lines))
    conda = dict(environment.conda or _conda())
    conda["dependencies"] = _with_pip(list(conda["dependencies"]), lines)
    _dump(folder / "conda.yaml", conda)
    python = {
        "python": _python_of(conda["dependencies"]) or platform.python_version(),
        "build_dependencies": [_pinned(one) for one in _BUILD],
        "dependencies": ["-r requirements.txt"],
    }
    _dump(folder / "python_env.yaml", python, sort_keys=False)


def _conda() -> dict[str, Any]:
    pip = version_of("pip")
    # Not `==`: conda-forge has a new pip later than PyPI.
    dependencies = [f"python={platform.python_version()}", f"pip<={pip}" if pip else "pip"]
    return {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}


def _with_pip(entries: list[Any], lines: list[str]) -> list[Any]:
    others = [one for one in entries if not isinstance(one, Mapping)]
    if lines and not any(re.match(r"pip\b", str(one)) for one in others):
        others.append("pip")
    return [*others, {"pip": lines}] if lines else others


def _python_of(entries: list[Any]) -> str:
    found = (_PYTHON.fullmatch(one.strip()) for one in entries if isinstance(one, str))
    return next((one[1] for one in found if one), "")


def _pinned(name: str) -> str:
    version = version_of(name)
    return f"{name}=={version}" if version else name


def version_of(name: str) -> str:
    """Return the version of the distribution *name* here, empty if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _dump(path: Path, document: Mapping[str, Any], *, sort_keys: bool = True) -> None:
    with path.open("w") as file:
        yaml.safe_dump(dict(document), file, default_flow_style=False, sort_keys=sort_keys)
