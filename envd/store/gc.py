"""Chooses which environments go.

What must stay stays: pinned, in use, being built, among the latest used, just built. Of
the others go those that are broken or too old, and then, while there is too little room,
those whose last use is the longest ago, however little each of them frees: whoever shares
everything with others costs nothing only as long as the others stay.

Room is counted by inode. An environment frees its own files, and the artifacts that none
after it shares, which the caches let go of in the same run. Both limits on room are
therefore limits on what is left. The budget is kept as well as it can be. But where other
people's data leave a disk too little even without any environment, or what is no
environment takes the budget by itself, none goes for that: each would be built again, and
there would be as little room. Only a budget of nothing is one for all to go.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from operator import attrgetter, sub

from envd import plain
from envd.store.record import Record

# Of two that were last used in the same moment, the lower id goes first.
_use = attrgetter("last_used", "id")


@dataclass(frozen=True, slots=True)
class Limits:
    """What must hold afterwards; the defaults limit nothing.

    Built `max_age_s` ago or earlier goes, and so does unused for `unused_s` or longer.
    Environments and caches together take at most `max_bytes`, and the disk has `min_free`
    bytes free. Of those that can be used, the `keep` latest used stay whatever the others
    say, and so does what was built less than `grace_s` ago, be it broken.

    Once a limit on room is passed, it is held with something to spare, so that the next
    build does not pass it again: `max_bytes * slack`, `min_free / slack`; `slack` is above
    0 and at most 1. Nothing more goes for that where all that may go would not do.
    """

    max_age_s: float = inf
    unused_s: float = inf
    max_bytes: float = inf
    min_free: float = 0
    keep: int = 0
    grace_s: float = 0
    slack: float = 1.0


@dataclass(frozen=True, slots=True)
class Disk:
    """How things stand, in bytes.

    `free` is what the disk has free, once the trash is emptied. `other` is what stays in
    the caches though no environment shares it: the budget has to hold it too. `unused` is
    what goes from the caches in any case, and first: freed already, and no part of the
    budget.
    """

    free: int
    other: int
    unused: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an environment goes, and why; its bytes, own and shared with anything."""

    id: str
    goes: bool
    reason: str
    own: int
    shared: int


def choose(records: Sequence[Record], limits: Limits, disk: Disk, now: float) -> list[Verdict]:
    """Return a verdict on each of *records*, in their order."""
    stay = _must_stay(records, limits, now)
    go = {
        one.id: why
        for one in records
        if one.id not in stay and (why := _why_it_goes(one, limits, now))
    }
    go |= _for_room(records, stay, go, limits=limits, disk=disk)
    return [
        Verdict(
            one.id,
            one.id in go,
            go.get(one.id) or stay.get(one.id) or _last_seen(one, now),
            one.own,
            one.total - one.own,
        )
        for one in records
    ]


def usage(records: Iterable[Record]) -> int:
    """Return the bytes of environments and of the artifacts they share, each inode once."""
    return sum(_freed(list(records)))


def _must_stay(records: Sequence[Record], limits: Limits, now: float) -> dict[str, str]:
    usable = [one for one in records if not one.broken and not one.is_going]
    latest = {one.id for one in heapq.nlargest(limits.keep, usable, key=_use)}
    return {one.id: why for one in records if (why := _why_it_stays(one, limits, latest, now))}


def _why_it_stays(one: Record, limits: Limits, latest: Collection[str], now: float) -> str:
    if one.is_pinned:
        return "pinned"
    if one.holders:
        # The daemon holds a lease for each of its workers.
        return f"in use by {', '.join(dict.fromkeys(map(str, one.holders)))}"
    if one.is_building:
        # A remover keeps builders out.
        return "being removed" if one.is_going else "being built"
    if one.id in latest:
        return f"among the {limits.keep} latest used" if limits.keep > 1 else "the latest used"
    if _age(one.created, now) < limits.grace_s:
        return f"built {plain.age(_age(one.created, now))} ago"
    return ""


def _why_it_goes(one: Record, limits: Limits, now: float) -> str:
    if one.broken:
        return one.broken
    if (unused := _age(one.last_used, now)) >= limits.unused_s:
        return f"not used for {plain.age(unused)}"
    if (age := _age(one.created, now)) >= limits.max_age_s:
        return f"built {plain.age(age)} ago"
    return ""


def _last_seen(one: Record, now: float) -> str:
    what = "used" if one.uses else "never used, built"
    return f"{what} {plain.age(_age(one.last_used, now))} ago"


def _age(moment: float, now: float) -> float:
    return max(0.0, now - moment)


def _for_room(
    records: Sequence[Record],
    stay: Mapping[str, str],
    go: Mapping[str, str],
    *,
    limits: Limits,
    disk: Disk,
) -> dict[str, str]:
    """Return who goes as well for there to be room, the longest unused first, and why."""
    gone = [one for one in records if one.id in go]
    staying = [one for one in records if one.id in stay]
    candidates = sorted(
        (one for one in records if one.id not in go and one.id not in stay), key=_use
    )
    freed = _freed([*gone, *candidates, *staying])
    taken = disk.other + sum(freed)
    left = list(accumulate(freed, sub, initial=taken))[len(gone) : len(gone) + len(candidates) + 1]
    # What would be free if nothing of ours were there.
    most = taken + disk.free + disk.unused
    over, full = 0, 0
    if disk.other <= limits.max_bytes or limits.max_bytes == 0:
        over = _needed(left, limits.max_bytes, limits.max_bytes * limits.slack)
    if left[-1] <= most - limits.min_free:
        full = _needed(left, most - limits.min_free, most - limits.min_free / limits.slack)
    ids = [one.id for one in candidates]
    reasons = dict.fromkeys(ids[:full], _full(limits.min_free))
    return reasons | dict.fromkeys(ids[:over], _over(limits.max_bytes, left[-1]))


def _freed(order: Sequence[Record]) -> list[int]:
    """Return what each frees when they go in this order: of what is shared, the last to share."""
    sizes: dict[str, int] = {}
    for one in order:
        for artifact, size in one.shares:
            if sizes.get(artifact, -1) < size:
                sizes[artifact] = size
    # From the end, the first to name an artifact is the last to share it.
    freed = [
        one.own + sum([sizes.pop(artifact, 0) for artifact, _ in one.shares])
        for one in reversed(order)
    ]
    return freed[::-1]


def _needed(left: Sequence[int], limit: float, goal: float) -> int:
    """Return how many have to go; *left* is what is left after none, one, two, ... of them."""
    if left[0] <= limit:
        return 0
    aim = goal if left[-1] <= goal else limit
    return next((count for count, size in enumerate(left) if size <= aim), len(left) - 1)


def _over(budget: float, least: int) -> str:
    hopeless = f" (what stays takes {plain.size(least)})" if least > budget else ""
    return f"over the budget of {plain.size(budget)}{hopeless}, the longest unused first"


def _full(wanted: float) -> str:
    return f"the disk is to have {plain.size(wanted)} free, the longest unused first"
