"""What a daemon does for its root by itself, however little the machine lets it; and removals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from envd_client import Client
from envd_client.errors import EnvdError
from envd_client.v1 import envd_pb2 as api

from envd import errors
from envd.builds.builds import Builds
from envd.config import Settings
from envd.run.processes import Processes
from envd.serve import status, upkeep
from envd.serve.upkeep import Upkeep
from envd.settings.sections import Gc
from envd.settings.values import Seconds, Share
from envd.store import Store, removal
from tests import test_shortages
from tests.conftest import Daemon, stop, wait_for
from tests.fake import Fake
from tests.test_shortages import Disk
from tests.tiny import Tiny, wheel

disk = test_shortages.disk
_MANY = 7


# gc and the trash


def test_upkeep_goes_on_after_whatever_went_wrong(
    start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    often = {"ENVD_GC__INTERVAL": "100ms", "ENVD_GC__MAX_AGE": "0s", "ENVD_GC__GRACE": "0s"}
    log = tmp_path / "log"
    with log.open("w") as file, contextlib.redirect_stderr(file):
        daemon = start_daemon(tmp_path / "root", **tiny.settings, **often)
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)

    # Not one descriptor more: no builder can be asked for anything.
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (0, before[1]))
    wait_for(lambda: "gc failed" in log.read_text(), 20)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
    trash = daemon.root / "trash"
    trash.mkdir(exist_ok=True)
    (trash / "large").touch()
    wait_for(lambda: not list(trash.iterdir()), 20)

    assert "Too many open files" in log.read_text()
    daemon.process.terminate()
    assert daemon.process.wait(20) == 0


def test_a_disk_that_gc_cannot_empty_is_looked_at_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "_LOOK_S", 0.1)
    caplog.set_level(logging.INFO)
    settings = Settings(tmp_path / "root", gc=Gc(min_free=Share("100%"), interval=Seconds(60)))
    Store(settings.root).create()

    asyncio.run(_keep_up(settings, lambda: len(_rounds(caplog)) == 4))

    first, second, third, fourth = _rounds(caplog)
    assert second - first >= 0.2
    assert third - second >= 0.4
    assert fourth - third >= 0.8


def test_gc_does_not_run_all_the_time_whatever_the_settings_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = Settings(tmp_path / "root", gc=Gc(interval=Seconds(0)))
    Store(settings.root).create()

    asyncio.run(_keep_up(settings, lambda: len(_rounds(caplog)) == 2))

    first, second = _rounds(caplog)
    assert second - first >= 1


def _rounds(caplog: pytest.LogCaptureFixture) -> list[float]:
    return [one.created for one in caplog.records if one.getMessage().startswith("gc removed 0 ")]


async def _keep_up(settings: Settings, is_enough: Callable[[], bool]) -> None:
    """Keep a root up until that *is_enough*."""
    processes = Processes.create()
    processes.attach()
    keeping = asyncio.create_task(Upkeep(settings, Builds(settings, processes)).run())
    try:
        await asyncio.to_thread(wait_for, is_enough, 30)
    finally:
        keeping.cancel()
        # Builders that nobody waits for any more are seen through to their end.
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
        await asyncio.sleep(0)
        processes.close()


# a disk that is too full for a build


@pytest.fixture
def large(tmp_path: Path) -> Tiny:
    """Wheels one of which takes three megabytes."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    tiny = Tiny.make(folder)
    wheel(tiny.wheels, "large", "1.0", large=f"TEXT = '{'x' * (3 << 20)}'\n")
    return tiny


@pytest.fixture
def full(disk: Disk, start_daemon: Callable[..., Daemon], large: Tiny) -> Iterator[Client]:
    """A client of a daemon on a small disk that has emptied the trash, and looks no more."""
    settings = {"ENVD_BUILD__RESERVE": "0", "ENVD_GC__GRACE": "0s", "ENVD_GC__MIN_FREE": "1MB"}
    store = Store(disk.root)
    store.create()
    store.layout.trash.mkdir(exist_ok=True)
    (store.layout.trash / "old").touch()
    with start_daemon(disk.root, **large.settings, **settings).client() as client:
        wait_for(lambda: not list(store.layout.trash.iterdir()), 20)
        yield client


def test_a_daemon_makes_room_for_a_build(
    disk: Disk, full: Client, large: Tiny, tmp_path: Path
) -> None:
    old = _built(full, large.model(tmp_path / "old", "tiny-a", "large"))
    assert old[-1].environment.state == api.Environment.READY
    disk.fill(20 << 10)

    events = _built(full, large.model(tmp_path / "new", "tiny-b"))

    stages = [one.stage.name for one in events if one.HasField("stage")]
    assert stages.count("collecting") == 1
    assert events[-1].environment.state == api.Environment.READY
    assert [one.id for one in full.list()] == [events[-1].environment.id]


def test_a_build_is_tried_again_where_only_the_trash_held_room(
    disk: Disk, full: Client, large: Tiny, tmp_path: Path
) -> None:
    (disk.root / "trash" / "removed").write_bytes(bytes(5 << 20))
    disk.fill(20 << 10)

    events = _built(full, large.model(tmp_path / "new", "tiny-b"))

    assert "collecting" in [one.stage.name for one in events]
    assert events[-1].environment.state == api.Environment.READY


def _built(client: Client, model: Path) -> list[api.EnvironmentEvent]:
    """Build the environment of *model* and return what was said of that."""
    return list(client.watch(client.build(model).spec_key))


# removals by force


@pytest.fixture
def leases() -> Iterator[contextlib.ExitStack]:
    """What holds the leases."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def leased(leases: contextlib.ExitStack, tmp_path: Path) -> Fake:
    """A root with a number of environments that somebody holds a lease on."""
    fake = Fake(tmp_path / "root")
    fake.create()
    for number in range(_MANY):
        found = fake.store.lease(fake.build(number).id)
        assert found is not None
        leases.callback(found[1].close)
    return fake


def _ids(fake: Fake) -> list[str]:
    return [one.name for one in fake.store.layout.environments.iterdir()]


def _are_doomed(fake: Fake, ids: list[str]) -> bool:
    return all(fake.store.layout.doomed(one).exists() for one in ids)


def test_many_removals_that_wait_keep_nobody_waiting_and_end_with_the_daemon(
    leased: Fake, start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    ids, root = _ids(leased), leased.store.layout.root
    daemon = start_daemon(root, **tiny.settings)
    with daemon.client() as client, ThreadPoolExecutor(_MANY) as threads:
        removing = [threads.submit(client.delete, one, force=True) for one in ids]
        wait_for(lambda: _are_doomed(leased, ids), 20)
        answered = client.predict(tiny.model(tmp_path / "model"), {"inputs": [1]}).predictions
        started = time.monotonic()
        daemon.process.terminate()
        status = daemon.process.wait(20)
        seconds = time.monotonic() - started
        reasons = {_reason(one) for one in removing}

    assert len(ids) == _MANY
    assert answered == ["2.0", [1]]
    assert (status, reasons) == (0, {"SHUTTING_DOWN"})
    assert seconds < 10
    assert set(ids) <= set(_ids(leased))


def _reason(removing: Future[object]) -> str:
    with pytest.raises(EnvdError) as raised:
        removing.result()
    return raised.value.reason


def test_a_removal_ends_when_its_caller_leaves_and_a_start_finishes_it(
    leased: Fake, leases: contextlib.ExitStack, start_daemon: Callable[..., Daemon]
) -> None:
    env_id, *others = _ids(leased)
    daemon = start_daemon(leased.store.layout.root)
    with daemon.client() as client:
        with pytest.raises(EnvdError) as raised:
            client.delete(env_id, force=True, timeout_s=0.5)
        wait_for(lambda: _is_free(leased.store, env_id), 10)

    was_doomed = _are_doomed(leased, [env_id])
    stop(daemon)
    leases.close()
    start_daemon(daemon.root)

    assert raised.value.code.name == "DEADLINE_EXCEEDED"
    assert was_doomed
    assert sorted(_ids(leased)) == sorted(others)


def _is_free(store: Store, env_id: str) -> bool:
    with store.unbuilt(env_id) as is_unbuilt:
        return is_unbuilt


def test_builders_are_kept_out_while_a_removal_waits(leased: Fake) -> None:
    env_id = _ids(leased)[0]
    with contextlib.closing(removal.forcing(leased.store, env_id)) as steps:
        next(steps)
        was_free = _is_free(leased.store, env_id)

    assert not was_free
    assert _is_free(leased.store, env_id)


def test_a_removal_waits_for_a_builder_and_takes_what_it_built(leased: Fake) -> None:
    env_id = leased.build(_MANY).id
    store = leased.store
    steps = removal.forcing(store, env_id)
    with store.building(env_id, store.layout.log("x"), lambda _: None):
        next(steps)
        assert store.find(env_id)

    assert list(steps) == []
    assert not store.layout.environment(env_id).exists()


# what the machine refuses


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
def test_what_the_machine_refuses_for_want_of_something_is_a_limit(
    number: int, tmp_path: Path
) -> None:
    found = errors.from_os(OSError(number, "no"), tmp_path)

    assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert status._LIMITS[number] is type(found)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_disk_that_can_only_be_read_is_the_roots_fault(number: int, tmp_path: Path) -> None:
    found = errors.from_os(OSError(number, "no"), tmp_path)

    assert (found.code, found.reason) == ("FAILED_PRECONDITION", "ROOT_UNUSABLE")
    assert type(status.meant(OSError(number, "no"))) is type(found)
