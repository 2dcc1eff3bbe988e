"""What is checked: a model, with something to ask it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from envd.errors import ModelInvalidError
from envd.mend import made_up
from envd.model import Model, example, files

# What MLflow does not keep, who logs a model may: what it answered to its own example.
_ANSWER = "output_example.json"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: a model, called `name`, with an input and the answer to it.

    Without a `payload` it is only loaded, and without an `answer` any will do. An input that
    `is_made_up` says something only where it fails for want of something else.
    """

    name: str
    model: Model
    payload: bytes | None = None
    content_type: str = _JSON
    answer: Any = None
    only_loads: bool = False
    is_made_up: bool = False

    @classmethod
    def of(cls, name: str, model: Model, **given: Any) -> Subject:
        """Return *model* with its own example, unless another input is *given*."""
        if given.get("payload") is not None or given.get("only_loads"):
            return cls(name, model, **given)
        text = example.read(model)
        own = own_answer(model) if text else None
        payload = text.encode() if text else made_up.payload(model)
        answer = given.get("answer")
        return cls(
            name,
            model,
            payload,
            answer=own if answer is None else answer,
            is_made_up=text is None and payload is not None,
        )


def own_answer(model: Model) -> Any:
    """Return what *model* answered to its example when it was logged, None where nobody kept it.

    Raises:
        ModelInvalidError: it cannot be read.
    """
    if not files.exists(model.path, _ANSWER):
        return None
    try:
        return json.loads(files.read_text(model.path, _ANSWER))
    except (ValueError, RecursionError) as error:
        message = f"`{model.path / _ANSWER}` is not JSON: {error}"
        raise ModelInvalidError(message, model=model.path, path=_ANSWER) from error
