"""The paths of MLflow's scoring server (`mlflow/pyfunc/scoring_server`, 3.17), for each model."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import envd
from envd.errors import ModelNotFoundError, ShuttingDownError
from envd.run import pool
from envd.serve.http.edge import Edge
from envd.serve.http.failures import MediaTypeError, NotLoadedError
from envd.serve.predicting import Asked, Predicting
from envd.serve.served import Entries, Entry, State

CONTENT_TYPES = ("application/json", "text/csv", "application/vnd.apache.parquet")
_PREFIXES = ("", "/models/{name}")
# MLflow's scoring protocol has had its forms under names since 2.0.
_JSON = "application/json; protocol=2"


@dataclass(frozen=True, slots=True)
class Scoring:
    """MLflow's paths, answered with the models that have a name."""

    edge: Edge
    entries: Entries
    predicting: Predicting

    def routes(self) -> list[Route]:
        """Return them, without a model and below that of each."""
        invoke = self.edge.call("/http/invocations", self._invoke)
        version, found = self.edge.plain(self._version), []
        for prefix in _PREFIXES:
            # Which models there are is not for anybody.
            health = (self.edge.plain if prefix else self.edge.free)(self._health)
            found += [
                Route(f"{prefix}/invocations", invoke, methods=["POST"]),
                Route(f"{prefix}/ping", health, methods=["GET"]),
                Route(f"{prefix}/health", health, methods=["GET"]),
                Route(f"{prefix}/version", version, methods=["GET"]),
            ]
        return found

    async def _invoke(self, request: Request) -> Response:
        entry = self._entry(request)
        kind = _content_type(request.headers.get("content-type"))
        payload = await self.edge.body(request)
        asked = pool.Request(payload, kind, None)
        async with self.edge.while_there(request):
            answer = await self.predicting.answer(Asked(entry.served.name), asked)
        return Response(bytes(answer.prediction.payload), media_type="application/json")

    async def _health(self, request: Request) -> Response:
        """Say whether the model was loaded; without one, whether there is a daemon."""
        if self.edge.is_draining:
            message = "the daemon is stopping; ask again when it is back"
            raise ShuttingDownError(message)
        if "name" in request.path_params:
            _check_ready(self._entry(request))
        return Response("\n", media_type="text/plain")

    async def _version(self, request: Request) -> Response:
        """Say which mlflow the model has, or before it is loaded was logged by; else which envd."""
        entry = self._entry(request) if "name" in request.path_params else self._only()
        version = entry.mlflow_version if entry else ""
        if not version and entry and entry.model:
            version = entry.model.mlflow_version or ""
        return Response(version or envd.__version__, media_type="text/plain")

    def _entry(self, request: Request) -> Entry:
        """Return the model that *request* is for.

        Raises:
            ModelNotFoundError: there is no such model, or none is meant.
        """
        name = request.path_params.get("name")
        if name is None:
            return self._only() or self._none()
        if entry := self.entries.named(name):
            return entry
        message = f"no model is served as `{name}`; `envctl models list` shows those that are"
        raise ModelNotFoundError(message, model=name)

    def _only(self) -> Entry | None:
        """Return the model that the settings name for this, or the only one there is."""
        if wanted := self.edge.settings.http.model:
            return self.entries.named(wanted)
        # One may be there in several versions.
        names = {one.served.name for one in self.entries} - {""}
        return self.entries.named(names.pop()) if len(names) == 1 else None

    def _none(self) -> Entry:
        if wanted := self.edge.settings.http.model:
            message = f"no model is served as `{wanted}`, which `http.model` names; load it"
        else:
            message = "several models are served here, or none; ask at /models/NAME/invocations"
        raise ModelNotFoundError(message)


def _check_ready(entry: Entry) -> None:
    if entry.state is State.READY:
        return
    name = entry.served.name
    if entry.failure:
        message = f"the model `{name}` could not be loaded: {entry.failure.message}"
    else:
        message = f"the model `{name}` is not loaded; ask it, or set `preload` of it"
    raise NotLoadedError(message, model=name)


def _content_type(header: str | None) -> str:
    """Return what the worker is told of a body with this Content-Type.

    Raises:
        MediaTypeError: it is none of MLflow's; the messages are MLflow's own.
    """
    kind, *pairs = (one.strip() for one in (header or CONTENT_TYPES[0]).lower().split(";"))
    if header == "":
        kind = ""
    given = dict(one.partition("=")[::2] for one in pairs if one)
    if given.pop("charset", "utf-8").strip('"') != "utf-8":
        message = "The scoring server only supports UTF-8"
        raise MediaTypeError(message)
    if given:
        message = f"Unrecognized content type parameters: {', '.join(sorted(given))}."
        raise MediaTypeError(message)
    if kind not in CONTENT_TYPES:
        message = (
            "This predictor only supports the following content types: Types: "
            f"{list(CONTENT_TYPES)}. Got '{header}'."
        )
        raise MediaTypeError(message)
    return _JSON if kind == CONTENT_TYPES[0] else kind
