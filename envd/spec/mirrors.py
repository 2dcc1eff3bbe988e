"""Where conda channels are fetched from: all that the settings say of that, in one value."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from envd.errors import SettingsInvalidError
from envd.secrets import without_token
from envd.settings.sections import Conda
from envd.spec import channels
from envd.spec.channels import DEFAULTS, Channel

# Where channels lie that are named, and what URLs of their packages begin with in locks,
# wherever they are fetched from.
HOME = "https://conda.anaconda.org/"
_FETCHED = ("https://", "http://", "file://")


def channel_url(name: str) -> str:
    """Return the URL that the channel *name* goes by, which ends in a slash."""
    return f"{name.rstrip('/')}/" if "://" in name else f"{HOME}{name}/"


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Where channels are fetched from, and with which credentials.

    `places` are by how URLs begin, in order, with their own credentials in them; the longest
    beginning that fits counts, so that the alias is for all others. All of them end in a
    slash: else one would be taken for part of a channel that begins as it does. `auth_file`
    has credentials by host.
    """

    places: tuple[tuple[str, tuple[str, ...]], ...] = field(default=(), repr=False)
    auth_file: str = ""

    @classmethod
    def of(cls, settings: Conda) -> Mirrors:
        """Return what *settings* say.

        Raises:
            SettingsInvalidError: a mirror is of no one channel, or the alias is no http(s) URL.
        """
        found: dict[str, tuple[str, ...]] = {}
        for one in settings.mirrors:
            named, _, url = one.partition("=")
            of = channel_url(_mirrored(named).name)
            found[of] = (*found.get(of, ()), f"{url.rstrip('/')}/")
        alias = f"{settings.channel_alias.rstrip('/')}/"
        if not re.match(r"https?://", alias):
            message = "`conda.channel_alias` is fetched from, and has to be an http or https URL"
            raise SettingsInvalidError(message, setting="conda.channel_alias")
        if alias != HOME:
            found.setdefault(HOME, (alias,))
        return cls(tuple(found.items()), settings.auth_file)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Mirrors:
        """Return what `dataclasses.asdict` made *document* of, and JSON of that."""
        places = tuple((of, tuple(urls)) for of, urls in document["places"])
        return cls(places, document["auth_file"])

    def of_url(self, url: str) -> tuple[str, ...]:
        """Return the URLs that *url* is fetched from, what is first comes first."""
        fits = [(len(of), urls) for of, urls in self.places if url.startswith(of)]
        length, urls = max(fits, key=lambda one: one[0], default=(0, ("",)))
        return tuple(f"{one}{url[length:]}" for one in urls)

    def reach(self, channel: Channel) -> bool:
        """Whether *channel* is fetched from where envd can: over HTTP, or from a directory."""
        return self.of_url(channel_url(channel.name))[0].startswith(_FETCHED)


def _mirrored(named: str) -> Channel:
    """Return the channel that is called *named* in `conda.mirrors`."""
    why = "it stands for several; name `pkgs/main` and `pkgs/r`, or `conda-forge`"
    try:
        channel = channels.parse(named)
    except ValueError as error:
        channel, why = DEFAULTS, str(error)
    if channel == DEFAULTS:
        message = f"`conda.mirrors`: `{without_token(named)}` is no one channel: {why}"
        raise SettingsInvalidError(message, setting="conda.mirrors")
    return channel
