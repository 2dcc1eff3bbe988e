"""What the programs have in common that fetch with rattler; only programs import that."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rattler.exceptions import AuthenticationStorageError
from rattler.networking import (
    AddHeadersMiddleware,
    AuthenticationMiddleware,
    Client,
    MirrorMiddleware,
    RetryMiddleware,
)

from envd.answering import answer, machine_fault
from envd.errors import EnvdError, SettingsInvalidError
from envd.secrets import without_token

__all__ = [
    "Failure", "Reached", "advice_on", "answer", "client", "failure_of", "first_of",
    "machine_fault", "patience",
]  # fmt: skip

_Middleware = AddHeadersMiddleware | AuthenticationMiddleware | MirrorMiddleware | RetryMiddleware
# Between one round of attempts and the next.
_PAUSES_S = (0.25, 0.5, 1.0)
_STATUS = re.compile(r"HTTP status \w+ error \((\d+)([^)]*)\)")
_PASSING = {"408", "425", "429"}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt to fetch from one place was in vain, and whether that may pass.

    It `is_absent` that says that there is nothing.
    """

    why: str
    may_pass: bool = False
    is_absent: bool = False
    error: EnvdError | None = None


@dataclass(frozen=True, slots=True)
class Reached:
    """The place that was fetched from, empty if there is none, and those that were in vain."""

    place: str
    failures: Mapping[str, Failure]

    @property
    def text(self) -> str:
        """What is said of a failure: every place that was tried, and why in vain."""
        return "; ".join(f"`{without_token(at)}` {one.why}" for at, one in self.failures.items())


def client(*middlewares: _Middleware) -> Client:
    """Return what fetches by way of *middlewares*.

    Raises:
        SettingsInvalidError: there are credentials that cannot be read.
    """
    try:
        return Client(list(middlewares))
    except AuthenticationStorageError as error:
        raise _unreadable(str(error)) from error


async def first_of(
    places: Iterable[str], attempt: Callable[[str], Awaitable[Failure | None]]
) -> Reached:
    """Return the first of *places* with which *attempt* succeeds.

    Where it fails in passing it is tried again, after all others.
    """
    failures: dict[str, Failure] = {}
    left = list(places)
    for pause_s in (0.0, *_PAUSES_S):
        await asyncio.sleep(pause_s if left else 0.0)
        for one in left:
            failure = await attempt(one)
            if failure is None:
                return Reached(one, failures)
            failures[one] = failure
        left = [one for one in left if failures[one].may_pass]
    return Reached("", failures)


def patience(place: str, places: Sequence[str], silence_s: float) -> float:
    """Return for how long *place*, one of *places*, may send nothing before the next is tried.

    After *silence_s* envd ends all of it, which the last one is left to.
    """
    return math.inf if place == places[-1] else silence_s / (len(places) + 1)


def failure_of(said: str) -> Failure:
    """Return what it means that rattler *said* that of a download, without its URL."""
    found = _STATUS.search(said)
    if found is None:
        return Failure("does not answer", may_pass=True)
    status, text = found.groups()
    may_pass = status in _PASSING or status.startswith("5")
    why = f"answers {status}{text}{advice_on(said)}"
    return Failure(why, may_pass, is_absent=status == "404")


def advice_on(said: str) -> str:
    """Return what to do about what rattler *said* of a download, if credentials are missing."""
    found = _STATUS.search(said)
    if found is None or found[1] not in {"401", "403"}:
        return ""
    return " (are its credentials in `conda.auth_file` or `conda.mirrors`?)"


def _unreadable(said: str) -> SettingsInvalidError:
    """Return what is wrong with a file of credentials; what rattler *said* may quote them."""
    given = os.environ.get("RATTLER_AUTH_FILE", "")
    is_given = bool(given) and given in said
    file = given if is_given else "~/.rattler/credentials.json"
    of = "`conda.auth_file`" if is_given else "rattler's own store"
    why = re.search(r"( at line \d+ column \d+|: [\w ]+ \(os error \d+\))$", said)
    message = (
        f"`{file}` ({of}) is no file of credentials{why[0] if why else ''}; it has to be JSON of "
        'hosts, as in `{"host": {"BearerToken": "..."}}` with BearerToken, BasicHTTP or '
        "CondaToken; mend it, or give another"
    )
    setting = "conda.auth_file" if is_given else None
    return SettingsInvalidError(message, setting=setting, file=file)
