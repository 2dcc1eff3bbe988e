"""The handlers of envd.v1.Predictions: one message in, one call, one message out."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass

from envd_client.v1 import envd_pb2 as api

from envd import messages
from envd.errors import EnvdError, EnvironmentNotFoundError, RequestInvalidError
from envd.events import Note
from envd.run.pool import Pool, Prediction, Request
from envd.serve import status
from envd.serve.context import Context
from envd.serve.loading import Loading
from envd.serve.model_handlers import ModelHandlers, named
from envd.serve.models import ReadyModels, again
from envd.serve.roles import Role
from envd.serve.worker_handlers import WorkerHandlers
from envd.spec import Terms
from envd.store import Environment

_ORIGINS = {
    "warm": api.PredictResponse.WARM,
    "forked": api.PredictResponse.FORKED,
    "fresh": api.PredictResponse.FRESH,
}


class Predictions(ModelHandlers, WorkerHandlers):
    """Answers with the models and the workers it is given."""

    def __init__(
        self, models: ReadyModels, pool: Pool, loading: Loading, roles: Collection[Role]
    ) -> None:
        """Use *models* to find environments and *pool* to run in them."""
        ModelHandlers.__init__(self, models, loading, roles)
        WorkerHandlers.__init__(self, pool)

    @status.unary
    async def Predict(  # noqa: N802
        self, request: api.PredictRequest, context: Context
    ) -> api.PredictResponse:
        """Answer one request with one model."""
        del context
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
        return await again(lambda: self._answer(asked, parsed))

    async def _answer(self, asked: _Asked, request: Request) -> api.PredictResponse:
        started = time.perf_counter()
        ready = await self._models.ready(
            asked.model, asked.terms, asked.model_config, wait=asked.wait
        )
        build_seconds = time.perf_counter() - started
        try:
            prediction = await self._pool.predict(
                ready.model, ready.environment, request, ready.serving
            )
        except EnvironmentNotFoundError:
            self._models.forget(ready.model, asked.terms)
            raise
        except EnvdError as error:
            raise await self._models.failed(ready, error) from error
        await self._models.succeeded(ready)
        return _response(prediction, ready.notes, ready.environment, build_seconds)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request says of the model."""

    model: str
    terms: Terms
    model_config: dict[str, object] | None
    wait: bool


def _response(
    prediction: Prediction,
    notes: tuple[Note, ...],
    environment: Environment,
    build_seconds: float,
) -> api.PredictResponse:
    return api.PredictResponse(
        payload=prediction.payload,
        content_type="application/json",
        environment_id=environment.id,
        worker_origin=_ORIGINS[prediction.origin],
        worker_reason=prediction.why,
        stage_seconds={
            "build": build_seconds,
            "start": prediction.start_seconds,
            "queue": prediction.queue_seconds,
            "predict": prediction.predict_seconds,
            "model": prediction.model_seconds,
        },
        notes=[*messages.notes(notes), *(api.Note(**note) for note in prediction.notes)],
    )


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
