"""The day a model was logged, which what it left open is resolved as of."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace

from envd.events import Note
from envd.model import Model
from envd.model.texts import shown
from envd.spec.dependencies import Dependencies

_DAY = re.compile(r"(\d{4}|\d{2})-(\d{2})-(\d{2})(?!\d)", re.ASCII)
_YEARS = range(1990, 2201)


def with_day(model: Model, found: Dependencies) -> Dependencies:
    """Return *found* with the day of `utc_time_created`, or a note that there is none."""
    day = parse(model.created or "")
    if day:
        return replace(found, day=day.isoformat())
    why = f"`{shown(model.created)}` is no date" if model.created else "it has no date"
    message = f"it is not known when the model was logged ({why}); today's versions are used"
    return replace(found, notes=(*found.notes, Note("DAY_UNKNOWN", message)))


def parse(text: str) -> dt.date | None:
    """Return the day a `utc_time_created` begins with, None where no model can be of it.

    A year of two digits is of this century.
    """
    if not (match := _DAY.match(text.strip())):
        return None
    year = int(match[1] if len(match[1]) > len("19") else f"20{match[1]}")
    if year not in _YEARS:
        return None
    try:
        return dt.date(year, int(match[2]), int(match[3]))
    except ValueError:
        return None
