"""Writes the example of an input, as MLflow does (`_Example` in mlflow/models/utils.py)."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from envd.errors import RequestInvalidError

_FILE, _SERVING = "input_example.json", "serving_input_example.json"
_CHAT = ("messages", "prompt", "input")
_SERVED = ("dataframe_split", "dataframe_records", "inputs", "instances")


@dataclass(frozen=True, slots=True)
class Example:
    """An example: the data, the params or None, and how both are asked of a server."""

    data: Any
    params: dict[str, Any] | None
    kind: str
    stored: Any
    served: dict[str, Any]

    @property
    def serving_json(self) -> str:
        """The text of a request."""
        return _dumped(self.served, indent=2)

    def write(self, folder: Path) -> dict[str, str]:
        """Write it into *folder*, and return what the `MLmodel` says of it."""
        (folder / _FILE).write_text(_dumped(self.stored))
        (folder / _SERVING).write_text(self.serving_json)
        about = {"artifact_path": _FILE, "serving_input_path": _SERVING, "type": self.kind}
        if self.kind == "dataframe":
            about["pandas_orient"] = "split"
        if self.params is not None:
            about["params"] = "true"
        return about


def of(given: Any) -> Example:
    """Return the example *given*: data, or data and params.

    Raises:
        RequestInvalidError: it is of a kind that cannot be written.
    """
    pair = 2
    is_pair = isinstance(given, tuple) and len(given) == pair and isinstance(given[1], dict | None)
    data, params = given if is_pair else (given, None)
    kind, stored, served = _forms(data)
    try:
        _dumped(served)
    except (TypeError, ValueError) as error:
        message = f"`input_example` cannot be written as JSON: {error}"
        raise RequestInvalidError(message) from error
    if params is not None:
        stored = {"data": stored, "params": params}
        served = {**served, **params} if served is data else {**served, "params": params}
    return Example(data, params, kind, stored, served)


def _forms(data: Any) -> tuple[str, Any, dict[str, Any]]:
    if is_table(data):
        split = data.to_dict(orient="split")
        table = {"columns": split["columns"], "data": split["data"]}
        return "dataframe", table, {"dataframe_split": table}
    if is_array(data):
        return "ndarray", {"inputs": data.tolist()}, {"inputs": data.tolist()}
    if isinstance(data, dict) and data and all(is_array(one) for one in data.values()):
        arrays = {name: one.tolist() for name, one in data.items()}
        return "ndarray", {"inputs": arrays}, {"inputs": arrays}
    if isinstance(data, dict) and any(key in data for key in _CHAT):
        return "json_object", data, data
    return "json_object", data, {"inputs": data}


def of_request(document: Any) -> Any:
    """Return what a model is given when *document*, of a server's form, is asked of it.

    What has no such form is the data itself.
    """
    form = next((one for one in _SERVED if isinstance(document, dict) and one in document), None)
    if form is None:
        return document
    value, params = document[form], document.get("params")
    if form.startswith("dataframe_"):
        import pandas as pd  # noqa: PLC0415

        value = pd.DataFrame(**value) if form == _SERVED[0] else pd.DataFrame(value)
    return value if params is None else (value, params)


def is_table(data: Any) -> bool:
    """Whether *data* is a table of pandas."""
    return _is(data, "pandas", "DataFrame")


def is_array(data: Any) -> bool:
    """Whether *data* is an array of numpy."""
    return _is(data, "numpy", "ndarray")


def _is(data: Any, package: str, name: str) -> bool:
    kinds = type(data).__mro__
    return any(one.__name__ == name and one.__module__.split(".")[0] == package for one in kinds)


def _dumped(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, default=_plain, indent=indent)


def _plain(value: Any) -> Any:
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if is_array(value) or hasattr(value, "tolist"):
        return value.tolist()
    message = f"{type(value).__name__} is not JSON"
    raise TypeError(message)
