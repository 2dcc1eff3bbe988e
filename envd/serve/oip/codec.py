"""Requests and answers of ModelInfer, as the worker takes and gives them.

What is typed becomes bytes: the worker, and whoever gathers requests into one call, has one
form to deal with (`envd.run.envd_worker.tensors`). Nothing here needs numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from envd.errors import ModelRaisedError, PayloadInvalidError, PayloadTooLargeError
from envd.run.channel import Buffer
from envd.run.envd_worker import tensors
from envd.run.envd_worker.tensors import Malformed
from envd.serve.oip import inference_pb2 as oip
from envd.serve.oip import typed
from envd.serve.oip.laden import Laden

Asked = Laden[oip.ModelInferRequest]
_SIZE = "binary_data_size"
# Each takes a hundred times the memory and time that its two bytes in a message would suggest.
_MOST_PARTS, _MAX_HEADER_BYTES = 25_000, 8 << 20


def check(asked: Asked, most_bytes: int) -> None:
    """See that what is *asked* takes no more time and memory than its size would let one think.

    Raises:
        PayloadInvalidError: it has very many parts.
        PayloadTooLargeError: its typed elements are more than *most_bytes* elsewhere.
    """
    request = asked.message
    count = len(request.inputs) + len(request.outputs) + len(request.parameters)
    if count <= _MOST_PARTS:
        count += sum(len(one.parameters) for one in request.inputs)
        count += sum(len(one.parameters) for one in request.outputs)
    if count > _MOST_PARTS:
        message = f"the request has over {_MOST_PARTS} tensors and parameters"
        raise PayloadInvalidError(message)
    if len(asked.raw) > len(request.inputs):
        message = "there are more raw contents than inputs"
        raise PayloadInvalidError(message)
    for one in request.inputs:
        if len(one.shape) > tensors.MAX_DIMENSIONS:
            message = f"`{one.name}` has over {tensors.MAX_DIMENSIONS} dimensions"
            raise PayloadInvalidError(message, input=one.name)
    size = sum(map(typed.size, request.inputs))
    if size > most_bytes:
        message = (
            f"the elements of the request are {size} bytes, and more than the {most_bytes} that "
            "`daemon.max_message` allows"
        )
        raise PayloadTooLargeError(message, bytes=size, max_message=most_bytes)


def payload(asked: Asked) -> bytes:
    """Return what is *asked*, which was checked, as a worker takes it, but for names.

    Raises:
        PayloadInvalidError: it is not what the protocol says.
    """
    request, buffers = asked.message, list(_buffers(asked))
    parameters = _parameters(request.parameters) | {"binary_data_output": True}
    inputs = [
        {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
            "parameters": _parameters(one.parameters) | {_SIZE: len(buffer)},
        }
        for one, buffer in zip(request.inputs, buffers, strict=True)
    ]
    header: dict[str, Any] = {"parameters": parameters, "inputs": inputs}
    if request.outputs:
        header["outputs"] = [
            {"name": one.name, "parameters": _asked(one.parameters)} for one in request.outputs
        ]
    try:
        sealed: bytes = tensors.sealed(header, buffers)
    except ValueError as error:
        message = f"a parameter of the request is no number that JSON has: {error}"
        raise PayloadInvalidError(message) from error
    return sealed


def response(answer: Buffer, asked: Asked, version: str) -> Laden[oip.ModelInferResponse]:
    """Return the *answer* of a worker to what is *asked* of a model of that *version*.

    Raises:
        ModelRaisedError: no worker answers so.
    """
    request, raw = asked.message, list[Buffer]()
    found = oip.ModelInferResponse(
        model_name=request.model_name, model_version=version, id=request.id
    )
    try:
        header, rest = tensors.opened(answer, _MAX_HEADER_BYTES)
        _set(found.parameters, tensors.parameters_of(header, "the answer"))
        documents = header["outputs"]
        # Whoever sends their elements typed gets them so, as far as there are types for it.
        is_raw = bool(asked.raw) or any(one["datatype"] not in typed.FIELDS for one in documents)
        for one in documents:
            buffer, rest = _cut(one, rest)
            output = _add(found, one)
            if is_raw:
                raw.append(buffer)
            else:
                typed.unpack(buffer, output.datatype, output.contents)
    except (Malformed, DecodeError, KeyError, TypeError, ValueError) as error:
        message = f"the model's worker answered what are no tensors: {error!r}"
        raise ModelRaisedError(message) from error
    return Laden(found, raw)


def _cut(document: dict[str, Any], rest: memoryview) -> tuple[memoryview, memoryview]:
    """Return the elements of an output, and what of *rest* is behind them."""
    size = document["parameters"][_SIZE]
    if not 0 <= size <= len(rest):
        raise Malformed(_SIZE)
    return rest[:size], rest[size:]


def _add(
    found: oip.ModelInferResponse, document: dict[str, Any]
) -> oip.ModelInferResponse.InferOutputTensor:
    """Add an output without its elements to *found*, and return it."""
    output = found.outputs.add(
        name=document["name"], datatype=document["datatype"], shape=document["shape"]
    )
    parameters = document["parameters"].items()
    _set(output.parameters, {key: one for key, one in parameters if key != _SIZE})
    return output


def _buffers(asked: Asked) -> Iterator[Buffer]:
    """Yield the elements of each input as bytes.

    Raises:
        PayloadInvalidError: there are none, or they are not of its datatype.
    """
    raw = iter(asked.raw)
    for one in asked.message.inputs:
        if tensors.SHARED_MEMORY in one.parameters:
            # The worker refuses it: it has no elements to have a look at.
            yield b""
            continue
        if one.HasField("contents") and one.contents.ByteSize():
            yield typed.packed(one)
        elif (buffer := next(raw, None)) is not None:
            yield buffer
        elif 0 in one.shape:
            yield b""
        else:
            message = f"the input `{one.name}` has neither `contents` nor raw contents"
            raise PayloadInvalidError(message, input=one.name)
    if next(raw, None) is not None:
        message = "there are more raw contents than inputs that have no `contents`"
        raise PayloadInvalidError(message)


def _asked(parameters: Mapping[str, oip.InferParameter]) -> dict[str, Any]:
    # Their elements are in buffers, whatever a client says of REST.
    return _parameters(parameters) | {"binary_data": True}


def _parameters(found: Mapping[str, oip.InferParameter]) -> dict[str, Any]:
    return {
        key: getattr(one, kind)
        for key, one in found.items()
        if (kind := one.WhichOneof("parameter_choice"))
    }


def _set(target: Any, parameters: Mapping[str, Any]) -> None:
    for key, value in parameters.items():
        target[key].string_param = value
