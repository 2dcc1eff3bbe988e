"""Reads requirement files that strangers wrote: pip's format, over `packaging`.

The model's file is never given to an installer: pip expands `${AWS_SECRET}` in it, fetches
`-r http://...` and runs the `setup.py` of `-e file://...` even in a dry run. What is
accepted here is written afresh.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from envd.events import Note
from envd.model import files
from envd.model.documents import line_of
from envd.model.texts import shown
from envd.spec import options, requirement, sources
from envd.spec.options import NO_OPTIONS, Options
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.requirement import Requirement
from envd.spec.requirement_text import COMMENT, CONSTRAINTS, EDITABLE, INCLUDE

_MAX_DEPTH = 5
_MAX_FILES = 100
_MAX_LINES = 50_000
_MAX_LINE = 65_536
_MAX_CHARACTERS = 4 << 20
# What a file may hold: requirements, and the bounds and quotes of each; all of it takes 0.5 s.
_MAX_PARTS = 20_000
# Options are put together one by one, all of them each time.
_PARTS_OF_AN_OPTION = 50
# The expressions below would look at every part of a long run of blanks.
_BLANKS = re.compile(r"\s{20,}")
_PART = re.compile(r"[,'\"]")
_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_VALUE = re.compile(r"[!-~]*")
_USER = re.compile(r"://[^/?#\s]*@")


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a requirement file asks for, its `-r` and `-c` included."""

    requirements: tuple[Requirement, ...] = ()
    constraints: tuple[Requirement, ...] = ()
    options: Options = NO_OPTIONS
    notes: tuple[Note, ...] = ()

    def __add__(self, other: Requirements) -> Requirements:
        """Return both together."""
        return Requirements(
            self.requirements + other.requirements,
            self.constraints + other.constraints,
            self.options + other.options,
            self.notes + other.notes,
        )


def read(model: Path, name: str, policy: Policy) -> Requirements:
    """Read the requirement file *name* of *model* with all it includes.

    Raises:
        ModelInvalidError: a line cannot be used, or an included file leads out of the
            model, includes itself, or is nested too deep.
        PolicyDeniedError: *policy* does not allow what a line asks for.
    """
    return _Reader(policy).file(Place(model, name, 1), name, ())


def read_entries(model: Path, name: str, entries: Iterable[str], policy: Policy) -> Requirements:
    """Read the requirement lines that are *entries* of a list in the YAML file *name*.

    Raises:
        ModelInvalidError: as `read`.
        PolicyDeniedError: as `read`.
    """
    return read_lines(
        (Place(model, name, line_of(entry) or number), entry)
        for number, entry in enumerate(entries, 1)
    )(policy)


def read_lines(lines: Iterable[tuple[Place, str]]) -> Callable[[Policy], Requirements]:
    """Return the reading of *lines*, each with its place, under a policy."""

    def reading(policy: Policy) -> Requirements:
        reader = _Reader(policy)
        return _together(
            reader.line(place, line, ())
            for place, text in lines
            for _, line in logical([(place.line, text)])
        )

    return reading


def without_runs_of_blanks(line: str) -> str:
    """Return *line* with one blank for very many; no quoted text of a marker has them."""
    return _BLANKS.sub(" ", line)


def _together(found: Iterable[Requirements]) -> Requirements:
    parts = list(found)
    return Requirements(
        tuple(one for part in parts for one in part.requirements),
        tuple(one for part in parts for one in part.constraints),
        sum((part.options for part in parts), NO_OPTIONS),
        tuple(note for part in parts for note in part.notes),
    )


def logical(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join continued lines, and drop comments and empty ones."""
    joined: list[str] = []
    first = 0
    for number, line in lines:
        first = first if joined else number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            joined.append(line[:-1] + " ")
            continue
        whole = COMMENT.sub("", "".join(joined) + line).strip()
        joined = []
        if whole:
            yield first, whole
    if rest := COMMENT.sub("", "".join(joined)).strip():
        yield first, rest


@dataclass(slots=True)
class _Reader:
    """One reading, and what it may still cost: five files of 1,000 includes make 10**15 lines."""

    policy: Policy
    files_left: int = field(default=_MAX_FILES)
    lines_left: int = field(default=_MAX_LINES)
    characters_left: int = field(default=_MAX_CHARACTERS)
    parts_left: int = field(default=_MAX_PARTS)

    def file(self, place: Place, name: str, outer: tuple[str, ...]) -> Requirements:
        """Read the file *name*, which stands at *place* inside the files *outer*."""
        text = files.read_text(place.model, name)
        lines = text.splitlines()
        self.files_left -= 1
        self.lines_left -= len(lines)
        self.characters_left -= len(text)
        if min(self.files_left, self.lines_left, self.characters_left) < 0:
            why = (
                f"with what it includes it is over {_MAX_FILES} files, {_MAX_LINES} lines or "
                f"{_MAX_CHARACTERS} characters"
            )
            raise place.invalid(why)
        return _together(
            self.line(Place(place.model, name, number), line, (*outer, name))
            for number, line in logical(enumerate(lines, 1))
        )

    def line(self, place: Place, line: str, outer: tuple[str, ...]) -> Requirements:
        """Read one logical line."""
        if len(line) > _MAX_LINE:
            why = f"it is over {_MAX_LINE} characters"
            raise place.invalid(why)
        line = without_runs_of_blanks(line)
        self._count(place, line)
        line, notes = self._expanded(place, line)
        found = self._expanded_line(place, line, outer)
        return replace(found, notes=(*notes, *found.notes)) if notes else found

    def _count(self, place: Place, line: str) -> None:
        parts = _PARTS_OF_AN_OPTION if line.startswith("-") else 1
        self.parts_left -= parts + sum(1 for _ in _PART.finditer(line))
        if self.parts_left < 0:
            why = f"with all before it the file asks for over {_MAX_PARTS} things"
            raise place.invalid(why)

    def _expanded(self, place: Place, line: str) -> tuple[str, list[Note]]:
        notes = []
        values = {}
        for name in sorted(set(_VARIABLE.findall(line))):
            values[name], note = self.policy.variable(place, name)
            if not _VALUE.fullmatch(values[name]):
                why = f"the value of `${{{shown(name)}}}` holds white space or what no URL can hold"
                raise place.invalid(why, variable=name)
            notes.append(note)
        # A `/` in a password would end what is cut off as the user and password.
        quoted = {name: quote(value, safe=":") for name, value in values.items()}
        line = _USER.sub(lambda found: _with_values(found[0], quoted), line)
        return _with_values(line, values), notes

    def _expanded_line(self, place: Place, line: str, outer: tuple[str, ...]) -> Requirements:
        if include := INCLUDE.fullmatch(line):
            return self._include(place, include[1], include[2].strip(), outer)
        if editable := EDITABLE.fullmatch(line):
            return self._from_source(place, editable[1].strip(), is_editable=True)
        if line.startswith("-"):
            found, notes = options.parse(place, line, self.policy)
            return Requirements(options=found, notes=notes)
        if sources.is_source(line):
            return self._from_source(place, line, is_editable=False)
        one = requirement.parse(place, line)
        return Requirements((one,), notes=_legacy_notes(line, one))

    def _from_source(self, place: Place, text: str, *, is_editable: bool) -> Requirements:
        one, notes = sources.parse(place, text, self.policy)
        if is_editable:
            notes = (*notes, self.policy.editable(place, one.source))
        return Requirements((one,), notes=notes)

    def _include(
        self, place: Place, option: str, target: str, outer: tuple[str, ...]
    ) -> Requirements:
        if "://" in target:
            why = f"`{option}` of a URL; a requirement file may only include files of the model"
            raise place.invalid(why)
        name = posixpath.normpath(posixpath.join(posixpath.dirname(place.file), target))
        if name in outer:
            why = f"`{shown(target)}` includes itself"
            raise place.invalid(why)
        if len(outer) > _MAX_DEPTH:
            why = f"`{shown(target)}` is nested deeper than {_MAX_DEPTH} files"
            raise place.invalid(why)
        included = self.file(place, name, outer)
        if option in CONSTRAINTS:
            return _as_constraints(place, included)
        return included


def _with_values(text: str, values: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: values[found[1]], text)


def _as_constraints(place: Place, included: Requirements) -> Requirements:
    constraints = included.requirements + included.constraints
    for one in constraints:
        if one.source:
            why = f"the constraint `{one.name or one.source}` is a URL or path; name a version"
            raise place.invalid(why)
    return Requirements((), constraints, included.options, included.notes)


def _legacy_notes(line: str, one: Requirement) -> tuple[Note, ...]:
    if requirement.modern(line) == line:
        return ()
    message = f"`{shown(line)}` is no specifier any more (PEP 440); it is read as `{one.text}`"
    return (Note("SPECIFIER_READ", message, one.name),)
