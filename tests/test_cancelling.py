"""A build that is cancelled, or killed: who hears of it, what is left, and what comes next."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from envd_client import Client
from envd_client.errors import EnvdError, EnvironmentNotFoundError, RequestInvalidError
from envd_client.v1 import envd_pb2 as api

from envd.builds import elsewhere
from tests.conftest import Daemon, is_running, launch, stop, wait_for
from tests.gated import BUILD, IMPORT, Gated, Root, root_at
from tests.tiny import Tiny

AT_ONCE = {"ENVD_BUILD__AT_ONCE": "1"}


@pytest.fixture
def root(tmp_path: Path, home: Path, tiny: Tiny, tools: Path) -> Iterator[Root]:
    with root_at(tmp_path / "root", home, tiny, tools, **AT_ONCE) as found:
        yield found


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny, tools: Path
) -> Iterator[tuple[Root, Daemon]]:
    path = tmp_path_factory.mktemp("daemon") / "root"
    with root_at(path, home, tiny, tools, **AT_ONCE) as root:
        daemon = launch(path, home, **root.env)
        yield root, daemon
        stop(daemon)


@pytest.fixture
def served(shared: tuple[Root, Daemon]) -> Iterator[Root]:
    """A root with a daemon, on which nothing is being built."""
    root, _ = shared
    yield root
    for one in elsewhere.under_way(root.store):
        root.envctl("cancel", one.spec_key)


@pytest.fixture
def client(shared: tuple[Root, Daemon]) -> Iterator[Client]:
    with shared[1].client() as found:
        yield found


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as found:
        yield found


def asked(client: Client, threads: ThreadPoolExecutor, model: Path) -> Future[str]:
    """Ask for a prediction; the reason for which there is none, or nothing."""

    def ask() -> str:
        try:
            client.predict(model, {"inputs": [1]})
        except EnvdError as error:
            return error.reason
        return ""

    return threads.submit(ask)


def last_of(client: Client, key: str) -> api.Environment:
    return list(client.watch(key))[-1].environment


def environments(root: Root) -> list[str]:
    return sorted(path.name for path in (root.path / "environments").glob("*"))


@pytest.mark.parametrize("step", [BUILD, IMPORT])
def test_a_build_of_the_daemon_is_cancelled_for_all_with_every_process_of_it(
    served: Root,
    client: Client,
    threads: ThreadPoolExecutor,
    tiny: Tiny,
    tmp_path: Path,
    step: str,
) -> None:
    gated = Gated.make(tiny, tmp_path, step, has_child=True)
    before = environments(served)
    predicting = [asked(client, threads, gated.model) for _ in range(3)]
    gated.wait_at(step)
    key = served.build().spec_key
    watching = threads.submit(last_of, client, key)
    command = served.command("build", "-m", gated.model, "--json")
    # It follows the build.
    assert command.stderr is not None
    assert command.stderr.readline()
    name = client.get(key).id if step == IMPORT else key

    cancelled = client.cancel(name[:16])
    reasons = [one.result() for one in predicting]
    running = [pid for pid in gated.pids() if is_running(pid)]
    left = served.remains()
    after = environments(served)
    watched = watching.result()
    status = command.wait(timeout=20)
    output = command.stdout.read() if command.stdout else ""
    listed = [one.spec_key for one in client.list(show_all=True)]
    gated.open()
    again = client.predict(gated.model, {"inputs": [2]})

    assert cancelled.failure.reason == "BUILD_CANCELLED"
    assert reasons == ["BUILD_CANCELLED"] * 3
    assert (watched.state, watched.failure.reason) == (api.Environment.FAILED, "BUILD_CANCELLED")
    assert (status, json.loads(output)["failure"]["reason"]) == (1, "BUILD_CANCELLED")
    assert running == []
    assert after == before
    assert [one for one in left if "/environments/" not in one and "/scratch/" not in one] == []
    assert key not in listed
    assert again.predictions == ["2.0", [2]]


def test_whoever_watches_says_what(
    served: Root, client: Client, threads: ThreadPoolExecutor, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path, IMPORT)
    predicting = asked(client, threads, gated.model)
    gated.wait_at(IMPORT)
    key = served.build().spec_key

    try:
        for text in ("", key[:1]):
            # Not even the one build that there is.
            with pytest.raises(RequestInvalidError, match="is too short"):
                next(client.watch(text, timeout_s=20))
    finally:
        gated.open()

    assert predicting.result() == ""


@pytest.mark.parametrize("step", [BUILD, IMPORT])
def test_the_build_of_another_command_is_cancelled_for_all_who_wait_for_it(
    root: Root, tiny: Tiny, tmp_path: Path, step: str
) -> None:
    gated = Gated.make(tiny, tmp_path, step, has_child=True)
    builder = root.command("build", "-m", gated.model)
    gated.wait_at(step)
    waiting = root.calls(gated.model, 3)
    waiting.all_wait_for(builder.pid, threads=3)
    build = root.build()

    done = root.envctl("cancel", (build.env_id or build.spec_key)[:16], "--json")
    answers = waiting.end()
    status = builder.wait(timeout=20)
    running = [pid for pid in gated.pids() if is_running(pid)]
    left = root.remains()
    gated.open()
    again = root.envctl("build", "-m", gated.model)

    assert json.loads(done.stdout)["failure"]["reason"] == "BUILD_CANCELLED", done.stderr
    assert [one["reason"] for one in answers] == ["BUILD_CANCELLED"] * 3
    assert status == 128 + signal.SIGTERM
    assert running == []
    assert left == []
    assert len(gated.seen(step)) == 2
    assert again.returncode == 0, again.stderr


def test_a_daemon_lists_and_cancels_the_build_of_another_process(
    served: Root, client: Client, threads: ThreadPoolExecutor, tiny: Tiny, tmp_path: Path
) -> None:
    before = environments(served)
    gated = Gated.make(tiny, tmp_path, has_child=True)
    builder = served.calls(gated.model)
    gated.wait_at(IMPORT)
    key = served.build().spec_key
    listed = {one.spec_key: one.state for one in client.list(show_all=True)}
    shown = client.get(key).state
    predicting = asked(client, threads, gated.model)
    wait_for(lambda: not client.get(key).leases)

    cancelled = client.cancel(key[:16])
    running = [pid for pid in [*gated.pids(), builder.pid] if is_running(pid)]

    assert listed[key] == api.Environment.BUILDING
    assert shown == api.Environment.BUILDING
    assert cancelled.failure.reason == predicting.result() == "BUILD_CANCELLED"
    assert running == []
    assert environments(served) == before
    with pytest.raises(EnvironmentNotFoundError):
        client.cancel(key)


def test_a_cancel_that_is_refused_cancels_nobody(root: Root, tiny: Tiny, tmp_path: Path) -> None:
    gated = Gated.make(tiny, tmp_path)
    builder = root.calls(gated.model)
    gated.wait_at(IMPORT)
    waiting = root.calls(gated.model)
    waiting.all_wait_for(builder.pid, threads=1)
    build = root.build()
    file = root.store.layout.held(build.held)
    entry = json.loads(file.read_text())
    # As if another machine built below this root.
    _overwrite(file, entry | {"host": "elsewhere"})

    refused = root.envctl("cancel", build.spec_key)
    _overwrite(file, entry)
    gated.open()

    assert "on host elsewhere cannot be ended from here" in refused.stderr
    assert [one["cached"] for one in (*builder.end(), *waiting.end())] == [False, True]


def _overwrite(file: Path, entry: dict[str, object]) -> None:
    with file.open("r+b") as stream:
        stream.write(json.dumps(entry).encode().ljust(4096))


def test_a_daemon_follows_the_build_of_another_process(
    served: Root, client: Client, threads: ThreadPoolExecutor, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path)
    builder = served.calls(gated.model)
    gated.wait_at(IMPORT)
    key = served.build().spec_key

    following = threads.submit(lambda: list(client.watch(key)))
    gated.open()
    builder.end()
    events = following.result(timeout=30)
    again = list(client.watch(key, after_sequence=0))

    stages = [one.stage.name for one in events if one.HasField("stage")]
    assert events[0].environment.state == api.Environment.BUILDING
    assert {"locking", "installing", "warming", "publishing"} <= set(stages)
    assert events[-1].environment.state == api.Environment.READY
    numbers = [one.sequence for one in events if one.sequence]
    assert numbers == sorted(set(numbers))
    assert [one.environment.state for one in again] == [api.Environment.READY]


def test_who_waits_in_another_process_for_what_a_daemon_cancels_does_not_build_it(
    served: Root, client: Client, tiny: Tiny, tmp_path: Path
) -> None:
    before = environments(served)
    gated = Gated.make(tiny, tmp_path)
    key = client.build(gated.model).spec_key
    gated.wait_at(IMPORT)
    waiting = served.calls(gated.model, 2)
    waiting.all_wait_for(served.build().owner.pid, threads=2)

    cancelled = client.cancel(key)
    answers = waiting.end()

    assert cancelled.failure.reason == "BUILD_CANCELLED"
    assert [one["reason"] for one in answers] == ["BUILD_CANCELLED"] * 2
    assert len(gated.seen(IMPORT)) == 1
    assert environments(served) == before


def test_who_does_not_hear_the_signal_is_killed_and_its_processes_ended(
    root: Root, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "_GRACE_S", 0.5)
    gated = Gated.make(tiny, tmp_path, has_child=True)
    builder = root.calls(gated.model)
    gated.wait_at(IMPORT)
    os.kill(builder.pid, signal.SIGSTOP)

    done = root.envctl("cancel", root.build().spec_key)
    running = [pid for pid in [*gated.pids(), builder.pid] if is_running(pid)]
    gated.open()
    again = root.envctl("build", "-m", gated.model)

    assert done.returncode == 0, done.stderr
    assert running == []
    assert again.returncode == 0, again.stderr
    assert len(environments(root)) == 1
    assert len(root.store.attempts(environments(root)[0])) == 1


def test_a_build_that_waits_for_its_turn_can_be_cancelled_in_a_daemon(
    served: Root, client: Client, tiny: Tiny, tmp_path: Path
) -> None:
    busy = Gated.make(tiny, tmp_path / "busy")
    queued = Gated.make(tiny, tmp_path / "queued")
    first = client.build(busy.model).spec_key
    busy.wait_at(IMPORT)
    key = client.build(queued.model).spec_key
    stages = client.watch(key)
    assert next(one for one in stages if one.HasField("stage")).stage.name == "queued"

    cancelled = served.envctl("cancel", key[:16], "--json")
    ended = list(stages)[-1].environment
    still = client.get(first).state
    busy.open()

    assert json.loads(cancelled.stdout)["failure"]["reason"] == "BUILD_CANCELLED"
    assert ended.failure.reason == "BUILD_CANCELLED"
    assert still == api.Environment.BUILDING
    assert last_of(client, first).state == api.Environment.READY
    assert queued.seen(BUILD) == []


def test_a_build_that_waits_for_its_turn_can_be_cancelled_without_a_daemon(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    busy = Gated.make(tiny, tmp_path / "busy")
    queued = Gated.make(tiny, tmp_path / "queued")
    first = root.calls(busy.model)
    busy.wait_at(IMPORT)
    second = root.calls(queued.model)
    second.wait_for("Stage", name="queued")
    key = next(one.spec_key for one in elsewhere.under_way(root.store) if not one.env_id)

    done = root.envctl("cancel", key)
    second.process.wait(timeout=20)
    busy.open()

    assert done.returncode == 0, done.stderr
    assert "ready" not in second.said
    assert [one["cached"] for one in first.end()] == [False]
    assert queued.seen(BUILD) == []


@pytest.mark.parametrize("has_daemon", [False, True])
def test_where_nothing_is_being_built_there_is_nothing_to_cancel(
    root: Root, served: Root, client: Client, tiny: Tiny, tmp_path: Path, *, has_daemon: bool
) -> None:
    model = tiny.model(tmp_path / "model")
    asking = served if has_daemon else root
    built = json.loads(asking.envctl("build", "-m", model, "--json").stdout)

    over = [asking.envctl("cancel", built[name]) for name in ("id", "spec_key")]
    unknown = asking.envctl("cancel", "0123456789")
    odd = asking.envctl("cancel", "nothing!")

    assert [one.returncode for one in (*over, unknown, odd)] == [1, 1, 1, 2]
    assert "no build whose id begins with `0123456789` is under way" in unknown.stderr
    if has_daemon:
        with pytest.raises(EnvdError) as raised:
            client.cancel(built["id"])
        assert raised.value.code.name == "NOT_FOUND"


def test_two_who_cancel_at_once_end_it_once_and_whole(
    served: Root, client: Client, threads: ThreadPoolExecutor, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path, has_child=True)
    key = client.build(gated.model).spec_key
    gated.wait_at(IMPORT)
    builder = served.build().owner.pid
    # It cannot clear away: it has to be killed, which takes longest.
    os.kill(builder, signal.SIGSTOP)

    first, second = (threads.submit(client.cancel, key) for _ in range(2))
    reasons = [one.result().failure.reason for one in (first, second)]

    assert reasons == ["BUILD_CANCELLED"] * 2
    assert [pid for pid in [*gated.pids(), builder] if is_running(pid)] == []


def test_a_build_that_is_cancelled_as_soon_as_it_is_asked_for_is_over(
    served: Root, client: Client, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path)

    reasons = []
    for _ in range(5):
        key = client.build(gated.model).spec_key
        reasons.append(client.cancel(key).failure.reason)
    gated.open()
    key = client.build(gated.model).spec_key

    assert reasons == ["BUILD_CANCELLED"] * 5
    assert last_of(client, key).state == api.Environment.READY
    assert len(gated.seen(IMPORT)) == 1
    assert served.is_building() is False


def test_cancelling_by_the_environment_ends_the_builds_of_all_its_specs(
    start_daemon: Callable[..., Daemon], root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path)
    other = shutil.copytree(gated.model, tmp_path / "other")
    (other / "requirements.txt").write_text("tiny-a==2.0\ngated\n./gated")
    two = {"ENVD_BUILD__AT_ONCE": "2"}
    with start_daemon(root.path, **(root.env | two)).client() as client:
        keys = [client.build(one).spec_key for one in (gated.model, other)]
        gated.wait_at(IMPORT)
        wait_for(lambda: all(client.get(key).id for key in keys))

        client.cancel(client.get(keys[1]).id)
        reasons = [client.get(key).failure.reason for key in keys]
        listed = list(client.list(show_all=True))

    assert reasons == ["BUILD_CANCELLED"] * 2
    assert listed == []
    assert len(gated.seen(IMPORT)) == 1


def test_an_upgrade_that_waits_for_a_build_can_be_cancelled_and_the_build_goes_on(
    served: Root, client: Client, threads: ThreadPoolExecutor, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path)
    key = client.build(gated.model).spec_key
    gated.wait_at(IMPORT)
    client.build(gated.model, upgrade=True)
    upgrading = threads.submit(last_of, client, key)
    stages = client.watch(key)
    next(stages)
    assert next(stages).stage.name == "waiting"

    cancelled = client.cancel(key)
    upgraded = upgrading.result()
    still = client.get(key).state
    joined = asked(client, threads, gated.model)
    gated.open()

    assert cancelled.failure.reason == upgraded.failure.reason == "BUILD_CANCELLED"
    assert still == api.Environment.BUILDING
    assert joined.result() == ""
    assert last_of(client, key).state == api.Environment.READY
    assert len(gated.seen(IMPORT)) == 1
    assert served.is_building() is False


@pytest.mark.parametrize("step", [BUILD, IMPORT])
def test_a_builder_that_is_killed_is_told_to_all_and_the_next_build_works(
    served: Root,
    client: Client,
    threads: ThreadPoolExecutor,
    tiny: Tiny,
    tmp_path: Path,
    step: str,
) -> None:
    gated = Gated.make(tiny, tmp_path, step, has_child=True)
    key = client.build(gated.model).spec_key
    gated.wait_at(step)
    waiting = [asked(client, threads, gated.model) for _ in range(3)]
    events = client.watch(key)
    next(events)
    of_the_build = gated.pids()

    os.kill(served.build().owner.pid, signal.SIGKILL)
    watched = list(events)[-1].environment
    running = [pid for pid in of_the_build if is_running(pid)]
    # Now, for the build of whoever asked after its end stands at the gate as well.
    gated.open()
    reasons = {one.result() for one in waiting}
    again = client.predict(gated.model, {"inputs": [2]})

    # Who asks after its end has it built once more.
    assert reasons <= {"BUILD_INTERRUPTED", ""}
    assert watched.failure.reason == "BUILD_INTERRUPTED"
    assert running == []
    assert again.predictions == ["2.0", [2]]
    assert len(served.store.attempts(again.environment_id)) == 1
    assert served.store.failures.all() == []


def test_a_daemon_that_stops_ends_its_builds_and_tells_those_who_wait(
    start_daemon: Callable[..., Daemon],
    root: Root,
    threads: ThreadPoolExecutor,
    tiny: Tiny,
    tmp_path: Path,
) -> None:
    gated = Gated.make(tiny, tmp_path, has_child=True)
    daemon = start_daemon(root.path, **root.env, ENVD_DAEMON__DRAIN="500ms")
    with daemon.client() as client:
        key = client.build(gated.model).spec_key
        gated.wait_at(IMPORT)
        predicting = asked(client, threads, gated.model)
        watched = client.watch(key)
        next(watched)

        daemon.process.terminate()
        with pytest.raises(EnvdError) as raised:
            list(watched)
        status = daemon.process.wait(timeout=20)
        reason = predicting.result()
    running = [pid for pid in gated.pids() if is_running(pid)]
    gated.open()
    again = root.envctl("build", "-m", gated.model)

    assert status == 0
    assert raised.value.code.name == "UNAVAILABLE"
    assert reason != ""
    assert running == []
    assert again.returncode == 0, again.stderr
    assert len(root.store.attempts(environments(root)[0])) == 1


def test_a_build_that_was_cancelled_is_not_held_against_its_spec(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    gated = Gated.make(tiny, tmp_path, BUILD)
    root.calls(gated.model)
    gated.wait_at(BUILD)
    key = root.build().spec_key

    root.envctl("cancel", key)
    shown = root.envctl("show", key)
    listed = json.loads(root.envctl("list", "--all", "--json").stdout)
    gated.open()

    assert shown.returncode == 1
    assert listed == []
    assert root.envctl("build", "-m", gated.model).returncode == 0
