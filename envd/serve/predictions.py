"""The handlers of envd.v1.Predictions: one message in, one call, one message out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services

from envd import messages
from envd.errors import EnvironmentNotFoundError, RequestInvalidError
from envd.events import Note
from envd.run.pool import Pool, Prediction, Request
from envd.serve import status
from envd.serve.context import Context
from envd.serve.models import ReadyModels
from envd.spec import Terms
from envd.store import Environment

_ORIGINS = {
    "warm": api.PredictResponse.WARM,
    "forked": api.PredictResponse.FORKED,
    "fresh": api.PredictResponse.FRESH,
}
# A directory on its way to the trash may take its time on a disk with much to do.
_PAUSES_S = (0.0, 0.1, 0.5)


class Predictions(services.PredictionsServicer):
    """Answers with the models and the workers it is given."""

    def __init__(self, models: ReadyModels, pool: Pool) -> None:
        """Use *models* to find environments and *pool* to run in them."""
        self._models = models
        self._pool = pool

    @status.unary
    async def Predict(  # noqa: N802
        self, request: api.PredictRequest, context: Context
    ) -> api.PredictResponse:
        """Answer one request with one model."""
        del context
        parsed = Request(
            payload=request.payload,
            content_type=request.content_type or "application/json",
            params=_params(request.params_json),
        )
        wait = request.wait if request.HasField("wait") else True
        terms = Terms(tuple(request.pip_requirements_override), request.env_manager)
        for pause_s in _PAUSES_S:
            # An environment may be removed after it was found: then look, and build, again.
            with contextlib.suppress(EnvironmentNotFoundError):
                return await self._answer(request.model, terms, parsed, wait=wait)
            await asyncio.sleep(pause_s)
        return await self._answer(request.model, terms, parsed, wait=wait)

    async def _answer(
        self, name: str, terms: Terms, request: Request, *, wait: bool
    ) -> api.PredictResponse:
        started = time.perf_counter()
        model = await self._models.read(_named(name))
        environment, notes = await self._models.environment(model, terms, wait=wait)
        build_seconds = time.perf_counter() - started
        try:
            prediction = await self._pool.predict(model, environment, request)
        except EnvironmentNotFoundError:
            self._models.forget(model, terms)
            raise
        return _response(prediction, notes, environment, build_seconds)


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


def _named(model: str) -> str:
    if not model:
        message = "the request names no model; give its absolute path or its URI"
        raise RequestInvalidError(message)
    return model


def _params(text: str) -> dict[str, object] | None:
    if not text:
        return None
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"`params_json` is not JSON: {error}"
        raise RequestInvalidError(message) from error
    if not isinstance(params, dict):
        message = "`params_json` is not a JSON object"
        raise RequestInvalidError(message)
    return params
