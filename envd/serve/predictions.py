"""The handlers of envd.v1.Predictions: one message in, one call, one message out."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass

from envd_client.v1 import envd_pb2 as api

from envd import messages
from envd.errors import EnvdError, EnvironmentNotFoundError, RequestInvalidError
from envd.run.pool import Pool, Prediction, Request
from envd.serve import calls
from envd.serve.context import Context
from envd.serve.in_flight import InFlight
from envd.serve.loading import Loading
from envd.serve.model_handlers import ModelHandlers, named
from envd.serve.models import ReadyModel, ReadyModels, again
from envd.serve.roles import Role
from envd.serve.worker_handlers import WorkerHandlers
from envd.spec import Terms

_ORIGINS = {
    "warm": api.PredictResponse.WARM,
    "forked": api.PredictResponse.FORKED,
    "fresh": api.PredictResponse.FRESH,
}


class Predictions(ModelHandlers, WorkerHandlers):
    """Answers with the models and the workers it is given."""

    def __init__(
        self,
        models: ReadyModels,
        pool: Pool,
        loading: Loading,
        roles: Collection[Role],
        in_flight: InFlight,
    ) -> None:
        """Use *models* to find environments and *pool* to run in them."""
        ModelHandlers.__init__(self, models, loading, roles)
        WorkerHandlers.__init__(self, pool)
        self._in_flight = in_flight

    async def Predict(  # noqa: N802
        self, request: api.PredictRequest, context: Context
    ) -> api.PredictResponse:
        """Answer one request with one model."""
        parsed = Request(
            payload=request.payload,
            content_type=request.content_type or "application/json",
            params=_object(request.params_json, "params_json"),
        )
        asked = _Asked(
            named(request.model),
            Terms(tuple(request.pip_requirements_override), request.env_manager),
            _object(request.model_config_json, "model_config_json"),
            wait=request.wait if request.HasField("wait") else True,
        )
        size = len(parsed.payload)
        self._in_flight.take(size)
        try:
            return await again(lambda: self._answer(asked, parsed, context))
        finally:
            self._in_flight.give_back(size)

    async def _answer(
        self, asked: _Asked, request: Request, context: Context
    ) -> api.PredictResponse:
        call, started = calls.current(), time.perf_counter()
        ready = await self._models.ready(
            asked.model, asked.terms, asked.model_config, wait=asked.wait
        )
        call.stages["environment"] = time.perf_counter() - started
        call.model = ready.entry.served.name if ready.entry else ""
        calls.check_deadline(context)
        try:
            prediction = await self._pool.predict(
                ready.model, ready.environment, request, ready.serving
            )
        except EnvironmentNotFoundError:
            self._models.forget(ready.model, asked.terms)
            raise
        except EnvdError as error:
            raise await self._models.failed(ready, error) from error
        if ready.entry:
            await self._models.succeeded(ready)
        call.stages["queue"] = prediction.queue_seconds
        if prediction.start_seconds:
            call.stages["start"] = prediction.start_seconds
        call.stages["worker"] = prediction.predict_seconds
        call.stages["model"] = prediction.model_seconds
        call.bytes_in, call.bytes_out = len(request.payload), len(prediction.payload)
        response = _response(prediction, ready, call.stages["environment"])
        self._in_flight.check_answer(response, call.bytes_out)
        return response


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request says of the model."""

    model: str
    terms: Terms
    model_config: dict[str, object] | None
    wait: bool


def _response(
    prediction: Prediction, ready: ReadyModel, build_seconds: float
) -> api.PredictResponse:
    response = api.PredictResponse(
        payload=prediction.payload,
        content_type="application/json",
        environment_id=ready.environment.id,
        worker_origin=_ORIGINS[prediction.origin],
        worker_reason=prediction.why,
        notes=messages.notes(ready.notes),
    )
    # One by one: a dict takes three times as long.
    seconds = response.stage_seconds
    seconds["build"] = build_seconds
    seconds["start"] = prediction.start_seconds
    seconds["queue"] = prediction.queue_seconds
    seconds["predict"] = prediction.predict_seconds
    seconds["model"] = prediction.model_seconds
    for note in prediction.notes:
        response.notes.add(**note)
    return response


def _object(text: str, name: str) -> dict[str, object] | None:
    """Return the JSON object *text*, which a request has as *name*."""
    if not text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"`{name}` is not JSON: {error}"
        raise RequestInvalidError(message) from error
    if not isinstance(found, dict):
        message = f"`{name}` is not a JSON object"
        raise RequestInvalidError(message)
    return found
