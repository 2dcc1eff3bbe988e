"""Conda channels: one name for all spellings of one, and which are Anaconda's own.

The spellings are those of conda (conda/models/channel.py, conda/base/constants.py) and of
files that people wrote by hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from envd.events import Note

SUBDIRS = frozenset({
    "noarch", "emscripten-wasm32", "freebsd-64", "linux-32", "linux-64", "linux-aarch64",
    "linux-armv6l", "linux-armv7l", "linux-ppc64", "linux-ppc64le", "linux-riscv64", "linux-s390x",
    "osx-64", "osx-arm64", "wasi-wasm32", "win-32", "win-64", "win-arm64", "zos-z",
})  # fmt: skip
_LONGEST = 2_000
_ALIAS = "conda.anaconda.org"
_REPOSITORY = "repo.anaconda.com"
_CLOUD = "repo.anaconda.cloud"
# What each of Anaconda's hosts is called today.
_HOSTS = {
    _ALIAS: _ALIAS, "anaconda.org": _ALIAS, "www.anaconda.org": _ALIAS,
    "conda.binstar.org": _ALIAS, "binstar.org": _ALIAS,
    _REPOSITORY: _REPOSITORY, "repo.continuum.io": _REPOSITORY, _CLOUD: _CLOUD,
}  # fmt: skip
_ANACONDAS = {
    "anaconda", "archive", "defaults", "free", "main", "mro", "mro-archive", "msys2", "pkgs", "pro",
    "r",
}  # fmt: skip
# conda reads both as `defaults`; an export has the first where a file was installed.
_UNKNOWN = {"<unknown>", "None"}
# Which port is meant where none is given.
_SCHEMES = {"http": 80, "https": 443, "file": None, "s3": None, "oci": None}
_URL = re.compile(
    r"(?P<scheme>\w+)://(?:(?P<user>[^/?#]*)@)?(?P<host>[^/?#@]*)(?P<path>/[^?#]*)?", re.ASCII
)
_HOST = re.compile(r"(?P<name>[a-z0-9][\w.-]*?)\.*(?::(?P<port>\d{1,5}))?", re.ASCII)
_LAST_PORT = 65535
_NAME = re.compile(r"\w[\w.+~-]*(?:/[\w.+~-]+)*", re.ASCII)
_RELATIVE = re.compile(r"\.{1,2}(?:[/\\]|$)|~|\\|[A-Za-z]:[/\\]")


@dataclass(frozen=True, slots=True)
class Channel:
    """A conda channel: all spellings of one are equal.

    `name` is the canonical one: `conda-forge`, `nvidia/label/cuda-12.1.0`, `https://host/path`
    or `file:///path`. The credentials and tokens of a spelling are in no channel, only
    whether it `had_secret`s.
    """

    name: str
    had_secret: bool = field(default=False, compare=False)


CONDA_FORGE = Channel("conda-forge")
DEFAULTS = Channel("defaults")


def parse(text: str) -> Channel:
    """Return the channel that *text* names, whatever subdirectory (`linux-64`) follows.

    Raises:
        ValueError: it names none. What it says has nothing of *text* in it.
    """
    text = text.strip()
    if text in _UNKNOWN:
        return DEFAULTS
    if not text.isprintable() or len(text) > _LONGEST:
        message = "it has control characters, or is very long"
        raise ValueError(message)
    if _RELATIVE.match(text):
        message = "it is a relative path; give an absolute one, or a URL"
        raise ValueError(message)
    if "://" in text:
        return _of_url(text)
    # A browser shows them so, and conda would look for a folder or a user of that name.
    bare = text.removeprefix("//")
    if re.split("[:/]", bare, maxsplit=1)[0].lower().rstrip(".") in _HOSTS:
        return _of_url(f"https://{bare}")
    if text.startswith("/"):
        return _of_url(f"file://{text}")
    return _of_url(f"https://{_ALIAS}/{text}")


def is_anaconda(channel: Channel) -> bool:
    """Whether *channel* is one of Anaconda's own, which its terms of service cover.

    A bare `main`, `r` or `free` is: on conda.anaconda.org they are Anaconda's as well.
    """
    host, _, path = channel.name.rpartition("://")[2].partition("/")
    if "://" not in channel.name:
        return host in _ANACONDAS
    first, second, *_ = *path.split("/"), ""
    if host == _CLOUD:
        return first == "pkgs" or (first == "repo" and second in _ANACONDAS)
    return host == _REPOSITORY


def expanded(channel: Channel) -> tuple[Channel, ...]:
    """Return what *channel* stands for: two, where it is `defaults` (DEFAULT_CHANNELS_UNIX)."""
    return (parse("pkgs/main"), parse("pkgs/r")) if channel == DEFAULTS else (channel,)


def cut(channel: Channel) -> tuple[Note, ...]:
    """Return the note that the credentials of a model's own for *channel* are not used.

    What stands in a model is known to everybody who may read it.
    """
    if not channel.had_secret:
        return ()
    message = (
        f"the credentials in URLs of the channel `{channel.name}` are not used; they belong in "
        "`conda.auth_file` or `conda.mirrors`"
    )
    return (Note("CREDENTIALS_CUT", message, channel.name),)


def _of_url(url: str) -> Channel:
    found = _URL.fullmatch(url)
    scheme = found["scheme"].lower() if found else ""
    if found is None or scheme not in _SCHEMES:
        message = "it is neither a name nor a URL (http, https, file, s3, oci) without a `?`"
        raise ValueError(message)
    host = _host(scheme, found["host"])
    if host in _HOSTS.values():
        scheme = "https"
    given = _parts(found["path"] or "")
    parts = given if scheme == "file" else _without_token(given)
    name = _name(parts) if host == _ALIAS else f"{scheme}://{'/'.join((host, *parts))}"
    if len(name) > _LONGEST or name == "file://":
        message = "it is very long, or the root of all files"
        raise ValueError(message)
    return Channel(name, had_secret=bool(found["user"]) or parts != given)


def _host(scheme: str, text: str) -> str:
    if scheme == "file" and text.lower() in {"", "localhost"}:
        return ""
    found = _HOST.fullmatch(text.lower())
    port = int(found["port"]) if found and found["port"] else _SCHEMES[scheme]
    if scheme == "file" or found is None or (port or 0) > _LAST_PORT:
        message = "its host is neither a name nor an IPv4 address"
        raise ValueError(message)
    if found["name"] in _HOSTS:
        return _HOSTS[found["name"]]
    return found["name"] if port == _SCHEMES[scheme] else f"{found['name']}:{port}"


def _parts(path: str) -> tuple[str, ...]:
    """Return the parts of *path*, each escaped in one way, without a subdirectory's."""
    parts = [one for one in unquote(path).split("/") if one]
    if "$" in path:
        message = "it has a `$`, and nothing is put in the place of variables in channels"
        raise ValueError(message)
    if not {".", ".."}.isdisjoint(parts):
        message = "it leads elsewhere with `.` or `..`"
        raise ValueError(message)
    if len(parts) > 1 and parts[-1].lower() in SUBDIRS:
        parts.pop()
    return tuple(quote(one, safe="~+@") for one in parts)


def _without_token(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out every `t/TOKEN`, as conda does the first (`split_anaconda_token`)."""
    while "t" in parts[:-1]:
        first = parts.index("t")
        parts = parts[:first] + parts[first + 2 :]
    return parts


def _name(parts: tuple[str, ...]) -> str:
    """Return the name that a channel of conda.anaconda.org goes by."""
    name = "/".join((parts[0].lower(), *parts[1:])) if parts else ""
    if not _NAME.fullmatch(name):
        message = "it is no name of a channel, nor a URL"
        raise ValueError(message)
    # Where conda has them, whatever the settings say of names.
    return f"https://{_REPOSITORY}/{name}" if name.startswith("pkgs/") else name
