"""Reads the values of settings: texts, lists, choices, durations, sizes, places."""

from __future__ import annotations

import json
import math
import re
import shutil
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from envd.access import roles
from envd.secrets import Secret, guarded

Seconds = typing.NewType("Seconds", float)
Bytes = typing.NewType("Bytes", int)
# At least one, and at least none.
Count = typing.NewType("Count", int)
CountOrZero = typing.NewType("CountOrZero", int)
# Processors, or parts of one; 0 for all there are.
Cores = typing.NewType("Cores", float)
# A part of the disk, as a percentage or a size.
Share = typing.NewType("Share", str)
# A directory, or a URL.
Location = typing.NewType("Location", str)
# A file that can be run: its path, or its name on PATH.
Program = typing.NewType("Program", str)
# The URL of a package index, with its name before it or without.
IndexUrl = typing.NewType("IndexUrl", str)
# A conda channel, and the URL it is fetched from: `conda-forge=https://host/conda-forge`.
Mirror = typing.NewType("Mirror", str)
# HOST:PORT of this machine alone, or nothing.
Loopback = typing.NewType("Loopback", str)
# HOST:PORT to listen on, or nothing.
Address = typing.NewType("Address", str)
# The same, or a Unix socket: `unix:` and its path.
Listen = typing.NewType("Listen", str)
# A name in a certificate, and the role it has: `DNS:front.example=predict`.
Grant = typing.NewType("Grant", str)
# How URLs begin.
Prefix = typing.NewType("Prefix", str)
# A number of at least one, or whatever is best.
CountOrAuto: typing.TypeAlias = int | Literal["auto"]
# The directory of a model, or its URI.
ModelUri = typing.NewType("ModelUri", str)
# Environment variables and their values.
Variables = typing.NewType("Variables", tuple[tuple[str, str], ...])
# A table of any values that JSON has, as JSON; empty for none.
Table = typing.NewType("Table", str)
# GPUs as CUDA_VISIBLE_DEVICES names them.
Gpus = typing.NewType("Gpus", str)

_NEVER = "never"
_SECONDS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
# What a request to a daemon can carry: google.protobuf.Duration and int64.
_LONGEST_S, _LARGEST = 315_576_000_000, 2**63 - 1
_INDEX_URL = re.compile(r"""([A-Za-z0-9][\w.-]*=)?(https?|file)://[^\s"'`]+""", re.IGNORECASE)
_PREFIX = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s"'`]*""")
_MIRROR = re.compile(r"""[^\s"'`=]+=https?://[^\s"'`]+""", re.IGNORECASE)
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|\[::1\]", re.ASCII)
_ADDRESS = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", re.ASCII)
_GRANT = re.compile(rf"(?:DNS|URI|email):[^\s=]\S*=(?:{'|'.join(roles.NAMES)})")
_MAX_PORT, _UNIX = 65535, "unix:"
_PERCENTAGE = re.compile(r"(100|\d{1,2}(\.\d+)?)\s*%", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9/_-]*", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def parse(annotation: Any, value: object) -> object:
    """Return *value*, as it stands in a file or a variable, as what *annotation* says.

    Texts that have credentials in them are a `Secret`.

    Raises:
        ValueError: it is not that; the message says what to give.
    """
    if typing.get_origin(annotation) is Literal:
        return _choice(value, typing.get_args(annotation))
    if type(None) in typing.get_args(annotation):
        given = [one for one in typing.get_args(annotation) if one is not type(None)]
        return parse(typing.Union[tuple(given)], value)  # noqa: UP007
    if typing.get_origin(annotation) is tuple:
        return tuple(parse(typing.get_args(annotation)[0], item) for item in _items(value))
    return guarded(_PARSERS[annotation](value))


def write(value: object) -> str:
    """Write a value as a variable takes it, with what is secret in it."""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Secret):
        return value.reveal()
    return _NEVER if value == math.inf else str(value)


def show(value: object) -> str:
    """Write a value likewise, but `***` for what is secret in it."""
    if isinstance(value, tuple):
        return write(tuple(map(str, value)))
    return str(value) if isinstance(value, Secret) else write(value)


def share(text: str, total: int) -> int:
    """Return how many bytes of *total* the setting *text* means: `10%` of them, or `20GB`."""
    if text.endswith("%"):
        return int(total * float(text[:-1]) / 100)
    return _bytes(text)


def _choice(value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        message = "give one of " + ", ".join(f"`{choice}`" for choice in allowed)
        raise ValueError(message)
    return str(value)


def _items(value: object) -> list[Any]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, dict):
        return [f"{name}={item}" for name, items in value.items() for item in _items(items)]
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
    return text if not text or "://" in text else absolute(text)


def absolute(path: str) -> str:
    """Return *path* as it is from anywhere; `~` is this user's home.

    Raises:
        ValueError: it begins with the home of nobody.
    """
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        message = "give a path that does not begin with the home of a user there is not"
        raise ValueError(message) from error


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches *address*, HOST:PORT."""
    return is_own(address.rpartition(":")[0])


def is_own(host: str) -> bool:
    """Whether *host* is this machine to itself, and no name that could be led to it."""
    return _LOOPBACK.fullmatch(host) is not None


def host_of(authority: str) -> str:
    """Return the name in HOST or HOST:PORT, as names compare."""
    return re.sub(r":\d*$", "", authority.lower())


def _address(value: object, example: str = "an address and a port, as in `127.0.0.1:8001`") -> str:
    text = _text(value)
    match = _ADDRESS.fullmatch(text)
    # To gRPC `unix:8001` is a socket in the current directory, which anybody may open.
    is_none = match is None or int(match[2]) > _MAX_PORT or text.startswith(_UNIX)
    if text and is_none:
        message = f"give {example}"
        raise ValueError(message)
    return text


def _loopback(value: object) -> str:
    example = "a port of this machine's own, as in `127.0.0.1:9464`"
    text = _address(value, example)
    if text and not is_loopback(text):
        message = f"give {example}"
        raise ValueError(message)
    return text


def _listen(value: object) -> str:
    """Take an address, or the path of a socket, made absolute."""
    text = _text(value)
    if path := text.removeprefix(_UNIX) if text.startswith((_UNIX, "/", ".", "~")) else "":
        return _UNIX + absolute(path)
    example = "an address and a port, as in `127.0.0.1:5000`, or the path of a socket"
    return _address(text, example)


def _grant(value: object) -> str:
    text = _text(value)
    if not _GRANT.fullmatch(text):
        message = (
            "give names as certificates have them, `DNS:`, `URI:` or `email:` first, and their "
            f"roles ({', '.join(roles.NAMES)}): "
            '`{ "DNS:front.example" = "predict" }`, in a variable `DNS:front.example=predict`'
        )
        raise ValueError(message)
    return text


def _program(value: object) -> str:
    """Find a name without a directory on PATH, as a shell does; else it is a path."""
    text = _text(value)
    found = shutil.which(text) if text and "/" not in text else None
    return found or _location(text)


def _url(value: object, form: re.Pattern[str], example: str) -> str:
    text = _text(value)
    if not form.fullmatch(text):
        message = f"give URLs, as in {example}; in a variable, commas separate the items of a list"
        raise ValueError(message)
    return text


def _scaled(value: object, units: Mapping[str, float], example: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower(), re.ASCII)
    if match is None or match[2] not in units:
        message = f"give a number with a unit, as in {example}"
        raise ValueError(message)
    return float(match[1]) * units[match[2]]


def _cores(value: object) -> float:
    return _scaled(value, {"": 1}, "`0.5` or `2`, without one")


def _seconds(value: object) -> float:
    if value == _NEVER:
        return math.inf
    seconds = _scaled(value, _SECONDS, "`60s` or `30d`")
    if seconds > _LONGEST_S:
        message = f"give `{_NEVER}`, or less than 10,000 years"
        raise ValueError(message)
    return seconds


def _bytes(value: object, example: str = "`64MiB` or `20GB`") -> int:
    size = _scaled(value, _BYTES, example)
    if size > _LARGEST:
        message = "give less than 8,000,000 TiB"
        raise ValueError(message)
    return int(size)


def _share(value: object) -> str:
    """Take a percentage or a size as it is written."""
    text = str(value).strip()
    if not _PERCENTAGE.fullmatch(text):
        _bytes(text, "`10%` or `20GB`")
    return text


def _count(value: object, least: int, other: str = "") -> int:
    text = str(value).strip()
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < least:
        message = f"give {other}a whole number, from {least} to 999999999"
        raise ValueError(message)
    return int(text)


def _model(value: object) -> str:
    text = _text(value)
    if ":" in text:
        return text
    if "/" in text or text.startswith((".", "~")):
        return absolute(text)
    message = "give a directory, with a `/` in it, or a URI"
    raise ValueError(message)


def _variables(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        message = 'give a table of texts: `{ NAME = "text" }`'
        raise ValueError(message)  # noqa: TRY004
    for name, text in value.items():
        if not is_variable(name):
            message = "give variables names of letters, digits and `_`, the first no digit"
            raise ValueError(message)
        if not isinstance(text, str) or "\0" in text:
            message = f"give `{name}` a text"
            raise ValueError(message)
    return tuple((name, Secret(text)) for name, text in value.items())


def is_variable(name: str) -> bool:
    """Whether *name* is one that an environment variable may have."""
    return _VARIABLE.fullmatch(name) is not None


def _table(value: object) -> str:
    try:
        table = json.loads(value) if isinstance(value, str) else value
        if isinstance(table, dict):
            return json.dumps(table, sort_keys=True, allow_nan=False) if table else ""
    except (TypeError, ValueError):
        pass
    message = "give a table of what JSON has: texts, numbers, booleans, lists and tables"
    raise ValueError(message)


def _gpus(value: object) -> str:
    """Take a list of numbers and UUIDs, one of them, or what CUDA_VISIBLE_DEVICES takes."""
    given = value if isinstance(value, list) else [value]
    text = ",".join(str(one) if type(one) is int else _text(one) for one in given)
    if not all(_GPU.fullmatch(item) for item in _items(text)):
        message = "give the numbers of GPUs, or their UUIDs, as in `0,1`; an empty text is none"
        raise ValueError(message)
    return ",".join(map(str, _items(text)))


_PARSERS: Mapping[object, Callable[[object], object]] = {
    bool: _bool,
    str: _text,
    Location: _location,
    Program: _program,
    IndexUrl: lambda value: _url(
        value, _INDEX_URL, "`https://host/simple`, `name=https://host/simple` or `file:///path`"
    ),
    Mirror: lambda value: _url(
        value,
        _MIRROR,
        '`conda-forge=https://host/conda-forge`, or in a file `{conda-forge = ["https://..."]}`',
    ),
    Prefix: lambda value: _url(value, _PREFIX, "`https://host/path` or `git+https://host/path`"),
    Loopback: _loopback,
    Address: _address,
    Listen: _listen,
    Grant: _grant,
    Seconds: _seconds,
    Bytes: _bytes,
    Count: lambda value: _count(value, 1),
    CountOrZero: lambda value: _count(value, 0),
    CountOrAuto: lambda value: value if value == "auto" else _count(value, 1, "`auto` or "),
    Cores: _cores,
    Share: _share,
    ModelUri: _model,
    Variables: _variables,
    Table: _table,
    Gpus: _gpus,
}
