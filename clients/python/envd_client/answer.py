"""What a model answered, and how the answer came about."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from envd_client.v1 import envd_pb2

_ORIGINS = {
    envd_pb2.PredictResponse.WARM: "warm",
    envd_pb2.PredictResponse.FORKED: "forked",
    envd_pb2.PredictResponse.FRESH: "fresh",
}


@dataclass(frozen=True)
class Answer:
    """The answer of a model.

    `worker_origin` is `warm`, `forked` or `fresh`, or empty if the daemon does not say, and
    `worker_reason` why it was started so;
    `stage_seconds` says where the time went: `build`, `start`, `queue`, and `predict`, of
    which `model` in the model.
    """

    payload: bytes
    content_type: str
    environment_id: str
    worker_origin: str
    worker_reason: str
    stage_seconds: dict[str, float]
    notes: tuple[envd_pb2.Note, ...]

    @property
    def predictions(self) -> Any:
        """The predictions: what the JSON has under `predictions`, else all of it.

        Raises:
            ValueError: the payload is not JSON.
        """
        document = json.loads(self.payload)
        if isinstance(document, dict) and "predictions" in document:
            return document["predictions"]
        return document


def answer(response: envd_pb2.PredictResponse) -> Answer:
    """Return the answer that came as *response*."""
    return Answer(
        response.payload,
        response.content_type,
        response.environment_id,
        _ORIGINS.get(response.worker_origin, ""),
        response.worker_reason,
        dict(response.stage_seconds),
        tuple(response.notes),
    )
