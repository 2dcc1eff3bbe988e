"""The handlers of envd.v1.Predictions: one message in, one call, one message out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from envd_client.v1 import envd_pb2 as api

from envd import messages
from envd.errors import RequestInvalidError
from envd.run.channel import Buffer
from envd.run.envd_worker.protocol import TENSORS
from envd.run.pool import Function, Pool, Request
from envd.serve import large
from envd.serve.context import Context, write
from envd.serve.large import Laden
from envd.serve.loading import Loading
from envd.serve.model_handlers import ModelHandlers, named
from envd.serve.models import ReadyModels
from envd.serve.predicting import Answer, Asked, Predicting
from envd.serve.worker_handlers import WorkerHandlers
from envd.spec import Terms

_ORIGINS = {
    "warm": api.PredictResponse.WARM,
    "forked": api.PredictResponse.FORKED,
    "fresh": api.PredictResponse.FRESH,
}
# Everybody waits while it is read.
_LONGEST, _MOST_LEVELS = 1 << 19, 100
_FUNCTIONS: dict[int, Function] = {
    api.PredictStreamRequest.PREDICT: "predict",
    api.PredictStreamRequest.PREDICT_STREAM: "predict_stream",
}


class Predictions(ModelHandlers, WorkerHandlers):
    """Answers with the models and the workers it is given."""

    def __init__(
        self,
        models: ReadyModels,
        pool: Pool,
        loading: Loading,
        predicting: Predicting,
    ) -> None:
        """Use *models* and *loading* to look after models, and *predicting* to ask them."""
        ModelHandlers.__init__(self, models, loading)
        WorkerHandlers.__init__(self, pool)
        self._predicting = predicting

    # The stubs know messages only, with their payload in them.
    async def Predict(  # type: ignore[override]  # noqa: N802
        self, request: Laden[api.PredictRequest], context: Context
    ) -> Laden[api.PredictResponse]:
        """Answer one request with one model."""
        del context
        answer = await self._predicting.answer(*_parsed(request.message, request.payload))
        laden = Laden(_response(answer), answer.prediction.payload)
        self._predicting.in_flight.check_answer(laden.payload, lambda: large.size(laden))
        return laden

    # And generators only.
    async def PredictStream(  # type: ignore[override]  # noqa: N802
        self, requests: AsyncIterator[api.PredictStreamRequest], context: Context
    ) -> None:
        """Answer one request, of which *requests* are the parts, in parts."""
        first = await anext(requests, api.PredictStreamRequest())
        function = _FUNCTIONS.get(first.function)
        if function is None or not first.HasField("request"):
            message = "the first message has to have a `request`, and the `function` to ask"
            raise RequestInvalidError(message)
        asked, request = _parsed(first.request, first.request.payload)
        pause_s = self._predicting.pause_s
        more = None if first.input_ends else _more(requests)
        async with self._predicting.stream(asked, request, function, more) as answering:
            async for part in answering:
                payload = bytes(part.payload)
                found = api.PredictStreamResponse(payload=payload, item_ends=part.ends)
                await write(context, found, pause_s)
        end = api.PredictStreamResponse(end=_response(answering.answer))
        await write(context, end, pause_s)


def _parsed(request: api.PredictRequest, payload: Buffer) -> tuple[Asked, Request]:
    override, manager = tuple(request.pip_requirements_override), request.env_manager
    asked = Asked(
        named(request.model, override, manager, request.model_config_json),
        Terms(override, manager),
        _object(request.model_config_json, "model_config_json"),
        wait=request.wait if request.HasField("wait") else True,
    )
    if request.content_type.lower().startswith(TENSORS):
        message = "tensors go by the Open Inference Protocol; send JSON, CSV or Parquet here"
        raise RequestInvalidError(message)
    parsed = Request(
        payload=payload,
        content_type=request.content_type or "application/json",
        params=_object(request.params_json, "params_json"),
    )
    return asked, parsed


async def _more(requests: AsyncIterator[api.PredictStreamRequest]) -> AsyncIterator[bytes]:
    """Yield what *requests* have of the input.

    Raises:
        RequestInvalidError: one of them begins another request, or none ends this one.
    """
    async for one in requests:
        if one.HasField("request") or one.function:
            message = "only the first message may have a `request` and a `function`"
            raise RequestInvalidError(message)
        yield one.payload
        if one.input_ends:
            return
    # A caller who leaves ends its half of the call as well, as far as can be told here.
    message = "the input has no end: the last message has to have `input_ends`"
    raise RequestInvalidError(message)


def _response(answer: Answer) -> api.PredictResponse:
    prediction, ready = answer.prediction, answer.ready
    response = api.PredictResponse(
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
    if len(text) > _LONGEST:
        message = f"`{name}` is {len(text)} characters, and more than the {_LONGEST} there may be"
        raise RequestInvalidError(message)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"`{name}` is not JSON: {error}"
        raise RequestInvalidError(message) from error
    if not isinstance(found, dict):
        message = f"`{name}` is not a JSON object"
        raise RequestInvalidError(message)
    if _is_deep(found):
        message = f"`{name}` is nested over {_MOST_LEVELS} levels deep"
        raise RequestInvalidError(message)
    return found


def _is_deep(document: dict[str, object]) -> bool:
    """Whether *document* is nested more deeply than it can be written, here or by a worker."""
    level: list[Any] = [document]
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for one in level
            if isinstance(one, (list, dict))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True
