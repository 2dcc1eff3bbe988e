"""gc against whoever comes between its choice and its deletion: who came has won."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envd.errors import EnvironmentInUseError, EnvironmentPinnedError
from envd.store import Environment, Store, removal, sweep
from envd.store.gc import Disk, Limits, choose
from envd.store.record import Record
from tests import others as work
from tests.others import Fake, Others, collect, gone

HAMMERING_S, LEASES = 3.0, 60
ALL = Limits(max_bytes=0)


@pytest.fixture(scope="module")
def others() -> Iterator[Others]:
    with work.others() as found:
        yield found


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake("one", tmp_path / "root")


@pytest.fixture
def store(fake: Fake) -> Store:
    fake.build()
    return Store(fake.root)


def chosen(store: Store) -> Record:
    """Return the one environment there is, which gc has chosen to remove."""
    (record,) = store.records()
    (verdict,) = choose([record], ALL, Disk(0, 0), store.clock.now())
    assert verdict.goes
    return record


def test_what_was_chosen_goes(store: Store, fake: Fake) -> None:
    assert removal.unless_used(store, chosen(store)) == ""
    assert store.find(fake.id) is None


def test_a_lease_taken_since_it_was_chosen_wins(store: Store, fake: Fake, others: Others) -> None:
    record = chosen(store)
    holder = others.start(work.hold, fake.root, fake.id)
    assert holder.hear() is True

    kept = removal.unless_used(store, record)
    fake.read(store.layout.environment(fake.id) / store.attempts(fake.id)[0])
    holder.end()
    then = removal.unless_used(store, record)

    assert kept == "in use since it was chosen"
    assert then == ""


def test_a_lease_of_a_process_that_is_killed_wins_no_longer(
    store: Store, fake: Fake, others: Others
) -> None:
    record = chosen(store)
    holder = others.start(work.hold, fake.root, fake.id)
    assert holder.hear() is True

    holder.kill()

    assert removal.unless_used(store, record) == ""


def use(store: Store, fake: Fake) -> None:
    store.uses.record(fake.id)


def pin(store: Store, fake: Fake) -> None:
    store.pin(fake.id)


def rebuild(store: Store, fake: Fake) -> None:
    removal.remove(store, fake.id)
    fake.build()


@pytest.mark.parametrize(("happens", "reason"), [(use, "used"), (pin, "pinned"), (rebuild, "used")])
def test_what_happens_since_it_was_chosen_wins(
    store: Store, fake: Fake, happens: Callable[[Store, Fake], None], reason: str
) -> None:
    record = chosen(store)

    happens(store, fake)

    assert removal.unless_used(store, record) == f"{reason} since it was chosen"
    assert store.find(fake.id)


def test_a_builder_that_came_since_it_was_chosen_wins(
    store: Store, fake: Fake, others: Others
) -> None:
    record = chosen(store)
    repairer = others.start(work.rebuild, fake)
    assert repairer.hear() == "building"

    kept = removal.unless_used(store, record)
    repairer.say("publish")
    repairer.hear()

    assert kept == "being built"
    assert removal.unless_used(store, record) == "used since it was chosen"


def test_what_gc_has_chosen_and_somebody_has_removed_is_no_trouble(
    store: Store, fake: Fake
) -> None:
    record = chosen(store)
    removal.remove(store, fake.id)

    assert removal.unless_used(store, record) == ""


def test_a_lease_taken_while_gc_looks_succeeds(store: Store, fake: Fake) -> None:
    record = chosen(store)
    use(store, fake)
    stopping = threading.Event()

    def look() -> None:
        while not stopping.is_set():
            assert removal.unless_used(store, record)
            time.sleep(0.002)

    looking = threading.Thread(target=look)
    looking.start()
    found = []
    for _ in range(200):
        found.append(store.lease(fake.id))
        if found[-1]:
            found[-1][1].close()
    stopping.set()
    looking.join()

    assert None not in found


def test_a_lease_is_taken_while_gc_removes_attempts_of_old(
    store: Store, fake: Fake, others: Others
) -> None:
    """It waits for a rename, not for the deletion of a tree."""
    repairer = others.start(work.rebuild, fake)
    repairer.hear()
    (old,) = set(store.attempts(fake.id)) - {_building(store, fake)}
    for number in range(5_000):
        (store.layout.environment(fake.id) / old / f"more-{number}").touch()
    repairer.say("publish")
    repairer.hear()

    def sweep_until_it_is_gone() -> None:
        # One that meets a lease leaves it for the next.
        while old in store.attempts(fake.id):
            sweep.superseded(store)

    sweeping = threading.Thread(target=sweep_until_it_is_gone)
    sweeping.start()
    found: list[Environment | None] = []
    while sweeping.is_alive():
        leased = store.lease(fake.id)
        found.append(leased[0] if leased else None)
        if leased:
            leased[1].close()
        time.sleep(0.001)
    sweeping.join()

    assert None not in found
    assert old not in store.attempts(fake.id)


def _building(store: Store, fake: Fake) -> str:
    ready = store.find(fake.id)
    assert ready is not None
    (found,) = set(store.attempts(fake.id)) - {ready.prefix.name}
    return found


def test_who_removes_by_hand_is_refused_what_is_leased_or_pinned(
    store: Store, fake: Fake, others: Others
) -> None:
    holder = others.start(work.hold, fake.root, fake.id)
    assert holder.hear() is True
    with pytest.raises(EnvironmentInUseError, match=f"pid {holder.pid}"):
        removal.remove(store, fake.id)
    store.pin(fake.id)
    holder.end()

    with pytest.raises(EnvironmentPinnedError):
        removal.remove(store, fake.id)

    store.unpin(fake.id)
    removal.remove(store, fake.id)
    assert store.find(fake.id) is None


def test_collecting_takes_all_but_what_is_leased(tmp_path: Path, others: Others) -> None:
    fakes = [Fake(name, tmp_path / "root") for name in "abcd"]
    ids = [one.build().id for one in fakes]
    holder = others.start(work.hold, fakes[0].root, ids[0])
    assert holder.hear() is True

    found = collect(Store(fakes[0].root), max_size=0)

    assert sorted(gone(found)) == sorted(ids[1:])


def test_hammering_leases_and_gc_never_gives_a_lease_on_what_is_gone(
    tmp_path: Path, others: Others
) -> None:
    fakes = [Fake(name, tmp_path / "root") for name in "abc"]
    until = time.monotonic() + HAMMERING_S
    for one in fakes:
        one.build()

    collecting = others.start(work.collect_all, tmp_path / "root")
    using = others.start(work.use_all, fakes, until, LEASES)
    leases, missed, wrong = using.hear(HAMMERING_S + 120)
    collecting.say("stop")
    taken = collecting.hear()

    assert wrong == []
    assert taken > 5, f"gc took too little for this to be a test: {leases}, {missed}, {taken}"
