"""A setting is a field of a frozen class: its name, type, default and meaning stand there."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from envd import secrets
from envd.errors import SettingsInvalidError
from envd.settings import values


def setting(default: Any, meaning: str, *, is_secret: bool = False) -> Any:
    """Return a field with a *default* and a *meaning*; what is secret is shown nowhere."""
    return field(
        default=default,
        repr=not is_secret,
        metadata={"meaning": meaning, "is_secret": is_secret},
    )


@dataclass(frozen=True, slots=True)
class Field:
    """One row of the table of settings."""

    section: str
    name: str
    type: Any
    default: object
    meaning: str
    is_secret: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"ENVD_{self.section}__{self.name}".upper()


def of(section: str, cls: type) -> Iterator[Field]:
    """Yield the settings that the class of *section* has."""
    types = typing.get_type_hints(cls)
    for row in dataclasses.fields(cls):
        if "meaning" in row.metadata:
            yield Field(section, row.name, types[row.name], row.default, **row.metadata)


def parse(row: Field, value: object, where: str) -> object:
    """Return the *value* of a setting that stands in *where*.

    Raises:
        SettingsInvalidError: it is not of the setting's type.
    """
    try:
        return values.parse(row.type, value)
    except ValueError as error:
        key = f"{row.section}.{row.name}"
        shown = "what it is" if row.is_secret else repr(secrets.cut(value))
        message = f"{where}: `{key}` cannot be {shown}; {error}"
        raise SettingsInvalidError(message, setting=key) from error
