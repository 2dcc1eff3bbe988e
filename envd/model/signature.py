"""What the signature of a model says of its tensors, as MLServer's metadata have it.

See mlserver_mlflow 1.7, metadata.py; MLflow keeps the parts of a signature as texts of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from envd.model.mlmodel import Model

_COLUMNS = {
    "boolean": ("BOOL", "np"),
    "integer": ("INT32", "np"),
    "long": ("INT64", "np"),
    "float": ("FP32", "np"),
    "double": ("FP64", "np"),
    "string": ("BYTES", "str"),
    "binary": ("BYTES", "base64"),
    "datetime": ("BYTES", "datetime"),
}
_TENSORS = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"int{size}": f"INT{size}" for size in (8, 16, 32, 64)},
    **{f"uint{size}": f"UINT{size}" for size in (8, 16, 32, 64)},
}  # fmt: skip
_MAX_TENSORS, _LARGEST = 10_000, 1 << 62


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a model: -1 in its `shape` is any size; `content_type` is how it is read."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content_type: str


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of a model; `content_type` is what its requests become, empty if unknown."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    content_type: str


def of(model: Model) -> Signature:
    """Return what the signature of *model* says; what cannot be read says nothing."""
    inputs, outputs = (columns(model, part) for part in ("inputs", "outputs"))
    return Signature(
        tuple(_specs(inputs, "input-")), tuple(_specs(outputs, "output-")), _whole(inputs)
    )


def columns(model: Model, part: str) -> list[Mapping[str, Any]]:
    """Return the *part* of a signature, `inputs` or `outputs`, as MLflow has it; none if unread."""
    whole = model.signature
    text = whole.get(part) if isinstance(whole, dict) else None
    try:
        found = json.loads(text) if isinstance(text, str) else []
        # JSON may hold half of a character, which no answer can.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, list) or len(found) > _MAX_TENSORS:
        return []
    return found if all(isinstance(one, dict) for one in found) else []


def _specs(columns: list[Mapping[str, Any]], prefix: str) -> Iterator[TensorSpec]:
    for place, column in enumerate(columns):
        name = str(column.get("name") or f"{prefix}{place}")
        if column.get("type") == "tensor":
            about = column.get("tensor-spec")
            about = about if isinstance(about, dict) else {}
            datatype = _TENSORS.get(str(about.get("dtype")), "BYTES")
            yield TensorSpec(name, datatype, _shape(about.get("shape")), "np")
        else:
            datatype, content_type = _COLUMNS.get(str(column.get("type")), ("BYTES", "pd_json"))
            yield TensorSpec(name, datatype, (-1, 1), content_type)


def _shape(given: object) -> tuple[int, ...]:
    sizes = given if isinstance(given, list) else []
    return tuple(one if type(one) is int and 0 <= one < _LARGEST else -1 for one in sizes)


def _whole(inputs: list[Mapping[str, Any]]) -> str:
    if not inputs:
        return ""
    if not all(one.get("type") == "tensor" for one in inputs):
        return "pd"
    return "dict" if all(one.get("name") for one in inputs) else "np"
