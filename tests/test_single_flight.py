"""One build for any number of callers, in one daemon or in many processes, whoever dies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from envd_client import Client
from envd_client.v1 import envd_pb2 as api

from envd.builds import elsewhere
from tests.conftest import Daemon, is_running, launch, stop, wait_for
from tests.gated import BUILD, IMPORT, Calls, Gated, Root, root_at
from tests.index import Index
from tests.tiny import Tiny, wheel


@pytest.fixture
def root(tmp_path: Path, home: Path, tiny: Tiny, tools: Path) -> Iterator[Root]:
    with root_at(tmp_path / "root", home, tiny, tools) as found:
        yield found


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny, tools: Path
) -> Iterator[Daemon]:
    path = tmp_path_factory.mktemp("daemon") / "root"
    with root_at(path, home, tiny, tools) as root:
        found = launch(path, home, **root.env)
        yield found
        stop(found)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as found:
        yield found
        for one in found.list(show_all=True):
            if one.state == api.Environment.BUILDING:
                found.cancel(one.spec_key)


def answers(found: list[Calls]) -> list[dict[str, Any]]:
    return [one for calls in found for one in calls.end()]


def begun(found: list[Calls]) -> bool:
    return all(any("begun" in one for one in calls.said) for calls in found)


# how many builds


def test_two_hundred_calls_of_a_daemon_make_one_build(
    client: Client, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path)

    def ask(number: int) -> Any:
        if number % 4 == 0:
            return client.build(gated.model)
        return client.predict(gated.model, {"inputs": [number]}).predictions

    with ThreadPoolExecutor(200) as threads:
        asked = [threads.submit(ask, number) for number in range(200)]
        built = [one.result() for one in asked[::4]]
        gated.wait_at(IMPORT)
        gated.open()
        answered = [one.result() for one in asked]

    assert {one.state for one in built} == {api.Environment.BUILDING}
    predicted = [one for number, one in enumerate(answered) if number % 4]
    assert predicted == [["2.0", [number]] for number in range(200) if number % 4]
    assert (len(gated.seen(BUILD)), len(gated.seen(IMPORT))) == (1, 1)


def test_eight_processes_of_25_calls_make_one_build(root: Root, tiny: Tiny, tmp_path: Path) -> None:
    gated = Gated.make(tiny, tmp_path, BUILD)

    found = [root.calls(gated.model, 25) for _ in range(8)]
    wait_for(lambda: begun(found))
    gated.wait_at(BUILD)
    gated.open()
    answered = answers(found)

    assert len(answered) == 200
    assert len({one["id"] for one in answered}) == 1
    assert [one["cached"] for one in answered].count(False) == 1
    assert (len(gated.seen(BUILD)), len(gated.seen(IMPORT))) == (1, 1)
    assert not root.is_building()


@pytest.mark.parametrize("step", [BUILD, IMPORT])
def test_where_the_winner_is_killed_one_other_wins_and_its_processes_are_ended_first(
    root: Root, tiny: Tiny, tmp_path: Path, step: str
) -> None:
    gated = Gated.make(tiny, tmp_path, step, has_child=True)
    found = [root.calls(gated.model, 5) for _ in range(4)]
    wait_for(lambda: begun(found))
    gated.wait_at(step)
    orphans = gated.pids()[-2:]

    winner = root.build().owner.pid
    os.kill(winner, signal.SIGKILL)
    gated.wait_at(step, times=2)
    left = [pid for pid in orphans if is_running(pid)]
    second = root.build().owner.pid
    gated.open()
    answered = answers(found)

    assert left == []
    assert second in {one.pid for one in found} - {winner}
    assert len(answered) == 15
    assert len({one["id"] for one in answered}) == 1
    assert [one["cached"] for one in answered].count(False) == 1
    assert len(gated.seen(step)) == 2


def test_whenever_the_winner_is_killed_everyone_else_is_answered_by_one_more_build(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path, "none")
    delay = random.uniform(0, 1.5)
    print(f"killed after {delay} s")

    found = [root.calls(gated.model, 25) for _ in range(8)]
    wait_for(lambda: root.is_building() or answered_one(found))
    time.sleep(delay)
    killed = [one.owner.pid for one in elsewhere.under_way(root.store)]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    answered = answers([one for one in found if one.pid not in killed])

    assert len(answered) == 25 * (8 - len(killed))
    assert len({one["id"] for one in answered}) == 1
    assert [one["cached"] for one in answered].count(False) <= 1
    assert 1 <= len(gated.seen(BUILD)) <= 1 + len(killed)
    assert 1 <= len(gated.seen(IMPORT)) <= 1 + len(killed)
    assert len(root.store.ids()) == 1
    assert len(root.store.attempts(root.store.ids()[0])) == 1


def answered_one(found: list[Calls]) -> bool:
    return any(one.answers for one in found)


@pytest.mark.parametrize("has_daemon", [False, True])
def test_two_specs_with_the_same_lock_are_installed_once(
    root: Root, client: Client, tiny: Tiny, tmp_path: Path, *, has_daemon: bool
) -> None:
    gated = Gated.make(tiny, tmp_path)
    other = shutil.copytree(gated.model, tmp_path / "other")
    (other / "requirements.txt").write_text("tiny-a==2.0\ngated\n./gated")

    if has_daemon:
        builds = [client.build(one) for one in (gated.model, other)]
        gated.wait_at(IMPORT)
        wait_for(lambda: all(client.get(one.spec_key).id for one in builds))
        followed = client.watch(client.get(builds[0].spec_key).id)
        assert next(followed).environment.state == api.Environment.BUILDING
        gated.open()
        ids = [list(client.watch(one.spec_key))[-1].environment.id for one in builds]
        ids.append(list(followed)[-1].environment.id)
        assert builds[0].spec_key != builds[1].spec_key
    else:
        first = root.calls(gated.model)
        gated.wait_at(IMPORT)
        second = root.calls(other)
        second.wait_for("Stage", name="waiting")
        gated.open()
        ids = [one["id"] for one in answers([first, second])]
        assert len(list((root.path / "specs").iterdir())) == 2

    assert len(set(ids)) == 1
    assert (len(gated.seen(BUILD)), len(gated.seen(IMPORT))) == (1, 1)


# what those see who wait


def test_who_waits_for_another_process_sees_who_builds_and_all_it_says(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path, IMPORT, more="print('half', 'way', flush=True)")

    builder = root.calls(gated.model)
    gated.wait_at(IMPORT)
    waiting = root.calls(gated.model)
    waiting.wait_for("Line", text="half way")
    assert not waiting.answers
    gated.open()
    built, found = answers([builder, waiting])

    assert (built["cached"], found["cached"]) == (False, True)
    host = socket.gethostname()
    told = [one for one in waiting.events if one["event"] in {"Stage", "Line"}]
    message = f"waiting for the build started by pid {builder.pid} on host {host}"
    assert told[0] == {"event": "Stage", "name": "waiting", "message": message}
    said = [one for one in builder.events if one["event"] in {"Stage", "Line"}]
    # What is written as it ends may come too late for those who wait.
    assert told[1:] == said[: len(told) - 1]
    assert {"installing", "warming"} <= {one.get("name") for one in told}


def test_who_waits_is_not_told_what_the_build_before_said(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    at_once = {"ENVD_BUILD__AT_ONCE": "1"}
    first = Gated.make(tiny, tmp_path / "first")
    other = Gated.make(tiny, tmp_path / "other", BUILD)
    root.calls(first.model)
    first.wait_at(IMPORT)
    root.envctl("cancel", root.build().spec_key)
    (log,) = (root.path / "logs").glob("*.log")
    log.write_text(log.read_text() + "of the build before\n")

    busy = root.calls(other.model, **at_once)
    other.wait_at(BUILD)
    queued = root.calls(first.model, **at_once)
    queued.wait_for("Stage", name="queued")
    waiting = root.calls(first.model, **at_once)
    waiting.wait_for("Stage", name="waiting")
    follower = root.command("logs", "-f", log.stem)
    time.sleep(0.5)
    other.open()
    first.wait_at(IMPORT, times=2)
    waiting.wait_for("Stage", name="warming")
    first.open()
    answers([busy, queued, waiting])
    followed, _ = follower.communicate(timeout=60)

    assert {"event": "Line", "text": "of the build before"} not in waiting.events
    assert "of the build before" not in followed
    assert "== warming" in followed


@pytest.fixture
def slow_index(start_index: Callable[..., Index], tmp_path: Path) -> Index:
    """An index of three packages."""
    index = start_index()
    for name in ("setuptools", "tiny-a", "tiny-b"):
        index.add(wheel(tmp_path, name, "1.0", **{name.replace("-", "_"): "VERSION = 1"}))
    return index


def test_who_waits_sees_how_far_the_installation_is_through_a_daemon_too(
    slow_index: Index, home: Path, tiny: Tiny, tools: Path, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a", "tiny-b")
    settings = {
        "ENVD_INDEX__NO_INDEX": "false",
        "ENVD_INDEX__FIND_LINKS": "",
        "ENVD_INDEX__URLS": slow_index.url,
    }
    with root_at(tmp_path / "root", home, tiny, tools, **settings) as root:
        root.envctl("lock", "-m", model)
        shutil.rmtree(root.path / "cache")
        slow_index.gate.clear()
        builder = root.calls(model)
        builder.wait_for("Progress")
        waiting = root.calls(model)
        daemon = launch(root.path, home, **root.env)
        with daemon.client() as client:
            watched = client.watch(client.build(model).spec_key)
            seen = []
            for event in watched:
                seen.append(event)
                if event.HasField("progress"):
                    break
            far = waiting.wait_for("Progress")
            slow_index.gate.set()
            seen += list(watched)
        answered = answers([builder, waiting])
        stop(daemon)

    stages = [one.stage.message for one in seen if one.HasField("stage")]
    assert f"started by pid {builder.pid} on host" in stages[0]
    assert stages[1] == "installing 3 packages"
    progress = next(one.progress for one in seen if one.HasField("progress"))
    assert (progress.packages_done, progress.packages_total) == (0, 3)
    assert (far["done"], far["total"]) == (0, 3)
    assert seen[-1].environment.id == answered[0]["id"] == answered[1]["id"]


def test_who_leaves_and_comes_back_misses_nothing_and_gets_nothing_twice(
    client: Client, tiny: Tiny, tmp_path: Path
) -> None:
    ticking = (
        "number = 0\n"
        f"while not os.path.exists({str(tmp_path / 'gate')!r}):\n"
        "    print('tick', number, flush=True)\n"
        "    number += 1\n"
        "    time.sleep(0.02)"
    )
    gated = Gated.make(tiny, tmp_path, more=ticking)
    key = client.build(gated.model).spec_key

    seen: list[api.EnvironmentEvent] = []
    while sum(one.log_line.startswith("tick") for one in seen) < 30:
        last = seen[-1].sequence if seen else 0
        for _, event in zip(range(7), client.watch(key, last), strict=False):
            if not event.HasField("environment"):
                seen.append(event)
    gated.open()
    rest = list(client.watch(key, seen[-1].sequence))

    seen += [one for one in rest if not one.HasField("environment")]
    numbers = [one.sequence for one in seen if not one.HasField("progress")]
    ticks = [one.log_line for one in seen if one.log_line.startswith("tick")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert ticks == [f"tick {number}" for number in range(len(ticks))]
    assert rest[-1].environment.state == api.Environment.READY
    assert all(one.sequence <= other.sequence for one, other in pairwise(seen))


def test_who_comes_back_with_the_number_of_another_build_is_told_the_end(
    client: Client, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path)
    key = client.build(gated.model).spec_key
    gated.wait_at(IMPORT)

    watched = client.watch(key, 5000, timeout_s=20)
    next(watched)
    gated.open()
    events = list(watched)

    assert events[-1].environment.state == api.Environment.READY


def test_a_build_goes_by_the_id_of_its_environment_once_that_is_known(
    client: Client, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path)
    key = client.build(gated.model).spec_key
    gated.wait_at(IMPORT)

    env_id = client.get(key).id
    shown = client.get(env_id[:12])
    watched = client.watch(env_id[:12])
    first = next(watched)
    gated.open()
    last = list(watched)[-1]

    assert (shown.id, shown.spec_key, shown.state) == (env_id, key, api.Environment.BUILDING)
    assert first.environment.id == env_id
    assert (last.environment.id, last.environment.state) == (env_id, api.Environment.READY)
    assert client.get(env_id).state == api.Environment.READY


@pytest.mark.parametrize("has_daemon", [False, True])
def test_a_log_is_followed_by_the_id_of_the_environment_until_the_build_ends(
    root: Root, home: Path, tiny: Tiny, tmp_path: Path, *, has_daemon: bool
) -> None:
    gated = Gated.make(tiny, tmp_path, more="print('half', 'way', flush=True)")
    daemon = launch(root.path, home, **root.env) if has_daemon else None
    build = root.command("build", "-m", gated.model)
    gated.wait_at(IMPORT)
    env_id = root.build().env_id

    follower = root.command("logs", "-f", env_id[:12])
    assert follower.stdout is not None
    said = ""
    while "half way" not in said:
        said += follower.stdout.readline()
    assert build.poll() is None
    gated.open()
    said += follower.stdout.read()
    status = follower.wait(timeout=30)
    build.wait(timeout=30)
    if daemon:
        stop(daemon)

    assert (status, build.returncode) == (0, 0)
    assert "== publishing: " in said
    (log,) = (path for path in (root.path / "logs").glob("*.log") if len(path.stem) == 64)
    assert said == log.read_text()
