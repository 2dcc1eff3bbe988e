"""A build that failed is remembered for as long as it makes sense, and told until then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from envd_client import Client
from envd_client.errors import EnvdError

from envd import errors
from envd.errors import Blame, IndexUnreachableError, SolveFailedError
from envd.store import Store
from envd.store.clock import Clock
from envd.store.failures import Failures
from envd.store.layout import Layout
from tests.conftest import Daemon
from tests.gated import BUILD, Gated, Root, root_at
from tests.tiny import Tiny, wheel

KEY, OTHER = "a" * 64, "b" * 64
ALL = [one for one in errors.EnvdError.__subclasses__() if one.__module__ == errors.__name__]


class Hands(Clock):
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.moment = 1e9

    def now(self) -> float:
        return self.moment


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def failures(tmp_path: Path, clock: Hands) -> Failures:
    return Failures(Layout(tmp_path), clock)


@pytest.fixture
def root(tmp_path: Path, home: Path, tiny: Tiny, tools: Path) -> Iterator[Root]:
    with root_at(tmp_path / "root", home, tiny, tools) as found:
        yield found


def broken(tiny: Tiny, folder: Path, *, has_gate: bool = False) -> Gated:
    """Write a model whose build fails until there is a file `mended`."""
    fails = f"if not os.path.exists({str(folder / 'mended')!r}): raise SystemExit('it is broken')"
    wait = f"while not os.path.exists({str(folder / 'gate')!r}): time.sleep(0.02)\n"
    found = Gated.make(tiny, folder, BUILD, more=wait * has_gate + fails)
    if not has_gate:
        found.open()
    return found


def refused(client: Client, model: Path) -> EnvdError:
    with pytest.raises(EnvdError) as raised:
        client.predict(model, {"inputs": [1]})
    return raised.value


def document(root: Root, *arguments: object) -> Any:
    done = root.envctl(*arguments, "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


# for how long


def test_a_wrong_spec_is_remembered_for_an_hour(failures: Failures, clock: Hands) -> None:
    failures.remember(KEY, None, SolveFailedError("no such package"), {})

    waits = []
    for _ in range(4):
        found = failures.get(KEY)
        waits.append(found and found.error.retry_after_s)
        clock.moment += 1199.5

    assert waits == [3600, 2400.5, 1201, 1.5]
    assert failures.get(KEY) is None
    assert failures.all() == []


def test_passing_trouble_is_remembered_for_half_a_minute_doubling_to_ten(
    failures: Failures, clock: Hands
) -> None:
    waits = []
    for _ in range(7):
        failures.remember(KEY, None, IndexUnreachableError("nobody answers"), {})
        found = failures.get(KEY)
        assert found is not None
        waits.append(found.wait_s)
        clock.moment += found.wait_s
        assert failures.get(KEY) is None

    assert waits == [30, 60, 120, 240, 480, 600, 600]
    failures.forget(KEY)
    failures.remember(KEY, None, IndexUnreachableError("nobody answers"), {})
    assert failures.all()[0].wait_s == 30


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.reason)
def test_only_what_is_wrong_with_a_spec_or_will_pass_is_remembered(
    failures: Failures, kind: type[errors.EnvdError]
) -> None:
    failures.remember(KEY, None, kind("it failed"), {})

    is_kept = kind.blame is not Blame.LOCAL and kind.reason not in {
        "MODEL_INVALID",
        "POLICY_DENIED",
    }
    found = failures.get(KEY)
    assert (found is not None) == is_kept
    assert found is None or found.error.reason == kind.reason


def test_another_spec_and_another_day_are_not_affected(failures: Failures) -> None:
    failures.remember(KEY, "2024-01-02", SolveFailedError("no such package"), {})

    assert failures.get(KEY, "2024-01-02") is not None
    assert failures.get(KEY, "2024-01-03") is None
    assert failures.get(KEY) is None
    assert failures.get(OTHER, "2024-01-02") is None


@pytest.mark.parametrize("years", [-10, 10])
def test_a_wall_clock_that_is_set_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    Store(tmp_path).failures.remember(KEY, None, SolveFailedError("no such package"), {})

    wall = time.time() + years * 365 * 86400
    monkeypatch.setattr(time, "time", lambda: wall)
    found = Store(tmp_path).failures.get(KEY)

    assert found is not None
    assert found.error.retry_after_s is not None
    assert 3590 < found.error.retry_after_s <= 3600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"spec_key": "a"}'])
def test_a_damaged_memory_is_none(failures: Failures, tmp_path: Path, text: str) -> None:
    failures.remember(KEY, None, SolveFailedError("no such package"), {})
    Layout(tmp_path).failure(KEY).write_text(text)

    assert failures.get(KEY) is None
    assert failures.all() == []


# what it costs, and who is told


def test_a_wrong_spec_asked_for_a_thousand_times_is_built_once(
    start_daemon: Callable[..., Daemon], root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    gated, good = broken(tiny, tmp_path / "bad", has_gate=True), tiny.model(tmp_path / "good")

    def ask(number: int) -> EnvdError | None:
        if number % 10 == 0:
            client.build(gated.model)
            return None
        return refused(client, gated.model)

    daemon = start_daemon(root.path, **root.env)
    with daemon.client() as client:
        with ThreadPoolExecutor(50) as threads:
            asked = [threads.submit(ask, number) for number in range(1000)]
            gated.wait_at(BUILD)
            gated.open()
            found = [error for one in asked if (error := one.result())]
        first = refused(client, gated.model)
        time.sleep(0.2)
        later = refused(client, gated.model)
        key = client.build(gated.model).spec_key
        shown = client.get(key)
        answer = client.predict(good, {"inputs": [1]})
    again = start_again(start_daemon, daemon, root)
    with again.client() as client:
        after = refused(client, gated.model)
        listed = list(client.list(show_all=True))

    assert len(gated.seen(BUILD)) == 1
    assert len(found) == 900
    assert {one.reason for one in found} == {"INSTALL_FAILED"}
    assert first.retry_after_s is not None
    assert later.retry_after_s is not None
    assert after.retry_after_s is not None
    assert 3500 < after.retry_after_s < later.retry_after_s <= first.retry_after_s - 0.2
    assert "it is broken" in after.message
    assert "`envctl build --retry`" in after.message
    assert shown.failure.retry_delay.seconds > 3500
    assert key in {one.spec_key for one in listed if one.HasField("failure")}
    assert answer.predictions == ["2.0", [1]]


def start_again(start: Callable[..., Daemon], daemon: Daemon, root: Root) -> Daemon:
    daemon.process.terminate()
    daemon.process.wait(timeout=30)
    return start(root.path, **root.env)


def test_a_wrong_spec_asked_for_by_eight_processes_is_built_once(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    gated = broken(tiny, tmp_path / "bad", has_gate=True)

    found = [root.calls(gated.model, 5) for _ in range(8)]
    gated.wait_at(BUILD)
    gated.open()
    answers = [answer for one in found for answer in one.end()]

    assert len(gated.seen(BUILD)) == 1
    assert len(answers) == 40
    assert {one["reason"] for one in answers} == {"INSTALL_FAILED"}


def test_a_failure_is_listed_and_shown_by_its_spec_until_a_retry_succeeds(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    gated = broken(tiny, tmp_path / "bad")

    built = document(root, "build", "-m", gated.model)
    key = built["spec_key"]
    listed = document(root, "list", "--all")
    plain = document(root, "list")
    shown = document(root, "show", key[:12])
    table = root.envctl("list", "--all").stdout
    (tmp_path / "bad" / "mended").touch()
    asked = document(root, "build", "-m", gated.model)
    retried = document(root, "build", "-m", gated.model, "--retry")
    after = document(root, "list", "--all")

    assert built["failure"]["class"] == "spec"
    assert plain == []
    assert [(one["spec_key"], one["state"]) for one in listed] == [(key, "failed")]
    assert shown["failure"]["reason"] == "INSTALL_FAILED"
    assert 3500 < shown["failure"]["retry_after_s"] <= listed[0]["failure"]["retry_after_s"] <= 3600
    assert key[:8] in table
    assert asked["failure"]["retry_after_s"] <= shown["failure"]["retry_after_s"]
    assert len(gated.seen(BUILD)) == 2
    assert retried["state"] == "ready"
    assert [one["state"] for one in after] == ["ready"]
    assert root.store.failures.all() == []


def test_a_retry_that_fails_is_remembered_anew(root: Root, tiny: Tiny, tmp_path: Path) -> None:
    gated = broken(tiny, tmp_path / "bad")

    root.envctl("build", "-m", gated.model)
    retried = document(root, "build", "-m", gated.model, "--retry")
    asked = document(root, "build", "-m", gated.model)

    assert len(gated.seen(BUILD)) == 2
    assert retried["failure"]["class"] == "spec"
    assert "it failed so before" in asked["failure"]["message"]


@pytest.mark.slow
def test_an_index_that_cannot_be_reached_is_tried_again_after_half_a_minute(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    away = {
        "ENVD_INDEX__NO_INDEX": "false",
        "ENVD_INDEX__FIND_LINKS": "",
        "ENVD_INDEX__URLS": "http://127.0.0.1:9/simple",
    }
    model = tiny.model(tmp_path / "model")

    first = root.calls(model, **away).end()
    second = root.calls(model, **away).end()
    (failure,) = root.store.failures.all()

    assert first[0]["reason"] == second[0]["reason"] == "INDEX_UNREACHABLE"
    assert second[0]["retry_after_s"] <= 30
    assert (failure.count, failure.wait_s) == (1, 30)


def test_what_the_settings_or_the_models_files_say_is_never_remembered(
    root: Root, tiny: Tiny, tmp_path: Path
) -> None:
    gated = broken(tiny, tmp_path / "own")
    (tmp_path / "own" / "mended").touch()
    invalid = tiny.model(tmp_path / "invalid", "tiny-a")
    text = (invalid / "MLmodel").read_text()
    (invalid / "MLmodel").write_text("flavors: [")

    strict = {"ENVD_SECURITY__PROFILE": "strict"}
    denied = json.loads(root.envctl("build", "-m", gated.model, "--json", **strict).stdout)
    allowed = document(root, "build", "-m", gated.model)
    wrong = document(root, "build", "-m", invalid)
    (invalid / "MLmodel").write_text(text)
    mended = document(root, "build", "-m", invalid)

    assert denied["failure"]["reason"] == "POLICY_DENIED"
    assert allowed["state"] == "ready"
    assert wrong["failure"]["reason"] == "MODEL_INVALID"
    assert mended["state"] == "ready"


def test_an_upgrade_that_fails_is_not_held_against_the_build(
    start_daemon: Callable[..., Daemon], home: Path, tiny: Tiny, tools: Path, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "setuptools", "68.0", setuptools="")
    package = wheel(wheels, "tiny-a", "1.0", tiny_a="VERSION = '1.0'")
    model = tiny.model(tmp_path / "model")
    links = {"ENVD_INDEX__FIND_LINKS": str(wheels)}
    with root_at(tmp_path / "root", home, tiny, tools, **links) as root:
        daemon = start_daemon(root.path, **root.env)
        with daemon.client() as client:
            before = client.predict(model, {"inputs": [1]})
            content = package.read_bytes()
            package.unlink()
            key = client.build(model, upgrade=True).spec_key
            upgraded = list(client.watch(key))[-1].environment
            during = client.predict(model, {"inputs": [2]})
            remembered = root.store.failures.all()
            remove(root, before.environment_id)
            package.write_bytes(content)
            after = client.predict(model, {"inputs": [3]})

    assert before.predictions == ["1.0", [1]]
    assert upgraded.failure.reason == "SOLVE_FAILED"
    assert remembered == []
    assert during.environment_id == before.environment_id == after.environment_id
    assert after.predictions == ["1.0", [3]]


def remove(root: Root, env_id: str) -> None:
    assert root.envctl("rm", env_id).returncode == 0


def test_what_another_version_has_remembered_is_listed_as_far_as_it_can_be_read(
    root: Root,
) -> None:
    about = {"asked": {"spec": {"v": 3}}}
    root.store.failures.remember(KEY, None, SolveFailedError("no such package"), about)

    (listed,) = document(root, "list", "--all")

    assert (listed["spec_key"], listed["state"]) == (KEY, "failed")
    assert listed["failure"]["reason"] == "SOLVE_FAILED"


def test_nothing_is_younger_than_now(daemon: Daemon) -> None:
    with daemon.client() as client, pytest.raises(EnvdError, match="`unused_for` cannot be -1 s"):
        client.purge(force=True, unused_for_s=-1)
