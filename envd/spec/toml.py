"""Reads TOML that strangers wrote: every value is checked when it is asked for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from envd.model import files
from envd.model.texts import shown
from envd.spec.place import Place

# mlflow's own uv.lock is 1 MiB, a fifth of which is left without texts and comments. That
# part costs time: `tomllib` takes a second for a MiB of `1,1,1,`.
_MAX_BYTES = 3 << 20
_MAX_STRUCTURE = 640 << 10
_MAX_TEXT = 65_536
_HEADER = re.compile(r"[ \t]*\[\[[ \t]*([\w-]+)[ \t]*\]\]")
_ERROR_LINE = re.compile(r"at line (\d+)")
# Nothing in it may be tried twice: a text of escapes that never ends would take hours, and
# one that does 100 bytes for each. `tomllib` refuses what has no end.
_TEXT_OR_COMMENT = re.compile(r'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"?|\'[^\'\n]*\'|#[^\n]*')
# `tomllib` takes 2 s for one key of 16,000 parts, and four times that for twice as many.
_LONG_KEY = re.compile(r"(?:\.[ \t]*[\w-]+[ \t]*){8}")
_KINDS = {str: "a text", list: "a list", dict: "a table"}
_T = TypeVar("_T", str, "list[Any]", "dict[str, Any]")


@dataclass(frozen=True, slots=True)
class Table:
    """A table, and the place it stands in. Values of it that are missing are empty ones.

    `lines` says where the parts of its `[[arrays]]` begin.
    """

    place: Place
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, list[int]] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        """Whether there is anything called *key*."""
        return key in self.values

    def text(self, key: str) -> str:
        """Return the text *key*.

        Raises:
            ModelInvalidError: it is something else, or very long.
        """
        return self._short(key, self._value(key, ""))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the list of texts *key*.

        Raises:
            ModelInvalidError: it is something else.
        """
        found = self._value(key, list[Any]())
        if not all(isinstance(one, str) for one in found):
            why = f"`{key}` is not a list of texts"
            raise self.place.invalid(why, key=key)
        return tuple(self._short(key, one) for one in found)

    def table(self, key: str) -> Table:
        """Return the table *key*.

        Raises:
            ModelInvalidError: it is something else.
        """
        return Table(self.place, self._value(key, dict[str, Any]()))

    def tables(self, key: str) -> list[Table]:
        """Return the list of tables *key*, each with its own line where that is known.

        Raises:
            ModelInvalidError: it is something else.
        """
        found = self._value(key, list[Any]())
        if not all(isinstance(one, dict) for one in found):
            why = f"`{key}` is not a list of tables"
            raise self.place.invalid(why, key=key)
        lines = self.lines.get(key, [])
        if len(lines) != len(found):
            lines = [self.place.line] * len(found)
        return [
            Table(self.place._replace(line=line), one)
            for line, one in zip(lines, found, strict=True)
        ]

    def _value(self, key: str, default: _T) -> _T:
        found = self.values.get(key, default)
        if not isinstance(found, type(default)):
            why = f"`{key}` is not {_KINDS[type(default)]}"
            raise self.place.invalid(why, key=key)
        return found

    def _short(self, key: str, text: str) -> str:
        if len(text) > _MAX_TEXT:
            why = f"`{key}` is over {_MAX_TEXT} characters"
            raise self.place.invalid(why, key=key)
        return text


def read(model: Path, name: str) -> Table:
    """Return the document that the TOML file *name* of *model* holds.

    Raises:
        ModelInvalidError: it is not such a file; the message has the line.
    """
    place = Place(model, name, 1)
    text = files.read_text(model, name, limit=_MAX_BYTES)
    _must_be_plain(place, text)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        line = _ERROR_LINE.search(str(error))
        why = f"it is not TOML: {shown(str(error))}"
        raise place._replace(line=int(line[1]) if line else 1).invalid(why) from error
    return Table(place, values, _header_lines(text))


def _must_be_plain(place: Place, text: str) -> None:
    """Refuse what no tool writes into a lock, and what a lexer of one line cannot see."""
    if '"""' in text or "'''" in text:
        why = "it holds a text of several lines"
        raise place.invalid(why)
    structure = _TEXT_OR_COMMENT.sub("s", text)
    if len(structure) > _MAX_STRUCTURE:
        why = f"it holds over {_MAX_STRUCTURE} characters besides texts and comments"
        raise place.invalid(why)
    if _LONG_KEY.search(structure):
        why = "it holds a key of over eight parts"
        raise place.invalid(why)


def _header_lines(text: str) -> dict[str, list[int]]:
    lines: dict[str, list[int]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if found := _HEADER.match(line):
            lines.setdefault(found[1], []).append(number)
    return lines
