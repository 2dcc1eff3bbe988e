"""The lines of a requirement file as they stand there: what each names, and editing them.

Nothing is judged here, and nothing but the lines that change is touched: the others keep their
order, comments, options, hashes and ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging import requirements, utils

from envd.spec import requirement
from envd.spec.yaml_lists import Edit, applied, line_end

# One white space is enough: `\s+` takes minutes over a line of 200,000 blanks.
COMMENT = re.compile(r"(?:^|\s)#.*$")
CONSTRAINTS = frozenset(("-c", "--constraint"))
INCLUDE = re.compile(r"(-r|-c|--requirement|--constraint)(?:\s*=\s*|\s*)(.+)")
EDITABLE = re.compile(r"(?:-e|--editable)(?:\s*=\s*|\s*)(.+)")
_EGG = re.compile(r"#(?:.*&)?egg=([\w.-]+)")
# Who reads such a line tells of it; here it names nothing.
_LONGEST = 10_000


@dataclass(frozen=True, slots=True)
class Line:
    """A line, continued ones joined, without its comment.

    `number` is that of its first in the file. `name` is that of the distribution it asks for,
    normalized; empty where it asks for none or only its source knows. It includes the file
    `include`, or takes constraints from `constrain`.
    """

    number: int
    text: str
    name: str = ""
    include: str = ""
    constrain: str = ""

    @property
    def is_requirement(self) -> bool:
        """Whether it asks for a distribution, by a name or not."""
        return bool(self.name) or not self.text.startswith("-") or bool(EDITABLE.match(self.text))

    @property
    def has_hash(self) -> bool:
        """Whether it says by its hash what it asks for."""
        return bool(requirement.without_hashes(self.text)[1])


def line(number: int, text: str) -> Line:
    """Return the line *text*, which is whole, stripped and without a comment."""
    if len(text) > _LONGEST:
        return Line(number, text)
    if found := INCLUDE.fullmatch(text):
        target = found[2].strip()
        if found[1] in CONSTRAINTS:
            return Line(number, text, constrain=target)
        return Line(number, text, include=target)
    return Line(number, text, _name(text))


def without_comment(text: str) -> str:
    """Return *text* without the comment at its end."""
    return COMMENT.sub("", text).strip()


def _name(text: str) -> str:
    if editable := EDITABLE.fullmatch(text):
        text = editable[1].strip()
    bare, _ = requirement.without_hashes(text)
    try:
        return utils.canonicalize_name(requirements.Requirement(requirement.modern(bare)).name)
    except (ValueError, RecursionError):
        pass
    if egg := _EGG.search(bare):
        return utils.canonicalize_name(egg[1])
    try:
        return utils.parse_wheel_filename(bare.partition("#")[0].rpartition("/")[2])[0]
    except ValueError:
        return ""


@dataclass(frozen=True, slots=True)
class _Spot:
    """A line and where it stands: its text, all of it, and where a line put after it would."""

    line: Line
    start: int
    end: int
    first: int
    last: int
    comments: tuple[str, ...]


def read(text: str) -> tuple[Line, ...]:
    """Return the lines of a requirement file that say something."""
    return tuple(spot.line for spot in _spots(text))


def edited(text: str, changes: Mapping[int, str | None], added: Sequence[str]) -> str:
    """Return *text* with its lines changed, by their places in `read`, and others *added*.

    A line that becomes None goes, its comment stays. What is added comes after the last
    requirement, so that `-c` stays where MLflow has it, at the end.
    """
    spots, new_line = list(_spots(text)), line_end(text)
    text = applied(text, [_edit(text, spots[one], new, new_line) for one, new in changes.items()])
    return applied(text, [_addition(text, added, new_line)]) if added else text


def _addition(text: str, added: Sequence[str], new_line: str) -> Edit:
    spots = list(_spots(text))
    asked = [one for one in spots if one.line.is_requirement]
    # Options come first, but constraints last.
    constrain = [one.first for one in spots if one.line.constrain]
    place = _after_remarks(text, asked[-1].last) if asked else min(constrain, default=len(text))
    before = text[:place]
    lead = "" if place == 0 or before.endswith(("\n", "\r")) else new_line
    trail = new_line if place < len(text) or not lead else ""
    if before.rstrip("\r\n").endswith("\\") and place == len(text):
        # The last line is continued by nothing.
        lead += new_line
    return Edit(place, place, lead + new_line.join(added) + trail)


def _edit(text: str, spot: _Spot, new: str | None, new_line: str) -> Edit:
    if new is not None:
        return Edit(spot.start, spot.end, new)
    kept = "".join(f"{one}{new_line}" for one in spot.comments)
    is_last = spot.last == len(text) and not text.endswith(("\n", "\r"))
    return Edit(spot.first, spot.last, kept.removesuffix(new_line) if is_last else kept)


def _after_remarks(text: str, place: int) -> int:
    """Return where those comments end that pip-compile sets below what they are about."""
    for found in text[place:].splitlines(keepends=True):
        if not re.match(r"[ \t]+#", found):
            break
        place += len(found)
    return place


def _spots(text: str) -> Iterator[_Spot]:
    place, number = 0, 0
    pending: list[tuple[int, str]] = []
    for raw in [*text.splitlines(keepends=True), None]:
        if raw is not None:
            number += 1
            pending.append((place, raw))
            place += len(raw)
            content = raw.rstrip("\r\n")
            if content.endswith("\\") and not content.lstrip().startswith("#"):
                continue
        if pending and (spot := _spot(pending, number - len(pending) + 1)):
            yield spot
        pending = []


def _spot(pending: Sequence[tuple[int, str]], number: int) -> _Spot | None:
    contents = [raw.rstrip("\r\n") for _, raw in pending]
    joined = "".join(one[:-1] + " " for one in contents[:-1]) + contents[-1].removesuffix("\\")
    whole = without_comment(joined)
    if not whole:
        return None
    first, last_start = pending[0][0], pending[-1][0]
    indent = len(contents[0]) - len(contents[0].lstrip())
    said = COMMENT.sub("", contents[-1]).rstrip()
    comment = contents[-1][len(said) :].strip()
    end = last_start + len(said)
    if not said and len(pending) > 1:
        # What is left of the last is a line of its own.
        end = pending[-2][0] + len(contents[-2])
    return _Spot(
        line(number, whole),
        first + indent,
        end,
        first,
        last_start + len(pending[-1][1]),
        (comment,) if comment.startswith("#") else (),
    )
