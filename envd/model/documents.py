"""Reads YAML that strangers wrote: texts, lists and mappings, nothing else.

Every scalar stays the text that stands in the file (`python: 3.10` is "3.10", `on` is
"on"), null apart. Aliases, tags, duplicate keys and oversize are refused while reading,
before anything is built from them: 322 bytes of aliases make 37 MiB of JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import yaml

from envd.errors import ModelInvalidError
from envd.model import files
from envd.model.texts import shown

Document: TypeAlias = "str | list[Document] | dict[str, Document] | None"


class Text(str):
    """A scalar, which knows the line it stands in."""

    __slots__ = ("line",)
    line: int

    @classmethod
    def at(cls, line: int, value: str) -> Text:
        """Return *value* as the text that stands in *line*."""
        text = cls(value)
        text.line = line
        return text


def line_of(value: object) -> int:
    """Return the line *value* stands in, 0 where nobody knows."""
    return value.line if isinstance(value, Text) else 0


_MAX_EVENTS = 10_000
_MAX_DEPTH = 50
_NULLS = {"", "~", "null", "Null", "NULL"}


def read(
    model: Path,
    name: str,
    *,
    limit: int = files.MAX_METADATA_BYTES,
    most: int = _MAX_EVENTS,
) -> dict[str, Document]:
    """Return the mapping that the YAML file *name* of *model* holds.

    It may have *limit* bytes, and come to the number *most* of values and ends of values.

    Raises:
        ModelInvalidError: it is not such a file; the message has the line.
    """
    text = files.read_text(model, name, limit=limit)
    try:
        document = _Reader(text, most).document()
    except _RefusedError as error:
        raise _invalid(model, name, error.line, str(error)) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _invalid(model, name, line, shown(str(error.problem))) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _invalid(model, name, 1, shown(str(error).partition("\n")[0])) from error
    if not isinstance(document, dict):
        raise _invalid(model, name, 1, "it is not a mapping")
    return document


def _invalid(model: Path, name: str, line: int, why: str) -> ModelInvalidError:
    message = f"`{model / name}`, line {line}: {why}"
    return ModelInvalidError(message, model=model, path=name, line=line)


def _text(event: yaml.ScalarEvent) -> Text:
    return Text.at(event.start_mark.line + 1 if event.start_mark else 0, event.value)


class _RefusedError(Exception):
    def __init__(self, why: str, event: yaml.Event) -> None:
        super().__init__(why)
        self.line = event.start_mark.line + 1 if event.start_mark else 1


class _Reader:
    """One pass over the events of one text."""

    def __init__(self, text: str, most: int) -> None:
        self._most = most
        self._events = yaml.parse(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
        self._count = 0

    def document(self) -> Document:
        """Return the only document of the text."""
        self._next()
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None
        document = self._value(self._next(), 0)
        self._next()
        if not isinstance(last := self._next(), yaml.StreamEndEvent):
            why = "it holds more than one document"
            raise _RefusedError(why, last)
        return document

    def _next(self) -> yaml.Event:
        event: yaml.Event = next(self._events)
        self._count += 1
        if self._count > self._most:
            why = f"it holds over {self._most} values"
            raise _RefusedError(why, event)
        if isinstance(event, yaml.AliasEvent):
            why = f"aliases (`*{shown(event.anchor or '')}`) are not allowed"
            raise _RefusedError(why, event)
        if tag := getattr(event, "tag", None):
            why = f"tags (`{shown(tag)}`) are not allowed"
            raise _RefusedError(why, event)
        return event

    def _value(self, event: yaml.Event, depth: int) -> Document:
        if depth > _MAX_DEPTH:
            why = f"it is nested deeper than {_MAX_DEPTH} levels"
            raise _RefusedError(why, event)
        if isinstance(event, yaml.ScalarEvent):
            is_null = event.implicit[0] and event.value in _NULLS
            return None if is_null else _text(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(depth)
        return self._mapping(depth)

    def _list(self, depth: int) -> list[Document]:
        items = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Document]:
        mapping: dict[str, Document] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            if not isinstance(key, str):
                why = "a key is not a text"
                raise _RefusedError(why, event)
            if key in mapping:
                why = f"the key `{shown(key)}` stands there twice"
                raise _RefusedError(why, event)
            mapping[key] = self._value(self._next(), depth + 1)
        return mapping
