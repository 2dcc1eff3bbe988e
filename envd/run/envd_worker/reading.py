"""Reads the input of a request, as MLflow's scoring server does."""

import importlib
import io
import json
import sys

from . import doubles, writing
from .blocks import Block
from .protocol import TENSORS
from .refusals import Refused, short, told

_FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_LLM_KEYS = ("messages", "prompt", "input")
_JSON, _CSV, _PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


class Metadata:
    """What the signature of a model says of its input; nothing, for one without mlflow.

    `doubles` is as `doubles.names_of`, `outputs` the schema of its answers, and `expected`
    what is found out of `schema` for tensors when there are any.
    """

    schema, outputs, expected, params, is_from_type_hint = None, None, None, (), False
    doubles = None


class Input:
    """What a model is asked: the data, a Block maybe as long as nobody asks, and params or None.

    `is_chat` says whether it came in the form of the LLM providers, whose answer is not
    wrapped, and `write` what writes the answer, where that is not MLflow's JSON.
    """

    def __init__(self, data, params=None, is_chat=False, write=None):
        """Keep the parts. `form` is what `batching` finds out of the data."""
        self.block = data if isinstance(data, Block) else None
        self._data, self.params, self.is_chat = data, params, is_chat
        self.form, self._write = False, write

    @property
    def data(self):
        """What the model is given."""
        if isinstance(self._data, Block):
            self._data = self._data.table()
        return self._data

    def written(self, raw, limit, *setting):
        """Return the model's answer *raw* in at most *limit* bytes, and notes on it.

        The *setting* is the one that says so, if that is not `daemon.max_message`.
        """
        return self._written(raw, self.is_chat, limit, *setting)

    def item_written(self, raw, limit, *setting):
        """Return one of the things that `predict_stream` yields, likewise."""
        return self._written(raw, True, limit, *setting)

    def _written(self, raw, is_bare, limit, *setting):
        if self._write:
            return self._write(raw, limit, *setting)
        return writing.write(raw, is_bare, limit, *setting)


def metadata_of(model):
    """Return what the signature of *model* says."""
    found, given = Metadata(), getattr(model, "metadata", None)
    if hasattr(given, "get_input_schema"):
        found.schema = given.get_input_schema()
        found.doubles = doubles.names_of(found.schema)
    if hasattr(given, "get_output_schema"):
        found.outputs = given.get_output_schema()
    if hasattr(given, "get_params_schema"):
        params = given.get_params_schema()
        found.params = [one.name for one in params.params] if params else ()
    if hasattr(given, "_is_signature_from_type_hint"):
        found.is_from_type_hint = given._is_signature_from_type_hint()
    return found


def read(head, payload, metadata):
    """Return the Input in *payload*, which *metadata* says how to read.

    The params of the request are those of *head*, if it has any.
    """
    try:
        found = _read(payload, head["content_type"], metadata)
    except Refused:
        raise
    except Exception as error:
        raise Refused("PAYLOAD_INVALID", "the input does not fit: " + short(error), **told(error))
    if head.get("params") is not None:
        found.params = head["params"]
    return found


def _read(payload, content_type, metadata):
    kind, *parameters = (one.strip() for one in content_type.lower().split(";"))
    if kind == TENSORS:
        return _tensors_of(payload, metadata)
    if kind == _PARQUET:
        return Input(_parquet(payload))
    if kind not in (_JSON, _CSV):
        message = "the content type `%s` is not known; send %s, %s or %s"
        raise Refused("PAYLOAD_INVALID", message % (kind, _JSON, _CSV, _PARQUET))
    try:
        text = str(payload, "utf-8-sig")
    except ValueError as error:
        raise Refused("PAYLOAD_INVALID", "the input is not UTF-8: %s" % error)
    if kind == _CSV:
        return Input(_csv(text, metadata.schema))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("PAYLOAD_INVALID", "the input is not JSON: %s" % error)
    # Who speaks MLflow's protocol of 2.0 and later has no form without a name.
    return _json(document if "protocol=2" in parameters else _named(document), metadata)


def _parquet(payload):
    pandas = _pandas()
    try:
        return pandas.read_parquet(io.BytesIO(payload))
    except ImportError:
        message = (
            "the model's environment has neither pyarrow nor fastparquet, without which no Parquet "
            "can be read; send JSON or CSV"
        )
        raise Refused("PAYLOAD_INVALID", message)


def _tensors_of(payload, metadata):
    # Most workers never see any.
    from . import tensor_reading, tensor_writing, tensors

    try:
        header, data, params = tensor_reading.read(payload, metadata)
        wanted = tensor_writing.Wanted(header, metadata)
    except tensors.Malformed as error:
        raise Refused("PAYLOAD_INVALID", str(error))
    return Input(data, params, write=wanted.written)


def _csv(text, schema):
    pandas = _pandas()
    if schema is None:
        return pandas.read_csv(io.StringIO(text))
    # Columns without names go by their places: pandas takes the types of those, too.
    types = dict(zip(schema.input_names(), schema.pandas_types()))
    return pandas.read_csv(io.StringIO(text), dtype=types)


def _json(document, metadata):
    if isinstance(document, dict) and any(key in document for key in _LLM_KEYS):
        params = {key: document.pop(key) for key in metadata.params if key in document}
        return Input(document, params, is_chat=True)
    found = [key for key in _FORMATS if isinstance(document, dict) and key in document]
    if len(found) != 1:
        message = "the input must be a JSON object with one of %s" % ", ".join(_FORMATS)
        raise Refused("PAYLOAD_INVALID", message)
    params = document.get("params")
    if params is not None and not isinstance(params, dict):
        message = "`params` must be a JSON object"
        raise Refused("PAYLOAD_INVALID", message, error_code="INVALID_PARAMETER_VALUE")
    return Input(_data(found[0], document[found[0]], metadata), params)


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
        return _dataframe(value, form[len("dataframe_") :], metadata)
    return _tensors(form, value, metadata.schema)


def _dataframe(value, orient, metadata):
    schema = metadata.schema
    helpers = _mlflow_helpers()
    if hasattr(helpers, "dataframe_from_parsed_json"):
        found = doubles.block(value, orient, metadata.doubles) if metadata.doubles else None
        if found is not None:
            return found
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
