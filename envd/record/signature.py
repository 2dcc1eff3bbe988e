"""What a model takes and answers, as its `MLmodel` says it: given, MLflow's inference, or ours."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from envd.errors import RequestInvalidError
from envd.record.example import Example, is_array, is_table

_PARTS = ("inputs", "outputs", "params")
# numpy's kind and size of an item, and MLflow's type (mlflow/types/utils.py, _infer_numpy_dtype).
_TYPES = {
    ("b", 1): "boolean",
    ("i", 8): "long",
    ("u", 4): "long",
    ("f", 4): "float",
    ("f", 8): "double",
    ("M", 8): "datetime",
}


def given(signature: Any) -> dict[str, str | None]:
    """Return *signature*, an object of MLflow's or a mapping, as the `MLmodel` has it.

    Raises:
        RequestInvalidError: it is neither.
    """
    document = signature.to_dict() if hasattr(signature, "to_dict") else signature
    if not isinstance(document, Mapping) or not set(document) <= set(_PARTS):
        message = (
            f"`signature` is no mapping of {', '.join(_PARTS)}, nor a ModelSignature of MLflow"
        )
        raise RequestInvalidError(message)
    return {part: _text(document.get(part)) for part in _PARTS}


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def inferred(example: Example, answer: Any) -> dict[str, str | None] | None:
    """Return what *example* and the *answer* to it show, None if that is nothing.

    By MLflow where it is installed; else what tables and arrays are.
    """
    try:
        from mlflow.models import infer_signature  # noqa: PLC0415
    except ImportError:
        inputs, outputs = _described(example.data), _described(answer)
        return given({"inputs": inputs, "outputs": outputs}) if inputs else None
    # Of some answers an older MLflow makes nothing, and of some inputs none does: a model is
    # recorded without, too.
    for one in (answer, None):
        with contextlib.suppress(Exception):
            return given(infer_signature(example.data, one, example.params))
    return None


def _described(data: Any) -> list[dict[str, Any]] | None:
    if is_table(data):
        columns = [
            {"type": _type_of(data[name]), "name": str(name), "required": True}
            for name in data.columns
        ]
        return columns if all(one["type"] for one in columns) else None
    if is_array(data) and not data.dtype.hasobject:
        shape = [-1, *data.shape[1:]]
        return [{"type": "tensor", "tensor-spec": {"dtype": str(data.dtype), "shape": shape}}]
    return None


def _type_of(column: Any) -> str | None:
    kind, size = column.dtype.kind, getattr(column.dtype, "itemsize", 0)
    if kind in "iu" and size <= 4 and (kind, size) not in _TYPES:  # noqa: PLR2004
        return "integer"
    if kind == "O" or type(column.dtype).__name__ == "StringDtype":
        return "string" if all(isinstance(one, str) for one in column) else None
    return _TYPES.get((kind, size))
