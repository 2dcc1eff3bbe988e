"""Loads one model and answers framed requests: run by the environment's own Python.

Standard library only, and the grammar of Python 3.6: nothing is installed into a model's
environment for envd's sake. `python -I -B worker.py FD` speaks over the inherited socket
FD, never over descriptors 0, 1 or 2, which belong to the model.

A frame is a header (payload length, request id, kind, head length), a JSON head, and the
payload. The daemon sends LOAD once and then PREDICT; the worker answers each with DONE
or FAILED and the same id, in order.
"""

import base64
import datetime as dt
import importlib
import importlib.util
import inspect
import io
import json
import math
import os
import socket
import struct
import sys
import time
import traceback

HEADER = struct.Struct("!QIBI")
LOAD, PREDICT, DONE, FAILED = range(4)
MAX_HEAD_BYTES = 1 << 20

_FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_SCHEMA_FUNCTIONS = ("_enforce_", "_validate_prediction_input", "_validate_params")
_LLM_KEYS = ("messages", "prompt", "input")
_MAX_TRACEBACK = 8000


class Refused(Exception):
    """A request that cannot be answered: a reason of envd's, and its metadata."""

    def __init__(self, reason, message, **metadata):
        """Keep what the daemon makes an error of."""
        super().__init__(message)
        self.reason, self.metadata = reason, metadata


class Log(io.FileIO):
    """The log of this worker: on a full disk what is said is lost, and nothing else."""

    def write(self, data):
        """Write *data*, if there is room."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def said_to(descriptor):
    """Return a file to print to."""
    binary = io.BufferedWriter(Log(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(binary, errors="backslashreplace", line_buffering=True)


def main():
    """Answer frames until the socket ends."""
    sys.stdout, sys.stderr = said_to(1), said_to(2)
    connection = socket.socket(fileno=int(sys.argv[1]))
    # Model code may start children: none of them may hold the socket open.
    os.set_inheritable(connection.fileno(), False)  # noqa: FBT003
    model, limit = None, None
    while True:
        frame = receive(connection)
        if frame is None:
            return
        number, kind, head, payload = frame
        try:
            if kind == LOAD:
                limit = head["max_payload"]
                model, answer, body = load(head), {"pid": os.getpid()}, b""
            else:
                answer, body = predict(model, head, payload, limit)
        except Refused as refused:
            answer = {"reason": refused.reason, "message": str(refused)}
            answer["metadata"] = {key: str(value) for key, value in refused.metadata.items()}
            send(connection, number, FAILED, answer, b"")
        else:
            send(connection, number, DONE, answer, body)


def receive(connection):
    """Return the next frame as (id, kind, head, payload), or None at the end."""
    header = _exactly(connection, HEADER.size)
    if header is None:
        return None
    size, number, kind, head_size = HEADER.unpack(header)
    head = json.loads(bytes(_exactly(connection, head_size) or b"{}").decode())
    return number, kind, head, _exactly(connection, size)


def send(connection, number, kind, head, payload):
    """Send one frame."""
    text = json.dumps(head).encode()
    connection.sendall(HEADER.pack(len(payload), number, kind, len(text)) + text)
    connection.sendall(payload)


def _exactly(connection, size):
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        try:
            count = connection.recv_into(view)
        except ConnectionResetError:
            count = 0
        if not count:
            return None
        view = view[count:]
    return buffer


def load(head):
    """Load the model that *head* describes and return what has its `predict`."""
    if head.get("code"):
        # Before anything is unpickled: pickles refer to the modules in it.
        sys.path.insert(0, head["code"])
    try:
        return _load(head)
    except (Exception, SystemExit) as error:
        _refuse_missing(error)
        message = "the model cannot be loaded: %s: %s" % (_name(error), _short(error))
        raise Refused("MODEL_INVALID", message, traceback=_traceback(), exception=_name(error))


def _load(head):
    try:
        pyfunc = importlib.import_module("mlflow.pyfunc")
    except ImportError as error:
        # A loader of the model's own may do without mlflow; MLflow's cannot.
        if error.name != "mlflow" or head["loader_module"].split(".")[0] == "mlflow":
            raise
        loader = importlib.import_module(head["loader_module"])
        return loader._load_pyfunc(head["data"])
    return pyfunc.load_model(head["model"])


def predict(model, head, payload, limit):
    """Return the head and the payload of the answer to one request."""
    started = time.perf_counter()
    try:
        data, params, is_chat = _input(payload, head["content_type"], _metadata(model))
    except Refused:
        raise
    except Exception as error:
        raise Refused("PAYLOAD_INVALID", "the input does not fit: " + _short(error))
    raw = _call(model, data, head["params"] if head.get("params") is not None else params)
    body, notes = _answer(_plain(raw) if is_chat else {"predictions": _plain(raw)})
    if len(body) > limit:
        message = "the answer is %d bytes, more than the %d that `daemon.max_message` allows"
        raise Refused("PAYLOAD_TOO_LARGE", message % (len(body), limit))
    return {"seconds": time.perf_counter() - started, "notes": notes}, body


def _call(model, data, params):
    try:
        if params is not None and "params" in inspect.signature(model.predict).parameters:
            return model.predict(data, params=params)
        return model.predict(data)
    except (Exception, SystemExit) as error:
        _refuse_missing(error)
        functions = [frame.name for frame in traceback.extract_tb(sys.exc_info()[2])]
        if any(name.startswith(_SCHEMA_FUNCTIONS) for name in functions):
            raise Refused("PAYLOAD_INVALID", "the input does not fit the model: " + _short(error))
        message = "the model raised " + _name(error) + ": " + _short(error)
        raise Refused("MODEL_RAISED", message, exception=_name(error), traceback=_traceback())


class Metadata:
    """What the signature of a model says of its input; nothing, for one without mlflow."""

    schema, params, is_from_type_hint = None, (), False


def _metadata(model):
    found, given = Metadata(), getattr(model, "metadata", None)
    if hasattr(given, "get_input_schema"):
        found.schema = given.get_input_schema()
    if hasattr(given, "get_params_schema"):
        params = given.get_params_schema()
        found.params = [one.name for one in params.params] if params else ()
    if hasattr(given, "_is_signature_from_type_hint"):
        found.is_from_type_hint = given._is_signature_from_type_hint()
    return found


def _input(payload, content_type, metadata):
    """Return the data and the params of *payload*, as MLflow's scoring server reads them.

    The third value says whether it came in the form of the LLM providers, whose answer
    is not wrapped.
    """
    kind = content_type.split(";")[0].strip().lower()
    text = payload.decode("utf-8-sig")
    if kind == "text/csv":
        return _csv(text, metadata.schema), None, False
    if kind != "application/json":
        message = "the content type `%s` is not known; send application/json or text/csv"
        raise Refused("PAYLOAD_INVALID", message % kind)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise Refused("PAYLOAD_INVALID", "the input is not JSON: %s" % error)
    return _json(document, metadata)


def _csv(text, schema):
    pandas = _pandas()
    if schema is None or not schema.has_input_names():
        return pandas.read_csv(io.StringIO(text))
    types = dict(zip(schema.input_names(), schema.pandas_types()))
    return pandas.read_csv(io.StringIO(text), dtype=types)


def _json(document, metadata):
    if isinstance(document, dict) and any(key in document for key in _LLM_KEYS):
        params = {key: document.pop(key) for key in metadata.params if key in document}
        return document, params, True
    document = _named(document)
    found = [key for key in _FORMATS if key in document]
    if len(found) != 1:
        message = "the input must be a JSON object with one of %s" % ", ".join(_FORMATS)
        raise Refused("PAYLOAD_INVALID", message)
    params = document.get("params")
    if params is not None and not isinstance(params, dict):
        raise Refused("PAYLOAD_INVALID", "`params` must be a JSON object")
    return _data(found[0], document[found[0]], metadata), params, False


def _named(document):
    """Return *document* under the name of its form, which MLflow 1.x did not send."""
    if isinstance(document, list):
        return {"dataframe_records": document}
    if not isinstance(document, dict):
        return {}
    if "data" in document and not set(document) & set(_FORMATS):
        return {"dataframe_split": document}
    return document


def _data(form, value, metadata):
    if metadata.is_from_type_hint:
        if form != "inputs":
            raise Refused("PAYLOAD_INVALID", "this model takes its input under `inputs` only")
        return value
    if form.startswith("dataframe_"):
        return _dataframe(value, form[len("dataframe_") :], metadata.schema)
    return _tensors(form, value, metadata.schema)


def _dataframe(value, orient, schema):
    helpers = _mlflow_helpers()
    if hasattr(helpers, "dataframe_from_parsed_json"):
        return helpers.dataframe_from_parsed_json(value, orient, schema)
    if orient == "split" and not (isinstance(value, dict) and "data" in value):
        raise Refused("PAYLOAD_INVALID", "`dataframe_split` must be an object with `data`")
    if hasattr(helpers, "_dataframe_from_json"):
        # MLflow 1.x wants every part named, and the text.
        text = json.dumps(value if orient == "records" else _split_parts(value))
        return helpers._dataframe_from_json(text, schema=schema, pandas_orient=orient)
    pandas = _pandas()
    if orient == "records":
        return pandas.DataFrame(value)
    return pandas.DataFrame(value["data"], value.get("index"), value.get("columns"))


def _split_parts(value):
    rows = value["data"]
    width = len(rows[0]) if rows else 0
    return {
        "data": rows,
        "columns": value.get("columns") or list(range(width)),
        "index": value.get("index") or list(range(len(rows))),
    }


def _tensors(key, value, schema):
    helpers = _mlflow_helpers()
    if hasattr(helpers, "parse_tf_serving_input"):
        return helpers.parse_tf_serving_input({key: value}, schema=schema)
    return value


def _mlflow_helpers():
    if "mlflow" not in sys.modules:
        return None
    return importlib.import_module("mlflow.utils.proto_json_utils")


def _pandas():
    try:
        return importlib.import_module("pandas")
    except ImportError:
        message = "the model's environment has no pandas to make a table of; send `inputs`"
        raise Refused("PAYLOAD_INVALID", message)


def _answer(document):
    """Return *document* as JSON bytes, and notes on what was changed in it."""
    try:
        try:
            text, notes = json.dumps(document, default=_default, allow_nan=False), []
        except ValueError:
            # NaN and infinities are not JSON; MLflow sends them all the same.
            finite = _finite(json.loads(json.dumps(document, default=_default)))
            note = "NaN and infinities in the answer are sent as null"
            text, notes = json.dumps(finite), [{"code": "NAN_AS_NULL", "message": note}]
    except (TypeError, ValueError) as error:
        message = "the model's answer cannot be written as JSON: " + _short(error)
        raise Refused("MODEL_RAISED", message, exception=_name(error))
    return text.encode(), notes


def _plain(raw):
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


def _refuse_missing(error):
    """Refuse a request for want of a module, if that is what *error* is.

    Only a top-level module that cannot be found: `cannot import name` and a missing
    shared library are no reason to install something.
    """
    module = (getattr(error, "name", None) or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not module:
        return
    if module not in sys.modules and importlib.util.find_spec(module) is None:
        raise Refused("IMPORT_FAILED", str(error), module=module, traceback=_traceback())


def _short(error):
    return (str(error) or type(error).__name__)[:2000]


def _name(error):
    return type(error).__name__


def _traceback():
    return traceback.format_exc()[-_MAX_TRACEBACK:]


if __name__ == "__main__":
    main()
