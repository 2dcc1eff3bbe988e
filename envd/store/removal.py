"""Removes environments: renamed to the trash first, and never while somebody uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

from envd import durable, failpoint, held
from envd.errors import EnvironmentInUseError, EnvironmentPinnedError
from envd.held import Owner
from envd.store.record import Record
from envd.store.store import Store


def remove(store: Store, env_id: str) -> None:
    """Send *env_id* to the trash, if nobody uses it.

    Raises:
        EnvironmentInUseError: somebody holds a lease on it, or builds it.
        EnvironmentPinnedError: somebody wants it kept.
    """

    def refuse(owner: Owner | None) -> None:
        who = f"process {owner.pid}" if owner else "another process"
        message = f"the environment {env_id} is being built by {who}"
        raise EnvironmentInUseError(message, id=env_id)

    # Held as a builder holds it: nobody may start an attempt in what goes to the trash.
    with (
        held.exclusively(store.layout.building(env_id), refuse),
        store.unused(env_id) as is_unused,
    ):
        if not is_unused:
            users = ", ".join(str(one) for one in store.holders().of(env_id))
            message = f"the environment {env_id} is in use by {users}; stop that, or use `--force`"
            raise EnvironmentInUseError(message, id=env_id, users=users)
        if store.is_pinned(env_id):
            message = (
                f"the environment {env_id} is pinned; `envctl unpin` it first, or use `--force`"
            )
            raise EnvironmentPinnedError(message, id=env_id)
        _discard(store, env_id)


def by_force(store: Store, env_id: str, wait: Callable[[], None]) -> None:
    """Send *env_id* to the trash when its last user has ended; it is not ready at once.

    *wait* is called, and called again, as long as it has users. Whoever asks for it
    meanwhile waits until it is gone, and builds it again.
    """
    for _ in forcing(store, env_id):
        wait()


def forcing(store: Store, env_id: str) -> Generator[None, None, None]:
    """Remove as `by_force` does, in steps between which the caller waits as it likes.

    No step waits for a user. Where it is closed before its end, what is not ready any more
    is left to `envd.store.sweep`.
    """
    with contextlib.ExitStack() as holding:
        while not _is_taken(store, env_id, holding):
            yield
        failpoint.reach("delete.doom")
        with contextlib.suppress(FileNotFoundError):
            store.layout.manifest(env_id).rename(store.layout.doomed(env_id))
        store.unpin(env_id)
        while not doomed(store, env_id):
            yield


def _is_taken(store: Store, env_id: str, holding: contextlib.ExitStack) -> bool:
    """Hold *env_id* as a builder does until *holding* ends, unless somebody else does."""

    def refuse(_: Owner | None) -> None:
        raise _HeldError

    try:
        holding.enter_context(held.exclusively(store.layout.building(env_id), refuse))
    except _HeldError:
        return False
    return True


class _HeldError(Exception):
    """Somebody else builds or removes it."""


def doomed(store: Store, env_id: str) -> bool:
    """Send *env_id*, which is not ready any more, to the trash, unless somebody uses it."""
    with store.unused(env_id) as is_unused:
        if is_unused:
            _discard(store, env_id)
    return is_unused


def unless_used(store: Store, chosen: Record) -> str:
    """Send what gc has *chosen* to the trash, or say why it stays after all.

    Whoever took a lease on it, used it or pinned it since it was chosen has won.
    """
    with store.unbuilt(chosen.id) as is_unbuilt, store.unused(chosen.id) as is_unused:
        failpoint.reach("gc.locked")
        if not is_unbuilt:
            return "being built"
        if not is_unused:
            return "in use since it was chosen"
        if store.is_pinned(chosen.id):
            return "pinned since it was chosen"
        if chosen.broken and _is_usable(store, chosen.id):
            return "usable after all"
        if store.uses.last(chosen.id) > chosen.last_used:
            return "used since it was chosen"
        _discard(store, chosen.id)
    return ""


def _discard(store: Store, env_id: str) -> None:
    failpoint.reach("delete.rename")
    durable.discard(store.layout.environment(env_id), store.layout.trash)
    failpoint.reach("delete.renamed")


def _is_usable(store: Store, env_id: str) -> bool:
    """Whether *env_id* is ready, or cannot be looked at: a disk may fail for a moment."""
    try:
        return store.find(env_id) is not None
    except OSError:
        return True
