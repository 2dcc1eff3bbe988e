"""Reads requirement files that strangers wrote; pip's format, over `packaging`.

The model's file is never given to an installer: pip expands `${AWS_SECRET}` in it, fetches
`-r http://...` and runs the `setup.py` of `-e file://...` even in a dry run. What is
accepted here is written afresh.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packaging import requirements, utils
from packaging.specifiers import Specifier

from envd.errors import ModelInvalidError
from envd.model import files

_MAX_DEPTH = 5
_SHOWN_CHARACTERS = 200
_MAX_FILES = 100
_MAX_LINES = 50_000
# One white space is enough: `\s+` takes minutes over a line of 200,000 blanks.
_COMMENT = re.compile(r"(?:^|\s)#.*$")
_INCLUDE = re.compile(r"(-r|-c|--requirement|--constraint)(?:\s*=\s*|\s*)(.+)")
_HASH = re.compile(r"\s--hash[=\s](\S+)")
# PEP 508 knows no escapes, but `packaging` evaluates them: `\n` would begin another line,
# an option of the installer's, in the file that is written afresh.
_UNPRINTABLE = re.compile(r"[\\\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    """One PEP 508 requirement in its canonical spelling, and the hashes it allows.

    `name` is normalized (PEP 503). Two requirements that mean the same are equal.
    """

    name: str
    text: str
    hashes: tuple[str, ...] = ()

    @property
    def pin(self) -> str | None:
        """The version it is pinned to with `==`, or None."""
        found = re.fullmatch(r"[^=;\[]+(?:\[[^\]]*\])?==([^=,;*]+)(?:;.*)?", self.text)
        return found[1].strip() if found else None


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a requirement file asks for, its `-r` and `-c` included."""

    requirements: tuple[Requirement, ...] = ()
    constraints: tuple[Requirement, ...] = ()

    def __add__(self, other: Requirements) -> Requirements:
        """Return both together."""
        return Requirements(
            self.requirements + other.requirements, self.constraints + other.constraints
        )


class Place(NamedTuple):
    """A line of a model's file, or an entry of a list in it, for messages."""

    model: Path
    file: str
    line: int
    unit: str = "line"

    def invalid(self, why: str, **metadata: object) -> ModelInvalidError:
        """Return the error that says *why* this line cannot be used."""
        message = f"`{self.model / self.file}`, {self.unit} {self.line}: {why}"
        return ModelInvalidError(
            message, model=self.model, path=self.file, line=self.line, **metadata
        )


def read(model: Path, name: str) -> Requirements:
    """Read the requirement file *name* of *model* with all it includes.

    Raises:
        ModelInvalidError: a line cannot be used, or an included file leads out of the
            model, includes itself, or is nested too deep.
    """
    return _read(Place(model, name, 1), name, (), _Budget())


def read_entries(model: Path, name: str, entries: Iterable[str]) -> Requirements:
    """Read the requirement lines that are *entries* of a list in the file *name*."""
    budget = _Budget()
    return _together(
        _line(Place(model, name, number, "entry"), line, (), budget)
        for number, entry in enumerate(entries, 1)
        for _, line in _logical([(number, entry)])
    )


def requirement(place: Place, text: str) -> Requirement:
    """Return the requirement that *text* is, canonical.

    Raises:
        ModelInvalidError: it is not one, or names a URL.
    """
    hashes = tuple(sorted(found.lower() for found in _HASH.findall(text)))
    bare = _HASH.sub("", text).strip()
    shown = bare[:_SHOWN_CHARACTERS]
    if found := _UNPRINTABLE.search(bare):
        why = f"`{shown!r}` is not a requirement: it holds the character {found[0]!r}"
        raise place.invalid(why, requirement=repr(shown))
    try:
        parsed = requirements.Requirement(bare)
        text = canonical(parsed)
    except (ValueError, RecursionError) as error:
        why = f"`{shown}` is not a requirement: {str(error).splitlines()[0]}"
        raise place.invalid(why, requirement=shown) from error
    if hashes and not any(one.startswith("sha256:") for one in hashes):
        why = f"`{parsed.name}` has no sha256 hash; no other can be checked against the index"
        raise place.invalid(why, requirement=parsed.name)
    if parsed.url is not None:
        why = f"`{parsed.name}` comes from a URL or path; name a version that an index has"
        raise place.invalid(why, requirement=parsed.name)
    return Requirement(utils.canonicalize_name(parsed.name), text, hashes)


def canonical(parsed: requirements.Requirement) -> str:
    """Write a requirement so that equal ones are written alike."""
    extras = ",".join(sorted(utils.canonicalize_name(extra) for extra in parsed.extras))
    specifiers = ",".join(sorted({_specifier(one) for one in parsed.specifier}))
    marker = f"; {parsed.marker}" if parsed.marker else ""
    return (
        utils.canonicalize_name(parsed.name)
        + (f"[{extras}]" if extras else "")
        + specifiers
        + marker
    )


def _specifier(one: Specifier) -> str:
    # `~=1.4` and `~=1.4.0` differ, and `===` compares texts.
    if one.operator in {"~=", "==="} or one.version.endswith(".*"):
        return f"{one.operator}{one.version}"
    return f"{one.operator}{utils.canonicalize_version(one.version)}"


class _Budget:
    """What one reading may still cost: five files of 1,000 includes make 10**15 lines."""

    def __init__(self) -> None:
        self._files, self._lines = _MAX_FILES, _MAX_LINES

    def spend(self, place: Place, lines: int) -> None:
        self._files -= 1
        self._lines -= lines
        if self._files < 0 or self._lines < 0:
            why = f"with what it includes it is over {_MAX_FILES} files or {_MAX_LINES} lines"
            raise place.invalid(why)


def _read(place: Place, name: str, outer: tuple[str, ...], budget: _Budget) -> Requirements:
    lines = list(enumerate(files.read_text(place.model, name).splitlines(), 1))
    budget.spend(place, len(lines))
    return _joined(place.model, name, lines, (*outer, name), budget)


def _joined(
    model: Path,
    name: str,
    lines: list[tuple[int, str]],
    outer: tuple[str, ...],
    budget: _Budget,
) -> Requirements:
    return _together(
        _line(Place(model, name, number), line, outer, budget) for number, line in _logical(lines)
    )


def _together(found: Iterable[Requirements]) -> Requirements:
    parts = list(found)
    return Requirements(
        tuple(one for part in parts for one in part.requirements),
        tuple(one for part in parts for one in part.constraints),
    )


def _logical(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join continued lines, and drop comments and empty ones."""
    joined, first = "", 0
    for number, line in lines:
        first = first if joined else number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            joined += line[:-1] + " "
            continue
        whole = _COMMENT.sub("", joined + line).strip()
        joined = ""
        if whole:
            yield first, whole
    if rest := _COMMENT.sub("", joined).strip():
        yield first, rest


def _line(place: Place, line: str, outer: tuple[str, ...], budget: _Budget) -> Requirements:
    if "${" in line:
        why = "variables (`${...}`) are not expanded; write the value, or use envd's settings"
        raise place.invalid(why)
    if include := _INCLUDE.fullmatch(line):
        return _include(place, include[1], include[2].strip(), outer, budget)
    if line.startswith("-"):
        option = line.split(maxsplit=1)[0].split("=", maxsplit=1)[0]
        why = (
            f"the option `{option}` is not accepted from a model; "
            "indexes come from envd's settings (`index.urls`, `index.find_links`)"
        )
        raise place.invalid(why, option=option)
    return Requirements((requirement(place, line),))


def _include(
    place: Place, option: str, target: str, outer: tuple[str, ...], budget: _Budget
) -> Requirements:
    if "://" in target:
        why = f"`{option}` of a URL; a requirement file may only include files of the model"
        raise place.invalid(why)
    name = posixpath.normpath(posixpath.join(posixpath.dirname(place.file), target))
    if name in outer:
        why = f"`{target}` includes itself"
        raise place.invalid(why)
    if len(outer) > _MAX_DEPTH:
        why = f"`{target}` is nested deeper than {_MAX_DEPTH} files"
        raise place.invalid(why)
    included = _read(place, name, outer, budget)
    if option in {"-c", "--constraint"}:
        return Requirements((), included.requirements + included.constraints)
    return included
