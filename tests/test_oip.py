"""The Open Inference Protocol: a real client of Triton's has a whole session with a daemon.

No stubs of envd's for it may be in this process: two copies of one proto are a TypeError.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.conftest import Daemon, launch, one_python, stop
from tests.tiny import Tiny

PACKAGES = ("numpy", "numpy.libs", "pandas", "dateutil", "tzdata", "six.py", "pytz")
# What it is asked comes back, or what its params say.
_ECHO = """
import sys
sys.path.append(PATH)


class Model:
    def predict(self, data, params=None):
        do = (params or {}).get("do")
        if do == "raise":
            raise RuntimeError("it was asked to")
        if do == "what":
            values = list(data.values()) if isinstance(data, dict) else [data]
            return [f"{type(one).__name__} {getattr(one, 'dtype', '')}" for one in values]
        if do == "params":
            return [f"{key}={value!r}" for key, value in sorted(params.items())]
        if do == "wait":
            import os, time
            open(params["begun"], "w").close()
            while not os.path.exists(params["end"]):
                time.sleep(0.002)
        return data


def _load_pyfunc(path):
    return Model()
"""


def packages(folder: Path) -> Path:
    """Make a folder for sys.path with the numpy and the pandas of the tests."""
    folder.mkdir()
    for name in PACKAGES:
        place = Path(sysconfig.get_path("purelib")) / name
        if place.exists():
            (folder / name).symlink_to(place)
    return folder


def echo(tiny: Tiny, path: Path, libraries: Path, more: str = "") -> Path:
    """Write a model that has those *libraries*."""
    tiny.model(path)
    loader = _ECHO.replace("PATH", repr(str(libraries)))
    (path / "code" / "tiny_loader.py").write_text(loader)
    with (path / "MLmodel").open("a") as file:
        file.write(more)
    return path


@dataclass(frozen=True)
class Session:
    """A daemon with models that have names, and a client of Triton's."""

    folder: Path
    daemon: Daemon
    client: triton.InferenceServerClient

    @property
    def target(self) -> str:
        return f"unix:{self.daemon.root}/predict.sock"

    def infer(self, model: str, *inputs: Any, **more: Any) -> triton.InferResult:
        return self.client.infer(model, list(inputs), **more)


@pytest.fixture(scope="module")
def session(
    tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny, tools: Path
) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("oip")
    libraries = packages(folder / "libraries")
    signature = (
        "signature:\n"
        """  inputs: '[{"name": "age", "type": "long"}, {"name": "who", "type": "string"}]'\n"""
        """  outputs: '[{"type": "tensor", "tensor-spec":"""
        """ {"dtype": "float32", "shape": [-1, 3]}}]'\n"""
    )
    echo(tiny, folder / "echo", libraries)
    echo(tiny, folder / "bare", folder / "nothing")
    echo(tiny, folder / "signed", libraries, signature)
    echo(tiny, folder / "batched", libraries, "metadata:\n  envd: {batch: true}\n")
    (folder / "broken").mkdir()
    file = folder / "envd.toml"
    names = ("echo", "bare", "signed", "batched", "broken")
    file.write_text("[models]\n" + "".join(f'{one} = "{folder}/{one}"\n' for one in names))
    settings = {**tiny.settings, **one_python(tools), "ENVD_CONFIG": str(file)}
    daemon = launch(folder / "root", home, **settings)
    with triton.InferenceServerClient(f"unix:{daemon.root}/predict.sock") as client:
        yield Session(folder, daemon, client)
    stop(daemon)


def tensor(name: str, array: np.ndarray, datatype: str = "", **parameters: Any) -> Any:
    """Return an input with the elements of *array*."""
    found = triton.InferInput(name, list(array.shape), datatype or _datatype(array))
    found.set_data_from_numpy(array)
    for key, value in parameters.items():
        found._input.parameters[key].string_param = value
    return found


def _datatype(array: np.ndarray) -> str:
    from tritonclient.utils import np_to_triton_dtype

    return np_to_triton_dtype(array.dtype)


_ARRAYS = [
    np.array([[True, False], [False, True]]),
    np.array([[0, 255]], "uint8"),
    np.array([[0, 65535]], "uint16"),
    np.array([[0, 2**32 - 1]], "uint32"),
    np.array([[0, 2**64 - 1]], "uint64"),
    np.array([[-128, 127]], "int8"),
    np.array([[-(2**15), 2**15 - 1]], "int16"),
    np.array([[-(2**31), 2**31 - 1]], "int32"),
    np.array([[[-(2**63)]], [[2**63 - 1]]], "int64"),
    np.array([[0.5, np.inf, np.nan]], "float16"),
    np.array([[0.1, -np.inf, np.nan]], "float32"),
    np.array([[0.1, 1e300, np.nan]], "float64"),
    np.array([["a", "é"], ["", "longer"]], object),
    np.array([[b"\x00\xff", b"ends with zero\x00"]], object),
    np.array([["a"], [b"\xff"]], object),
]


def _of(array: np.ndarray) -> str:
    return f"{array.dtype}{array.shape}"


@pytest.mark.parametrize("array", _ARRAYS, ids=_of)
def test_every_datatype_comes_back_as_it_was_sent(session: Session, array: np.ndarray) -> None:
    answer = session.infer("echo", tensor("x", array))
    back = answer.as_numpy("output-1")

    flat = [one.encode() if isinstance(one, str) else one for one in array.ravel().tolist()]
    assert back.shape == array.shape
    np.testing.assert_array_equal(back.ravel(), np.array(flat, back.dtype))
    assert answer.get_output("output-1").datatype == _datatype(array)


@pytest.mark.parametrize("array", _ARRAYS[:-3], ids=_of)
def test_a_model_without_numpy_is_given_lists(session: Session, array: np.ndarray) -> None:
    back = session.infer("bare", tensor("x", array)).as_numpy("output-1")

    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array.astype(back.dtype))


def test_half_the_bits_of_a_float_are_enough(session: Session) -> None:
    sent = np.array([[1.5, -2.0, 3.140625]], ml_dtypes.bfloat16)

    for model in ("echo", "bare"):
        answer = session.infer(model, tensor("x", sent))
        np.testing.assert_array_equal(answer.as_numpy("output-1"), sent.astype("float32"))


def test_texts_are_read_as_their_content_type_says(session: Session) -> None:
    texts = np.array(["a", "é"], object)
    json = np.array(['{"a": [1]}', "null"], object)
    encoded = np.array(["YQ==", "no base64"], object)
    times = np.array(["2026-01-02T03:04:05", "2026-01-02"], object)
    what = {"do": "what"}

    def types(array: np.ndarray, kind: str) -> list[str]:
        answer = session.infer("echo", tensor("x", array, content_type=kind), parameters=what)
        return answer.as_numpy("output-1").ravel().tolist()

    def back(array: np.ndarray, kind: str) -> list[bytes]:
        answer = session.infer("echo", tensor("x", array, content_type=kind))
        return answer.as_numpy("output-1").ravel().tolist()

    assert types(texts, "str") == [b"list "]
    assert back(texts, "str") == [b"a", "é".encode()]
    assert back(json, "pd_json") == [b'{"a": [1]}', b"null"]
    assert back(encoded, "base64") == [b"YQ==", b"bm8gYmFzZTY0"]
    assert back(times, "datetime") == [b"2026-01-02T03:04:05", b"2026-01-02T00:00:00"]
