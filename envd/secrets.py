"""What a credential looks like, and what is shown in its place.

Credentials stand in URLs, before the host (`user:password@`), after it (`/t/TOKEN/`, as conda
and its servers have it) and in the query; and in variables, where nothing tells them from
other texts. A setting that holds one is a `Secret`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar
from urllib.parse import unquote

HIDDEN = "***"
# A secret of AWS may hold a slash, but what follows a host and a port is no password.
_USERINFO = re.compile(r"(?<=://)(?:[^/\s:@]*:(?!\d{1,5}(?:[/?#\"`<>\\]|$))\S*|[^/\s:]*)@")
# In a sentence, what ends a URL may be the sentence's own: of that, only the end is.
_QUERY = re.compile(r"(://[^\s?]*\?)[^\s\"`<>]*[^\s\"`<>'),.;:]")
_TOKEN = re.compile(r"(^|/)t/[^/\s]+(?=/|$)")
_TOKEN_IN_URL = re.compile(r"(://[^\s?#]*?/t/)([^/\s?#\"`<>]*[^/\s?#\"`<>'),.;:])")
# Where it is surely one, of a whole server.
_TOKEN_OF_HOST = re.compile(r"(://[^/\s?#]*)/t/([^/\s?#]+)(?=[/?#]|$)")
_WITHOUT_QUERY = re.compile(r"(://[^?#]*)\?[^#]*")
# Of what is no URL, but was meant for one: rather too much than too little.
_BROKEN = re.compile(r"([^@:]*://)?.*@", re.DOTALL)
_Value = TypeVar("_Value")


class Secret(str):
    """A text that does not show what is secret in it; `reveal` gives it as it is.

    Whatever takes it apart gets plain texts.
    """

    __slots__ = ()

    def __str__(self) -> str:
        """Return what of it may be shown: of a URL all but its credentials, else nothing."""
        whole = self.reveal()
        shown = hide(whole)
        return HIDDEN if shown == whole else shown

    def __repr__(self) -> str:
        """Return that as Python writes texts."""
        return repr(str(self))

    def __format__(self, spec: str) -> str:
        """Return that, for f-strings."""
        return format(str(self), spec)

    def reveal(self) -> str:
        """Return the text."""
        return str.__str__(self)


def guarded(value: _Value) -> _Value:
    """Return *value*, its texts as secrets that have credentials in them."""
    if isinstance(value, tuple):
        return tuple(map(guarded, value))  # type: ignore[return-value]
    if isinstance(value, str) and not isinstance(value, Secret) and hide(value) != value:
        return Secret(value)  # type: ignore[return-value]
    return value


def hide(text: str) -> str:
    """Return *text* with `***` for the credentials in the URLs in it."""
    shown = _QUERY.sub(rf"\g<1>{HIDDEN}", _USERINFO.sub(f"{HIDDEN}@", text))
    return _TOKEN_IN_URL.sub(rf"\g<1>{HIDDEN}", shown)


def redact(text: str, *urls: str) -> str:
    """Return *text* without the credentials of the URLs in it, and without those of *urls*."""
    return hide(without(text, of(urls)))


def without(text: str, secrets: Iterable[str]) -> str:
    """Return *text* with `***` for each of *secrets*."""
    # The longest first: one may be a part of another.
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def of(urls: Iterable[str]) -> set[str]:
    """Return what is secret in *urls*, as it is written and decoded."""
    return {secret for url in urls for secret in _of(url)}


def _of(url: str) -> set[str]:
    found = {one.removesuffix("@") for one in _USERINFO.findall(url)}
    found |= {one.partition(":")[2] for one in found}
    found |= {token for _, token in _TOKEN_IN_URL.findall(url)}
    found |= {url.partition("#")[0].partition("?")[2]}
    return {spelling for one in found for spelling in (one, unquote(one))} - {""}


def without_login(url: str) -> str:
    """Return *url* without the user and the password in it."""
    # Not by urlsplit: uv takes `name=https://...` as well, whose netloc that does not see.
    return re.sub(r"://[^/?#]*@", "://", url)


def without_credentials(url: str) -> str:
    """Return *url* without the user and the password, the token behind the host and the query."""
    return _WITHOUT_QUERY.sub(r"\1", _TOKEN_OF_HOST.sub(r"\1", without_login(url)))


def token(url: str) -> str:
    """Return the token behind the host of *url*, empty if it has none."""
    found = _TOKEN_OF_HOST.search(url)
    return found[2] if found else ""


def without_token(channel: str) -> str:
    """Return a conda *channel* as it may be shown: without a login, and with `***` for a token."""
    return _TOKEN.sub(rf"\1t/{HIDDEN}", without_login(channel))


def cut(value: object) -> object:
    """Return *value*, which no setting takes, as it may stand in a message."""
    if isinstance(value, list):
        return [cut(item) for item in value]
    if isinstance(value, dict):
        return dict.fromkeys(value, HIDDEN)
    return hide(_BROKEN.sub(rf"\1{HIDDEN}@", value)) if isinstance(value, str) else value
