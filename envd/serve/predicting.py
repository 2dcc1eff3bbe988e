"""One prediction, whichever protocol it was asked in: the environment, the worker, the account."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from envd.errors import EnvdError, EnvironmentNotFoundError
from envd.run.pool import Pool, Prediction, Request
from envd.serve import calls
from envd.serve.in_flight import InFlight
from envd.serve.models import DEFAULT, ReadyModel, ReadyModels, again
from envd.spec import Terms


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of the model: its name, path or URI, and on which terms.

    Where the environment is not ready and it is not to `wait`, that is an error.
    """

    model: str
    terms: Terms = DEFAULT
    model_config: Mapping[str, object] | None = None
    wait: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """A prediction and what was asked for it, with the seconds until that was ready."""

    prediction: Prediction
    ready: ReadyModel
    environment_seconds: float


class Predicting:
    """Answers requests with the models and the workers it is given."""

    def __init__(self, models: ReadyModels, pool: Pool, in_flight: InFlight) -> None:
        """Use *models* to find environments and *pool* to run in them."""
        self._models = models
        self._pool = pool
        self.in_flight = in_flight

    async def answer(self, asked: Asked, request: Request) -> Answer:
        """Answer *request*, within a call that is under way.

        Raises:
            EnvdError: it cannot be answered.
        """
        call = calls.current()
        call.is_prediction = True
        size = len(request.payload)
        self.in_flight.take(size)
        try:
            answer = await again(lambda: self._answer(asked, request))
        finally:
            self.in_flight.give_back(size)
        call.bytes_in, call.bytes_out = size, len(answer.prediction.payload)
        return answer

    async def _answer(self, asked: Asked, request: Request) -> Answer:
        call, started = calls.current(), time.perf_counter()
        ready = await self._models.ready(
            asked.model, asked.terms, asked.model_config, wait=asked.wait
        )
        seconds = call.stages["environment"] = time.perf_counter() - started
        call.model = ready.entry.served.name if ready.entry else ""
        call.check_deadline()
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
        return Answer(prediction, ready, seconds)
