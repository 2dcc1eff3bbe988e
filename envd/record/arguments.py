"""What a model is recorded with, once it has been checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from envd.errors import RequestInvalidError
from envd.record import environment, requirements
from envd.record.code import Placed
from envd.record.environment import CondaEnv, Environment
from envd.record.example import Example
from envd.record.python_model import PythonModel
from envd.record.requirements import Asked, Given


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a model is recorded with.

    `whole` is all that it is to ask for; where that is None it is found out, and `extra` goes
    beside it.
    """

    python_model: PythonModel
    artifacts: Mapping[str, str | os.PathLike[str]]
    whole: Environment | None
    extra: Asked
    placed: list[Placed]
    is_followed: bool
    example: Example | None
    signature: Any
    metadata: Mapping[str, Any] | None
    config: Mapping[str, Any] | None
    allow_secrets: bool
    check: bool
    on_step: Callable[[str], None]


def asked(
    pip_requirements: Given | None, extra: Given | None, conda_env: CondaEnv | None
) -> tuple[Environment | None, Asked]:
    """Return all that is asked for, or None and what is asked for beside what is found out.

    Raises:
        RequestInvalidError: two of them are given, or one cannot be read.
    """
    if sum(one is not None for one in (pip_requirements, extra, conda_env)) > 1:
        message = "give one of `pip_requirements`, `extra_pip_requirements` and `conda_env`"
        raise RequestInvalidError(message)
    if conda_env is not None:
        return environment.of_conda(conda_env), Asked()
    if pip_requirements is not None:
        return Environment(requirements.read(pip_requirements, "pip_requirements")), Asked()
    return None, requirements.read(() if extra is None else extra, "extra_pip_requirements")
