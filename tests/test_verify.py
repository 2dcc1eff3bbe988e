"""verify finds whatever is not as it was published, and repairs it."""

from __future__ import annotations

import fcntl
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from envd import config, durable, held, model
from envd.environments import verifying
from envd.environments.environments import Environments
from envd.environments.verifying import Verified, Verifier
from envd.errors import BuildTimedOutError, EnvironmentNotFoundError
from envd.events import Event, Stage
from envd.settings.values import Seconds
from envd.store import Environment
from tests import others as work
from tests.others import Other, Others
from tests.tiny import Tiny


class Here:
    def __init__(self, folder: Path, tiny: Tiny, **more: str) -> None:
        self.folder, self.tiny = folder, tiny
        self.settings = config.load(root=folder / "root", environ=tiny.settings | more)
        self.environments = Environments(self.settings)
        self.store = self.environments.store
        self.verifier = Verifier(self.settings, self.store)

    def build(self, name: str, *requirements: str) -> Environment:
        path = self.tiny.model(self.folder / name, *requirements)
        return self.environments.ready(self.environments.ask(model.read(path))).environment

    def verify(self, found: Environment, *, repair: bool = False) -> Verified:
        return self.verifier.verify(found.id, repair=repair)


@pytest.fixture
def here(tmp_path: Path, tiny: Tiny) -> Here:
    return Here(tmp_path, tiny)


def module(found: Environment, name: str = "tiny_a.py") -> Path:
    return next(found.prefix.glob(f"lib/python*/site-packages/{name}"))


def test_what_was_published_has_no_fault(here: Here) -> None:
    assert here.verify(here.build("model")).faults == ()


def test_a_manifest_cut_anywhere_is_no_manifest(here: Here) -> None:
    found = here.build("model")
    path = here.store.layout.manifest(found.id)
    whole = path.read_bytes()

    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert here.store.find(found.id) is None, end
    path.write_bytes(whole)

    assert here.store.find(found.id) == found


def test_a_manifest_with_a_flipped_byte_is_no_manifest(here: Here) -> None:
    found = here.build("model")
    path = here.store.layout.manifest(found.id)
    whole = path.read_bytes()
    chance = random.Random(11)

    for _ in range(300):
        place = chance.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        if (read := here.store.find(found.id)) is not None:
            # White space between values says nothing.
            assert read == found, (place, bytes(flipped[place - 20 : place + 20]))
            assert whole[place : place + 1].isspace()


def test_a_changed_file_is_named_with_whoever_shares_it_and_repaired(here: Here) -> None:
    found, other = here.build("model"), here.build("other", "tiny-a", "tiny-b")
    # Whoever writes to a hardlink writes to the cache and to every other environment.
    module(found).write_text("VERSION = 'poisoned'\n")

    seen = here.verify(found)
    mended = here.verify(found, repair=True)

    assert [(one.kind, Path(one.path).name) for one in seen.faults] == [("changed", "tiny_a.py")]
    assert seen.also_affected == (other.id,)
    assert not seen.is_repaired
    assert mended.is_repaired
    repaired = here.store.find(found.id)
    assert repaired
    assert "poisoned" not in module(repaired).read_text()
    assert here.verify(repaired).faults == ()
    # The other one is left to whoever decides on it.
    assert here.verify(other).faults
    assert here.verify(other, repair=True).is_repaired
    assert here.verify(other).faults == ()


def test_what_is_built_of_a_poisoned_cache_is_found_and_repaired(here: Here) -> None:
    first = here.build("model")
    module(first).write_text("VERSION = 'poisoned'\n")

    late = here.build("other", "tiny-a", "tiny-b")

    assert [Path(one.path).name for one in here.verify(late).faults] == ["tiny_a.py"]
    assert here.verify(late, repair=True).is_repaired
    assert here.verify(late).faults == ()


def test_an_added_file_and_a_missing_one_are_found_and_repaired(here: Here) -> None:
    found = here.build("model")
    site = module(found).parent
    (site / "evil.pth").write_text("import os\n")
    module(found).unlink()

    seen = here.verify(found, repair=True)

    assert sorted((one.kind, Path(one.path).name) for one in seen.faults) == [
        ("added", "evil.pth"),
        ("missing", "tiny_a.py"),
    ]
    repaired = here.store.find(found.id)
    assert repaired
    assert here.verify(repaired).faults == ()
    assert repaired.prefix != found.prefix


def test_an_environment_in_use_is_repaired_beside_itself(here: Here) -> None:
    found = here.build("model")
    leased = here.store.lease(found.id)
    assert leased
    (module(found).parent / "evil.pth").write_text("")

    here.verify(found, repair=True)
    is_there = found.prefix.exists()
    leased[1].close()
    here.verify(found)

    assert is_there
    assert not found.prefix.exists()


def test_what_is_not_ready_is_not_verified(here: Here) -> None:
    found = here.build("model")
    here.store.layout.manifest(found.id).unlink()

    with pytest.raises(EnvironmentNotFoundError, match=found.id):
        here.verify(found)


def test_an_environment_that_cannot_be_read_spoils_nothing_for_others(here: Here) -> None:
    found, other = here.build("model"), here.build("other", "tiny-a", "tiny-b")
    damaged = here.build("third", "tiny-b")
    shutil.rmtree(damaged.prefix)
    manifest = here.store.layout.manifest(damaged.id)
    manifest.unlink()
    manifest.mkdir()

    before = here.verify(found)
    module(found).write_text("VERSION = 'poisoned'\n")
    after = here.verify(found)

    assert before.faults == ()
    assert after.also_affected == (other.id,)


@contextmanager
def using_cache(here: Here) -> Iterator[None]:
    """Hold what every installer holds as long as it runs."""
    with (here.settings.root / "cache" / "uv" / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def test_a_repair_waits_for_those_who_use_the_cache(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "_PAUSE_S", 0.1)
    found = here.build("model")
    module(found).write_text("VERSION = 'poisoned'\n")
    is_waiting, done = threading.Event(), []

    def on_event(event: Event) -> None:
        if isinstance(event, Stage) and event.name == "waiting":
            is_waiting.set()

    def repair() -> None:
        done.append(here.verifier.verify(found.id, on_event, repair=True))

    repairing = threading.Thread(target=repair)
    with using_cache(here):
        repairing.start()
        has_waited = is_waiting.wait(20)
        is_alone = not done
    repairing.join()

    assert has_waited
    assert is_alone
    assert [one.is_repaired for one in done] == [True]
    assert here.verify(found).faults == ()


@pytest.fixture(scope="module")
def others() -> Iterator[Others]:
    with work.others() as found:
        yield found


@contextmanager
def both_waiting(here: Here, found: Environment, others: Others) -> Iterator[list[Other]]:
    """Yield two processes that have seen what is wrong with *found* and wait to repair it."""
    module(found).write_text("VERSION = 'poisoned'\n")
    with held.exclusively(here.store.layout.building(found.id), lambda _: None):
        both = [others.start(work.repair, here.settings, found.id) for _ in range(2)]
        assert [one.hear() for one in both] == ["waiting"] * 2
        yield both


def comes_to(one: Other) -> object:
    """Return what comes of what *one* does, after its stages."""
    while isinstance(said := one.hear(), str):
        pass
    return said


def test_two_repairs_at_once_build_once(here: Here, others: Others) -> None:
    found = here.build("model")
    with both_waiting(here, found, others) as both:
        pass
    ends = [comes_to(one) for one in both]

    assert [isinstance(one, Verified) and one.is_repaired for one in ends] == [True, True], ends
    repaired = here.store.find(found.id)
    assert repaired
    assert here.verify(repaired).faults == ()
    # What another build had made would be there as well.
    gone = [one.parent.name for one in here.store.layout.trash.glob("*/pyvenv.cfg")]
    assert [one.partition(".")[0] for one in gone] == [found.prefix.name]
    assert here.store.attempts(found.id) == [repaired.prefix.name]


def test_a_repair_does_not_bring_back_what_was_removed_meanwhile(
    here: Here, others: Others
) -> None:
    found = here.build("model")
    with both_waiting(here, found, others) as both:
        # As whoever removes it does, who holds it too.
        durable.discard(here.store.layout.environment(found.id), here.store.layout.trash)
    ends = [comes_to(one) for one in both]

    assert [isinstance(one, EnvironmentNotFoundError) for one in ends] == [True, True], ends
    assert not here.store.layout.environment(found.id).exists()


def test_a_repair_that_has_waited_for_too_long_fails_before_it_builds(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "_PAUSE_S", 0.1)
    build = replace(here.settings.build, timeout=Seconds(0.3))
    hurried = Verifier(replace(here.settings, build=build), here.store)
    found = here.build("model")
    module(found).write_text("VERSION = 'poisoned'\n")

    with using_cache(here), pytest.raises(BuildTimedOutError, match="again later"):
        hurried.verify(found.id, repair=True)

    assert here.store.find(found.id) == found
    assert here.verify(found, repair=True).is_repaired
