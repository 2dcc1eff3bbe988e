"""Conda's versions: their order, and which of them an expression allows.

The source is conda's own (conda/models/version.py): `1.0.1a` comes before `1.0.1`, `1.0.dev1`
before both, `1.0.post1` after, and there are as many zeros behind a version as one likes.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import NamedTuple, TypeAlias

# Whether it is a text (1), a number (2) or `post`, which is beyond all (3); the number; the text.
_Atom: TypeAlias = tuple[int, int, str]
_Components: TypeAlias = list[list[_Atom]]

_ZERO: _Atom = (2, 0, "")
_RUNS = re.compile(r"\d+|\D+", re.ASCII)
_TERM = re.compile(r"(?P<operator>==|!=|~=|>=?|<=?|)(?P<version>.*?)(?P<star>\.\*)?")


class _Version(NamedTuple):
    own: _Components
    local: _Components


def allows(expression: str, version: str) -> bool:
    """Whether *expression*, as `envd.spec.match_spec` writes it, allows *version*."""
    there = _parsed(version)
    return any(
        all(_holds(term, there) for term in alternative.split(",") if term)
        for alternative in expression.split("|")
    )


def _holds(term: str, there: _Version) -> bool:
    found = _TERM.fullmatch(term)
    if found is None:
        return False
    operator, wanted = found["operator"], _parsed(found["version"])
    if found["star"]:
        return _begins_with(there, wanted) is (operator != "!=")
    if operator == "~=":
        above = _parsed(found["version"].rpartition(".")[0])
        return _compared(there, wanted) >= 0 and _begins_with(there, above)
    order = _compared(there, wanted)
    return {
        "==": order == 0, "!=": order != 0, ">=": order >= 0, ">": order > 0, "<=": order <= 0,
        "<": order < 0,
    }[operator]  # fmt: skip


def _parsed(text: str) -> _Version:
    epoch, _, rest = text.lower().replace("-", "_").rpartition("!")
    own, _, local = rest.partition("+")
    # `1.0.1_` is how openssl's `1.0.1` comes before its `1.0.1a`.
    end = "_" if own.endswith("_") else ""
    parts = own.removesuffix("_").replace("_", ".").split(".")
    parts[-1] += end
    return _Version(
        [_atoms(epoch or "0"), *map(_atoms, parts)],
        [_atoms(one) for one in local.replace("_", ".").split(".")] if local else [],
    )


def _atoms(component: str) -> list[_Atom]:
    found = [_atom(run) for run in _RUNS.findall(component)]
    # Each begins with a number, so that numbers meet numbers.
    return found if component[:1].isdigit() else [_ZERO, *found]


def _atom(run: str) -> _Atom:
    if run.isdigit():
        return (2, int(run), "")
    if run == "post":
        return (3, 0, "")
    # Capitals come before all other letters.
    return (1, 0, "DEV" if run == "dev" else run)


def _compared(one: _Version, other: _Version) -> int:
    """Return below 0 where *one* comes before *other*, 0 where they are the same version."""
    none: list[_Atom] = []
    for ours, theirs in zip(one, other, strict=True):
        for first, second in zip_longest(ours, theirs, fillvalue=none):
            for left, right in zip_longest(first, second, fillvalue=_ZERO):
                if left != right:
                    return -1 if left < right else 1
    return 0


def _begins_with(there: _Version, wanted: _Version) -> bool:
    if wanted.local:
        is_same = _compared(_Version(there.own, []), _Version(wanted.own, [])) == 0
        return is_same and _components_begin(there.local, wanted.local)
    return _components_begin(there.own, wanted.own)


def _components_begin(there: _Components, wanted: _Components) -> bool:
    last = len(wanted) - 1
    before = _Version(there[:last], []), _Version(wanted[:last], [])
    ours, theirs = there[last] if len(there) > last else [], wanted[last]
    end = len(theirs) - 1
    within = _Version([ours[:end]], []), _Version([theirs[:end]], [])
    if _compared(*before) != 0 or _compared(*within) != 0:
        return False
    left, right = ours[end] if len(ours) > end else _ZERO, theirs[end]
    return left[:2] == right[:2] and left[2].startswith(right[2])
