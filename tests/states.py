"""The life of an environment: its states, what may happen in each, and what comes of it.

The disk says which state it is in; no process remembers it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from envd.store import Store


class State(enum.Enum):
    """Where an environment is in its life."""

    ABSENT = "absent"
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


class Change(enum.Enum):
    """What can happen to an environment."""

    BUILD = "somebody asks for it"
    PUBLISH = "its build ends well"
    FAIL = "its build fails"
    CANCEL = "its build is cancelled"
    DIE = "the process that builds or deletes it is killed"
    BREAK = "its interpreter goes or changes"
    DELETE = "it is to be removed"
    RELEASE = "the last one who uses it ends"
    FORGET = "its failure is over, or told to be forgotten"


def state_of(store: Store, env_id: str, spec_key: str | None = None) -> State:
    """Return where *env_id* is in its life; its failure is known by its *spec_key*."""
    if store.find(env_id):
        return State.READY
    if store.holders().is_building(env_id):
        # Builders and removers keep each other out.
        is_doomed = store.layout.doomed(env_id).exists()
        return State.DELETING if is_doomed else State.BUILDING
    is_failed = spec_key and store.failures.get(spec_key)
    return State.FAILED if is_failed else State.ABSENT


# What is not here cannot happen, or changes nothing.
TRANSITIONS: Mapping[tuple[State, Change], State] = {
    (State.ABSENT, Change.BUILD): State.BUILDING,
    (State.BUILDING, Change.PUBLISH): State.READY,
    (State.BUILDING, Change.FAIL): State.FAILED,
    (State.BUILDING, Change.CANCEL): State.ABSENT,
    (State.BUILDING, Change.DIE): State.ABSENT,
    (State.READY, Change.BREAK): State.ABSENT,
    (State.READY, Change.DELETE): State.DELETING,
    (State.DELETING, Change.RELEASE): State.ABSENT,
    (State.DELETING, Change.DIE): State.ABSENT,
    (State.FAILED, Change.FORGET): State.ABSENT,
}


def after(state: State, change: Change) -> State:
    """Return the state that follows *state* when *change* happens to it."""
    return TRANSITIONS.get((state, change), state)
