"""What a model has to do before it counts as loaded, where `models.check` says so."""

from __future__ import annotations

import json
from collections.abc import Mapping

from envd.errors import EnvdError, ModelInvalidError
from envd.mend.checking import about
from envd.mend.diagnosis import diagnose
from envd.mend.failures import Failure
from envd.mend.report import is_same
from envd.mend.subject import own_answer
from envd.model import Model


def refusal(
    model: Model, python: str, versions: Mapping[str, str], error: EnvdError
) -> ModelInvalidError:
    """Return the error that says why *model* does not answer its own example, as *error* does.

    It ran on *python*, with the *versions* of distributions.
    """
    found = diagnose(Failure.of(error), about(model, python, versions))
    message = (
        f"the model `{model.path}` does not answer its own input example (`models.check`): "
        f"{found.message}; {found.advice}"
    )
    return ModelInvalidError(
        message, model=model.path, diagnosis=found.code, subject=found.subject or None
    )


def must_be_expected(model: Model, answer: bytes) -> None:
    """See that *answer* to the example of *model* is what it was when it was logged, if known.

    Raises:
        ModelInvalidError: it is another.
    """
    expected = own_answer(model)
    if expected is None or is_same(expected, json.loads(answer)):
        return
    message = (
        f"the model `{model.path}` answers its own input example otherwise than when it was "
        "logged (`models.check`); `envctl check` shows both"
    )
    raise ModelInvalidError(message, model=model.path, diagnosis="ANSWER_DIFFERS")
