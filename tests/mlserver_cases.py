"""What MLServer is asked, and what its models answer: read by its Python and by the tests.

Requests are those of MLServer's documentation (docs/examples/content-type and mlflow), of its
tests (tests/codecs, runtimes/mlflow/tests) and more like them, each with the inputs of the
signature of the model that is asked, or None. Where `binary` is true, texts are bytes, as they
are over gRPC.
"""

import datetime as dt


def _tensor(name, dtype, *shape):
    spec = {"dtype": dtype, "shape": list(shape)}
    return (
        {"name": name, "type": "tensor", "tensor-spec": spec}
        if name
        else {"type": "tensor", "tensor-spec": spec}
    )


def _column(name, kind, **more):
    return {"name": name, "type": kind, "required": True, **more}


def _input(name, datatype, shape, data, content_type=None):
    found = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return (
        found if content_type is None else {**found, "parameters": {"content_type": content_type}}
    )


def _request(*inputs, **parameters):
    return {"inputs": list(inputs), **({"parameters": parameters} if parameters else {})}


_WINE = ["fixed acidity", "citric acid", "alcohol"]
_COLUMNS = [
    _column(name, name)
    for name in ("boolean", "integer", "long", "float", "double", "string", "binary", "datetime")
]
_OF_COLUMNS = [
    _input("boolean", "BOOL", [2, 1], [True, False]),
    _input("integer", "INT32", [2, 1], [1, 2]),
    _input("long", "INT64", [2, 1], [1, 1 << 60]),
    _input("float", "FP32", [2, 1], [0.5, 1.5]),
    _input("double", "FP64", [2, 1], [0.1, 0.2]),
    _input("string", "BYTES", [2, 1], ["a", "é"]),
    _input("binary", "BYTES", [2, 1], ["YWI=", "no base64"]),
    _input("datetime", "BYTES", [2, 1], ["2026-01-02T03:04:05", "2026-01-02"]),
]
_INTS, _NAMES = _input("x", "INT32", [2, 2], [1, 2, 3, 4]), ["Joanne", "Michael"]

REQUESTS = {
    "wine": (
        [_column(name, "double") for name in _WINE],
        _request(
            *(_input(name, "FP32", [1], [value]) for name, value in zip(_WINE, (7.4, 0, 9.4)))
        ),
    ),
    "wine in rows": (
        [_column(name, "double") for name in _WINE],
        _request(*(_input(name, "FP64", [2, 1], [[1.5], [2.5]]) for name in _WINE)),
    ),
    "every column": (_COLUMNS, _request(*_OF_COLUMNS)),
    "pd": (None, _request(_INTS | {"shape": [4, 1]}, content_type="pd")),
    "pd of 1 dimension": (None, _request(_INTS | {"shape": [4]}, content_type="pd")),
    "pd and str": (
        None,
        _request(
            _input("First Name", "BYTES", [2], _NAMES, "str"),
            _input("Age", "INT32", [2], [34, 22]),
            content_type="pd",
        ),
    ),
    "pd and texts": (None, _request(_input("x", "BYTES", [2], _NAMES), content_type="pd")),
    "pd and pd_json": (
        None,
        _request(_input("x", "BYTES", [2], ['{"a": 1}', "[1, 2]"], "pd_json"), content_type="pd"),
    ),
    "pd of two columns in one": (None, _request(_INTS, content_type="pd")),
    "length of texts": (
        None,
        _request(
            _input("x", "BYTES", [2, 11], ["hello world", "bye bye"], "str"), content_type="pd"
        ),
    ),
    "np": (None, _request(_INTS, content_type="np")),
    "np of an input": (
        None,
        _request(_INTS | {"parameters": {"content_type": "np"}}, content_type="np"),
    ),
    "np nested": (None, _request(_INTS | {"data": [[1, 2], [3, 4]]}, content_type="np")),
    "np of floats": (None, _request(_input("x", "FP32", [2], [1, 2]), content_type="np")),
    "np of halves": (None, _request(_input("x", "FP16", [2], [1, 2.5]), content_type="np")),
    "np of two": (None, _request(_INTS, _INTS | {"name": "y"}, content_type="np")),
    "np of bytes in one": (None, _request(_input("x", "BYTES", [2, 1], ["ab"]), content_type="np")),
    "np of texts": (None, _request(_input("x", "BYTES", [2, 1], ["a", "b"]), content_type="np")),
    "str": (None, _request(_input("x", "BYTES", [2], _NAMES), content_type="str")),
    "str of one": (None, _request(_input("x", "BYTES", [11], "hello world"), content_type="str")),
    "str of an input": (
        None,
        _request(_input("x", "BYTES", [1], "hello world 😁", "str"), content_type="dict"),
    ),
    "base64 of an input": (
        None,
        _request(_input("x", "BYTES", [2], ["YWI=", "?"], "base64"), content_type="dict"),
    ),
    "datetime of an input": (
        None,
        _request(
            _input("x", "BYTES", [1], ["2021-08-24T15:01:02"], "datetime"), content_type="dict"
        ),
    ),
    "dict": (
        None,
        _request(
            _input("a", "INT32", [2], [1, 2], "np"),
            _input("b", "BYTES", [1], ["x"], "str"),
            content_type="dict",
        ),
    ),
    "one tensor": (
        [_tensor(None, "float32", -1, 2)],
        _request(_input("anything", "FP32", [1, 2], [1, 2])),
    ),
    "named tensors": (
        [_tensor("a", "float64", -1, 2), _tensor("b", "int8", -1)],
        _request(_input("a", "FP64", [1, 2], [1, 2]), _input("b", "INT8", [1], [-1])),
    ),
    "texts in a tensor": ([_tensor(None, "str", -1)], _request(_input("x", "BYTES", [2], _NAMES))),
    "signature overruled": (
        [_column("x", "long")],
        _request(_input("x", "INT64", [2, 2], [1, 2, 3, 4]), content_type="np"),
    ),
    "out of range": (None, _request(_input("x", "INT8", [1], [128]), content_type="np")),
    "too few": (None, _request(_input("x", "INT8", [3], [1, 2]), content_type="np")),
    "no time": (
        None,
        _request(_input("x", "BYTES", [1], ["soon"], "datetime"), content_type="dict"),
    ),
}
# Of these the bytes are another thing than the texts.
BINARY = ("pd and texts", "np of bytes in one", "np of texts", "str", "every column", "dict")

_SCHEMAS = {
    "array": _column("items", "array", items={"type": "long"}),
    "object": _column("it", "object", properties={"a": {"type": "string", "required": True}}),
    "map": _column("map", "map", values={"type": "double"}),
    "any": _column("any", "any"),
}
METADATA = {
    "columns": _COLUMNS,
    "unnamed columns": [{"type": "long", "required": True}],
    "nested columns": list(_SCHEMAS.values()),
    "named tensors": [_tensor("a", "float64", -1, 28, 28), _tensor("b", "uint8", -1)],
    "one tensor": [_tensor(None, "float16", -1, 2)],
    "texts in tensors": [_tensor("a", "str", -1), _tensor("b", "bytes", -1)],
    "truths and objects": [_tensor("a", "bool", -1), _tensor("b", "object", -1)],
}


def answers():
    """Return what models answer, by name."""
    import numpy as np
    import pandas as pd

    objects = np.array(["a", "b"], dtype=object)
    return {
        "ints": np.array([1, 2, 3]),
        "matrix": np.array([[1, 2], [3, 4]], dtype="float32"),
        "truths": np.array([[True], [False]]),
        "halves": np.array([0.5], dtype="float16"),
        "bytes of numbers": np.array([[1], [255]], dtype="uint8"),
        "scalar": np.array(5),
        "cube": np.zeros((2, 1, 2)),
        "empty": np.zeros((0, 2)),
        "nan": np.array([1.0, np.nan]),
        "texts": np.array(["a", "é"]),
        "objects": objects,
        "bytes": np.array([b"ab", b"cd"]),
        "times": np.array(["2026-01-02"], dtype="datetime64[s]"),
        "list of texts": ["foo", "é"],
        "empty list": [],
        "dict of arrays": {"foo": np.array([1, 2, 3]), "bar": np.array([1.2])},
        "dict with texts": {"foo": np.array([1]), "bar": np.array(["hello", "world"])},
        "dict of lists": {"foo": [1, 2], "bar": ["a", "b"]},
        "table": pd.DataFrame({"foo": np.array([1, 2, 3]), "bar": ["A", "B", "C"]}),
        "table of objects": pd.DataFrame({"x": np.array(["a", None], dtype=object)}),
        "table of texts": pd.DataFrame({"x": objects}),
        "table of lists": pd.DataFrame({"x": [[1, 2, 3], [4, 5, 6]]}),
        "table of floats": pd.DataFrame({"x": [1.5, None]}),
        "table without names": pd.DataFrame([[1, 2]]),
        "table with missing": pd.DataFrame({"x": pd.array([1, None], dtype="Int64")}),
        "table of times": pd.DataFrame({"x": [dt.datetime(2026, 1, 2)]}),
        "series": pd.Series([1, 2, 3], name="s"),
        "list of numbers": [1, 2.5],
        "list of bytes": [b"a"],
        "list of lists": [[1, 2], [3, 4]],
        "list of times": [dt.datetime(2026, 1, 2, 3)],
        "list of dicts": [{"a": 1}, {"a": None}],
        "number": 1.5,
        "text": "foo",
        "nothing": None,
        "chat": {"choices": [{"message": {"content": "hi"}}], "id": "x", "usage": {"n": 3}},
    }


def described(value):
    """Return *value*, of whatever library, as JSON has it."""
    kind = type(value).__name__
    if kind == "DataFrame":
        columns = {str(key): described(value[key]) for key in value}
        return {"table": columns}
    if kind == "Series":
        dtype = "object" if str(value.dtype) == "str" else str(value.dtype).split("[")[0]
        return {"column": [described(one) for one in value.tolist()], "dtype": dtype}
    if kind == "ndarray":
        flat = [described(one) for one in value.ravel().tolist()]
        return {"array": flat, "dtype": value.dtype.kind, "shape": list(value.shape)}
    if kind == "dict":
        return {key: described(one) for key, one in value.items()}
    if kind == "list":
        return [described(one) for one in value]
    if kind == "bytes":
        return {"bytes": value.decode("latin-1")}
    return value if kind in {"str", "int", "float", "bool"} else str(value)
