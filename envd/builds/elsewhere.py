"""The builds under way below one root, in whatever processes they are."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from envd import held, process
from envd.environments.tail import Tail
from envd.errors import EnvironmentNotFoundError, PermissionDeniedError
from envd.held import Owner
from envd.store import Store, sweep

_GRACE_S = 5.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A build: the process that does it, its spec, and its environment once that is known."""

    spec_key: str
    env_id: str
    owner: Owner

    @property
    def seconds(self) -> float:
        """How long it has been under way since it took what it holds now."""
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.owner.began)

    @property
    def held(self) -> str:
        """The name of the file that it holds."""
        return f"build-{self.env_id}" if self.env_id else f"spec-{self.spec_key}"

    def is_called(self, prefix: str) -> bool:
        """Whether its spec_key or the id of its environment begins with *prefix*."""
        return self.spec_key.startswith(prefix) or self.env_id.startswith(prefix)

    def is_part_of(self, token: str) -> bool:
        """Whether it belongs to the work called *token*."""
        return self.owner.token.startswith(f"{token}.")

    def disclaim(self, store: Store) -> None:
        """Let those who wait for it not take it over when it ends."""
        held.cancel(store.layout.held(self.held), self.owner)


def under_way(store: Store) -> list[UnderWay]:
    """Return the builds under way, by spec_key."""
    holders = store.holders()
    found = {}
    for name in sorted(holders.working(), reverse=True):
        kind, _, key = name.partition("-")
        owner = held.read_owner(store.layout.held(name))
        if owner is None or owner.log is None or not owner.is_alive():
            continue
        # The spec's is looked at first, and what is known of the environment is more.
        found[owner.log.stem] = UnderWay(owner.log.stem, key if kind == "build" else "", owner)
    return [found[key] for key in sorted(found)]


def find(store: Store, prefix: str) -> UnderWay | None:
    """Return the build under way whose spec_key or environment's id begins with *prefix*."""
    fitting = [one for one in under_way(store) if one.is_called(prefix)]
    return fitting[0] if len(fitting) == 1 else None


def cancel(store: Store, prefix: str) -> UnderWay:
    """End the build that `find` finds, and every process of it.

    Raises:
        EnvironmentNotFoundError: no such build is under way.
        PermissionDeniedError: it is another user's, or on another host.
    """
    build = find(store, prefix)
    if build is None:
        message = f"no build whose id begins with `{prefix}` is under way"
        raise EnvironmentNotFoundError(message, id=prefix)
    end(store, build)
    return build


def end(store: Store, build: UnderWay) -> None:
    """End *build* and every process of it.

    Raises:
        PermissionDeniedError: it is another user's, or on another host.
    """
    owner = build.owner
    check(owner)
    build.disclaim(store)
    # It clears away what it made, if it can.
    for number in (signal.SIGTERM, signal.SIGKILL):
        if owner.is_alive():
            _send(owner, number)
            _wait_for(owner)
    process.end_work(owner.token)
    # If it could not.
    sweep.leftovers(store)


def check(owner: Owner) -> None:
    """See that *owner* can be ended from here.

    Raises:
        PermissionDeniedError: it is another user's, or on another host.
    """
    if not owner.is_here():
        message = f"pid {owner.pid} on host {owner.host} cannot be ended from here"
        raise PermissionDeniedError(message)
    _send(owner, 0)


def _send(owner: Owner, number: int) -> None:
    try:
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, number)
    except PermissionError as error:
        message = f"pid {owner.pid} is another user's; ask that one to cancel its build"
        raise PermissionDeniedError(message) from error


def _wait_for(owner: Owner) -> None:
    deadline = time.monotonic() + _GRACE_S
    while owner.is_alive() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def log_lines(store: Store, spec_key: str, *, follow: bool) -> Iterator[str]:
    """Yield the lines of the log of *spec_key*; with *follow* until nobody builds it.

    Raises:
        EnvironmentNotFoundError: it has no log.
    """
    path = store.layout.log(spec_key)
    if not path.exists():
        message = f"there is no log of `{spec_key}`"
        raise EnvironmentNotFoundError(message, id=spec_key)
    following = Following(store, spec_key) if follow else None
    with contextlib.closing(Tail(path)) as tail:
        while True:
            # Looked at before the log: what was written last is not lost.
            has_ended = following is None or following.has_ended()
            while lines := tail.read():
                yield from lines
            if has_ended:
                yield from tail.rest()
                return
            time.sleep(_POLL_S)


class Following:
    """Tells when nobody builds a spec any more."""

    def __init__(self, store: Store, spec_key: str) -> None:
        """Look at *spec_key* in *store*."""
        self._store, self._spec_key = store, spec_key
        self._missed = 0

    def has_ended(self) -> bool:
        """Whether nobody builds it, and nobody did the last time."""
        # Between locking and installing a builder holds nothing.
        self._missed = 0 if find(self._store, self._spec_key) else self._missed + 1
        return self._missed > 1
