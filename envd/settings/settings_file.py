"""Reads the settings file, and says of what is wrong in it in which line it stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envd.errors import SettingsInvalidError
from envd.settings import fields, served
from envd.settings.fields import Field
from envd.settings.served import Served

_MODELS = "models"


@dataclass(frozen=True, slots=True)
class Given:
    """What a file sets: values by section and name, and the models it gives names to.

    `places` says in which line of it each value stands.
    """

    values: dict[tuple[str, str], object] = field(default_factory=dict)
    places: dict[tuple[str, str], str] = field(default_factory=dict)
    served: tuple[Served, ...] = ()


def read(path: Path | None, table: Sequence[Field]) -> Given:
    """Return what the file *path* sets, of the settings in *table*; nothing without one.

    Raises:
        SettingsInvalidError: it cannot be read, or a setting is unknown or wrong.
    """
    if path is None:
        return Given()
    try:
        text = path.read_text()
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"cannot read the settings file `{path}`: {error}"
        raise SettingsInvalidError(message, file=path) from error
    return _Reader(path, text, {(row.section, row.name): row for row in table}).given(document)


@dataclass(frozen=True, slots=True)
class _Reader:
    path: Path
    text: str
    table: dict[tuple[str, str], Field]

    def given(self, document: dict[str, Any]) -> Given:
        values, places, models = {}, {}, []
        for section, rows in document.items():
            # What is no table of known settings, an empty one included, is no setting either.
            under = rows if isinstance(rows, dict) and rows else {"": rows}
            for name, value in under.items():
                if row := self.table.get((section, name)):
                    places[section, name] = place = self._where(section, name)
                    values[section, name] = fields.parse(row, value, place)
                elif section == _MODELS and name:
                    models.append(self._served(name, value))
                else:
                    self._check_empty(section, name, rows)
        return Given(values, places, tuple(models))

    def _check_empty(self, section: str, name: str, rows: object) -> None:
        if rows == {} and section in {known for known, _ in self.table}:
            return
        key = f"[{section}] {name}" if name else section
        message = f"{self._where(section, name)}: there is no setting `{key}`; see `envctl config`"
        raise SettingsInvalidError(message, file=self.path, setting=key)

    def _served(self, name: str, value: object) -> Served:
        plain = [key for section, key in self.table if section == _MODELS]
        own = f"{_MODELS}.{name}"

        def where(key: str) -> str:
            # The value of a key may be a table of its own, and all of it stand in one line.
            line = (
                (_line(self.text, own, key) if key else None)
                or _line(self.text, f"{own}.{key}".strip("."), "")
                or _line(self.text, _MODELS, name)
            )
            return f"{self.path}:{line or 1}"

        return served.read(name, value, plain, where)

    def _where(self, section: str, name: str) -> str:
        return f"{self.path}:{_line(self.text, section, name) or 1}"


def _line(text: str, section: str, name: str) -> int | None:
    """Return the line in which *name* of *section*, or *section* itself, is set."""
    inside, key = False, re.compile(rf"[\"']?{re.escape(name or section)}[\"']?\s*[=.]")
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            inside = _unquoted(stripped.partition("]")[0].strip("[")) == _unquoted(section)
            if inside and not name:
                return number
        elif (inside or not name) and key.match(stripped):
            return number
    return None


def _unquoted(header: str) -> str:
    return re.sub(r"[\"'\s]", "", header)
