"""What the programs have in common that fetch with rattler; only programs import that."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import SplitResult, unquote, urlsplit

from rattler.networking import (
    AddHeadersMiddleware,
    AuthenticationMiddleware,
    Client,
    MirrorMiddleware,
    RetryMiddleware,
)

from envd.answering import answer, machine_fault
from envd.spec.urls import without_credentials

__all__ = ["answer", "client", "machine_fault"]

_RETRIES = 3


def client(mirrors: Mapping[str, Sequence[str]], asked: Iterable[str]) -> Client:
    """Return what fetches: from *mirrors*, by the URL of a channel, where there are some.

    Records and locks keep the URLs of the channels themselves. The credentials in the URL of
    a mirror are for what lies below it, and given to nobody where another port of its host, or
    another scheme, is among the URLs that are *asked*: rattler tells a host from another only.
    """
    reached = [url for urls in mirrors.values() for url in urls]
    logins = _Logins(reached, [*reached, *asked])
    bare = {of: [without_credentials(url) for url in urls] for of, urls in mirrors.items()}
    # Trying again comes first: so the next try may go to another mirror.
    return Client(
        [
            RetryMiddleware(_RETRIES),
            *([MirrorMiddleware(bare)] if bare else []),
            AuthenticationMiddleware(),
            *([AddHeadersMiddleware(logins)] if logins.headers else []),
        ]
    )


class _Logins:
    """The credentials in URLs: the headers for what lies below each of them."""

    def __init__(self, urls: Iterable[str], asked: Iterable[str]) -> None:
        origins: dict[str | None, set[tuple[str, int | None]]] = {}
        for one in map(urlsplit, asked):
            origins.setdefault(one.hostname, set()).add((one.scheme, one.port))
        self.headers = {
            (one.hostname, one.path): _header(one)
            for one in map(urlsplit, urls)
            if one.username and len(origins[one.hostname]) == 1
        }

    def __call__(self, host: str, path: str) -> dict[str, str] | None:
        below = [(of, above) for of, above in self.headers if of == host and path.startswith(above)]
        return self.headers[max(below)] if below else None


def _header(url: SplitResult) -> dict[str, str]:
    login = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
