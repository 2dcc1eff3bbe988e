"""Which environments gc takes: the rules one by one, and what holds whatever there is."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envd import plain
from envd.store import Holder
from envd.store.gc import Disk, Limits, Verdict, choose, usage
from envd.store.record import Record

NOW = 1_000_000_000.0
MINUTE, HOUR, DAY = 60, 3600, 86400
GB = 10**9
EMPTY = Disk(free=0, other=0)
FIRST = ", the longest unused first"

quick = settings(max_examples=100, deadline=None, database=None, derandomize=True)


def record(
    name: str = "a",
    *,
    built: float = 100 * DAY,
    used: float | None = None,
    own: int = 10,
    shares: dict[str, int] | None = None,
    pinned: bool = False,
    building: bool = False,
    holders: Sequence[Holder] = (),
    broken: str = "",
) -> Record:
    """Return an environment built and used so many seconds ago."""
    shares = shares or {}
    return Record(
        id=name,
        spec_key=f"spec of {name}",
        manager="virtualenv",
        python="3.11.9",
        created=NOW - built,
        last_used=NOW - (built if used is None else used),
        uses=0 if used is None else 1,
        total=own + sum(shares.values()),
        own=own,
        shares=tuple(shares.items()),
        models=(),
        holders=tuple(holders),
        is_pinned=pinned,
        is_building=building,
        broken=broken,
        details="{}",
    )


def aged(*days: int, own: int = 10) -> list[Record]:
    """Return environments `a`, `b`, ... last used so many days ago."""
    return [
        record(chr(ord("a") + place), used=day * DAY, own=own) for place, day in enumerate(days)
    ]


def chosen(records: Sequence[Record], limits: Limits, disk: Disk = EMPTY) -> list[Verdict]:
    return choose(records, limits, disk, NOW)


def gone(records: Sequence[Record], limits: Limits, disk: Disk = EMPTY) -> list[str]:
    return [one.id for one in chosen(records, limits, disk) if one.goes]


ALL = Limits(max_age_s=0, unused_s=0, max_bytes=0, min_free=inf)
WORKER, OTHER = Holder(12, "worker"), Holder(34, "process")


@pytest.mark.parametrize(
    ("one", "limits", "reason"),
    [
        (record(pinned=True), ALL, "pinned"),
        (record(pinned=True, broken="its interpreter is gone"), ALL, "pinned"),
        (record(holders=[OTHER]), ALL, "in use by pid 34"),
        (
            record(holders=[WORKER, WORKER, OTHER], broken="its interpreter is gone"),
            ALL,
            "in use by a worker of the daemon 12, pid 34",
        ),
        (record(building=True), ALL, "being built"),
        (record(used=DAY), replace(ALL, keep=1), "the latest used"),
        (record(used=DAY), replace(ALL, keep=3), "among the 3 latest used"),
        (record(built=5 * MINUTE, used=1), replace(ALL, grace_s=HOUR), "built 5 min ago"),
        (
            record(built=5 * MINUTE, broken="its interpreter is gone"),
            replace(ALL, grace_s=HOUR),
            "built 5 min ago",
        ),
        (record(built=-DAY), replace(ALL, grace_s=1), "built less than a second ago"),
        (record(used=2 * HOUR), Limits(), "used 2 h ago"),
        (record(built=DAY), Limits(), "never used, built 1 day ago"),
        (record(used=-DAY), Limits(unused_s=1), "used less than a second ago"),
        (record(built=90 * DAY, used=1), Limits(max_age_s=91 * DAY), "used 1 s ago"),
    ],
)
def test_what_stays_says_why(one: Record, limits: Limits, reason: str) -> None:
    assert chosen([one], limits) == [Verdict("a", False, reason, 10, 0)]  # noqa: FBT003


@pytest.mark.parametrize(
    ("one", "limits", "reason"),
    [
        (record(broken="its interpreter is gone"), Limits(), "its interpreter is gone"),
        (record(built=HOUR, broken="x"), Limits(grace_s=HOUR), "x"),
        (record(used=41.9 * DAY), Limits(unused_s=40 * DAY), "not used for 41 days"),
        (record(built=41 * DAY), Limits(unused_s=40 * DAY), "not used for 41 days"),
        (record(built=90 * DAY, used=1), Limits(max_age_s=90 * DAY), "built 90 days ago"),
        # Nothing is too young for no time at all, whatever the clocks say.
        (record(built=0), Limits(max_age_s=0), "built less than a second ago"),
        (record(used=-DAY), Limits(unused_s=0), "not used for less than a second"),
        (record(), Limits(max_bytes=9), f"over the budget of 9 B{FIRST}"),
        (record(), Limits(min_free=1), f"the disk is to have 1 B free{FIRST}"),
        (record(), Limits(min_free=10), f"the disk is to have 10 B free{FIRST}"),
        (record(), Limits(min_free=1, max_bytes=0), f"over the budget of 0 B{FIRST}"),
    ],
)
def test_what_goes_says_why(one: Record, limits: Limits, reason: str) -> None:
    assert chosen([one], limits) == [Verdict("a", True, reason, 10, 0)]  # noqa: FBT003


def test_a_budget_that_cannot_be_held_says_what_stays() -> None:
    staying = record("b", pinned=True, own=5_000)

    verdict, _ = chosen([record(), staying], Limits(max_bytes=6_000), Disk(free=0, other=1_500))

    assert verdict.reason == f"over the budget of 6.0 kB (what stays takes 6.5 kB){FIRST}"


@pytest.mark.parametrize(
    ("budget", "expected"), [(15, "ab"), (14, ""), (1, ""), (0, "ab")], ids=str
)
def test_none_goes_for_a_budget_that_others_take_by_themselves(budget: int, expected: str) -> None:
    found = gone(aged(2, 1), Limits(max_bytes=budget), Disk(free=0, other=15))

    assert "".join(found) == expected


def test_a_budget_that_cannot_be_held_keeps_none_from_going_for_their_age() -> None:
    limits = Limits(max_bytes=1, unused_s=2 * DAY)

    assert gone(aged(2, 1), limits, Disk(free=0, other=15)) == ["a"]


def test_a_verdict_has_the_bytes_that_are_shared() -> None:
    verdict = chosen([record(own=3, shares={"x": 4, "y": 5})], Limits())[0]

    assert (verdict.own, verdict.shared) == (3, 9)


def test_nothing_gives_no_verdict() -> None:
    assert chosen([], ALL) == []


def test_the_longest_unused_go_until_the_budget_holds() -> None:
    assert gone(aged(3, 9, 1, 5), Limits(max_bytes=20)) == ["b", "d"]


def test_of_two_used_in_the_same_moment_the_lower_id_goes() -> None:
    records = [record("b", used=1), record("a", used=1)]

    assert gone(records, Limits(max_bytes=10)) == ["a"]
    assert gone(records, Limits(max_bytes=0, keep=1)) == ["a"]


def test_the_budget_holds_what_is_cached_as_well() -> None:
    assert gone(aged(2, 1), Limits(max_bytes=20), Disk(free=0, other=1)) == ["a"]


def test_unused_downloads_are_no_part_of_the_budget() -> None:
    assert gone(aged(2, 1), Limits(max_bytes=20), Disk(free=0, other=0, unused=100)) == []


def test_unused_downloads_free_the_disk_first() -> None:
    assert gone(aged(2, 1), Limits(min_free=30), Disk(free=10, other=5, unused=15)) == ["a"]


def test_what_stays_anyway_counts_against_the_budget() -> None:
    records = [record("a", pinned=True), record("b", used=9), record("c", used=1)]

    assert gone(records, Limits(max_bytes=20)) == ["b"]


def test_an_artifact_counts_once_however_many_share_it() -> None:
    records = [record(name, own=1, shares={"x": 100}) for name in "abc"]

    assert usage(records) == 103
    assert gone(records, Limits(max_bytes=103)) == []


def test_an_artifact_is_as_large_as_the_largest_that_was_told() -> None:
    records = [record("a", shares={"x": 5}), record("b", shares={"x": 7}), record("c")]

    assert usage(records) == 37
    assert gone(records, Limits(max_bytes=36)) == ["a"]


def test_an_artifact_goes_with_the_last_that_shares_it() -> None:
    records = [
        record("a", used=3, own=1, shares={"x": 100}),
        record("b", used=2, own=1, shares={"x": 100}),
        record("c", used=1, own=1, shares={"y": 50}),
    ]

    # One alone frees one byte, both free 102.
    assert gone(records, Limits(max_bytes=152)) == ["a"]
    assert gone(records, Limits(max_bytes=151)) == ["a", "b"]
    assert gone(records, Limits(max_bytes=51)) == ["a", "b"]


def test_an_artifact_stays_with_one_that_must_stay() -> None:
    pinned = record("b", pinned=True, own=1, shares={"x": 100})

    assert usage([pinned]) == 101
    assert gone([*aged(1), pinned], Limits(min_free=10)) == ["a"]
    assert gone([record("a", shares={"x": 100}), pinned], Limits(max_bytes=110)) == ["a"]


def test_what_is_too_old_goes_before_room_is_looked_at() -> None:
    records = [record("a", used=9 * DAY), record("b", built=200 * DAY, used=1)]

    assert gone(records, Limits(max_bytes=10, max_age_s=150 * DAY)) == ["b"]
    assert gone(records, Limits(min_free=10, max_age_s=150 * DAY)) == ["b"]


def test_what_goes_for_its_age_takes_its_artifacts_along() -> None:
    old, young = record("a", shares={"x": 100}), record("b", built=DAY, shares={"y": 5})

    assert gone([old, young], Limits(max_bytes=15, max_age_s=2 * DAY)) == ["a"]
    assert gone([old, young], Limits(min_free=110, max_age_s=2 * DAY)) == ["a"]


def test_both_limits_hold() -> None:
    records = aged(5, 4, 3, 2, 1)

    assert gone(records, Limits(max_bytes=40, min_free=30)) == ["a", "b", "c"]
    assert gone(records, Limits(max_bytes=20, min_free=10)) == ["a", "b", "c"]
    reasons = [one.reason for one in chosen(records, Limits(max_bytes=40, min_free=20))]
    assert reasons[:3] == [
        f"over the budget of 40 B{FIRST}",
        f"the disk is to have 20 B free{FIRST}",
        "used 3 days ago",
    ]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(max_bytes=100, slack=0.7), ""),
        (Limits(max_bytes=99, slack=0.7), "abcd"),
        (Limits(max_bytes=99, slack=1), "a"),
        (Limits(min_free=50, slack=0.5), ""),
        (Limits(min_free=60, slack=0.5), "abcdefg"),
        (Limits(min_free=60, slack=1), "a"),
        # The one that holds asks for nothing more.
        (Limits(max_bytes=99, min_free=50, slack=0.7), "abcd"),
        # All ten would not do for the slack, so the limit itself has to.
        (Limits(min_free=140, slack=0.5), "abcdefghi"),
        (Limits(max_bytes=50, slack=0.5, keep=3), "abcde"),
        # Nor for the limit: then none goes in vain.
        (Limits(min_free=151, slack=0.5), ""),
        (Limits(max_bytes=0, slack=0.5, keep=3), "abcdefg"),
    ],
)
def test_a_limit_that_was_passed_is_held_with_something_to_spare(
    limits: Limits, expected: str
) -> None:
    records = aged(*range(20, 10, -1))

    assert "".join(gone(records, limits, Disk(free=50, other=0))) == expected


def test_what_went_for_its_age_calls_for_no_slack() -> None:
    records = aged(9, 2, 1)

    assert gone(records, Limits(unused_s=5 * DAY, max_bytes=20, slack=0.5)) == ["a"]


def test_as_many_as_asked_are_kept_among_all() -> None:
    records = [record("a", used=1, pinned=True), *aged(3, 2)[1:], record("c", used=9 * DAY)]

    assert gone(records, replace(ALL, keep=2)) == ["c"]
    assert gone(records, replace(ALL, keep=9)) == []


def test_what_cannot_be_used_takes_nobodys_place() -> None:
    broken = record("b", used=1, broken="its interpreter is gone")
    going = record("c", used=1, building=True)._replace(is_going=True)
    records = [record("a", used=9 * DAY), broken, going, record("d", used=99 * DAY)]

    assert gone(records, replace(ALL, keep=1)) == ["b", "d"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than a second"),
        (0.9, "less than a second"),
        (1, "1 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (23.9 * HOUR, "23 h"),
        (DAY, "1 day"),
        (1.9 * DAY, "1 day"),
        (41 * DAY, "41 days"),
        (1000 * DAY, "1000 days"),
    ],
)
def test_ages_in_plain_words(seconds: float, text: str) -> None:
    assert plain.age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_440_000, "3.4 MB"),
        (20 * GB, "20.0 GB"),
        (1.5e12, "1.5 TB"),
        (2e15, "2000.0 TB"),
    ],
)
def test_sizes_in_plain_words(count: float, text: str) -> None:
    assert plain.size(count) == text


ARTIFACTS = st.dictionaries(st.sampled_from("stuvwxyz"), st.integers(0, 100), max_size=4)
SECONDS = st.integers(-20, 100)
FLAG = st.sampled_from([False, False, False, True])
ROOM = st.integers(0, 600)


@st.composite
def environments(draw: st.DrawFn) -> list[Record]:
    names = draw(st.lists(st.sampled_from("abcdefghijkl"), unique=True))
    return [
        record(
            name,
            built=draw(SECONDS),
            used=draw(st.none() | SECONDS),
            own=draw(st.integers(0, 60)),
            shares=draw(ARTIFACTS),
            pinned=draw(FLAG),
            building=draw(FLAG),
            holders=[OTHER] if draw(FLAG) else [],
            broken="broken" if draw(FLAG) else "",
        )
        for name in names
    ]


LIMITS = st.builds(
    Limits,
    max_age_s=st.just(inf) | SECONDS,
    unused_s=st.just(inf) | SECONDS,
    max_bytes=st.just(inf) | ROOM,
    min_free=st.just(0) | ROOM,
    keep=st.integers(0, 3),
    grace_s=st.just(0) | SECONDS,
    slack=st.sampled_from([1.0, 0.9, 0.5]),
)
DISKS = st.builds(Disk, free=ROOM, other=ROOM, unused=st.integers(0, 100))


def taken(records: Iterable[Record], told: Iterable[Record], disk: Disk) -> int:
    """Add it up as the caches and environments would: every artifact of *records* once."""
    sizes: dict[str, int] = {}
    for one in told:
        for artifact, size in one.shares:
            sizes[artifact] = max(size, sizes.get(artifact, 0))
    records = list(records)
    artifacts = {artifact for one in records for artifact, _ in one.shares}
    return disk.other + sum(one.own for one in records) + sum(sizes[one] for one in artifacts)


def must_stay(records: Sequence[Record], limits: Limits) -> set[str]:
    usable = [one for one in records if not one.broken and not one.is_going]
    by_use = sorted(usable, key=lambda one: (one.last_used, one.id), reverse=True)
    return {one.id for one in by_use[: limits.keep]} | {
        one.id
        for one in records
        if one.is_pinned
        or one.holders
        or one.is_building
        or max(0, NOW - one.created) < limits.grace_s
    }


def must_go(records: Sequence[Record], limits: Limits) -> set[str]:
    return {
        one.id
        for one in records
        if one.broken
        or max(0, NOW - one.created) >= limits.max_age_s
        or max(0, NOW - one.last_used) >= limits.unused_s
    } - must_stay(records, limits)


def without(records: Sequence[Record], ids: Iterable[str]) -> list[Record]:
    return [one for one in records if one.id not in set(ids)]


@quick
@given(environments(), LIMITS, DISKS)
def test_what_must_stay_stays_and_what_must_go_goes(
    records: list[Record], limits: Limits, disk: Disk
) -> None:
    verdicts = chosen(records, limits, disk)

    went = {one.id for one in verdicts if one.goes}
    assert [one.id for one in verdicts] == [one.id for one in records]
    assert all(one.reason for one in verdicts)
    assert not went & must_stay(records, limits)
    assert went >= must_go(records, limits)


@quick
@given(environments(), LIMITS, DISKS)
def test_both_limits_hold_if_they_can(records: list[Record], limits: Limits, disk: Disk) -> None:
    went = set(gone(records, limits, disk))

    everything = taken(records, records, disk)
    left = taken(without(records, went), records, disk)
    may_go = {one.id for one in records} - must_stay(records, limits)
    least = taken(without(records, may_go), records, disk)
    is_hopeless = 0 < limits.max_bytes < disk.other
    assert left <= limits.max_bytes or went == may_go or is_hopeless
    free, most = (disk.free + disk.unused + everything - one for one in (left, least))
    assert free >= limits.min_free or most < limits.min_free


@quick
@given(environments(), LIMITS, DISKS)
def test_none_goes_that_could_have_stayed(
    records: list[Record], limits: Limits, disk: Disk
) -> None:
    limits = replace(limits, slack=1)
    went = gone(records, limits, disk)
    for_room = sorted(
        (one for one in records if one.id in set(went) - must_go(records, limits)),
        key=lambda one: (one.last_used, one.id),
    )

    if for_room:
        before = taken([*without(records, went), for_room[-1]], records, disk)
        free = disk.free + disk.unused + taken(records, records, disk) - before
        assert before > limits.max_bytes or free < limits.min_free


@quick
@given(environments(), LIMITS, DISKS)
def test_the_longest_unused_of_those_that_may_go_for_room_go(
    records: list[Record], limits: Limits, disk: Disk
) -> None:
    candidates = without(records, must_stay(records, limits) | must_go(records, limits))
    candidates.sort(key=lambda one: (one.last_used, one.id))

    went = set(gone(records, limits, disk))

    goes = [one.id in went for one in candidates]
    assert goes == sorted(goes, reverse=True)


@quick
@given(environments(), LIMITS, DISKS, st.randoms(use_true_random=False))
def test_the_order_of_the_records_changes_nothing(
    records: list[Record], limits: Limits, disk: Disk, dice: random.Random
) -> None:
    shuffled = dice.sample(records, len(records))

    def by_id(verdicts: list[Verdict]) -> list[Verdict]:
        return sorted(verdicts, key=lambda one: one.id)

    assert by_id(chosen(shuffled, limits, disk)) == by_id(chosen(records, limits, disk))


@quick
@given(environments(), LIMITS, DISKS, ROOM, SECONDS)
def test_tighter_limits_on_room_and_disuse_keep_nothing_that_went(
    records: list[Record], limits: Limits, disk: Disk, less: int, sooner: int
) -> None:
    # Not so for the age of an environment: an old one that goes can save one long unused.
    # Nor with slack, which a limit that is not passed does not call for, nor for what the
    # disk is to have free, which may be more than it can have, nor for a budget that is
    # less than what is no environment.
    limits = replace(limits, slack=1)
    went = set(gone(records, limits, disk))

    for tighter in (
        replace(limits, max_bytes=max(min(disk.other, limits.max_bytes), limits.max_bytes - less)),
        replace(limits, max_bytes=0),
        replace(limits, unused_s=min(limits.unused_s, sooner)),
    ):
        assert went <= set(gone(records, tighter, disk))


@quick
@given(environments(), LIMITS, DISKS)
def test_slack_only_ever_takes_more(records: list[Record], limits: Limits, disk: Disk) -> None:
    exact = set(gone(records, replace(limits, slack=1), disk))

    assert exact <= set(gone(records, limits, disk))


@quick
@given(environments(), LIMITS, DISKS)
def test_what_was_left_alone_is_left_alone_the_next_time(
    records: list[Record], limits: Limits, disk: Disk
) -> None:
    went = gone(records, limits, disk)
    left = without(records, went)
    freed = taken(records, records, disk) - taken(left, records, disk)
    after = Disk(free=disk.free + disk.unused + freed, other=disk.other)

    assert gone(left, limits, after) == []
