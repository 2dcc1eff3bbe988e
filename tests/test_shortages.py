"""A full disk, no inodes, no file descriptors: builds fail cleanly and what is ready serves."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from envd_client import Client
from envd_client.errors import CacheFullError, EnvdError
from envd_client.v1 import envd_pb2 as api

from envd.errors import RootUnusableError
from envd.run import places
from envd.store import Store
from tests import conftest
from tests.conftest import Daemon, Envctl, environment
from tests.tiny import Tiny

_SIZE, _INODES = 16 << 20, 4000
_INPUT = '{"inputs": [1]}'
_ANSWER = '{"predictions": ["2.0", [1]]}\n'


@dataclass(frozen=True)
class Disk:
    """A small disk that can be filled up."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def fill(self, left: int = 0) -> None:
        """Leave so many bytes free."""
        self.empty()
        with (self.folder / "ballast").open("wb") as file:
            conftest.wait_for(lambda: self._take(file.fileno(), left))

    def _take(self, descriptor: int, left: int) -> bool:
        found = os.statvfs(self.folder)
        # Others may take some in this very moment.
        with contextlib.suppress(OSError):
            os.posix_fallocate(descriptor, 0, found.f_bavail * found.f_frsize - left)
            return True
        return False

    def use_up_inodes(self, left: int = 0) -> None:
        """Leave so many inodes."""
        self.empty()
        many = self.folder / "many"
        many.mkdir()
        for number in range(os.statvfs(self.folder).f_favail - left):
            (many / str(number)).touch()

    def empty(self) -> None:
        """Free what was taken."""
        (self.folder / "ballast").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            for one in (self.folder / "many").iterdir():
                one.unlink()
            (self.folder / "many").rmdir()


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={_SIZE},nr_inodes={_INODES},mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        _in_a_namespace(request.node.nodeid, mounted.stderr.strip())
    yield Disk(folder)
    # Lazily: a process that is ending may still stand in it.
    subprocess.run(["umount", "--lazy", folder], check=True)


def _in_a_namespace(test: str, why: str) -> None:
    """Run *test* where its user may mount, in a namespace of its own; skip it where none may."""
    unshared = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshared, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"no small disk can be mounted: {why}")
    subprocess.run([*unshared, sys.executable, "-m", "pytest", "-q", test], check=True)
    pytest.skip("it has passed in a namespace of its own")


@pytest.fixture
def settings(tiny: Tiny) -> dict[str, str]:
    """Nothing is kept free, and nothing is spared for being new."""
    return tiny.settings | {"ENVD_BUILD__RESERVE": "0", "ENVD_GC__GRACE": "0s"}


@pytest.fixture
def envctl(disk: Disk, home: Path, settings: dict[str, str]) -> Envctl:
    return Envctl(disk.root, environment(disk.root, home, **settings))


@pytest.fixture
def daemon(disk: Disk, start_daemon: Callable[..., Daemon], settings: dict[str, str]) -> Daemon:
    return start_daemon(disk.root, **settings)


def _what_there_is(root: Path) -> set[str]:
    """Return what is below *root*, but for logs and caches, by path."""
    paths = {str(path.relative_to(root)) for path in root.rglob("*")}
    return {one for one in paths if one.split("/")[0] in {"environments", "trash", "scratch"}}


def _without_inodes(disk: Disk) -> None:
    disk.use_up_inodes()


def _without_bytes(disk: Disk) -> None:
    disk.fill()


full_either_way = pytest.mark.parametrize(
    "fill_up", [_without_bytes, pytest.param(_without_inodes, marks=pytest.mark.slow)]
)


@pytest.mark.parametrize(
    ("what", "steps"), [("bytes", (0, 1, 5, 10, 14, 24)), ("inodes", (0, 3, 27))]
)
def test_a_build_fails_cleanly_wherever_the_disk_fills_up(
    disk: Disk, envctl: Envctl, tiny: Tiny, tmp_path: Path, what: str, steps: tuple[int, ...]
) -> None:
    wanted = tiny.model(tmp_path / "wanted", "tiny-b")
    envctl("build", "-m", tiny.model(tmp_path / "ready"))
    before = _what_there_is(disk.root)
    failures = {}
    for left in steps:
        if what == "bytes":
            disk.fill(left << 12)
        else:
            disk.use_up_inodes(left)
        done = envctl("build", "-m", wanted, "--json")
        failures[left] = json.loads(done.stdout or "{}").get("failure") or done.stderr
        assert _what_there_is(disk.root) == before
    disk.empty()

    built = envctl("build", "-m", wanted, "--json")

    outcomes = {left: failure["reason"] for left, failure in failures.items()}
    assert outcomes == dict.fromkeys(steps, "CACHE_FULL"), failures
    assert json.loads(built.stdout)["state"] == "ready"


def test_the_reserve_is_left_and_what_is_ready_serves(
    disk: Disk, envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    ready = tiny.model(tmp_path / "ready")
    envctl("build", "-m", ready)
    environ = {name: one for name, one in envctl.env.items() if name != "ENVD_BUILD__RESERVE"}
    careful = Envctl(disk.root, environ)

    refused = careful("build", "-m", tiny.model(tmp_path / "wanted", "tiny-b"), "--json")
    answered = careful("predict", "-m", ready, stdin=_INPUT)

    failure = json.loads(refused.stdout)["failure"]
    assert failure["reason"] == "CACHE_FULL"
    assert "build.reserve" in failure["message"]
    assert answered.stdout == _ANSWER


@full_either_way
def test_on_a_full_disk_what_is_there_can_be_used_and_removed(
    disk: Disk, envctl: Envctl, tiny: Tiny, tmp_path: Path, fill_up: Callable[[Disk], None]
) -> None:
    model, other = tiny.model(tmp_path / "model"), tiny.model(tmp_path / "other", "tiny-b")
    first, second = (
        json.loads(envctl("build", "-m", one, "--json").stdout)["id"] for one in (model, other)
    )
    envctl("list")
    fill_up(disk)

    answered = envctl("predict", "-m", model, stdin=_INPUT)
    listed = envctl("list", "--json")
    shown = envctl("show", first)
    verified = envctl("verify", first)
    removed = envctl("rm", second)
    disk.fill()
    collected = envctl("gc", "--max-age", "0s", "--json")

    assert answered.stdout == _ANSWER, answered.stderr
    assert {one["id"] for one in json.loads(listed.stdout)} == {first, second}
    assert shown.returncode == verified.returncode == removed.returncode == 0, removed.stderr
    assert [one["verdict"] for one in json.loads(collected.stdout)["environments"]] == ["remove"]
    assert json.loads(envctl("list", "--json").stdout) == []


def test_what_cannot_be_written_says_what_to_do(
    disk: Disk, envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    built = envctl("build", "-m", tiny.model(tmp_path / "model"), "--json")
    env_id = json.loads(built.stdout)["id"]
    envctl("pin", env_id)
    subprocess.run(["mount", "-o", "remount,ro", disk.folder], check=True)

    for verb in ("verify", "pin", "unpin", "rm", "rm --force", "verify --repair"):
        done = envctl(*verb.split(), env_id)

        assert done.returncode == 1, verb
        assert f"cannot work in `{disk.root}`: " in done.stderr, verb
        assert "give another with `--root` or ENVD_ROOT" in done.stderr, verb


@full_either_way
def test_a_daemon_on_a_full_disk_serves_what_is_ready_and_throws_nothing_away(
    disk: Disk, daemon: Daemon, tiny: Tiny, tmp_path: Path, fill_up: Callable[[Disk], None]
) -> None:
    warm, fresh = tiny.model(tmp_path / "warm"), tiny.model(tmp_path / "fresh")
    idle = tiny.model(tmp_path / "idle", "tiny-a", "tiny-b")
    wanted = tiny.model(tmp_path / "wanted", "tiny-a==1.0")
    with daemon.client() as client:
        assert client.predict(warm, {"inputs": [1]}).worker_origin == "fresh"
        _built(client, idle)
        ready = {one.id for one in client.list()}
        fill_up(disk)

        failed = _built(client, wanted)
        with pytest.raises(CacheFullError) as raised:
            client.predict(wanted, {"inputs": [1]})
        answers = [client.predict(one, {"inputs": [1]}).predictions for one in (warm, fresh)]
        listed = {one.id for one in client.list()}
        disk.empty()
        built = _built(client, wanted)

    assert failed.failure.reason == "CACHE_FULL"
    assert raised.value.code.name == "RESOURCE_EXHAUSTED"
    assert answers == [["2.0", [1]]] * 2
    assert listed == ready
    assert built.state == api.Environment.READY


def _built(client: Client, model: Path) -> api.Environment:
    """Build the environment of *model* and return how that ended."""
    found = client.build(model)
    for event in client.watch(found.spec_key):
        if event.HasField("environment"):
            found = event.environment
    return found


@full_either_way
def test_a_model_that_prints_on_a_full_disk_answers(
    disk: Disk, daemon: Daemon, tiny: Tiny, tmp_path: Path, fill_up: Callable[[Disk], None]
) -> None:
    body = "        print('x' * 100_000, flush=True)\n        return data"
    model = tiny.model(tmp_path / "model", body=body)
    with daemon.client() as client:
        _built(client, model)
        fill_up(disk)

        answers = [client.predict(model, {"inputs": [number]}).predictions for number in (1, 2)]

    assert answers == [[1], [2]]


def test_a_daemon_starts_on_a_full_disk(
    disk: Disk,
    envctl: Envctl,
    tiny: Tiny,
    tmp_path: Path,
    start_daemon: Callable[..., Daemon],
    settings: dict[str, str],
) -> None:
    model = tiny.model(tmp_path / "model")
    conftest.stop(start_daemon(disk.root, **settings))
    envctl("build", "-m", model)
    disk.fill()

    daemon = start_daemon(disk.root, **settings)

    with daemon.client() as client:
        assert client.predict(model, {"inputs": [1]}).predictions == ["2.0", [1]]


def test_a_daemon_without_file_descriptors_says_so_and_recovers(
    daemon_anywhere: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    pid, root = daemon_anywhere.pid, daemon_anywhere.root
    models = [tiny.model(tmp_path / f"model{number}") for number in range(16)]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    outcomes: set[tuple[str, str]] = set()
    with daemon_anywhere.client() as client:
        _built(client, models[0])
        calls: list[Callable[[], object]] = [lambda: list(client.list(show_all=True))] * 4
        calls += [functools.partial(client.predict, one, {"inputs": [1]}) for one in models]
        client.predict(models[0], {"inputs": [1]})
        # What has just changed is not in the index yet.
        time.sleep(0.1)
        calls[0]()
        for spare in (0, 2, 5, 9):
            used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, before[1]))
            with ThreadPoolExecutor(len(calls)) as threads:
                outcomes |= set(threads.map(_outcome, calls))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

        recovered = {_outcome(one) for one in calls}
        listed = list(client.list(show_all=True))

    assert ("RESOURCE_EXHAUSTED", "LIMIT_REACHED") in outcomes
    assert {code for code, _ in outcomes} <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}, outcomes
    assert recovered == {("OK", "")}
    assert [one.state for one in listed] == [api.Environment.READY]
    assert not list(root.glob("index.bad-*"))


def test_a_model_that_found_no_file_descriptor_is_told_of_as_whoever_loaded_it(
    daemon_anywhere: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    pid = daemon_anywhere.pid
    with daemon_anywhere.client() as client:
        _built(client, tiny.model(tmp_path / "built"))
        client.load_model(tmp_path / "built", name="loaded")
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1, before[1]))
        told = _outcome(lambda: client.load_model(tiny.model(tmp_path / "model"), name="wanting"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        (model,) = [one for one in client.list_models() if one.name == "wanting"]

    assert told == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert model.failure.reason == "LIMIT_REACHED"


@pytest.fixture
def daemon_anywhere(start_daemon: Callable[..., Daemon], tmp_path: Path, tiny: Tiny) -> Daemon:
    """A daemon whose disk has room."""
    return start_daemon(tmp_path / "root", **tiny.settings)


def _outcome(call: Callable[[], object]) -> tuple[str, str]:
    """Return the code and the reason that *call* ends with."""
    try:
        call()
    except EnvdError as error:
        return error.code.name, error.reason
    return "OK", ""


def test_envctl_without_file_descriptors_says_so(tmp_path: Path, home: Path, tiny: Tiny) -> None:
    root = tmp_path / "root"
    envctl = Envctl(root, environment(root, home, **tiny.settings))
    model = tiny.model(tmp_path / "model")
    _limited(envctl, 64, "build", "-m", tiny.model(tmp_path / "other", "tiny-b"))

    # Few enough for envd itself to fail, and for uv.
    failed = [_limited(envctl, limit, "build", "-m", model) for limit in (9, 12, 14, 16)]
    built = envctl("build", "-m", model)

    for done in failed:
        assert done.returncode == 1, done.stdout
        assert "Too many open files" in done.stderr
        assert "raise its limits" in done.stderr
        assert "Traceback" not in done.stderr
    assert built.returncode == 0, built.stderr


def _limited(envctl: Envctl, limit: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run envctl where a process may have *limit* files."""
    argv = ["/bin/sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *envctl.argv(*arguments)]
    return subprocess.run(argv, env=envctl.env, capture_output=True, text=True, check=False)


def test_a_worker_for_which_no_directory_can_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / "scratch").touch()

    with pytest.raises(RootUnusableError, match=f"cannot work in `{tmp_path}`: "):
        places.scratch(Store(tmp_path))
