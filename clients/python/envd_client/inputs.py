"""Turns what a caller has into the payload of a prediction."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import sys
from typing import Any

from envd_client.errors import PayloadInvalidError

JSON = "application/json"

_SCORING_KEYS = frozenset(("dataframe_split", "dataframe_records", "instances", "inputs"))
_BARE_KEYS = frozenset(("columns", "data"))


def encode(data: object, content_type: str | None = None) -> tuple[bytes, str]:
    """Return *data* as a payload and the content type of it.

    Bytes and text pass as they are, JSON unless *content_type* says otherwise. Anything
    else becomes MLflow's scoring JSON: see `document`.

    Raises:
        PayloadInvalidError: JSON has no form for the data.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), content_type or JSON
    if isinstance(data, str):
        return _encoded(data), content_type or JSON
    if content_type and content_type.partition(";")[0].strip().lower() != JSON:
        message = f"cannot write `{_name(data)}` as `{content_type}`; give bytes"
        raise PayloadInvalidError(message)
    return to_json(document(data)).encode(), content_type or JSON


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        message = f"the input cannot be sent as UTF-8: {error}"
        raise PayloadInvalidError(message) from error


def document(data: object) -> dict[str, object]:
    """Return MLflow's scoring document of a DataFrame, Series, ndarray, dict or list.

    A dict that is such a document already stays as it is.

    Raises:
        PayloadInvalidError: *data* is none of these.
    """
    if _is(data, "pandas", "DataFrame"):
        return {"dataframe_split": _split(data)}
    if isinstance(data, dict) and _is_document(data):
        return data
    if isinstance(data, (dict, list, tuple)) or _is_column(data):
        return {"inputs": data}
    message = f"`{_name(data)}` cannot be sent; give a DataFrame, an array, a dict, a list or bytes"
    raise PayloadInvalidError(message)


def to_json(value: object, *, of: str = "input") -> str:
    """Return *value* as JSON, what is missing in it (NaN, NaT) as null.

    Raises:
        PayloadInvalidError: JSON has no form for it, as for an infinity.
    """
    try:
        return _dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"cannot write the {of} as JSON: {error}"
        raise PayloadInvalidError(message) from error


def _dumps(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False, default=_plain)
    except ValueError:
        # Looking at every value costs several times the encoding: only where one is a NaN.
        return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, float):
        return _number(value)
    if value is None or isinstance(value, (str, int)):
        return value
    return _without_nan(_plain(value))


def _number(value: float) -> float | None:
    if math.isinf(value):
        message = "there is no form for an infinity"
        raise ValueError(message)
    return None if math.isnan(value) else value


def _plain(value: object) -> object:
    if _is_column(value) or _is(value, "numpy", "generic"):
        return _listed(value)
    if _is_missing(value):
        return None
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    message = f"there is no form for `{_name(value)}`"
    raise TypeError(message)


def _split(frame: Any) -> dict[str, object]:
    columns = [column.tolist() for _, column in frame.items()]
    return {
        "columns": frame.columns.tolist(),
        "index": frame.index.tolist(),
        "data": list(zip(*columns)),
    }


def _listed(array: Any) -> object:
    numpy = sys.modules["numpy"]
    kind = array.dtype.kind
    if kind == "m":
        message = f"there is no form for `{array.dtype}`"
        raise TypeError(message)
    if kind == "M" and not _is(array, "pandas", "Series"):
        # tolist() makes integers of nanoseconds.
        return numpy.where(numpy.isnat(array), None, numpy.datetime_as_string(array)).tolist()
    return array.tolist()


def _is_document(data: dict[Any, object]) -> bool:
    keys = data.keys()
    return bool(keys & _SCORING_KEYS) or _BARE_KEYS <= keys <= _BARE_KEYS | {"index"}


def _is_column(value: object) -> bool:
    return _is(value, "numpy", "ndarray") or _is(value, "pandas", "Series")


def _is_missing(value: object) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and (value is pandas.NaT or value is pandas.NA)


def _is(value: object, module: str, name: str) -> bool:
    # Whoever has such a value has imported its module.
    return isinstance(value, getattr(sys.modules.get(module), name, ()))


def _name(value: object) -> str:
    return type(value).__name__
