"""The store against a model of the right answer, through whatever happens to it.

What is ready, leased, pinned and how often used is known at every step; a prediction finds
what should be there, and nothing goes that somebody uses or has pinned.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from envd.errors import EnvironmentInUseError, EnvironmentPinnedError, InstallFailedError
from envd.store import Store, removal, sweep, trash
from tests import others as work
from tests.conftest import wait_for
from tests.others import Fake, Other, Others, collect, environments, gone

SLOW_S = 60 * float(os.environ.get("MINUTES", "5"))
NAMES = "abcd"
HOUR = 3600.0

quick = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Right:
    """What is known of one environment; `base` is which interpreter is there."""

    fake: Fake
    base: int = 0
    built_on: int | None = None
    pinned: bool = False
    failed: bool = False
    uses: int = 0
    used_at: float = 0.0
    remover: Other | None = None
    # What ends a lease, and the tree it is on.
    leases: list[tuple[Callable[[], None], Path]] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        return self.built_on == self.base

    @property
    def may_go(self) -> bool:
        return self.built_on is not None and not self.pinned and not self.leases

    def is_gone(self) -> None:
        self.built_on, self.uses = None, 0


class Machine(RuleBasedStateMachine):
    """One root, four environments, and the processes that use them."""

    others: Others
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(mkdtemp(dir=self.folder))
        self.root = self.home / "root"
        self.store = Store(self.root)
        # As whoever works on a root does first: it is closed to others.
        self.store.create()
        self.right = {name: Right(Fake(name, self.root)) for name in NAMES}
        for one in self.right.values():
            self._set_interpreter(one, 0)

    names = st.sampled_from(NAMES)

    # To ask for an environment that is being removed is to wait: `ask_for_what_goes`.
    def _of(self, name: str) -> Right | None:
        found = self.right[name]
        return None if found.remover else found

    @rule(name=names, retry=st.booleans())
    def predict(self, name: str, retry: bool) -> None:  # noqa: FBT001
        if not (one := self._of(name)):
            return
        if one.failed and not one.is_ready and not retry:
            with pytest.raises(InstallFailedError) as raised:
                environments(one.fake).ready(one.fake.asked)
            assert "failed so before" in raised.value.message
            return
        ready = environments(one.fake).ready(one.fake.asked, retry=retry)
        assert ready.cached is one.is_ready
        one.failed = one.failed and one.is_ready
        one.built_on = one.base
        leased = self.store.lease(one.fake.id)
        assert leased is not None, "the environment is missing"
        one.fake.read(leased[0].prefix)
        self.store.uses.record(one.fake.id)
        leased[1].close()
        one.uses += 1
        one.used_at = self.store.clock.now()

    @rule(name=names, in_other_process=st.booleans())
    def lease(self, name: str, in_other_process: bool) -> None:  # noqa: FBT001
        one = self.right[name]
        if in_other_process:
            holder = self.others.start(work.hold, self.root, one.fake.id)
            is_leased, end = holder.hear(), holder.kill
        else:
            leased = self.store.lease(one.fake.id)
            is_leased, end = leased is not None, leased[1].close if leased else lambda: None
        assert is_leased is one.is_ready
        if is_leased:
            found = self.store.find(one.fake.id)
            assert found is not None
            one.leases.append((end, found.prefix))
        elif in_other_process:
            end()

    @precondition(lambda self: any(one.leases for one in self.right.values()))
    @rule(data=st.data())
    def end_lease(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([key for key, one in self.right.items() if one.leases]))
        one = self.right[name]
        end, _ = one.leases.pop(data.draw(st.integers(0, len(one.leases) - 1)))
        end()
        if one.remover and not one.leases:
            assert one.remover.hear() == "gone"
            one.remover = None
            one.is_gone()

    @rule(name=names)
    def pin(self, name: str) -> None:
        self.store.pin(self.right[name].fake.id)
        self.right[name].pinned = True

    @rule(name=names)
    def unpin(self, name: str) -> None:
        self.store.unpin(self.right[name].fake.id)
        self.right[name].pinned = False

    @rule(
        max_size=st.sampled_from([None, 0, 8_000, 16_000, 10**12]),
        unused_for=st.sampled_from([None, HOUR, 24 * HOUR]),
        max_age=st.sampled_from([None, None, 0]),
        keep=st.integers(0, 2),
    )
    def collect(
        self, max_size: int | None, unused_for: float | None, max_age: float | None, keep: int
    ) -> None:
        limits = {"max_size": max_size, "unused_for": unused_for, "max_age": max_age}
        there = [one for one in self.right.values() if one.built_on is not None]
        by_use = sorted(there, key=lambda one: (one.used_at, one.fake.id))
        usable = [one for one in by_use if one.is_ready]
        latest = usable[len(usable) - min(keep, len(usable)) :]
        now = self.store.clock.now()
        may = [one for one in by_use if one.may_go and one not in latest]
        if all(one is None for one in limits.values()):
            # What was just built is spared then.
            may = []
        must = [
            one
            for one in may
            if not one.is_ready
            or max_age is not None
            or max_size == 0
            or (unused_for and now - one.used_at >= unused_for)
        ]

        went = gone(collect(self.store, **limits, keep=keep))

        assert went <= {one.fake.id for one in may}
        assert went >= {one.fake.id for one in must}
        in_order = [one.fake.id in went for one in may if one not in must]
        assert in_order == sorted(in_order, reverse=True), "not the longest unused first"
        if max_size in {None, 10**12}:
            assert not any(in_order)
        for one in may:
            if one.fake.id in went:
                one.is_gone()
        self._are_swept()

    @rule(name=names)
    def delete(self, name: str) -> None:
        if not (one := self._of(name)):
            return
        if one.leases:
            with pytest.raises(EnvironmentInUseError):
                removal.remove(self.store, one.fake.id)
        elif one.pinned:
            with pytest.raises(EnvironmentPinnedError):
                removal.remove(self.store, one.fake.id)
        else:
            removal.remove(self.store, one.fake.id)
            one.is_gone()

    @rule(name=names)
    def delete_by_force(self, name: str) -> None:
        if not (one := self._of(name)):
            return
        remover = self.others.start(work.force, self.root, one.fake.id)
        assert remover.hear() == ("waiting" if one.leases else "gone")
        one.pinned = False
        if one.leases:
            one.remover, one.built_on = remover, None
        else:
            one.is_gone()

    @precondition(lambda self: any(one.remover for one in self.right.values()))
    @rule()
    def kill_a_remover(self) -> None:
        one = next(one for one in self.right.values() if one.remover)
        assert one.remover is not None
        one.remover.kill()
        one.remover = None

    @precondition(lambda self: any(one.remover for one in self.right.values()))
    @rule()
    def ask_for_what_goes(self) -> None:
        one = next(one for one in self.right.values() if one.remover)
        if one.failed:
            return
        asker = self.others.start(work.build, one.fake)
        assert asker.hear() == "waiting"
        asker.kill()

    @rule(name=names)
    def change_interpreter(self, name: str) -> None:
        self._set_interpreter(self.right[name], 1)

    @rule(name=names)
    def mend_interpreter(self, name: str) -> None:
        self._set_interpreter(self.right[name], 0)

    def _set_interpreter(self, one: Right, base: int) -> None:
        one.fake.base.touch()
        moment = 1_600_000_000 + base
        os.utime(one.fake.base, (moment, moment))
        one.base = base

    @rule(name=names, how=st.sampled_from(["kill", "terminate", "fail"]))
    def a_build_that_does_not_end_well(self, name: str, how: str) -> None:
        one = self._of(name)
        if one is None or one.is_ready or one.failed:
            return
        builder = self.others.start(work.build, one.fake)
        assert builder.hear() == "building"
        if how == "fail":
            builder.say("fail")
            assert builder.hear() == "INSTALL_FAILED"
            one.failed = True
        else:
            getattr(builder, how)()
        if not one.leases:
            one.built_on = None
            # A killed one leaves the directory, and the uses in it, to the sweep.
            if how != "kill":
                one.uses = 0

    @rule(name=names, word=st.sampled_from(["publish", "leave", "kill"]))
    def repair(self, name: str, word: str) -> None:
        one = self.right[name]
        if not one.is_ready:
            return
        repairer = self.others.start(work.rebuild, one.fake)
        assert repairer.hear() == "building"
        if word == "kill":
            repairer.kill()
            return
        repairer.say(word)
        assert repairer.hear() == "done"
        if word == "publish":
            one.used_at = self.store.clock.now()

    @rule(name=names, hours=st.sampled_from([0.5, 2, 48]))
    def age(self, name: str, hours: float) -> None:
        one = self.right[name]
        if one.is_ready:
            one.used_at = self.store.clock.now() - hours * HOUR
            os.utime(self.store.layout.used(one.fake.id), (one.used_at, one.used_at))
            one.used_at = self.store.uses.last(one.fake.id)

    @rule()
    def restart(self) -> None:
        self.store = Store(self.root)
        sweep.leftovers(self.store)
        sweep.superseded(self.store)
        trash.empty(self.store.layout.trash)
        self._are_swept()

    def _are_swept(self) -> None:
        """Take what builds that were killed have left for gone, and the uses in it."""
        for one in self.right.values():
            if one.built_on is None and not one.leases:
                one.uses = 0

    @invariant()
    def is_as_it_should_be(self) -> None:
        records = {one.id: one for one in self.store.records()}
        for one in self.right.values():
            env_id = one.fake.id
            found = self.store.find(env_id)
            assert (found is not None) is one.is_ready
            if found:
                one.fake.read(found.prefix)
            for _, prefix in one.leases:
                one.fake.read(prefix)
            assert (env_id in records) is (one.built_on is not None)
            if record := records.get(env_id):
                assert record.uses == one.uses
                assert record.is_pinned is one.pinned
                self.has_holders(env_id, len(one.leases))
                assert bool(record.broken) is not one.is_ready

    def has_holders(self, env_id: str, count: int) -> None:
        """See that so many hold *env_id*.

        While others lock as well, the kernel may tell of a lock twice, or not.
        """

        def held() -> int:
            return next(len(one.holders) for one in self.store.records() if one.id == env_id)

        wait_for(lambda: held() == count)

    def teardown(self) -> None:
        for one in self.right.values():
            for end, _ in one.leases:
                end()
            if one.remover:
                assert one.remover.hear() == "gone"
                one.is_gone()
            one.leases, one.remover = [], None
        self.restart()
        for one in self.right.values():
            home = self.store.layout.environment(one.fake.id)
            assert home.exists() is (one.built_on is not None)
            assert len(self.store.attempts(one.fake.id)) == (one.built_on is not None)
        assert not list(self.store.layout.trash.glob("*"))
        shutil.rmtree(self.home)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[type[Machine]]:
    with work.others() as others:
        Machine.others, Machine.folder = others, tmp_path
        yield Machine


def test_the_store_does_what_the_model_says(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=quick)


@pytest.mark.slow
@pytest.mark.timeout(SLOW_S + 600)
def test_the_store_does_what_the_model_says_for_long(machine: type[Machine]) -> None:
    until = time.monotonic() + SLOW_S
    while time.monotonic() < until:
        run_state_machine_as_test(
            machine, settings=settings(quick, derandomize=False, max_examples=50)
        )
