"""Says in a sentence or two why conda packages cannot be had together.

rattler draws a tree of all that it tried (resolvo's `conflict.rs`), often hundreds of lines
long: packages that are asked for, below them the versions there are, below those what they
need in their turn. A few branches of it say enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from envd.spec.mirrors import HOME

_LONGEST, _MOST_CLAUSES, _MOST_WAYS, _DEEPEST = 1200, 8, 3, 6
_BEGINS = "Cannot solve the request because of: "
_HEAD = "The following packages are incompatible"
_DRAWN = re.compile(r"[ │├└─]*")
_INDENT = len("├─ ")
# What follows the name of what is asked for, and of a version.
_GOES_ON = re.compile(
    r",? (which )?can(not)? be installed (with any of the following options"
    r"|because there are no viable options):$"
)
_ABSENT = re.compile(r"(No candidates were found for )?(?P<what>.+?)(, for which .*|\.)$")
_CLASHES = re.compile(r", which conflicts with .*$")
_NEEDS = re.compile(r" would (require|constrain)$")
_EXCLUDED = re.compile(r" is excluded because (?P<why>.*)$")
_REASONS = (
    (re.compile(r".*after the cutoff date.*"), "was published later"),
    (
        re.compile(r".*strict channel priority not using this option from: '(.*?)/?'"),
        r"is only in the channel \1, and one before it goes first (strict priority)",
    ),
    (re.compile(r".*not in requested channel: '(.*?)/?'"), r"is not in the channel \1"),
    (re.compile(r"(.*)"), r"cannot be used: \1"),
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why packages cannot be had together, and the names of those it is about, sorted."""

    text: str
    names: tuple[str, ...]


@dataclass(slots=True)
class _Node:
    text: str
    below: list[_Node] = field(default_factory=list)

    @property
    def what(self) -> str:
        """What is asked for, or a version of it."""
        found = _ABSENT.match(self.text) if self.is_absent else None
        text = found["what"] if found else self.text
        for ending in (_GOES_ON, _CLASHES, _NEEDS, _EXCLUDED):
            text = ending.sub("", text)
        return text.removesuffix(" *")

    @property
    def is_absent(self) -> bool:
        """Whether there is no version of it."""
        return "no candidates were found" in self.text.lower()

    @property
    def lacking(self) -> str:
        """The property of the machine that it is: `__glibc`, `__cuda`; empty for a package."""
        name = self.what.partition(" ")[0]
        return name if name.startswith("__") else ""

    @property
    def ways(self) -> list[_Node]:
        """The versions of it that need something which cannot be."""
        return [one for one in self.below if one.below]


@dataclass(frozen=True, slots=True)
class _Clause:
    """A part of an explanation; `lacking` is a property of the machine that is not as needed."""

    text: str
    about: tuple[_Node, ...]
    lacking: str = ""

    def with_what_is(self, properties: Mapping[str, str]) -> str:
        """Return its text with what the machine has instead."""
        has = properties.get(self.lacking)
        return f"{self.text} (it has {self.lacking} {has})" if has else self.text


def explain(drawing: str, properties: Mapping[str, str] | None = None) -> Explanation:
    """Return what the *drawing* of a failure comes to.

    *properties* are those of the machine that packages may need, with their versions.
    """
    roots = _roots(drawing.replace(_BEGINS, "").replace(HOME, ""))
    clauses = {one.text: one for root in roots for one in _clauses(root, 0)}
    shown = list(clauses.values())[:_MOST_CLAUSES]
    names = {node.what.split(" ")[0] for one in shown for node in one.about}
    said = [one.with_what_is(properties or {}) for one in shown]
    return Explanation(cut("; ".join(said)), tuple(sorted(names)))


def cut(text: str) -> str:
    """Return *text*, or its beginning where it is long, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rpartition(' ')[0]} ..."


def _roots(drawing: str) -> list[_Node]:
    top = _Node("")
    above = [top]
    for line in drawing.splitlines():
        drawn = _DRAWN.match(line)
        start = drawn.end() if drawn else 0
        if text := line[start:].strip():
            depth = min(start // _INDENT + 1, len(above))
            node = _Node(text)
            above[depth - 1].below.append(node)
            above[depth:] = [node]
    return [root for one in top.below for root in (one.below if one.text == _HEAD else [one])]


def _clauses(asked: _Node, depth: int) -> Iterator[_Clause]:
    """Yield what there is to say of what is *asked* for, and of what that needs."""
    excluded = [one for one in asked.below if _EXCLUDED.search(one.text)]
    for one in excluded[:_MOST_WAYS]:
        yield _Clause(f"{one.what} {_reason(one)}", (one,))
    ways: dict[str, list[_Node]] = {}
    for one in asked.ways:
        ways.setdefault(one.what, []).append(one)
    for same in list(ways.values())[:_MOST_WAYS]:
        yield _needs(same)
        if depth < _DEEPEST:
            for below in same[0].below:
                yield from _clauses(below, depth + 1)
    if not depth and not excluded and not ways:
        yield _alone(asked)


def _alone(asked: _Node) -> _Clause:
    """Say of what is *asked* for that it is, or is not there."""
    if asked.is_absent and asked.lacking:
        text = f"{asked.what} is asked for, which the platform does not have"
        return _Clause(text, (asked,), asked.lacking)
    said = "is asked for" if asked.below else "is not there" if asked.is_absent else ""
    return _Clause(f"{asked.what} {said}".strip(), (asked,))


def _needs(same: list[_Node]) -> _Clause:
    """Say what versions need: the builds of them may need different things."""
    needed = {" and ".join(one.what for one in way.below): way.below for way in same}
    shown = list(needed)[:_MOST_WAYS]
    verb = "rules out all but" if same[0].text.endswith(" would constrain") else "needs"
    text = f"{same[0].what} {verb} {' or '.join(shown)}"
    text += " or others" if len(needed) > len(shown) else ""
    absent = [one for one in same[0].below if one.is_absent]
    lacking = absent[0].lacking if absent else ""
    if absent:
        text += ", which the platform does not have" if lacking else ", which is not there"
    return _Clause(text, (same[0], *(one for what in shown for one in needed[what])), lacking)


def _reason(excluded: _Node) -> str:
    found = _EXCLUDED.search(excluded.text)
    why = found["why"] if found else ""
    return next(form.sub(said, why, count=1) for form, said in _REASONS if form.fullmatch(why))
