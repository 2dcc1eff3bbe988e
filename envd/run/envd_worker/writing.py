"""Writes the answer of a model, as MLflow's scoring server does."""

import base64
import datetime as dt
import json
import math
import sys

from .refusals import Refused, name, short


def write(raw, is_chat, limit, setting="daemon.max_message"):
    """Return what a model answered as JSON of at most *limit* bytes, and notes on it.

    Which *setting* the limit is can be read in the error of what is larger.
    """
    try:
        body, notes = as_json(plain(raw) if is_chat else {"predictions": plain(raw)})
    except Exception as error:
        # Whatever it is: it was the model's objects that were asked.
        message = "the model's answer cannot be written as JSON: " + short(error)
        raise Refused("MODEL_RAISED", message, exception=name(error))
    if len(body) > limit:
        message = "the answer is %d bytes, more than the %d that `%s` allows"
        raise Refused("PAYLOAD_TOO_LARGE", message % (len(body), limit, setting))
    return body, notes


def as_json(document, **form):
    """Return *document* as JSON bytes, and notes on what was changed in it.

    *form* is how `json.dumps` is to write it.
    """
    try:
        text, notes = json.dumps(document, default=_default, allow_nan=False, **form), []
    except ValueError:
        # NaN and infinities are not JSON; MLflow sends them all the same.
        finite = _finite(json.loads(json.dumps(document, default=_default)))
        note = "NaN and infinities in the answer are sent as null"
        text, notes = json.dumps(finite, **form), [{"code": "NAN_AS_NULL", "message": note}]
    return text.encode(), notes


def plain(raw):
    """Return tables as lists of records, and anything else as it is."""
    pandas = sys.modules.get("pandas")
    if pandas and isinstance(raw, pandas.Series):
        raw = pandas.DataFrame(raw)
    if pandas and isinstance(raw, pandas.DataFrame):
        return raw.to_dict(orient="records")
    return raw


def _default(value):
    """Write what JSON has no form for, as MLflow's NumpyEncoder does."""
    if isinstance(value, (bytes, bytearray)):
        return base64.encodebytes(value).decode("ascii")
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    numpy = sys.modules.get("numpy")
    if numpy and isinstance(value, numpy.datetime64):
        return numpy.datetime_as_string(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "model_dump"):
        return value.model_dump()
    raise TypeError("%s has no JSON form" % type(value).__name__)


def _finite(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
