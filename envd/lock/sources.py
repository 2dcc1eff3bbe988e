"""Where uv finds the packages of one spec: its indexes, with the credentials of the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envd.errors import PolicyDeniedError, SettingsInvalidError
from envd.secrets import token, without_credentials, without_login
from envd.settings.sections import Index
from envd.spec import Indexes
from envd.spec.urls import PYPI, canonical_host

_LOGIN = re.compile(r"://([^/?#]*)@")
# The port that is meant where none is named.
_PORT = re.compile(r"^(http://[^/]*):80(?=/|$)|^(https://[^/]*):443(?=/|$)")
_SIMPLE = re.compile(r"/\+?simple$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sources:
    """The indexes of a spec, and the directories `copied` from its model.

    Those of the indexes that are `exempt` do not date their files.
    """

    indexes: Indexes
    copied: tuple[Path, ...] = ()
    exempt: frozenset[str] = frozenset()

    @property
    def urls(self) -> list[str]:
        """The indexes, PyPI where none is named."""
        return [_unnamed(url) for url in self.indexes.urls or (PYPI,)]

    def configuration(self, settings: Index) -> str:
        """Return uv's configuration, which holds what is secret.

        It is read from memory: what stands in the arguments or the variables of uv is seen
        by others, and every build it runs inherits its variables.
        """
        keeper = _Keeper(settings)
        links = [one for one in self.indexes.find_links if not one.startswith("./")]
        strangers = keeper.strangers(self.urls, links)
        lines = [
            'preview-features = ["index-exclude-newer"]',
            f'index-strategy = "{_strategy(self.indexes)}"',
            # Paths may hold commas, URLs do not.
            "find-links = "
            + json.dumps([*map(keeper.known, links), *(one.as_uri() for one in self.copied)]),
        ]
        for url in self.urls:
            lines += ["[[index]]", f"url = {json.dumps(keeper.with_login(url))}"]
            if url in strangers:
                lines.append('authenticate = "never"')
            if url in self.exempt:
                lines.append("exclude-newer = false")
        return "\n".join([*lines, "default = true"])


class _Keeper:
    """Gives the credentials of the settings to what lies below the URL they stand in.

    uv gives what it has for one index to all of its host that asks for a login, where
    strangers may have indexes of their own.
    """

    def __init__(self, settings: Index) -> None:
        named = [_unnamed(one) for one in (*settings.urls, *settings.find_links)]
        self._given = {_bare(without_credentials(one)): one for one in named}
        logins = {_bare(one): found[1] for one in named if (found := _LOGIN.search(one))}
        _check_apart(settings.find_links)
        # The innermost first.
        self._logins = dict(sorted(logins.items(), key=lambda one: -len(one[0])))

    def known(self, link: str) -> str:
        """Return the page of *link* as the settings have it."""
        return self._given.get(_bare(link), link)

    def with_login(self, url: str) -> str:
        """Return *url* with the credentials of the setting it lies below."""
        given = self._given.get(_bare(url), "")
        if without_login(given) != without_credentials(given):
            return given
        user = self._login(url)
        return url.replace("://", f"://{user}@", 1) if user else url

    def strangers(self, urls: Sequence[str], links: Sequence[str]) -> set[str]:
        """Return the indexes of *urls* that uv must be kept from logging in to.

        Raises:
            PolicyDeniedError: it cannot be kept from it.
        """
        everything = [*urls, *links]
        own = [_bare(one) for one in everything if self._login(one) or _bare(one) in self._given]
        hosts = {_origin(one) for one in everything if self._login(one)}
        found = {one for one in everything if _origin(one) in hosts and _bare(one) not in own}
        for one in sorted(found):
            # Pages of links have no setting for it, and of indexes that lie below each
            # other uv takes either's.
            if one in links or any(_overlap(one, other) for other in own):
                message = (
                    f"`{one}` lies on the host of an index that the settings have credentials "
                    "for, and uv would send them there; to allow that, name it in `index.urls` "
                    "or `index.find_links` as well"
                )
                raise PolicyDeniedError(message, index=one, setting="index.urls")
        return found

    def _login(self, url: str) -> str:
        below = f"{_bare(url)}/"
        return next((user for at, user in self._logins.items() if below.startswith(f"{at}/")), "")


def stripped(url: str, settings: Index) -> str:
    """Return *url*, of a file of an index, without a login and without a token of the settings."""
    tokens = {token(one) for one in (*settings.urls, *settings.find_links)} - {""}
    bare = without_login(url)
    return without_credentials(bare) if token(bare) in tokens else bare


def _check_apart(links: Sequence[str]) -> None:
    """See that no two of *links* are told apart by what is kept secret alone.

    Raises:
        SettingsInvalidError: some are.
    """
    known: dict[str, str] = {}
    for link in map(without_login, links):
        bare = _bare(without_credentials(link))
        if known.setdefault(bare, link) != link:
            message = (
                f"`index.find_links` names `{bare}` with two tokens or queries, which are "
                "credentials and tell no places apart; leave one out"
            )
            raise SettingsInvalidError(message, setting="index.find_links")


def _strategy(indexes: Indexes) -> str:
    return "unsafe-best-match" if indexes.best_match else "first-index"


def _overlap(one: str, other: str) -> bool:
    """Whether uv takes what it is told of the one index for the other's as well."""
    # It does so beside `/simple` too, for the files.
    first, second = (f"{_SIMPLE.sub('', _bare(url))}/" for url in (one, other))
    return first.startswith(second) or second.startswith(first)


def _bare(url: str) -> str:
    """Return *url* as two of them compare: one spelling of the host, no login, no usual port."""
    bare = canonical_host(without_login(url)).rstrip("/")
    return _PORT.sub(r"\1\2", bare)


def _origin(url: str) -> str:
    scheme, _, rest = _bare(url).partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _unnamed(url: str) -> str:
    """Return *url* without a name, which uv takes as well: `name=https://...`."""
    return re.sub(r"^[\w.-]+=(?=\w+://)", "", url)
