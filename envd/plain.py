"""Writes durations and sizes for people."""

from __future__ import annotations

_MOMENT = "less than a second"
_DAY_S = 86400
_SHORT_AGES = (("h", 3600), ("min", 60), ("s", 1))
_UNITS = ("B", "kB", "MB", "GB")
_THOUSAND = 1000
_SHORT = 12


def age(seconds: float) -> str:
    """Write a duration in its largest unit, rounded down: `5 min`, `1 day`, `41 days`."""
    if seconds >= _DAY_S:
        days = int(seconds // _DAY_S)
        return f"{days} day{'' if days == 1 else 's'}"
    for unit, length in _SHORT_AGES:
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return _MOMENT


def size(count: float) -> str:
    """Write a number of bytes: `12 B`, `3.4 MB`."""
    for unit in _UNITS:
        if count < _THOUSAND:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _THOUSAND
    return f"{count:.1f} TB"


def short_id(text: str) -> str:
    """Write as much of an id as tells it from the others, and may be given in its place."""
    return text[:_SHORT]


def printable(text: str) -> str:
    """Write *text* in one line that does nothing to a terminal."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
