"""The handlers of envd.v1.Predictions: one message in, one call, one message out."""

from __future__ import annotations

import json
from collections.abc import Collection

from envd_client.v1 import envd_pb2 as api

from envd import messages
from envd.errors import RequestInvalidError
from envd.run.pool import Pool, Request
from envd.serve.context import Context
from envd.serve.loading import Loading
from envd.serve.model_handlers import ModelHandlers, named
from envd.serve.models import ReadyModels
from envd.serve.predicting import Answer, Asked, Predicting
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
        predicting: Predicting,
    ) -> None:
        """Use *models* and *loading* to look after models, and *predicting* to ask them."""
        ModelHandlers.__init__(self, models, loading, roles)
        WorkerHandlers.__init__(self, pool)
        self._predicting = predicting

    async def Predict(  # noqa: N802
        self, request: api.PredictRequest, context: Context
    ) -> api.PredictResponse:
        """Answer one request with one model."""
        del context
        asked = Asked(
            named(request.model),
            Terms(tuple(request.pip_requirements_override), request.env_manager),
            _object(request.model_config_json, "model_config_json"),
            wait=request.wait if request.HasField("wait") else True,
        )
        parsed = Request(
            payload=request.payload,
            content_type=request.content_type or "application/json",
            params=_object(request.params_json, "params_json"),
        )
        answer = await self._predicting.answer(asked, parsed)
        response = _response(answer)
        self._predicting.in_flight.check_answer(response, len(response.payload))
        return response


def _response(answer: Answer) -> api.PredictResponse:
    prediction, ready = answer.prediction, answer.ready
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
    seconds["build"] = answer.environment_seconds
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
