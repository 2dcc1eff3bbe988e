"""Reads what a model is to depend on, as whoever records it says: a list, or a file of pip's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from envd.errors import RequestInvalidError
from envd.spec.requirement_file import logical
from envd.spec.requirement_text import CONSTRAINTS, INCLUDE

Given: TypeAlias = "str | os.PathLike[str] | Sequence[str]"

_MAX_DEPTH = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """The lines of a requirement file, options first, and the lines of the constraints."""

    lines: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()

    def __add__(self, other: Asked) -> Asked:
        """Return both; what *other* says of a distribution counts."""
        named = {name_of(one) for one in other.lines} - {""}
        kept = tuple(one for one in self.lines if name_of(one) not in named)
        lines = dict.fromkeys((*kept, *other.lines))
        options = [one for one in lines if one.startswith("-")]
        others = [one for one in lines if not one.startswith("-")]
        constraints = dict.fromkeys((*self.constraints, *other.constraints))
        return Asked((*options, *others), tuple(constraints))


def read(given: Given, argument: str) -> Asked:
    """Read *given*, the value of *argument*; `-r` and `-c` in it are followed.

    Raises:
        RequestInvalidError: a file cannot be read, or a line is no requirement.
    """
    if isinstance(given, str | os.PathLike):
        lines = list(_of_file(Path(given), argument, 0))
    elif all(isinstance(one, str) for one in given):
        lines = list(_of_lines(given, Path(), argument, 0))
    else:
        message = f"`{argument}` is neither a file nor a list of texts"
        raise RequestInvalidError(message, argument=argument)
    asked = Asked(
        tuple(line for kind, line in lines if kind == "line"),
        tuple(line for kind, line in lines if kind == "constraint"),
    )
    for one in (*asked.lines, *asked.constraints):
        _must_be_one(one, argument)
    return Asked() + asked


def _of_file(path: Path, argument: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > _MAX_DEPTH:
        message = f"`{path}` of `{argument}` includes itself, or is nested too deep"
        raise RequestInvalidError(message, argument=argument, path=path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        message = f"`{path}` of `{argument}` cannot be read: {error}"
        raise RequestInvalidError(message, argument=argument, path=path) from error
    yield from _of_lines(text.splitlines(), path.parent, argument, depth)


def _of_lines(
    lines: Sequence[str], folder: Path, argument: str, depth: int
) -> Iterator[tuple[str, str]]:
    for _, line in logical(enumerate(lines, 1)):
        found = INCLUDE.fullmatch(line)
        if not found:
            yield "line", line
            continue
        for kind, one in _of_file(folder / found[2], argument, depth + 1):
            yield ("constraint" if found[1] in CONSTRAINTS else kind), one


def _must_be_one(line: str, argument: str) -> None:
    if line.startswith("-") or re.match(r"\S+://|\.{0,2}/", line):
        return
    try:
        Requirement(line.partition(" --hash")[0])
    except InvalidRequirement as error:
        why = str(error).partition("\n")[0]
        message = f"`{line}` of `{argument}` is not a requirement: {why}"
        raise RequestInvalidError(message, argument=argument, requirement=line) from error


def name_of(line: str) -> str:
    """Return the normalized name of the distribution that *line* is about, if it is about one."""
    found = re.match(r"[A-Za-z0-9][\w.-]*", line)
    return canonicalize_name(found[0]) if found and "://" not in line.partition("@")[0] else ""
