"""Reads the values of settings: texts, lists, choices, durations, sizes, places."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

Seconds = typing.NewType("Seconds", float)
Bytes = typing.NewType("Bytes", int)
# A directory, or a URL.
Location = typing.NewType("Location", str)
# The URL of a package index, with its name before it or without.
IndexUrl = typing.NewType("IndexUrl", str)
# How URLs begin.
Prefix = typing.NewType("Prefix", str)

_SECONDS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {
    "": 1, "B": 1,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_INDEX_URL = re.compile(r"""([A-Za-z0-9][\w.-]*=)?(https?|file)://[^\s"'`]+""", re.IGNORECASE)
_PREFIX = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s"'`]*""")
_SECRET = re.compile(r"([^@:]*://)?.*@", re.DOTALL)
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def parse(annotation: Any, value: object) -> object:
    """Return *value*, as it stands in a file or a variable, as what *annotation* says.

    Raises:
        ValueError: it is not that; the message says what to give.
    """
    if typing.get_origin(annotation) is Literal:
        return _choice(value, typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return tuple(parse(typing.get_args(annotation)[0], item) for item in _items(value))
    return _PARSERS[annotation](value)


def show(value: object) -> str:
    """Write a value as a variable takes it."""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def without_secrets(value: object) -> object:
    """Return *value* as it may stand in a message, cutting rather too much than too little."""
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return _SECRET.sub(r"\1***@", value) if isinstance(value, str) else value


def _choice(value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        message = "give one of " + ", ".join(f"`{choice}`" for choice in allowed)
        raise ValueError(message)
    return str(value)


def _items(value: object) -> list[object]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    message = "give a list of texts"
    raise ValueError(message)


def _bool(value: object) -> bool:
    if str(value).lower() not in _BOOLEANS:
        message = "give `true` or `false`"
        raise ValueError(message)
    return _BOOLEANS[str(value).lower()]


def _text(value: object) -> str:
    if not isinstance(value, str):
        message = "give a text"
        raise ValueError(message)  # noqa: TRY004
    return value


def _location(value: object) -> str:
    """Make a directory absolute: what uses it runs in another one."""
    text = _text(value)
    return text if "://" in text else str(Path(text).expanduser().absolute())


def _url(value: object, form: re.Pattern[str], example: str) -> str:
    text = _text(value)
    if not form.fullmatch(text):
        message = f"give URLs, as in {example}; in a variable, commas separate the items of a list"
        raise ValueError(message)
    return text


def _scaled(value: object, units: Mapping[str, float], example: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
    if match is None or match[2] not in units:
        message = f"give a number with a unit, as in {example}"
        raise ValueError(message)
    return float(match[1]) * units[match[2]]


_PARSERS: Mapping[object, Callable[[object], object]] = {
    bool: _bool,
    str: _text,
    Location: _location,
    IndexUrl: lambda value: _url(
        value, _INDEX_URL, "`https://host/simple`, `name=https://host/simple` or `file:///path`"
    ),
    Prefix: lambda value: _url(value, _PREFIX, "`https://host/path` or `git+https://host/path`"),
    Seconds: lambda value: _scaled(value, _SECONDS, "`60s` or `30d`"),
    Bytes: lambda value: int(_scaled(value, _BYTES, "`64MiB` or `20GB`")),
}
