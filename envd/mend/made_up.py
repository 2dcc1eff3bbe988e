"""A made-up input for a model that was logged without an example: a row that fits its signature."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from envd.model import Model, signature

_VALUES: dict[str, Any] = {
    "boolean": True, "integer": 1, "long": 1, "float": 1.0, "double": 1.0, "string": "a",
    "binary": "YQ==", "datetime": "2024-01-01T00:00:00", "any": "a",
}  # fmt: skip
_TEXTS = ("str", "object", "bytes")
_LARGEST = 10_000
_DEEPEST = 20


def payload(model: Model) -> bytes | None:
    """Return the JSON of such an input; None where the signature says too little."""
    columns = signature.columns(model, "inputs")
    try:
        found = _input(columns) if columns else None
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return None if found is None else json.dumps(found).encode()


def _input(columns: list[Mapping[str, Any]]) -> Any:
    names = [one.get("name") for one in columns]
    if all(one.get("type") == "tensor" for one in columns):
        values = [_tensor(one["tensor-spec"]) for one in columns]
        if all(names):
            return {"inputs": dict(zip(names, values, strict=True))}
        return {"inputs": values[0]} if len(values) == 1 else None
    values = [_value(one, 0) for one in columns]
    if all(names):
        return {"dataframe_split": {"columns": names, "data": [values]}}
    return {"inputs": [values[0]]} if len(values) == 1 else None


def _tensor(spec: Mapping[str, Any]) -> Any:
    shape = [1 if size == -1 else int(size) for size in spec["shape"]]
    kind = str(spec["dtype"])
    value: Any = "a" if kind.startswith(_TEXTS) else kind == "bool" or 1
    size = 1
    for one in reversed(shape):
        size *= one
        if size > _LARGEST:
            message = "it is too large to be made up"
            raise ValueError(message)
        value = [value] * one
    return value


def _value(column: Mapping[str, Any], depth: int) -> Any:
    if depth > _DEEPEST:
        message = "it is nested too deep"
        raise ValueError(message)
    kind = column["type"]
    if kind == "array":
        return [_value(column["items"], depth + 1)]
    if kind == "map":
        return {"a": _value(column["values"], depth + 1)}
    if kind == "object":
        properties = column["properties"].items()
        return {name: _value(one, depth + 1) for name, one in properties}
    return _VALUES[kind]
