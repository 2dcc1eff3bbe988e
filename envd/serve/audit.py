"""A line for each call that changes what others have, and for those that are refused.

They go to the logger `envd.audit`, whatever else is logged, with `extra` fields for JSON.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from envd import plain
from envd.secrets import redact
from envd.serve import calls
from envd.serve.calls import Call

log = logging.getLogger("envd.audit")
log.setLevel(logging.INFO)

# What of a request says what it is about.
_FIELDS = ("id", "model", "model_name", "name", "pid", "force", "repair")
_REFUSED = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
_LONGEST = 400
_ENDS = frozenset(' "')
# Of what is refused: whoever is refused can ask again and again.
_EACH_S, _MOST = 0.5, 20.0


def note(request: Any) -> None:
    """Leave in the call under way what *request* is about: a line is written for it."""
    given = {name: getattr(request, name, None) for name in _FIELDS}
    _note({name: str(value) for name, value in given.items() if value})


def note_model(name: str) -> None:
    """Leave in the call under way that it is about the model *name*."""
    _note({"model": name})


def _note(about: Mapping[str, str]) -> None:
    calls.current().subject = {name: redact(text)[:_LONGEST] for name, text in about.items()}


class Audit:
    """Writes the lines; of what is refused only so many in a time, and how many there were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Have written none."""
        self._clock = clock
        self._left, self._at = _MOST, clock()
        self._unwritten = 0

    def ended(self, call: Call) -> None:
        """Write a line for *call*, if it is one of those."""
        if call.outcome in _REFUSED:
            if self._may_write():
                self._write(call, self._unwritten)
                self._unwritten = 0
        elif call.subject is not None:
            self._write(call)

    def _may_write(self) -> bool:
        now = self._clock()
        self._left = min(_MOST, self._left + (now - self._at) / _EACH_S)
        self._at = now
        if self._left < 1:
            self._unwritten += 1
            return False
        self._left -= 1
        return True

    def _write(self, call: Call, unwritten: int = 0) -> None:
        by = call.caller.name if call.caller else ""
        about = dict(call.subject or {})
        fields = {
            "rpc": call.method,
            "outcome": call.outcome,
            "by": by or None,
            "role": call.caller.role.value if call.caller else None,
            "peer": call.peer(),
            "about": about,
            "unwritten": unwritten or None,
        }
        said = " ".join(f"{name}={_told(text)}" for name, text in about.items())
        more = f" ({unwritten} more were refused)" if unwritten else ""
        log.info(
            "%s %s by %s from %s%s%s",
            call.method,
            call.outcome,
            by or "nobody known",
            fields["peer"] or "unix:",
            f": {said}" if said else "",
            more,
            extra={"audit": {key: one for key, one in fields.items() if one}},
        )


def _told(text: str) -> str:
    """Write *text* so that nobody takes it for more than it is: a model may be called `a pid=1`."""
    return json.dumps(text) if set(text) & _ENDS else plain.printable(text)
