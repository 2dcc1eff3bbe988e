"""Makes tensors of the answer of a model, as MLServer does.

A table is a tensor for each column, an array one called `output-1`, a dict one for each key,
and a list of texts one of BYTES; a `content_type` says which (the codecs of mlserver 1.7).
What MLServer has no tensor for is one all the same: lists of numbers, Series, scalars,
missing values; and anything else as JSON, element by element.
"""

import base64
import datetime as dt
import sys

from . import tensors
from .refusals import Refused
from .writing import as_json, plain

# What an answer is called that has no name.
UNNAMED = "output-1"
_DATATYPES = {
    "b1": "BOOL", "u1": "UINT8", "u2": "UINT16", "u4": "UINT32", "u8": "UINT64", "i1": "INT8",
    "i2": "INT16", "i4": "INT32", "i8": "INT64", "f2": "FP16", "f4": "FP32", "f8": "FP64",
}  # fmt: skip
# The first that all elements of a list fit.
_NUMBERS = (
    ("BOOL", {bool}),
    ("INT64", {int}),
    ("UINT64", {int}),
    ("FP64", {int, float}),
)
_TEXTS = (
    ("str", str, lambda one: one.encode()),
    ("base64", bytes, base64.b64encode),
    ("datetime", dt.datetime, lambda one: one.isoformat().encode()),
)


class Output:
    """A tensor of an answer: its elements are an array, a buffer, or of BYTES a list of bytes."""

    def __init__(self, label, datatype, shape, values, kind=None):
        """Keep the parts; *kind* is its content type."""
        # As MLServer: what has one dimension, or none, gets another.
        self.label, self.datatype = label, datatype
        self.shape = list(shape) if len(shape) > 1 else [*shape, 1]
        self.values, self.kind = values, kind

    def buffer(self):
        """Return the elements as a buffer has them."""
        if self.datatype == "BYTES":
            return tensors.packed_texts(self.values)
        return self.values if isinstance(self.values, bytes) else self.values.tobytes()

    def data(self):
        """Return the elements as JSON has them."""
        if self.datatype != "BYTES":
            return tensors.numbers(self.buffer(), self.datatype)
        try:
            return [one.decode("utf-8") for one in self.values]
        except UnicodeDecodeError:
            message = "the output `%s` has bytes that are no text; ask for it as binary data"
            raise Refused("PAYLOAD_INVALID", message % self.label)


def of(raw):
    """Return the content type of an answer, and its tensors."""
    pandas, numpy = sys.modules.get("pandas"), sys.modules.get("numpy")
    if pandas and isinstance(raw, pandas.DataFrame):
        return "pd", [_of_column(str(one), raw.iloc[:, at]) for at, one in enumerate(raw.columns)]
    if pandas and isinstance(raw, pandas.Series):
        return "pd", [_of_column(UNNAMED if raw.name is None else str(raw.name), raw)]
    if isinstance(raw, dict) and raw:
        return "dict", [_of_value(str(key), value) for key, value in raw.items()]
    if isinstance(raw, list) and all(isinstance(one, str) for one in raw):
        return "str", [_of_value(UNNAMED, raw)]
    found = _of_value(UNNAMED, raw)
    return ("np" if numpy and isinstance(raw, numpy.ndarray) else None), [found]


def _of_value(label, value):
    """Return any value as a tensor."""
    pandas, numpy = sys.modules.get("pandas"), sys.modules.get("numpy")
    if pandas and isinstance(value, pandas.Series):
        return _of_column(label, value)
    if isinstance(value, tuple):
        value = list(value)
    if numpy and not isinstance(value, list) and hasattr(value, "__array__"):
        return _of_array(label, numpy.asarray(value))
    return _of_plain(numpy, label, value) or _of_json(label, value)


def _of_plain(numpy, label, value):
    """Return lists that have a shape, or what might stand in them, as a tensor, else None."""
    try:
        # An empty list is one of texts, as MLServer has it.
        found = numpy.asarray(value) if numpy and value != [] else None
        if found is not None and found.dtype.kind in "biuf":
            return _of_array(label, found)
        shape, flat = _shape_of(value), list(tensors.flat(value))
        if tensors.nested(flat, shape) != value and shape:
            return None
        return _of_texts(label, shape or [1], flat) or _of_numbers(label, shape, flat)
    except (ValueError, TypeError, OverflowError):
        # It has no shape, or is too large.
        return None


def _of_texts(label, shape, flat):
    for kind, cls, encode in _TEXTS:
        if all(isinstance(one, cls) for one in flat):
            return Output(label, "BYTES", shape, [encode(one) for one in flat], kind)
    return None


def _of_numbers(label, shape, flat):
    types = {type(one) for one in flat}
    for datatype, known in _NUMBERS:
        if types <= known:
            try:
                return Output(label, datatype, shape, tensors.packed(flat, datatype), "np")
            except tensors.Malformed:
                continue
    return None


def _shape_of(values):
    shape = []
    while isinstance(values, list):
        shape.append(len(values))
        values = values[0] if values else None
    return shape


def _of_json(label, value):
    """Return whatever it is as JSON, the elements of a list each."""
    values = value if isinstance(value, list) else [value]
    return Output(label, "BYTES", [len(values)], [_json(one) for one in values], "pd_json")


def _json(value):
    return as_json(plain(value), separators=(",", ":"), ensure_ascii=False)[0]


def _of_array(label, array, kind="np"):
    code = "%s%d" % (array.dtype.kind, array.dtype.itemsize)
    if array.dtype.name == "bfloat16":
        return Output(label, "BF16", array.shape, array, kind)
    if code in _DATATYPES:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return Output(label, _DATATYPES[code], array.shape, little, kind)
    if array.dtype.kind == "f":
        return _of_array(label, array.astype("<f8"), kind)
    values = array.ravel().tolist()
    if array.dtype.kind == "M":
        # A time of nanoseconds has no other form.
        values, kind = sys.modules["numpy"].datetime_as_string(array.ravel()).tolist(), "datetime"
    if not all(isinstance(one, (str, bytes)) for one in values):
        values, kind = [_json(one) for one in values], "pd_json"
    texts = [one.encode() if isinstance(one, str) else one for one in values]
    return Output(label, "BYTES", array.shape, texts, kind)


def _of_column(label, series):
    """Return a column of a table as a tensor."""
    numpy, dtype = sys.modules["numpy"], series.dtype
    kind, is_numpy = getattr(dtype, "kind", "O"), isinstance(dtype, numpy.dtype)
    if kind in "biuf" and (is_numpy or not series.isna().any()):
        return _of_array(label, series.to_numpy(getattr(dtype, "numpy_dtype", dtype)), None)
    if kind in "iuf":
        return _of_array(label, series.to_numpy("f8", na_value=numpy.nan), None)
    pairs = zip(series.tolist(), series.isna().tolist())
    values = [None if is_missing else one for one, is_missing in pairs]
    if all(isinstance(one, (str, bytes)) for one in values):
        values = [one.encode() if isinstance(one, str) else one for one in values]
        return Output(label, "BYTES", [len(values)], values, "str")
    return _of_texts(label, [len(values)], values) or _of_json(label, values)
