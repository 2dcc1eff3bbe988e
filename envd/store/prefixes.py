"""Finds the environment that the beginning of an id means."""

from __future__ import annotations

import re

from envd.errors import EnvironmentNotFoundError, RequestInvalidError
from envd.store.record import Record
from envd.store.store import Store

_MIN = 4
_DIGITS = re.compile(r"[0-9a-f]+")


def check(prefix: str) -> None:
    """See that *prefix* can be the beginning of an id.

    Raises:
        RequestInvalidError: it is too short, or has other digits.
    """
    if len(prefix) < _MIN:
        message = f"`{prefix}` is too short; give at least {_MIN} digits of the id"
        raise RequestInvalidError(message, id=prefix)
    if not _DIGITS.fullmatch(prefix):
        message = f"`{prefix}` is no id: ids are made of the digits 0-9 and a-f"
        raise RequestInvalidError(message, id=prefix)


def resolve(store: Store, prefix: str) -> Record:
    """Return the one published environment whose id or spec_key begins with *prefix*.

    Be it ready, absent or about to be removed.

    Raises:
        RequestInvalidError: the prefix is too short or fits several.
        EnvironmentNotFoundError: it fits none.
    """
    check(prefix)
    # Their names say it at once; what each was built for, only all of them do.
    fitting = _named(store, prefix) or _built_for(store, prefix)
    if len(fitting) > 1:
        message = f"`{prefix}` fits {len(fitting)} environments; give more digits"
        raise RequestInvalidError(message, id=prefix)
    if not fitting:
        message = f"no environment's id begins with `{prefix}`; see `envctl list`"
        raise EnvironmentNotFoundError(message, id=prefix)
    return fitting.popitem()[1]


def _named(store: Store, prefix: str) -> dict[str, Record]:
    """Return the environments whose id begins with *prefix*, and that of the one spec."""
    names = [one.name for one in store.layout.environments.glob(f"{prefix}*")]
    if (key := store.specs.complete(prefix)) and (env_id := _of_spec(store, key)):
        names.append(env_id)
    return {name: one for name in names if (one := store.told(name))}


def _built_for(store: Store, spec_prefix: str) -> dict[str, Record]:
    """Return the environments that were built for a spec whose key begins so, and what goes."""
    going = [one for one in store.deleting() if one.id.startswith(spec_prefix)]
    built = [one for one in store.records() if one.spec_key.startswith(spec_prefix)]
    return {one.id: one for one in (*going, *built)}


def _of_spec(store: Store, spec_key: str) -> str | None:
    """Return the id of a spec's environment, which may have been built for another spec."""
    lock, spec = store.specs.lock(spec_key), store.specs.spec(spec_key)
    return lock.env_id(spec.python) if lock and spec else None
