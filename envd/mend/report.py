"""What a check of a model came to."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from envd.mend.failures import Diagnosis

_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


class State(enum.Enum):
    """How a step of a check ended."""

    OK = "ok"
    TROUBLE = "trouble"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"


class Verdict(enum.Enum):
    """What a check says of a model; the last where the check itself could not be made."""

    OK = "ok"
    TROUBLE = "trouble"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a check, how it ended, and what is to be said of that."""

    name: str
    state: State
    message: str = ""
    findings: tuple[Diagnosis, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The steps of a check in their order, of a model with requirements put in place of its own.

    The `answer` is what it predicted, empty if it did not. `versions` are those installed.
    """

    model: str
    override: tuple[str, ...]
    environment_id: str
    steps: tuple[Step, ...]
    answer: str = ""
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def findings(self) -> tuple[Diagnosis, ...]:
        """All that was found, each once."""
        found = {(one.code, one.subject): one for step in self.steps for one in step.findings}
        return tuple(found.values())

    @property
    def verdict(self) -> Verdict:
        """What to make of it."""
        states = {one.state for one in self.steps}
        if State.TROUBLE in states:
            return Verdict.TROUBLE
        return Verdict.UNCHECKED if State.UNKNOWN in states else Verdict.OK

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "model": self.model,
            "verdict": self.verdict.value,
            "environment_id": self.environment_id or None,
            "override": list(self.override),
            "steps": [
                {"name": one.name, "state": one.state.value, "message": one.message or None}
                for one in self.steps
            ],
            "findings": [asdict(one) for one in self.findings],
            "answer": _parsed(self.answer) if self.answer else None,
        }


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def is_same(expected: Any, found: Any) -> bool:
    """Whether two answers are the same, numbers but for their last digits."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(
            is_same(one, found[key]) for key, one in expected.items()
        )
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(is_same, expected, found))
    if _is_number(expected) and _is_number(found):
        return math.isclose(expected, found, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return bool(expected == found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def said(findings: Sequence[Diagnosis]) -> str:
    """Return what was found as one sentence."""
    return "; ".join(": ".join(filter(None, (one.message, one.advice))) for one in findings)
