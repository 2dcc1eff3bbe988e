"""How a Python model is kept: its pickle or its script, and what the `MLmodel` says of it."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envd.errors import RequestInvalidError
from envd.record import envd_recorded
from envd.record.environment import version_of

PICKLE = "python_model.pkl"
LOADER = Path(envd_recorded.__file__)
_RECORDED = "recorded.json"
_MLFLOW_LOADER = "mlflow.pyfunc.model"


@dataclass(frozen=True)
class PythonModel:
    """What is to be kept of a model, as a pickle or as the script that makes it.

    `is_mlflow` says whether MLflow's own loader loads it: then it is of a class of MLflow's,
    or a script that says itself what its model is.
    """

    kind: str
    given: Any = field(repr=False)
    name: str = ""
    is_mlflow: bool = False

    @property
    def file(self) -> str:
        """The file in the model."""
        return self.given.name if self.kind == "script" else PICKLE

    def write(self, folder: Path) -> None:
        """Write it into *folder*.

        Raises:
            RequestInvalidError: it cannot be pickled.
        """
        if self.kind == "script":
            shutil.copyfile(self.given, folder / self.file)
        else:
            (folder / PICKLE).write_bytes(_pickled(self.given))

    def flavor(
        self,
        folder: Path,
        artifacts: Mapping[str, tuple[str, str]],
        config: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Return what the `MLmodel` says; what the loader of envd's needs goes into *folder*.

        *artifacts* have a path in the model, and where it came from, by name.
        """
        flavor: dict[str, Any] = {
            "code": None,
            "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
            "loader_module": _MLFLOW_LOADER if self.is_mlflow else LOADER.stem,
            "python_version": platform.python_version(),
            "streamable": self.is_streamable,
        }
        if config:
            flavor["config"] = dict(config)
        if self.kind != "script":
            flavor |= {"python_model": PICKLE, "cloudpickle_version": version_of("cloudpickle")}
            if not flavor["cloudpickle_version"]:
                del flavor["cloudpickle_version"]
        elif self.is_mlflow:
            flavor["model_code_path"] = self.file
        if artifacts:
            flavor["artifacts"] = {
                name: {"path": path, "uri": uri} for name, (path, uri) in artifacts.items()
            }
        if not self.is_mlflow:
            self._write_about(folder, artifacts, config)
        return flavor

    def _write_about(
        self,
        folder: Path,
        artifacts: Mapping[str, tuple[str, str]],
        config: Mapping[str, Any] | None,
    ) -> None:
        about = {
            "kind": self.kind,
            "file": self.file,
            "object": self.name,
            "artifacts": {name: path for name, (path, _) in artifacts.items()},
            "config": dict(config or {}),
        }
        (folder / _RECORDED).write_text(json.dumps(about, indent=1))

    @property
    def is_streamable(self) -> bool:
        """Whether it can answer item by item, as far as it can be told without running it."""
        method = getattr(type(self.given), "predict_stream", None)
        return method is not None and not method.__module__.startswith("mlflow.")

    def defined_in(self) -> tuple[str, Path] | None:
        """Return the module whose definitions go into the pickle, and its file; None for none."""
        if self.kind == "script":
            return None
        given = self.given if self.kind == "function" else type(self.given)
        name = getattr(given, "__module__", "")
        file = getattr(sys.modules.get(name), "__file__", None)
        return (name, Path(file)) if file and name in _by_value() else None

    def adapted(self, artifacts: Mapping[str, str], config: Mapping[str, Any] | None) -> Any:
        """Return what answers here as the model will there, None if that is MLflow's to know."""
        context = envd_recorded.Context(dict(artifacts), dict(config or {}))
        if self.kind == "script":
            if self.is_mlflow:
                return None
            return envd_recorded.Adapted(envd_recorded.from_script(self.given, self.name), context)
        return envd_recorded.Adapted(self.given, context)


def _by_value() -> set[str]:
    """Return the modules of which cloudpickle takes along what they define."""
    found = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", set)
    return {"__main__", *found()}


def of(given: Any) -> PythonModel:
    """Return how *given* is kept: an object, a function, or a path to a script.

    A script is `SCRIPT.py:NAME`, or one that calls `mlflow.models.set_model`.

    Raises:
        RequestInvalidError: it is no model.
    """
    if isinstance(given, str | Path):
        return _script(str(given))
    if isinstance(given, type):
        message = f"`python_model` is the class `{given.__name__}`; give an instance of it"
        raise RequestInvalidError(message)
    if callable(getattr(given, "predict", None)):
        base = getattr(sys.modules.get("mlflow.pyfunc"), "PythonModel", ())
        return PythonModel("instance", given, is_mlflow=isinstance(given, base))
    if callable(given):
        _must_take_input(given)
        return PythonModel("function", given)
    message = f"`python_model` is a {type(given).__name__}, which has no `predict`"
    raise RequestInvalidError(message)


def _script(text: str) -> PythonModel:
    path, _, name = text.partition(":")
    try:
        source = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        message = f"the script `{path}` of `python_model` cannot be read: {error}"
        raise RequestInvalidError(message, path=path) from error
    if not name and "set_model" not in source:
        message = (
            f"the script `{path}` does not say what its model is; give `{path}:NAME`, or call "
            "`mlflow.models.set_model` in it"
        )
        raise RequestInvalidError(message, path=path)
    return PythonModel("script", Path(path), name, is_mlflow=not name)


def _must_take_input(function: Any) -> None:
    try:
        named = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return
    if not named:
        message = f"the function `{getattr(function, '__name__', function)}` takes no input"
        raise RequestInvalidError(message)


def _pickled(given: Any) -> bytes:
    try:
        import cloudpickle  # noqa: PLC0415
    except ImportError:
        return _plainly_pickled(given)
    try:
        return bytes(cloudpickle.dumps(given))
    except Exception as error:
        message = f"`python_model` cannot be pickled: {type(error).__name__}: {error}"
        raise RequestInvalidError(message) from error


def _plainly_pickled(given: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        pickle.Pickler(buffer, protocol=4).dump(given)
    except Exception as error:
        message = (
            f"`python_model` cannot be pickled without cloudpickle ({error}); install cloudpickle"
        )
        raise RequestInvalidError(message) from error
    # `pickle` finds the class here, and nobody there.
    if b"__main__" in buffer.getvalue():
        message = (
            "`python_model` is of a class in `__main__`, which nobody else has; install "
            "cloudpickle, which takes it along, or put it into a module"
        )
        raise RequestInvalidError(message)
    return buffer.getvalue()
