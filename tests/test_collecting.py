"""gc on real environments: what goes, what stays, and what it frees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from envd import config, model
from envd.environments.environments import Environments
from envd.settings.sections import Gc
from envd.store import Environment, Store, collecting, manifest, removal, trash
from envd.store.collecting import Collected, Criteria
from envd.store.sizes import Sizes
from tests import others as work
from tests.conftest import wait_for
from tests.others import Fake, Others
from tests.tiny import Tiny, wheel

DAY_S = 86400.0
ALL = Criteria(force=True, max_size=0, max_age=0.0)


class Here:
    """A root with environments of tiny wheels, each with one of its own."""

    def __init__(self, folder: Path, tiny: Tiny, **more: str) -> None:
        self.folder, self.tiny = folder, tiny
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        given = tiny.settings | {"ENVD_INDEX__FIND_LINKS": f"{tiny.wheels},{self.wheels}"}
        given |= more
        self.settings = config.load(root=folder / "root", environ=given)
        self.environments = Environments(self.settings)

    @property
    def store(self) -> Store:
        return self.environments.store

    def build(self, name: str, *more: str) -> Environment:
        """Build an environment with a package called *name* that takes 100 kB."""
        wheel(self.wheels, name, "1.0", **{name: f"# {os.urandom(50_000).hex()}\n"})
        path = self.tiny.model(self.folder / f"model-{name}", name, *more)
        asked = self.environments.ask(model.read(path))
        found = self.environments.ready(asked).environment
        self.store.uses.record_model(found.id, path)
        return found

    def unused_for(self, found: Environment, days: float) -> None:
        moment = self.store.clock.now() - days * DAY_S
        os.utime(self.store.layout.used(found.id), (moment, moment))

    def collect(self, criteria: Criteria, **changed: object) -> Collected:
        settings = replace(Gc(min_free="0"), **changed)  # type: ignore[arg-type]
        return collecting.collect(self.store, settings, criteria)

    def taken(self) -> int:
        """Return the bytes of all files below the root, each once, but for the list of them."""
        found = {}
        for folder, _, names in os.walk(self.settings.root):
            for name in set(names) - {"index.sqlite"}:
                status = os.lstat(f"{folder}/{name}")
                found[status.st_ino] = status.st_size
        return sum(found.values())


@pytest.fixture
def here(tmp_path: Path, tiny: Tiny) -> Here:
    return Here(tmp_path, tiny)


def gone(found: Collected) -> set[str]:
    return {one.id for one in found.verdicts if one.goes}


def test_what_was_just_built_stays_unless_a_limit_is_given(here: Here) -> None:
    built = here.build("one")

    spared = here.collect(Criteria(force=True), max_size=0)
    assert here.store.find(built.id)
    taken = here.collect(ALL)

    assert gone(spared) == set()
    assert "built" in spared.verdicts[0].reason
    assert gone(taken) == {built.id}
    assert here.store.find(built.id) is None


def test_the_longest_unused_go_first_and_no_more_than_must(here: Here) -> None:
    old, middle, new = (here.build(name) for name in ("old", "middle", "new"))
    for found, days in ((old, 20), (middle, 10), (new, 1)):
        here.unused_for(found, days)
    everything = here.collect(Criteria(force=False, max_size=0))
    budget = here.taken() - 250_000

    found = here.collect(Criteria(force=True, max_size=budget))

    assert gone(everything) == {old.id, middle.id, new.id}
    # Each frees its 100 kB, its bytecode and little more.
    assert gone(found) == {old.id, middle.id}
    assert here.store.find(new.id)


def test_a_dry_run_says_what_goes_and_removes_nothing(here: Here) -> None:
    built = here.build("one")
    here.unused_for(built, 40)
    before = here.taken()

    said = here.collect(Criteria(force=False, unused_for=30 * DAY_S))
    assert here.taken() == before
    done = here.collect(Criteria(force=True, unused_for=30 * DAY_S))
    trash.empty(here.store.layout.trash)

    assert gone(said) == gone(done) == {built.id}
    assert "not used for 40 days" in said.verdicts[0].reason
    assert said.freed == pytest.approx(done.freed, rel=0.1)
    assert before - here.taken() == pytest.approx(done.freed, rel=0.1)
    assert done.freed > 100_000


def test_what_several_share_is_freed_with_the_last_of_them(here: Here) -> None:
    wheel(here.wheels, "large", "1.0", large=f"# {os.urandom(500_000).hex()}\n")
    first, second = here.build("first", "large"), here.build("second", "large")
    here.unused_for(first, 50)

    one = here.collect(Criteria(force=True, unused_for=30 * DAY_S))
    other = here.collect(ALL)

    assert gone(one) == {first.id}
    assert one.freed < 500_000
    assert gone(other) == {second.id}
    assert other.freed > 1_000_000


def test_pinned_and_leased_ones_stay_whatever_the_limits(here: Here) -> None:
    pinned, leased, other = (here.build(name) for name in ("pinned", "leased", "other"))
    here.store.pin(pinned.id)
    held = here.store.lease(leased.id)
    assert held

    found = here.collect(ALL)
    held[1].close()
    here.store.unpin(pinned.id)
    again = here.collect(ALL)

    assert gone(found) == {other.id}
    reasons = {one.id: one.reason for one in found.verdicts}
    assert reasons[pinned.id] == "pinned"
    assert str(os.getpid()) in reasons[leased.id]
    assert gone(again) == {pinned.id, leased.id}


def doom(here: Here, found: Environment) -> None:
    """Begin to remove it by force, and die."""
    removing = removal.forcing(here.store, found.id)
    next(removing)
    removing.close()


@contextmanager
def being_removed(here: Here, found: Environment) -> Iterator[None]:
    doom(here, found)
    yield


@contextmanager
def damaged(here: Here, found: Environment) -> Iterator[None]:
    here.store.layout.manifest(found.id).write_text("{")
    yield


@contextmanager
def built_again(here: Here, found: Environment) -> Iterator[None]:
    doom(here, found)
    log = here.store.layout.log(found.manifest.spec_key)
    with here.store.building(found.id, log, lambda _: None):
        assert not [*here.store.layout.environment(found.id).glob("*.json")]
        yield


@pytest.mark.parametrize("meanwhile", [being_removed, damaged, built_again])
def test_what_a_used_environment_links_to_stays_until_it_is_used_no_more(
    tmp_path: Path,
    tiny: Tiny,
    meanwhile: Callable[[Here, Environment], AbstractContextManager[None]],
) -> None:
    here = Here(tmp_path, tiny, ENVD_BUILD__LINK_MODE="symlink")
    used, other = here.build("one"), here.build("other")
    (module,) = used.prefix.glob("lib/python*/site-packages/one.py")
    archive = module.resolve().parent
    held = here.store.lease(used.id)
    assert held

    with meanwhile(here, used):
        found = here.collect(ALL, grace=0.0)
        trash.empty(here.store.layout.trash)
        is_there = module.exists()
    held[1].close()
    here.collect(ALL, grace=0.0)

    assert archive.is_relative_to(here.settings.root / "cache")
    assert other.id in gone(found)
    assert is_there
    assert not archive.exists()


def test_a_lock_stays_as_long_as_the_environment_it_comes_to(here: Here) -> None:
    first = here.build("one")
    # Another spec, the same lock.
    path = here.tiny.model(here.folder / "other", "one>=1.0")
    asked = here.environments.ask(model.read(path))
    assert here.environments.ready(asked).environment.id == first.id
    assert asked.spec.key != first.manifest.spec_key
    ages_ago = time.time() - 400 * DAY_S
    for folder in (here.settings.root / "specs").iterdir():
        os.utime(folder, (ages_ago, ages_ago))

    here.collect(Criteria(force=True))
    kept = here.environments.kept_lock(asked)
    here.collect(replace(ALL, unused_for=30 * DAY_S))

    assert kept
    assert here.environments.kept_lock(asked) is None
    assert list((here.settings.root / "specs").iterdir()) == []


def old(path: Path) -> Path:
    """Make *path* 400 days old."""
    moment = time.time() - 400 * DAY_S
    os.utime(path, (moment, moment))
    return path


def test_the_lock_of_a_build_under_way_stays(here: Here) -> None:
    built = here.build("one")
    spec = here.store.layout.spec(built.manifest.spec_key).parent
    log = here.store.layout.log(built.manifest.spec_key)
    here.collect(ALL)
    old(spec)
    old(log)

    with here.store.building(built.id, log, lambda _: None):
        here.collect(replace(ALL, unused_for=0.0))
        meanwhile = sorted(one.name for one in spec.iterdir())
        is_logged = log.exists()
    here.collect(replace(ALL, unused_for=0.0))

    assert meanwhile == ["lock.json", "spec.json"]
    assert is_logged
    assert not spec.exists()
    assert not log.exists()


def test_a_lock_within_the_grace_stays_whatever_the_limits(here: Here) -> None:
    built = here.build("one")

    here.collect(replace(ALL, unused_for=0.0))
    spared = here.store.specs.lock(built.manifest.spec_key)
    here.collect(replace(ALL, unused_for=0.0), grace=0.0)

    assert spared
    assert here.store.specs.lock(built.manifest.spec_key) is None


@pytest.fixture(scope="module")
def others() -> Iterator[Others]:
    with work.others() as found:
        yield found


@pytest.mark.parametrize(("told", "stays"), [("anew", True), ("nothing", False)])
def test_a_spec_that_is_locked_anew_while_gc_looks_at_it_stays(
    tmp_path: Path, others: Others, told: str, *, stays: bool
) -> None:
    fake = Fake("one", tmp_path / "root")
    spec = Store(fake.root).layout.spec(fake.asked.spec.key).parent
    # Another lock of it, at which gc stops until it has been written.
    os.mkfifo(spec / "lock-2024-01-01.json")
    old(spec)
    locking = others.start(work.lock, fake)
    assert locking.hear() == "locking"
    forgetting = others.start(work.forget, fake.root, DAY_S)
    writer = opened(spec / "lock-2024-01-01.json")

    (spec / "lock-2024-01-01.json").unlink()
    old(spec)
    locking.say(told)
    assert locking.hear() == "done"
    os.close(writer)

    assert forgetting.hear() == "done"
    assert spec.exists() is stays


def opened(fifo: Path) -> int:
    """Open *fifo* to write into it, once somebody reads it."""
    found: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):
            found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    wait_for(is_read, limit_s=20)
    return found[0]


def test_old_logs_of_builds_and_workers_go(here: Here) -> None:
    here.build("one")
    logs = here.store.layout.logs
    names = ("builders.log", "worker-1.log", f"{'1' * 64}.log", f"{'2' * 64}.log")
    for name in names:
        (logs / name).write_text("text")
        old(logs / name)

    # Its first build is being locked, and has no spec yet.
    with here.store.locking("2" * 64, lambda _: None):
        here.collect(Criteria(force=True))

    assert [name for name in names if (logs / name).exists()] == [names[0], names[3]]


@pytest.mark.parametrize(
    ("where", "goes"), [("trash", False), ("elsewhere", True), ("nowhere", True)]
)
def test_what_the_trash_gives_back_is_as_good_as_free(
    here: Here, where: str, *, goes: bool
) -> None:
    tera = 10**12
    built = here.build("one")
    sizes = replace(built.manifest, sizes=Sizes(tera, tera))
    manifest.write(here.store.layout.manifest(built.id), sizes)
    trashed = here.store.layout.trash / "tree" / "file"
    trashed.parent.mkdir(parents=True)
    if where != "nowhere":
        trashed.touch()
        os.truncate(trashed, tera)
    # One with all its names in the trash is freed with the last of them.
    if where == "trash":
        trashed.with_name("another").hardlink_to(trashed)
    elif where == "elsewhere":
        (here.folder / "another").hardlink_to(trashed)
    free = shutil.disk_usage(here.settings.root).free

    found = here.collect(
        Criteria(force=False, min_free=str(free + tera // 2)), max_size=float("inf")
    )

    assert [one.goes for one in found.verdicts] == [goes]


def test_digests_go_with_what_they_describe(here: Here) -> None:
    stays, goes = here.build("stays"), here.build("goes")
    folder = here.settings.root / "cache" / "digests"
    of_stays, of_goes = (
        {one.sha256 for one in found.manifest.lock.packages} for found in (stays, goes)
    )
    assert {one.name for one in folder.iterdir()} == of_stays | of_goes
    for one in folder.iterdir():
        old(one)
    here.unused_for(goes, 40)

    with (here.settings.root / "cache" / "uv" / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        here.collect(Criteria(force=True, unused_for=30 * DAY_S))
    while_cached = {one.name for one in folder.iterdir()}
    here.collect(Criteria(force=True, unused_for=30 * DAY_S))

    assert while_cached == of_stays | of_goes
    assert {one.name for one in folder.iterdir()} == of_stays


def test_young_digests_stay(here: Here) -> None:
    here.build("one")

    here.collect(ALL)

    assert list((here.settings.root / "cache" / "digests").iterdir())


def test_marks_of_models_that_are_gone_go(here: Here) -> None:
    built = here.build("one")
    lasting = here.folder / "model-one"
    gone_one = here.folder / "gone"
    for path in (gone_one, Path("relative")):
        here.store.uses.record_model(built.id, path)

    here.collect(Criteria(force=False))
    before = here.store.records()[0].models
    here.collect(Criteria(force=True))

    assert before == (str(gone_one), str(lasting), "relative")
    assert here.store.records()[0].models == (str(lasting), "relative")


def test_what_is_gone_is_built_again(here: Here) -> None:
    path = here.folder / "model-one"
    built = here.build("one")
    here.collect(ALL)
    trash.empty(here.store.layout.trash)

    again = here.environments.ready(here.environments.ask(model.read(path)))

    assert not again.cached
    assert again.environment.id == built.id
    assert list(again.environment.prefix.glob("lib/python*/site-packages/one.py"))
