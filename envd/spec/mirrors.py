"""Where conda channels are fetched from: the settings, as what fetches takes them."""

from __future__ import annotations

import re

from envd.config import Conda
from envd.errors import SettingsInvalidError
from envd.spec import channels
from envd.spec.urls import without_token

# Where channels lie that are named, and what URLs of their packages begin with in locks,
# wherever they are fetched from.
HOME = "https://conda.anaconda.org/"


def channel_url(name: str) -> str:
    """Return the URL that the channel *name* goes by, which ends in a slash."""
    return f"{name.rstrip('/')}/" if "://" in name else f"{HOME}{name}/"


def mirrors(settings: Conda) -> dict[str, list[str]]:
    """Return where channels are fetched from, by the URLs they go by; what is first comes first.

    Every URL ends in a slash: rattler takes for part of a channel whatever begins as it does.
    The longest URL that fits counts, so that the alias is for all others.

    Raises:
        SettingsInvalidError: a mirror is of no channel, or the alias is no http(s) URL.
    """
    found: dict[str, list[str]] = {}
    for one in settings.mirrors:
        named, _, url = one.partition("=")
        try:
            name = channels.parse(named).name
        except ValueError as error:
            message = f"`conda.mirrors`: `{without_token(named)}` is no channel: {error}"
            raise SettingsInvalidError(message, setting="conda.mirrors") from error
        found.setdefault(channel_url(name), []).append(f"{url.rstrip('/')}/")
    alias = f"{settings.channel_alias.rstrip('/')}/"
    if not re.match(r"https?://", alias):
        message = "`conda.channel_alias` is fetched from, and has to be an http or https URL"
        raise SettingsInvalidError(message, setting="conda.channel_alias")
    return found if alias == HOME else found | {HOME: [alias]}
