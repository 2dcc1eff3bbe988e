"""How the texts of strangers are shown in messages: short, in one line, without passwords."""

from __future__ import annotations

import re

_LONGEST = 200
# More than is shown: what is cut off must not be the `@` that marks a password.
_LOOKED_AT = 1_000
# A password may hold a slash, but what follows a host and a port is none. Not only after
# `://`: what is shown here is often malformed.
_USERINFO = re.compile(r"(?<=:)([/\\]*)(?:[^/\s:@]*:(?!\d{1,5}(?:[/?#]|$))[^\s@]*\S*|[^/\s:@]*)@")
_CUT_OFF = re.compile(r":[/\\]*[^/\s:@]*:[^\s@]*\Z")


def shown(text: str, longest: int = _LONGEST) -> str:
    """Return *text* as it may stand in a message."""
    looked_at = text[:_LOOKED_AT]
    if len(text) > _LOOKED_AT:
        looked_at = _CUT_OFF.sub(":", looked_at)
    cut = _USERINFO.sub(r"\1***@", looked_at)[:longest]
    return "".join(one if one.isprintable() else _escaped(one) for one in cut)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
