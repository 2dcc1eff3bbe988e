"""What servers are asked, in each of the protocols, and what they answer."""

from __future__ import annotations

import json
import struct
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from envd_client.v1 import envd_pb2 as api

from envd.serve.oip import inference_pb2 as oip

PREDICT = "/envd.v1.Predictions/Predict"
_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Question:
    """A request as bytes: of a gRPC `method`, or all of an HTTP request where that is empty."""

    method: str
    request: bytes
    answer: object
    ask: Callable[[str], object]


def predict(model: str, document: object, answer: object) -> Question:
    """Ask envd's own Predict, in JSON."""
    payload = json.dumps(document).encode()
    asked = api.PredictRequest(model=model, payload=payload, content_type="application/json")
    request = asked.SerializeToString()

    def ask(target: str) -> object:
        found = api.PredictResponse.FromString(_called(target, PREDICT, request))
        return json.loads(found.payload)

    return Question(PREDICT, request, answer, ask)


def infer(model: str, row: dict[str, Any]) -> Question:
    """Ask the Open Inference Protocol about one *row*, a tensor for each column of the table."""
    table = row["dataframe_split"]
    asked = oip.ModelInferRequest(model_name=model)
    asked.parameters["content_type"].string_param = "pd"
    for name, value in zip(table["columns"], table["data"][0], strict=True):
        asked.inputs.add(name=name, datatype="FP64", shape=[1, 1])
        asked.raw_input_contents.append(struct.pack("<d", value))
    request = asked.SerializeToString()

    def ask(target: str) -> object:
        found = oip.ModelInferResponse.FromString(_called(target, _INFER, request))
        return [one.hex() for one in found.raw_output_contents]

    return Question(_INFER, request, [struct.pack("<q", 0).hex()], ask)


def invocation(path: str, document: object, answer: object) -> Question:
    """Ask over HTTP, as MLflow's server is asked."""
    body, kind = json.dumps(document).encode(), "Content-Type: application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {len(body)}"

    def ask(target: str) -> object:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{target}{path}", body, headers)
        with urllib.request.urlopen(request) as found:
            return json.loads(found.read())

    return Question("", head.encode() + b"\r\n\r\n" + body, answer, ask)


def _called(target: str, method: str, request: bytes) -> bytes:
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(method)
        answer: bytes = call(request)
        return answer
