"""Chooses where the indexes of channels are read, for the program that solves.

rattler asks the next mirror where one fails, but not where one says that it has nothing.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from urllib.parse import SplitResult, unquote, urlsplit

from rattler.networking import (
    AddHeadersMiddleware,
    AuthenticationMiddleware,
    Client,
    MirrorMiddleware,
    RetryMiddleware,
)
from rattler.package_streaming import download_to_writer

from envd.errors import IndexUnreachableError
from envd.lock.conda import CondaQuestion
from envd.lock.rattler_program import Failure, client, failure_of, first_of, patience
from envd.secrets import without_login
from envd.spec.mirrors import Mirrors, channel_url

_RETRIES = 3


def places(
    question: CondaQuestion, mirrors: Mirrors, silence_s: float
) -> dict[str, tuple[str, ...]]:
    """Return where each directory of the channels of *question* is read, by its URL.

    Of several mirrors the first that has it comes first. A single one is not asked for that,
    and without a network none is.

    Raises:
        IndexUnreachableError: no mirror has it.
        SettingsInvalidError: there are credentials that cannot be read.
    """
    listed = {one: mirrors.of_url(channel_url(one)) for one in question.channels}
    several = {one: each for one, each in listed.items() if len(each) > 1 and not question.offline}
    subdirs = ("noarch", *question.platforms)
    firsts = asyncio.run(_firsts(several, subdirs, silence_s)) if several else {}
    return {
        # False comes before True.
        f"{channel_url(one)}{subdir}/": tuple(
            f"{place}{subdir}/" for place in sorted(each, key=firsts.get((one, subdir), "").__ne__)
        )
        for one, each in listed.items()
        for subdir in subdirs
    }


def reader(places: Mapping[str, Sequence[str]]) -> Client:
    """Return what reads directories of channels where *places* say.

    The credentials in the URL of a place are for what lies below it, and given to nobody
    where another port of its host, or another scheme, is among the URLs that are asked:
    rattler tells a host from another only.

    Raises:
        SettingsInvalidError: there are credentials that cannot be read.
    """
    bare = {of: [without_login(url) for url in urls] for of, urls in places.items()}
    logins = _Logins([url for urls in places.values() for url in urls])
    # Trying again comes first: so the next try may go to another mirror.
    return client(
        RetryMiddleware(_RETRIES),
        MirrorMiddleware({of: urls for of, urls in bare.items() if urls != [of]}),
        AuthenticationMiddleware(),
        *([AddHeadersMiddleware(logins)] if logins.headers else []),
    )


async def _firsts(
    channels: Mapping[str, Sequence[str]], subdirs: Sequence[str], silence_s: float
) -> dict[tuple[str, str], str]:
    asker = client(AuthenticationMiddleware())
    asked = [(one, subdir) for one in channels for subdir in subdirs]
    found = (_first(asker, one, channels[one], subdir, silence_s) for one, subdir in asked)
    return dict(zip(asked, await asyncio.gather(*found), strict=True))


async def _first(
    asker: Client, channel: str, each: Sequence[str], subdir: str, silence_s: float
) -> str:
    """Return which of *each* has *subdir* of *channel*, empty if none has and none need."""

    async def attempt(place: str) -> Failure | None:
        patience_s = patience(place, each, silence_s)
        asking = _answers(asker, f"{place}{subdir}/repodata.json")
        try:
            return await asyncio.wait_for(asking, patience_s)
        except TimeoutError:
            return Failure(f"sends nothing for {patience_s:.0f} s")

    found = await first_of(each, attempt)
    # A channel may have nothing for a platform.
    is_empty = subdir != "noarch" and all(one.is_absent for one in found.failures.values())
    if not found.place and not is_empty:
        message = f"the channel `{channel}` cannot be read: {found.text}"
        raise IndexUnreachableError(message, channel=channel)
    return found.place


class _Begun(Exception):  # noqa: N818
    """An answer begins to come."""


class _Beginning:
    """Takes the beginning of an answer, and no more."""

    def write(self, _: bytes) -> int:
        """Stop here."""
        raise _Begun

    def flush(self) -> None:
        """Do nothing."""


async def _answers(asker: Client, url: str) -> Failure | None:
    """Ask for *url*, and return what is wrong with the answer if it is none."""
    try:
        await download_to_writer(asker, url, _Beginning())
    except _Begun:
        return None
    except RuntimeError as error:
        return failure_of(str(error))
    except OSError:
        return Failure("breaks off the connection", may_pass=True)
    return Failure("answers with nothing")


class _Logins:
    """The credentials in URLs: the headers for what lies below each of them."""

    def __init__(self, urls: Sequence[str]) -> None:
        origins: dict[str | None, set[tuple[str, int | None]]] = {}
        for one in map(urlsplit, urls):
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
