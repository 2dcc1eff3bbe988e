"""What a build may take: how many work at once, time, silence, disk; waiting costs nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path

import pytest
from envd_client.errors import EnvdError
from envd_client.v1 import envd_pb2 as api

from tests.conftest import Daemon, is_running
from tests.gated import BUILD, IMPORT, Gated, Root, root_at
from tests.tiny import Tiny

_GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path, home: Path, tiny: Tiny, tools: Path) -> Iterator[Root]:
    with root_at(tmp_path / "root", home, tiny, tools) as found:
        yield found


def intervals(found: list[Gated]) -> list[tuple[float, float]]:
    """Return when each step of some builds began and ended, in order."""
    return sorted(
        (float(begun[1]), float(over[1]))
        for one in found
        for step in (BUILD, IMPORT)
        for begun, over in zip(one.seen(step), one.seen(f"{step}-over"), strict=True)
    )


def test_builds_of_different_specs_keep_to_how_many_may_work_at_once(
    start_daemon: Callable[..., Daemon], root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    at_once = {"ENVD_BUILD__AT_ONCE": "1"}
    slow = "time.sleep(0.2)"
    models = [
        Gated.make(tiny, tmp_path / name, step, more=slow)
        for name, step in (("a", BUILD), ("b", IMPORT), ("c", BUILD), ("d", IMPORT))
    ]
    for one in models[1:]:
        one.open()

    daemon = start_daemon(root.path, **root.env, **at_once)
    with daemon.client() as client, ThreadPoolExecutor(2) as threads:
        keys = [client.build(models[0].model).spec_key]
        models[0].wait_at(BUILD)
        keys.append(client.build(models[1].model).spec_key)
        told = next(one for one in client.watch(keys[1]) if one.HasField("stage"))
        alone = [root.calls(one.model, **at_once) for one in models[2:]]
        queued = [one.wait_for("Stage", name="queued") for one in alone]
        models[0].open()
        watched = list(threads.map(lambda key: list(client.watch(key)), keys))
    answered = [answer for one in alone for answer in one.end()]

    assert told.stage.name == "queued"
    assert [events[-1].environment.state for events in watched] == [api.Environment.READY] * 2
    assert [one["message"] for one in queued] == ["waiting for the build under way to end"] * 2
    assert len({one["id"] for one in answered}) == 2
    found = intervals(models)
    assert len(found) == 8
    assert all(one[1] <= other[0] for one, other in pairwise(found)), found


def test_a_build_that_waits_for_another_process_takes_nobodys_turn(
    start_daemon: Callable[..., Daemon], root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    waiting, other = (
        tiny.model(tmp_path / "waiting"),
        tiny.model(tmp_path / "other", "tiny-a", "tiny-b"),
    )
    key = json.loads(root.envctl("explain", "-m", waiting, "--json").stdout)["spec_key"]
    daemon = start_daemon(root.path, **root.env, ENVD_BUILD__AT_ONCE="1")

    with daemon.client() as client:
        with root.store.locking(key, lambda _: None):
            assert client.build(waiting).spec_key == key
            _, told = islice(client.watch(key), 2)
            answered = client.predict(other, {"inputs": [1]}).predictions
            still = client.get(key).state
        (*_, last) = client.watch(key)

    assert told.stage.name == "waiting"
    assert answered == ["2.0", [1]]
    assert still == api.Environment.BUILDING
    assert last.environment.state == api.Environment.READY


def test_more_builds_than_there_may_be_processes_say_that_they_wait(
    start_daemon: Callable[..., Daemon], root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    models = [tiny.model(tmp_path / f"{number}", f"tiny-a<{number}") for number in range(3, 20)]
    daemon = start_daemon(root.path, **root.env)
    with daemon.client() as client, ExitStack() as first, ExitStack() as others:
        keys = [client.resolve(one).spec_key for one in models]
        first.enter_context(root.store.locking(keys[0], lambda _: None))
        for key in keys[1:-1]:
            others.enter_context(root.store.locking(key, lambda _: None))
        for one in models:
            client.build(one)
        told = next(one for one in client.watch(keys[-1]) if one.HasField("stage"))
        first.close()
        (*_, last) = client.watch(keys[-1])

    assert (told.stage.name, told.stage.message) == ("queued", "waiting for other builds to end")
    assert last.environment.state == api.Environment.READY


def test_as_many_as_allowed_do_work_at_once(root: Root, tiny: Tiny, tmp_path: Path) -> None:
    models = [Gated.make(tiny, tmp_path / name) for name in ("a", "b")]

    calls = [root.calls(one.model) for one in models]
    for one in models:
        one.wait_at(IMPORT)
    for one in models:
        one.open()

    assert [answer["cached"] for one in calls for answer in one.end()] == [False, False]


@pytest.mark.parametrize(
    ("setting", "said"),
    [("TIMEOUT", "(`build.timeout`)"), ("SILENCE", "(`build.silence`)")],
)
def test_a_build_that_takes_too_long_is_ended_with_every_process_of_it(
    root: Root, tiny: Tiny, tmp_path: Path, setting: str, said: str
) -> None:
    gated = Gated.make(tiny, tmp_path, BUILD, has_child=True)
    limit = {f"ENVD_BUILD__{setting}": "2s"}

    started = time.monotonic()
    done = root.envctl("build", "-m", gated.model, "--json", **limit)
    seconds = time.monotonic() - started
    failure = json.loads(done.stdout)["failure"]

    assert (failure["reason"], failure["class"]) == ("BUILD_TIMED_OUT", "transient")
    assert said in failure["message"]
    assert 2 < seconds < 30
    # A slow machine has not come to it yet when its time is over.
    assert len(gated.seen(BUILD)) <= 1
    assert [pid for pid in gated.pids() if is_running(pid)] == []
    assert [one for one in root.remains() if "/failures/" not in one] == []


def test_a_build_that_moves_data_is_not_silent(root: Root, tiny: Tiny, tmp_path: Path) -> None:
    busy = (
        "until = time.monotonic() + 3\n"
        "while time.monotonic() < until:\n"
        "    open('/dev/zero', 'rb').read(1000)\n"
        "    time.sleep(0.1)"
    )
    gated = Gated.make(tiny, tmp_path, BUILD, more=busy)
    gated.open()

    done = root.envctl("build", "-m", gated.model, ENVD_BUILD__SILENCE="1500ms")

    assert done.returncode == 0, done.stderr


def test_the_time_that_is_spent_waiting_does_not_count(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    limits = {"ENVD_BUILD__AT_ONCE": "1", "ENVD_BUILD__TIMEOUT": "2s"}
    busy = Gated.make(tiny, tmp_path / "busy")
    root.envctl("build", "-m", tiny.model(tmp_path / "built", "tiny-a==2.0"))
    # Its turn is to lock it, which takes less than a tenth of its time: the rest is there.
    other = tiny.model(tmp_path / "other", "tiny-a>1")
    first = root.calls(busy.model)
    busy.wait_at(IMPORT)

    same = root.calls(busy.model, **limits)
    queued = root.calls(other, **limits)
    same.wait_for("Stage", name="waiting")
    queued.wait_for("Stage", name="queued")
    time.sleep(2.5)
    assert not same.answers
    assert not queued.answers
    busy.open()
    answered = [answer for one in (first, same, queued) for answer in one.end()]

    assert [one.get("cached") for one in answered] == [False, True, True]


@pytest.mark.parametrize("has_daemon", [False, True])
def test_a_build_that_the_disk_has_no_place_for_does_not_begin(
    start_daemon: Callable[..., Daemon],
    root: Root,
    tiny: Tiny,
    tmp_path: Path,
    *,
    has_daemon: bool,
) -> None:
    gated = Gated.make(tiny, tmp_path, "none")
    free = shutil.disk_usage(tmp_path).free
    reserve = {"ENVD_BUILD__RESERVE": str(free + 50 * _GIB)}

    if has_daemon:
        with start_daemon(root.path, **root.env, **reserve).client() as client:
            with pytest.raises(EnvdError) as raised:
                client.predict(gated.model, {"inputs": [1]})
            listed = list(client.list(show_all=True))
        assert raised.value.code.name == "RESOURCE_EXHAUSTED"
        reason, message = raised.value.reason, raised.value.message
    else:
        done = root.envctl("build", "-m", gated.model, "--json", **reserve)
        failure = json.loads(done.stdout)["failure"]
        assert failure["class"] == "local"
        reason, message = failure["reason"], failure["message"]
        listed = json.loads(root.envctl("list", "--all", "--json").stdout)

    assert reason == "CACHE_FULL"
    assert f"and a build leaves {(free + 50 * _GIB) / 1e6:.0f} MB (`build.reserve`)" in message
    assert "`envctl gc` frees some" in message
    assert gated.seen(BUILD) == []
    assert listed == []
    assert root.remains() == []


def test_a_build_that_fills_the_disk_is_ended_before_it_is_full(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    # The file takes its place at once, and nothing is written.
    more = (
        f"descriptor = os.open({str(large)!r}, os.O_CREAT | os.O_WRONLY)\n"
        f"os.posix_fallocate(descriptor, 0, {2 * _GIB})"
    )
    gated = Gated.make(tiny, tmp_path, BUILD, more=more, has_child=True)
    reserve = shutil.disk_usage(tmp_path).free - _GIB

    try:
        done = root.envctl("build", "-m", gated.model, "--json", ENVD_BUILD__RESERVE=str(reserve))
    finally:
        large.unlink(missing_ok=True)
    failure = json.loads(done.stdout)["failure"]
    running = [pid for pid in gated.pids() if is_running(pid)]
    gated.open()
    again = root.envctl("build", "-m", gated.model)

    assert (failure["reason"], failure["class"]) == ("CACHE_FULL", "local")
    assert "`build.reserve`" in failure["message"]
    assert running == []
    assert root.store.failures.all() == []
    assert again.returncode == 0, again.stderr
