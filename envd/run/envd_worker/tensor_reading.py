"""Makes the input of a model of tensors, as MLServer's runtime for MLflow does.

What each tensor and the whole of them become is up to a `content_type` among their parameters,
else to the signature of the model (mlserver_mlflow 1.7: runtime.py, metadata.py, and the codecs
of mlserver). Where neither says anything, MLServer gives a model the request itself; here it
gets an array, or several by name. Where the environment has no numpy, arrays are lists.
"""

import base64
import binascii
import datetime as dt
import importlib
import json
import sys

from . import tensors
from .blocks import Block
from .refusals import Refused

# Of the parameters of a request, those that are not params of the model: of the protocol, of
# its extensions, of MLServer and of Triton.
_NO_PARAMS = frozenset(
    (
        "binary_data_output", "content_type", "headers", "priority", "sequence_end",
        "sequence_id", "sequence_start", "timeout",
    )
)  # fmt: skip
_TRITONS, _MOST_ROOM = "triton_", 1 << 20
# How the elements of a column are sent, by the type that MLflow says it has; all else is JSON.
_OF_COLUMNS = {
    "boolean": "np", "integer": "np", "long": "np", "float": "np", "double": "np",
    "string": "str", "binary": "base64", "datetime": "datetime",
}  # fmt: skip
_DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


class Expected:
    """What a signature says of tensors: how each is read, of which type, and all of them."""

    def __init__(self, schema):
        """Read MLflow's *schema*, which may be None."""
        specs = getattr(schema, "inputs", None) or getattr(schema, "columns", None) or []
        self._kinds, self._types, self.whole = {}, {}, None
        # What has no name is meant whatever it is called.
        self._only = "input-0" if len(specs) == 1 and not specs[0].name else None
        is_tensors = [type(one).__name__ == "TensorSpec" for one in specs]
        for place, spec in enumerate(specs):
            name = spec.name or "input-%d" % place
            if is_tensors[place]:
                self._kinds[name], self._types[name] = "np", spec.type.kind
            else:
                self._kinds[name] = _OF_COLUMNS.get(getattr(spec.type, "name", None), "pd_json")
        if specs:
            is_named = all(one.name for one in specs)
            self.whole = ("dict" if is_named else "np") if all(is_tensors) else "pd"

    def kind(self, name):
        """Return the content type of the tensor called *name*, or None."""
        return self._kinds.get(self._only or name)

    def type(self, name):
        """Return how numpy calls what the array called *name* holds, or None."""
        return self._types.get(self._only or name)


def read(payload, metadata):
    """Return the header of the request *payload*, the data in it, and params or None.

    Raises:
        tensors.Malformed: they are no tensors.
        Refused: they do not become what they are to be.
    """
    header, rest = tensors.opened(payload)
    given = tensors.parameters_of(header, "the request")
    found = tensors.of(header.get("inputs"), rest)
    if not found:
        raise Refused("PAYLOAD_INVALID", "the request has no input")
    if metadata.expected is None:
        metadata.expected = Expected(metadata.schema)
    own = given.get("content_type")
    data = _whole(found, own, metadata)
    params = {key: one for key, one in given.items() if _is_param(key, metadata.params)}
    return header, data, params or None


def _is_param(name, known):
    return name in known or not (name in _NO_PARAMS or name.startswith(_TRITONS))


def _whole(found, own, metadata):
    expected = metadata.expected
    if own is None and metadata.is_from_type_hint and len(found) == 1:
        return _hinted(found[0], expected)
    kind = own or expected.whole
    if kind == "pd":
        return _table(found, expected)
    if kind == "dict":
        return {one.name: _value(one, expected) for one in found}
    if kind in ("np", "str"):
        if len(found) != 1:
            message = "the content type `%s` takes one tensor; there are %d"
            raise Refused("PAYLOAD_INVALID", message % (kind, len(found)))
        return _value(found[0], expected, kind)
    if kind is not None:
        message = "the content type `%s` of the request is not known; send pd, np, str or dict"
        raise Refused("PAYLOAD_INVALID", message % (kind,))
    if len(found) == 1:
        return _value(found[0], expected)
    return {one.name: _value(one, expected) for one in found}


def _hinted(tensor, expected):
    """Return a tensor as what the type hints of MLflow are of: a list of plain values."""
    if tensor.datatype == "BYTES":
        kind = _kind(tensor, expected) or "str"
        return _value(tensor, expected, "str") if kind != "np" else tensor.texts
    values = tensor.values()
    # Elements that are lists themselves come as JSON, or as rows.
    is_flat = expected.kind(tensor.name) != "pd_json"
    return values if is_flat else tensors.nested(values, tensor.shape)


def _value(tensor, expected, default=None):
    """Return what a tensor becomes."""
    kind = _kind(tensor, expected) or default
    if kind in (None, "np"):
        return _array(tensor, expected.type(tensor.name))
    if kind not in _READERS:
        message = "the content type `%s` of `%s` is not known; send np, str, base64, datetime"
        raise Refused("PAYLOAD_INVALID", message % (kind, tensor.name))
    if tensor.datatype != "BYTES":
        message = "`%s` is %s, and its content type `%s` is for BYTES"
        raise Refused("PAYLOAD_INVALID", message % (tensor.name, tensor.datatype, kind))
    return [_READERS[kind](one) for one in tensor.texts]


def _kind(tensor, expected):
    return tensor.parameters.get("content_type") or expected.kind(tensor.name)


def _text(value):
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _from_base64(value):
    value = value if isinstance(value, bytes) else value.encode("ascii")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        # MLServer takes what is none as it is.
        return value


def _from_iso(value):
    if hasattr(dt.datetime, "fromisoformat"):
        return dt.datetime.fromisoformat(_text(value))
    # Python 3.6.
    form = "%Y-%m-%dT%H:%M:%S" + (".%f" if "." in _text(value) else "")
    return dt.datetime.strptime(_text(value), form)  # noqa: DTZ007


def _from_json(value):
    try:
        return json.loads(_text(value))
    except ValueError:
        # A column of any type may hold texts.
        return _text(value)


_READERS = {"str": _text, "base64": _from_base64, "datetime": _from_iso, "pd_json": _from_json}


def _array(tensor, kind):
    """Return a tensor as an array; the type of one of BYTES is of *kind*, as numpy calls it."""
    numpy = _numpy()
    if tensor.datatype == "BYTES":
        return _array_of_texts(numpy, tensor, kind)
    if numpy is None:
        return tensors.nested(tensor.values(), tensor.shape)
    if tensor.datatype == "BF16":
        upper = numpy.frombuffer(tensor.raw, "<u2").astype("<u4")
        return (upper << 16).view("<f4").reshape(tensor.shape)
    found = numpy.frombuffer(tensor.raw, _DTYPES[tensor.datatype])
    if tensor.datatype == "BOOL" and (found.view("u1") > 1).any():
        message = "`%s` is BOOL, and has other bytes than 0 and 1"
        raise Refused("PAYLOAD_INVALID", message % tensor.name)
    # A model may write into its input, and compiled code reads where it lies.
    if not (found.flags.writeable and found.flags.aligned):
        found = found.copy()
    return found.reshape(tensor.shape)


def _array_of_texts(numpy, tensor, kind):
    values = tensor.texts
    if kind == "U" or all(isinstance(one, str) for one in values):
        values = [_text(one) for one in values]
    if numpy is None:
        return tensors.nested(values, tensor.shape)
    if len(values) != tensor.count and not any(isinstance(one, str) for one in values):
        # As MLServer writes one: the bytes of all elements, the last size is how long each is.
        wanted = "S%d" % tensor.shape[-1]
        return numpy.frombuffer(b"".join(values), wanted).reshape(tensor.shape)
    is_text = kind is None and values and isinstance(values[0], str)
    if (is_text or kind in ("U", "S")) and not _is_lopsided(values):
        return numpy.array(values, kind or "U").reshape(tensor.shape)
    # Others would lose the zeros that an element ends with.
    found = numpy.empty(len(values), object)
    found[:] = values
    return found.reshape(tensor.shape)


def _is_lopsided(values):
    """Whether an array with room for the longest in each place would be mostly empty."""
    longest = max(map(len, values)) if values else 0
    return longest * len(values) > _MOST_ROOM and longest * len(values) > 16 * sum(map(len, values))


def _table(found, expected):
    """Return tensors as the columns of a table, or of a Block."""
    pandas = _module("pandas")
    if pandas is None:
        message = "the model's environment has no pandas to make a table of; send `dict` or `np`"
        raise Refused("PAYLOAD_INVALID", message)
    columns = {one.name: _column(one, expected) for one in found}
    sizes = {name: len(one) for name, one in columns.items()}
    if len(set(sizes.values())) > 1:
        raise Refused("PAYLOAD_INVALID", "the columns are not of one length: %s" % sizes)
    types = {getattr(one, "dtype", None) for one in columns.values()}
    if len(types) == 1 and getattr(types.pop(), "kind", "") in tuple("biuf"):
        return Block(list(columns), _numpy().array(list(columns.values())))
    return pandas.DataFrame({name: pandas.Series(one) for name, one in columns.items()})


def _column(tensor, expected):
    if tensor.datatype == "BYTES" and _kind(tensor, expected) is None:
        return tensor.texts
    value = _value(tensor, expected)
    if isinstance(value, list) and tensor.datatype == "BYTES":
        return value
    rows = tensor.shape[0] if tensor.shape else 1
    if tensor.count != rows:
        message = "`%s` is to be a column, and has %d values for %d rows"
        raise Refused("PAYLOAD_INVALID", message % (tensor.name, tensor.count, rows))
    return value.reshape(rows)


def _numpy():
    return sys.modules.get("numpy") or _module("numpy")


def _module(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
