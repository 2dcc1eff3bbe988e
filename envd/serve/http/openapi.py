"""What is served, as OpenAPI 3.1 says it: one table of operations, which a test holds to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import envd
from envd.run.envd_worker.tensors import CODES

Document = dict[str, Any]
_ANY: Document = {}
_OBJECT: Document = {"type": "object"}
_TEXT: Document = {"type": "string"}
_PARAMETERS: Document = {"type": ["object", "null"]}
_MEANINGS = {
    200: "What was asked for.",
    400: "The request is wrong or does not fit the model; for MLflow, too, that the model raised.",
    401: "No token that the daemon knows, nor a certificate with a role, where it wants one.",
    403: "A page of another site may not ask, nor whoever calls the daemon by a wrong name; only "
    "models of the settings are loaded and unloaded.",
    404: "No model is served by that name.",
    408: "The body did not come in time.",
    409: "The build was cancelled, or workers die of this very request.",
    413: "The body is larger than `daemon.max_message`.",
    415: "The content type, or the content encoding, is not known.",
    429: "Too much is under way already; Retry-After says when to ask again.",
    500: "The model or its environment cannot be used, or envd is at fault.",
    503: "Not now; Retry-After says when to ask again.",
    504: "It took longer than `http.timeout`.",
}
_ASKED = (400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503, 504)

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_CHATS = ("messages", "prompt", "input")
_SCHEMAS: Document = {
    "Invocation": {
        "description": "MLflow's scoring request: one of its forms, with params; or what LLM "
        "providers take, which is not wrapped.",
        **_OBJECT,
        "oneOf": [
            {
                "properties": {"params": _PARAMETERS, **dict.fromkeys(_CHATS, False)},
                "oneOf": [{"required": [form]} for form in _FORMS],
            },
            {"anyOf": [{"required": [key]} for key in _CHATS]},
        ],
        "examples": [{"inputs": [[1.0, 2.0]]}],
    },
    "Predictions": {**_OBJECT, "properties": {"predictions": _ANY}},
    "Failure": {
        **_OBJECT,
        "required": ["error_code", "message"],
        "properties": {
            "error_code": _TEXT,
            "message": _TEXT,
            "sqlstate": _TEXT,
            "error_class": _TEXT,
            "stack_trace": _TEXT,
        },
    },
    "InferFailure": {**_OBJECT, "required": ["error"], "properties": {"error": _TEXT}},
    "InferInput": {
        **_OBJECT,
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": _TEXT,
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 32},
            "datatype": {"enum": sorted([*CODES, "BYTES"])},
            "parameters": _PARAMETERS,
            "data": {"type": "array"},
        },
    },
    "InferRequest": {
        **_OBJECT,
        "required": ["inputs"],
        "properties": {
            "inputs": {
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/components/schemas/InferInput"},
            },
            "parameters": _PARAMETERS,
        },
    },
    "InferResponse": {
        **_OBJECT,
        "required": ["model_name", "model_version", "outputs"],
        "properties": {"model_name": _TEXT, "model_version": _TEXT, "outputs": {"type": "array"}},
    },
}


def document(names: Sequence[str]) -> Document:
    """Return the description for a daemon that serves models by these *names*."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "envd",
            "version": envd.__version__,
            "description": "MLflow models, each in its own environment: as MLflow's scoring server "
            "and in the Open Inference Protocol. An `x-request-id` comes back with the answer; "
            "`x-envd-reason` says why there is none.",
        },
        "paths": {**_mlflow(names), **_inference(names), **_own()},
        "components": {"schemas": _SCHEMAS},
    }


def _mlflow(names: Sequence[str]) -> Document:
    body = {
        "application/json": {"schema": _ref("Invocation")},
        "text/csv": {"schema": _TEXT},
        "application/vnd.apache.parquet": {"schema": {**_TEXT, "format": "binary"}},
    }
    invoke = _operation("Ask a model", _json("Predictions"), body=body, failures=_ASKED)
    told = [
        _operation("Say whether it was loaded", _plain(), failures=(*_LOOKED, 404, 503)),
        _operation("Say whether it was loaded", _plain(), failures=(*_LOOKED, 404, 503)),
        _operation("Say which mlflow it has", _plain(), failures=(*_LOOKED, 404)),
    ]
    paths: Document = {}
    for prefix, parameters in (("", []), ("/models/{name}", [_name(names)])):
        paths[f"{prefix}/invocations"] = {"parameters": parameters, "post": invoke}
        for path, one in zip(("ping", "health", "version"), told, strict=True):
            paths[f"{prefix}/{path}"] = {"parameters": parameters, "get": one}
    return paths


def _inference(names: Sequence[str]) -> Document:
    def operation(
        summary: str, *failures: int, schema: Document = _OBJECT, **more: Any
    ) -> Document:
        answer = {"application/json": {"schema": schema}}
        return _operation(summary, answer, failures=failures, failure="InferFailure", **more)

    tensors = {"application/octet-stream": {"schema": {**_TEXT, "format": "binary"}}}
    infer = operation("Ask a model", *_ASKED, schema=_ref("InferResponse"),
                      body={"application/json": {"schema": _ref("InferRequest")}})  # fmt: skip
    infer["responses"]["200"]["content"] |= tensors
    unready = {"503": {"description": "It is not.", "content": {"application/json": {}}}}
    ready = operation("Say whether it is loaded", *_LOOKED, 404)
    ready["responses"] |= unready
    all_ready = operation("Say whether what is to be loaded is")
    all_ready["responses"] |= unready
    one, version = _name(names), _parameter("version")
    ask = {**_OBJECT, "properties": {"ready": {"type": "boolean"}}}
    load = {**_OBJECT, "properties": {"parameters": {**_PARAMETERS, "maxProperties": 0}}}
    listed = operation("List the models", *_SENT, schema={"type": "array"}, body=_body(ask))
    paths: Document = {
        "/v2": {"get": operation("Say what this is", *_LOOKED)},
        "/v2/health/live": {"get": operation("Say that it runs")},
        "/v2/health/ready": {"get": all_ready},
        "/v2/repository/index": {"post": listed},
    }
    for verb, schema in (("load", load), ("unload", _OBJECT)):
        done = _operation(f"{verb.title()} a model", {}, failures=_ASKED,
                          body=_body(schema), failure="InferFailure")  # fmt: skip
        paths[f"/v2/repository/models/{{name}}/{verb}"] = {"parameters": [one], "post": done}
    for prefix, parameters in (
        ("/v2/models/{name}", [one]),
        ("/v2/models/{name}/versions/{version}", [one, version]),
    ):
        paths |= {
            prefix: {"parameters": parameters, "get": operation("Say what it takes", *_READ)},
            f"{prefix}/ready": {"parameters": parameters, "get": ready},
            f"{prefix}/config": {
                "parameters": parameters,
                "get": operation("Say what Triton says of it", *_READ),
            },
            f"{prefix}/infer": {"parameters": parameters, "post": infer},
        }
    return paths


_LOOKED = (401, 403)
_SENT = (400, 401, 403, 408, 413, 415, 429, 503, 504)
_READ = (401, 403, 404, 500, 503)


def _own() -> Document:
    told = {"application/json": {"schema": _OBJECT}}
    return {
        "/metrics": {"get": _operation("What Prometheus reads", _plain(), failures=_LOOKED)},
        "/openapi.json": {"get": _operation("This description", told, failures=_LOOKED)},
    }


def _operation(
    summary: str,
    answer: Document,
    *,
    failures: Sequence[int],
    body: Document | None = None,
    failure: str = "Failure",
) -> Document:
    content = {"application/json": {"schema": _ref(failure)}}
    responses = {"200": {"description": _MEANINGS[200]} | ({"content": answer} if answer else {})}
    for status in sorted(failures):
        responses[str(status)] = {"description": _MEANINGS[status], "content": content}
    if failure == "Failure" and "415" in responses:
        responses["415"] = {"description": _MEANINGS[415], "content": _plain()}
    found: Document = {"summary": summary, "responses": responses}
    return found | ({"requestBody": {"content": body}} if body else {})


def _body(schema: Document) -> Document:
    return {"application/json": {"schema": schema}}


def _json(name: str) -> Document:
    return {"application/json": {"schema": _ref(name)}}


def _plain() -> Document:
    return {"text/plain": {"schema": _TEXT}}


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _name(names: Sequence[str]) -> Document:
    return _parameter("name", {"enum": list(names)} if names else {})


def _parameter(name: str, more: Document = _ANY) -> Document:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT | more}
