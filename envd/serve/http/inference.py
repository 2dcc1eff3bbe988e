"""The Open Inference Protocol over REST, with Triton's extensions that its clients use.

https://github.com/kserve/open-inference-protocol, and Triton's extensions for binary data,
repositories and model configurations. What a request and an answer hold is not looked into here.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import envd
from envd.errors import ModelRaisedError, RequestInvalidError
from envd.model.signature import TensorSpec
from envd.run import pool
from envd.run.envd_worker.protocol import TENSORS
from envd.serve import audit, calls
from envd.serve.http import bodies, failures
from envd.serve.http.edge import Edge, Endpoint
from envd.serve.oip.catalog import EXTENSIONS, PLATFORM, Catalog, state_of, version_of
from envd.serve.predicting import Asked, Predicting
from envd.serve.served import Entry, State

_HEADER_SIZE = "inference-header-content-length"
_LENGTH = struct.Struct("!I")
_OK, _NOT_READY = 200, 503
_MOST_DIGITS, _LONGEST = 10, 1 << 16


@dataclass(frozen=True, slots=True)
class Inference:
    """The paths below /v2, answered with the models that have a name."""

    edge: Edge
    catalog: Catalog
    predicting: Predicting

    def routes(self) -> list[Route]:
        """Return them."""
        model, repository = "/v2/models/{name}", "/v2/repository"
        version = f"{model}/versions/{{version}}"
        found = [
            self._plain("/v2", self._server),
            Route("/v2/health/live", self.edge.free(self._live), methods=["GET"]),
            Route("/v2/health/ready", self.edge.free(self._ready), methods=["GET"]),
            self._call(f"{repository}/index", "index", self._index),
            self._call(f"{repository}/models/{{name}}/load", "load", self._load),
            self._call(f"{repository}/models/{{name}}/unload", "unload", self._unload),
        ]
        for prefix in (model, version):
            found += [
                self._plain(prefix, self._model),
                self._plain(f"{prefix}/ready", self._model_ready),
                self._plain(f"{prefix}/config", self._config),
                self._call(f"{prefix}/infer", "infer", self._infer),
            ]
        return found

    def _plain(self, path: str, answer: Endpoint) -> Route:
        return Route(path, self.edge.plain(answer, failures.of_inference), methods=["GET"])

    def _call(self, path: str, method: str, answer: Endpoint) -> Route:
        endpoint = self.edge.call(f"/http/{method}", answer, failures.of_inference)
        return Route(path, endpoint, methods=["POST"])

    async def _server(self, request: Request) -> Response:
        del request
        document = {"name": "envd", "version": envd.__version__, "extensions": EXTENSIONS}
        return JSONResponse(document)

    async def _live(self, request: Request) -> Response:
        del request
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        del request
        is_ready = self.catalog.is_ready and not self.edge.is_draining
        return JSONResponse({"ready": is_ready}, _OK if is_ready else _NOT_READY)

    async def _model(self, request: Request) -> Response:
        entry = self._entry(request)
        said = await self.catalog.signature(entry)
        document: dict[str, Any] = {
            "name": entry.served.name,
            "versions": self.catalog.versions(entry),
            "platform": PLATFORM,
            "inputs": [_tensor(one) for one in said.inputs],
            "outputs": [_tensor(one) for one in said.outputs],
        }
        if said.content_type:
            document["parameters"] = {"content_type": said.content_type}
        return JSONResponse(document)

    async def _model_ready(self, request: Request) -> Response:
        entry = self._entry(request)
        is_ready = entry.state is State.READY
        document = {"name": entry.served.name, "ready": is_ready}
        return JSONResponse(document, _OK if is_ready else _NOT_READY)

    async def _config(self, request: Request) -> Response:
        entry = self._entry(request)
        said = await self.catalog.signature(entry)
        document = {
            "name": entry.served.name,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "max_batch_size": 0,
            "input": [_configured(one) for one in said.inputs],
            "output": [_configured(one) for one in said.outputs],
        }
        return JSONResponse(document)

    async def _infer(self, request: Request) -> Response:
        entry = self._entry(request)
        payload = sealed(await self.edge.body(request), request.headers.get(_HEADER_SIZE))
        async with self.edge.while_there(request):
            asked = pool.Request(payload, TENSORS, None)
            answer = await self.predicting.answer(Asked(entry.address), asked)
        body, size = opened(bytes(answer.prediction.payload), entry)
        accepted = request.headers.get("accept-encoding", "")
        content, encoding = await bodies.packed(body, accepted)
        headers = {"content-type": "application/json"}
        if size < len(body):
            headers = {"content-type": "application/octet-stream", _HEADER_SIZE: str(size)}
        if encoding:
            headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
        return Response(content, headers=headers)

    async def _index(self, request: Request) -> Response:
        given = _object(await self.edge.body(request))
        only_ready = given.get("ready", False)
        if not isinstance(only_ready, bool):
            message = "`ready` is to be true or false"
            raise RequestInvalidError(message)
        found = self.catalog.index(only_ready=only_ready)
        return JSONResponse([_indexed(one) for one in found])

    async def _load(self, request: Request) -> Response:
        if _object(await self.edge.body(request)).get("parameters") not in (None, {}):
            message = "envd loads models as the settings say; send no parameters"
            raise RequestInvalidError(message)
        audit.note_model(request.path_params["name"])
        is_admin = calls.current().by.is_admin
        await self.catalog.load(request.path_params["name"], is_admin=is_admin)
        return Response()

    async def _unload(self, request: Request) -> Response:
        # Triton's client says in it whether models that others need are to go as well.
        _object(await self.edge.body(request))
        audit.note_model(request.path_params["name"])
        is_admin = calls.current().by.is_admin
        await self.catalog.unload(request.path_params["name"], is_admin=is_admin)
        return Response()

    def _entry(self, request: Request) -> Entry:
        given = request.path_params
        return self.catalog.find(given["name"], given.get("version", ""))


def sealed(body: bytes, header_size: str | None) -> bytes:
    """Return the *body* of a request as a worker takes it (`envd.run.envd_worker.tensors`).

    Its header is all of it, unless *header_size* says how long that is.

    Raises:
        RequestInvalidError: it cannot be that long.
    """
    if header_size is None:
        size = len(body)
    elif header_size.isascii() and header_size.isdigit() and len(header_size) <= _MOST_DIGITS:
        size = int(header_size)
    else:
        size = len(body) + 1
    if size > len(body):
        message = (
            f"Inference-Header-Content-Length is {header_size}, and the body {len(body)} bytes; "
            "give the length of the JSON at its front"
        )
        raise RequestInvalidError(message)
    return _LENGTH.pack(size) + body


def opened(answer: bytes, entry: Entry) -> tuple[bytes, int]:
    """Return the *answer* of a worker of *entry* as it is sent, and how long its header is.

    Raises:
        ModelRaisedError: no worker answers so.
    """
    size = _LENGTH.unpack_from(answer)[0] if len(answer) >= _LENGTH.size else len(answer)
    begin, end = _LENGTH.size, _LENGTH.size + size
    if end > len(answer) or answer[begin : begin + 1] != b"{":
        message = "the model's worker answered what are no tensors"
        raise ModelRaisedError(message)
    named = {"model_name": entry.served.name, "model_version": version_of(entry)}
    # A worker does not know what it is called by; what it says is not read for that.
    front = json.dumps(named)[:-1].encode() + b", "
    return b"".join([front, memoryview(answer)[begin + 1 :]]), len(front) + size - 1


def _object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that is the *body* of a request about models, which is short."""
    try:
        found = json.loads(body[:_LONGEST] or b"{}")
    except (ValueError, RecursionError) as error:
        message = f"the body is no JSON: {error}"
        raise RequestInvalidError(message) from error
    if not isinstance(found, dict):
        message = "the body is no JSON object"
        raise RequestInvalidError(message)
    return found


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": spec.shape,
        "parameters": {"content_type": spec.content_type},
    }


def _configured(spec: TensorSpec) -> dict[str, object]:
    kind = "TYPE_" + spec.datatype.replace("BYTES", "STRING")
    return {"name": spec.name, "data_type": kind, "dims": spec.shape}


def _indexed(entry: Entry) -> dict[str, str]:
    state, reason = state_of(entry)
    return {
        "name": entry.served.name,
        "version": version_of(entry),
        "state": state,
        "reason": reason,
    }
