"""Requirements that a caller puts in the place of the model's own, for one call.

MLflow's `pip_requirements_override` (`mlflow/models/python_api.py`) is not in the name of
its environment: it is ignored where one is there, and stays for everybody where it is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envd.errors import EnvdError, ModelInvalidError, RequestInvalidError
from envd.model.texts import shown
from envd.spec import sources
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.requirement import Requirement
from envd.spec.requirement_file import Requirements, read_lines, without_runs_of_blanks

_MAX = 1000
_LONGEST = 10_000


class _Override(Place):
    """One of the overrides of a call; `file` is the word that its caller has for them."""

    def where(self) -> str:
        return f"{self.file} {self.line}"

    def invalid(self, why: str, **metadata: Any) -> EnvdError:
        return RequestInvalidError(f"{self.where()}: {why}", line=self.line, **metadata)


def read(
    model: Path, texts: Sequence[str], policy: Policy, word: str = "override"
) -> tuple[Requirement, ...]:
    """Read the overrides *texts* of a call about *model*; each is called by *word* and number.

    Raises:
        RequestInvalidError: one is no requirement.
        PolicyDeniedError: *policy* does not allow where one comes from.
    """
    places = [_Override(model, word, number) for number in range(1, len(texts) + 1)]
    if len(texts) > _MAX:
        why = f"there are over {_MAX} of them"
        raise places[_MAX].invalid(why)
    return tuple(_one(place, text, policy) for place, text in zip(places, texts, strict=True))


def _one(place: _Override, text: str, policy: Policy) -> Requirement:
    if len(text) > _LONGEST:
        why = f"it is over {_LONGEST} characters"
        raise place.invalid(why)
    text = without_runs_of_blanks(text) if "\n" not in text else text
    is_local = sources.is_source(text) and "://" not in text
    is_other = is_local or text.lstrip().startswith("-") or "\n" in text
    try:
        found = Requirements() if is_other else read_lines([(place, text)])(policy)
    except ModelInvalidError as error:
        raise place.invalid(error.message) from error
    if len(found.requirements) != 1:
        why = f"`{shown(text)}` is not a requirement; give a package, as in `six==1.17.0`"
        raise place.invalid(why)
    one = found.requirements[0]
    if not one.name:
        why = f"`{one.source}` has no name; write `NAME @ {one.source}`"
        raise place.invalid(why)
    return one


def split(text: str) -> list[str]:
    """Split a comma-separated list, as MLflow's command takes it, at the commas between two.

    Those within a specifier (`six>=1,<2`), extras or a URL belong to one requirement.
    """
    if "://" in text or ";" in text:
        return [text.strip()]
    parts = re.split(r",(?![^\[]*\])(?=\s*[A-Za-z0-9])", text)
    return [bare for part in parts if (bare := part.strip(" \t\n,"))]
