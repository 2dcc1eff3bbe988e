"""The life of an environment: every change in every state, made to happen, against the table."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envd.errors import EnvironmentInUseError
from envd.store import Store, leases, removal, sweep
from tests import others as work
from tests.others import Fake, Other, Others
from tests.states import TRANSITIONS, Change, State, after, state_of

# By what it says, how an asker fares.
ASKED = {
    State.ABSENT: "building",
    State.BUILDING: "waiting",
    State.READY: "found",
    State.FAILED: "INSTALL_FAILED",
    State.DELETING: "waiting",
}


@pytest.fixture(scope="module")
def others() -> Iterator[Others]:
    with work.others() as found:
        yield found


class Life:
    """One environment, and the processes that have to do with it."""

    def __init__(self, root: Path, others: Others) -> None:
        self.fake = Fake("one", root)
        self.store = Store(root)
        self._others = others
        self.builder: Other | None = None
        self.remover: Other | None = None
        self.holder: Other | None = None

    @property
    def state(self) -> State:
        return state_of(self.store, self.fake.id, self.fake.spec.key)

    def bring(self, state: State) -> None:
        """Make it be in *state*, which it was not before."""
        if state is State.BUILDING:
            self.builder = self._start(work.build, self.fake, says="building")
        elif state is State.FAILED:
            self.bring(State.BUILDING)
            self.fail()
        elif state in {State.READY, State.DELETING}:
            self.fake.build()
        if state is State.DELETING:
            self.delete()
        assert self.state is state

    def build(self) -> None:
        self._start(work.build, self.fake, says=ASKED[self.state])

    def publish(self) -> bool:
        return self._builder("publish", says=("built", "done"))

    def fail(self) -> bool:
        # A repair that fails is remembered of nobody.
        return self._builder("fail", says=("INSTALL_FAILED", "done"))

    def _builder(self, told: str, *, says: tuple[str, str]) -> bool:
        if not self._find_builder():
            return False
        assert self.builder is not None
        self.builder.say(told)
        assert self.builder.hear() in says
        self.builder = None
        return True

    def cancel(self) -> bool:
        if not self._find_builder():
            return False
        assert self.builder is not None
        self.builder.terminate()
        return True

    def die(self) -> bool:
        doomed = self.remover or (self.builder if self._find_builder() else None)
        if doomed:
            doomed.kill()
        return doomed is not None

    def _find_builder(self) -> bool:
        """Whether somebody builds it; what is ready is built anew for a repair."""
        if self.state is State.READY:
            self.builder = self._start(work.rebuild, self.fake, says="building")
        return self.builder is not None

    def break_interpreter(self) -> None:
        if self.fake.base.exists():
            self.fake.break_interpreter()

    def delete(self) -> None:
        if self.state in {State.READY, State.DELETING}:
            if self.holder is None:
                self.holder = self._start(work.hold, self.store.layout.root, self.fake.id)
                assert self.holder.hear() is True
            remover = self._start(work.force, self.store.layout.root, self.fake.id, says="waiting")
            self.remover = self.remover or remover
        elif self.state is State.BUILDING:
            with pytest.raises(EnvironmentInUseError, match="being built"):
                removal.remove(self.store, self.fake.id)
        else:
            removal.remove(self.store, self.fake.id)

    def release(self) -> None:
        if self.holder is None:
            leased = self.store.lease(self.fake.id)
            assert (leased is not None) is (self.state is State.READY)
            if leased:
                leased[1].close()
        else:
            self.holder.end()
            assert self.remover is not None
            assert self.remover.hear() == "gone"

    def forget(self) -> None:
        self.store.failures.forget(self.fake.spec.key)

    def _start(self, function: Callable[..., None], *arguments: object, says: str = "") -> Other:
        found = self._others.start(function, *arguments)
        if says:
            assert found.hear() == says
        return found


# Those that cannot happen in a state return False.
HAPPEN: dict[Change, Callable[[Life], bool | None]] = {
    Change.BUILD: Life.build,
    Change.PUBLISH: Life.publish,
    Change.FAIL: Life.fail,
    Change.CANCEL: Life.cancel,
    Change.DIE: Life.die,
    Change.BREAK: Life.break_interpreter,
    Change.DELETE: Life.delete,
    Change.RELEASE: Life.release,
    Change.FORGET: Life.forget,
}


@pytest.fixture
def life(tmp_path: Path, others: Others) -> Life:
    return Life(tmp_path / "root", others)


@pytest.mark.parametrize("change", Change, ids=lambda one: one.name.lower())
@pytest.mark.parametrize("state", State, ids=lambda one: one.name.lower())
def test_every_change_in_every_state(life: Life, state: State, change: Change) -> None:
    life.bring(state)

    happened = HAPPEN[change](life)

    assert life.state is after(state, change)
    assert happened is not False or (state, change) not in TRANSITIONS


def test_every_state_is_reached_and_left() -> None:
    assert set(TRANSITIONS.values()) == set(State)
    assert {before for before, _ in TRANSITIONS} == set(State)


def test_what_is_to_be_removed_goes_with_its_last_user(life: Life, others: Others) -> None:
    life.bring(State.DELETING)
    second = others.start(work.build, life.fake)
    heard = [second.hear()]
    is_found, leased = life.store.find(life.fake.id), life.store.lease(life.fake.id)
    (attempt,) = life.store.attempts(life.fake.id)
    life.fake.read(life.store.layout.environment(life.fake.id) / attempt)
    is_patient = second.says_nothing()

    life.release()
    heard.append(second.hear())
    second.say("publish")
    heard.append(second.hear())

    assert is_found is None
    assert leased is None
    assert is_patient
    assert heard == ["waiting", "building", "built"]
    assert life.state is State.READY
    assert attempt not in life.store.attempts(life.fake.id)


def test_what_a_killed_remover_has_begun_is_finished_by_a_sweep(life: Life) -> None:
    life.bring(State.DELETING)
    home = life.store.layout.environment(life.fake.id)
    assert life.holder is not None

    life.die()
    sweep.leftovers(life.store)
    is_kept = home.exists()
    life.holder.end()
    sweep.leftovers(life.store)

    assert is_kept, "it was removed though somebody used it"
    assert not home.exists()
    assert life.state is State.ABSENT


def test_what_a_killed_remover_has_begun_is_built_again_beside_its_user(life: Life) -> None:
    life.bring(State.DELETING)
    (used,) = life.store.attempts(life.fake.id)
    assert life.holder is not None
    life.die()

    again = life.fake.build()
    sweep.superseded(life.store)
    while_used = life.store.attempts(life.fake.id)
    life.holder.end()
    sweep.superseded(life.store)

    assert again.prefix.name != used
    assert while_used == sorted([used, again.prefix.name])
    assert life.store.attempts(life.fake.id) == [again.prefix.name]


def test_a_build_that_fails_leaves_what_is_still_used(life: Life, others: Others) -> None:
    life.bring(State.DELETING)
    (used,) = life.store.attempts(life.fake.id)
    life.die()
    builder = others.start(work.build, life.fake)
    heard = [builder.hear()]

    builder.say("fail")
    heard.append(builder.hear())

    assert heard == ["building", "INSTALL_FAILED"]
    life.fake.read(life.store.layout.environment(life.fake.id) / used)


def test_what_is_built_while_its_interpreter_changes_is_not_ready(life: Life) -> None:
    life.bring(State.BUILDING)

    life.break_interpreter()
    life.publish()

    assert life.state is State.ABSENT
    assert life.store.read(life.fake.id) is not None


def test_only_a_failure_of_the_same_spec_counts(life: Life) -> None:
    life.bring(State.FAILED)

    assert state_of(life.store, life.fake.id) is State.ABSENT
    assert state_of(life.store, life.fake.id, "another") is State.ABSENT


def test_a_lease_is_had_though_somebody_looks_just_then(life: Life) -> None:
    life.bring(State.READY)
    found = []
    # A machine with much to do may wake the one who looks too late.
    while len(found) < 10 and not any(found):
        looking = life.store.unused(life.fake.id)
        assert looking.__enter__()
        until = threading.Timer(0.004, looking.__exit__, (None, None, None))
        until.start()
        found.append(life.store.lease(life.fake.id))
        until.join()

    assert found[-1] is not None
    found[-1][1].close()


def test_a_lease_is_refused_soon_where_it_cannot_be_had(life: Life) -> None:
    life.bring(State.READY)
    with life.store.unused(life.fake.id) as is_unused:
        began = time.monotonic()
        found = leases.take(life.store.layout.leased(life.fake.id))
        took_s = time.monotonic() - began

    assert is_unused
    assert found is None
    assert took_s < 5
