"""Whatever dies and whenever: what is half built is never served, and nothing is left over."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from envd_client.errors import EnvdError

from envd import config, failpoint, model
from envd.environments.environments import Environments
from envd.store import Store, contents, removal
from tests import fake
from tests.conftest import Daemon, Envctl, _processes_of, launch, wait_for
from tests.tiny import Tiny, wheel

PROJECT = Path(__file__).parent.parent
KINDS = ("kill", "eio", "enospc")
# What a real build, with the environment of its lock removed, reaches.
BUILDING = (
    "build.locked", "build.begun", "build.filled", "publish.record", "publish.flush",
    "publish.manifest", "publish.done", "write.begun", "write.flush", "write.rename",
    "write.renamed",
)  # fmt: skip
# What the store reaches otherwise, and how.
OTHERWISE = {
    "gc.chosen": "collect",
    "gc.locked": "collect",
    "delete.doom": "remove by force",
    "delete.rename": "remove",
    "delete.renamed": "remove",
    "delete.tree": "empty",
    "lease.taken": "lease",
}
# Those whose errors cost nobody an answer, how they are reached, and what is said then.
HARMLESS = {"lease.used": ("lease", 0), "gc.evict": ("evict", 0)}
IN_LOCKING = "failure.remember"
# Tried where the files of models are changed.
OF_MODELS = "change.renamed"
ERRNOS = {"eio": 5, "enospc": 28}
REASONS = {"eio": "ROOT_UNUSABLE", "enospc": "CACHE_FULL"}


@pytest.mark.timeout(900)
def test_nothing_half_built_is_served_after_kills_at_random_moments(tmp_path: Path) -> None:
    seed, rounds = secrets.token_hex(4), 980

    ran = subprocess.run(
        [sys.executable, "-m", "tests.crashing", tmp_path / "root", seed, str(rounds)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, f"seed {seed}: {ran.stderr}"
    seen = json.loads(ran.stdout)
    # Else the moments would prove nothing.
    assert seen["half built"] > rounds / 10
    assert seen["ready"] > rounds / 10


@pytest.mark.timeout(900)
def test_nothing_half_built_is_served_after_the_daemon_was_killed(
    tmp_path: Path, home: Path, tiny: Tiny
) -> None:
    seed = secrets.token_hex(4)
    chance = random.Random(seed)
    root = tmp_path / "root"
    asked = [("tiny-a==1.0",), ("tiny-a==2.0",), ("tiny-a", "tiny-b")]
    models = [tiny.model(tmp_path / f"model{count}", *one) for count, one in enumerate(asked)]
    environments = Environments(config.load(root=root, environ=tiny.settings))
    pace_s = _pace(launch(root, home, **tiny.settings), models[0])
    for one in environments.store.ids():
        removal.remove(environments.store, one)
    seen: Counter[str] = Counter()

    for count in range(20):
        with _asking(launch(root, home, **tiny.settings), chance.choice(models)) as daemon:
            if chance.random() < 0.5:
                time.sleep(chance.uniform(0, pace_s))
            else:
                wait_for(lambda: environments.store.holders().building())
                time.sleep(chance.uniform(0, pace_s / 5))
            daemon.process.kill()
        wait_for(lambda: not _processes_of(tmp_path))

        seen["half built"] += any(
            not (one / "ready.json").exists() for one in (root / "environments").glob("*")
        )
        _see(environments.store, f"seed {seed}, round {count}")
        for one in environments.store.ids():
            removal.remove(environments.store, one)

    assert seen["half built"] > 2
    last = launch(root, home, **tiny.settings)
    with last.client() as client:
        assert client.predict(models[2], {"inputs": [1]}).predictions == ["2.0", [1]]
    last.process.kill()
    last.process.communicate()
    wait_for(lambda: not _processes_of(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BUILDING)
def test_a_build_that_dies_or_fails_at_any_step_harms_nobody(
    name: str, kind: str, built: Path, act: Callable[..., dict[str, object]]
) -> None:
    environments = Environments(config.load(root=built))

    ended = act(built, "ready", f"{name}:{kind}")

    if kind == "kill":
        assert ended == {"status": -signal.SIGKILL}
    else:
        assert ended == {"status": 0, "said": None, "raised": REASONS[kind]}
    assert environments.store.failures.all() == []
    _see(environments.store)
    assert _runs(act(built, "ready", ""))


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_that_cannot_be_kept_is_told_all_the_same(
    kind: str, built: Path, act: Callable[..., dict[str, object]]
) -> None:
    environments = Environments(config.load(root=built))

    ended = act(built, "ready of what is not there", f"{IN_LOCKING}:{kind}")

    if kind == "kill":
        assert ended == {"status": -signal.SIGKILL}
    else:
        assert ended == {"status": 0, "said": None, "raised": "SOLVE_FAILED"}
    assert environments.store.failures.all() == []
    _see(environments.store)
    assert act(built, "ready of what is not there", "")["raised"] == "SOLVE_FAILED"
    assert len(environments.store.failures.all()) == 1
    assert _runs(act(built, "ready", ""))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*OTHERWISE, *HARMLESS])
def test_a_lease_a_collection_and_a_removal_may_die_or_fail_at_any_step(
    name: str, kind: str, tmp_path: Path, act: Callable[..., dict[str, object]]
) -> None:
    made = fake.Fake(tmp_path / "root")
    made.create()
    for number in (1, 2):
        made.build(number)
    operation, said = HARMLESS.get(name) or (OTHERWISE[name], None)

    ended = act(made.store.layout.root, operation, f"{name}:{kind}")

    if kind == "kill":
        assert ended == {"status": -signal.SIGKILL}
    else:
        raised = None if name in HARMLESS else ERRNOS[kind]
        assert ended == {"status": 0, "said": said, "raised": raised}
    assert made.store.holders().leased() == {}
    for number in (1, 2):
        assert fake.check(made.store, fake.env_id(number)) == []
    fake.tidy(made.store)
    assert fake.remains(made.store) == []
    again = act(made.store.layout.root, operation, "")
    assert again["raised"] is None
    # It has something to do when nothing fails.
    assert said is None or again["said"] > said
    assert Path(str(act(made.store.layout.root, "build", "")["said"])).exists()
    assert fake.check(made.store, fake.env_id(1)) == []


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        (("gc", "--unused-for", "0s"), "gc.chosen"),
        (("gc", "--unused-for", "0s"), "gc.locked"),
        (("rm",), "delete.rename"),
        (("rm", "--force"), "delete.doom"),
    ],
)
def test_a_verb_says_what_the_disk_did_to_it(
    verb: tuple[str, ...], name: str, envctl: Envctl
) -> None:
    made = fake.Fake(envctl.root)
    made.create()
    found = made.build(1)
    arguments = verb if verb[0] == "gc" else (*verb, found.id)

    failed = envctl(*arguments, ENVD_FAILPOINT=f"{name}:eio")
    done = envctl(*arguments)

    assert failed.returncode == 1
    assert "Input/output error" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert done.returncode == 0, done.stderr
    assert fake.remains(made.store) == []


def test_every_failpoint_is_in_one_place_and_tried() -> None:
    reached = [
        name
        for path in sorted((PROJECT / "envd").rglob("*.py"))
        for name in re.findall(r'reach\("([^"]+)"\)', path.read_text())
    ]

    assert sorted(reached) == sorted(failpoint.NAMES)
    assert sorted((*BUILDING, *OTHERWISE, *HARMLESS, IN_LOCKING, OF_MODELS)) == sorted(
        failpoint.NAMES
    )


def test_the_wheel_has_no_working_failpoints(tmp_path: Path) -> None:
    subprocess.run(
        [Path(sys.executable).parent / "uv", "build", "--quiet", "--wheel", "-o", tmp_path],
        cwd=PROJECT,
        check=True,
        timeout=240,
    )
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    program = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1])\n"
        "from envd import durable, failpoint\n"
        "durable.write_text(pathlib.Path(sys.argv[1], 'written'), 'whole')\n"
        "print(failpoint.__file__, failpoint.VARIABLES, len(failpoint.NAMES))"
    )

    ran = subprocess.run(
        [sys.executable, "-I", "-c", program, tmp_path / "installed"],
        env={"ENVD_FAILPOINT": "write.begun:kill"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    assert "envd/failpoint/__init__.py" in names
    assert [one for one in names if one.startswith("envd/failpoint/")] == [
        "envd/failpoint/__init__.py"
    ]
    path = tmp_path / "installed" / "envd" / "failpoint" / "__init__.py"
    assert ran.stdout == f"{path} () {len(failpoint.NAMES)}\n"
    assert (tmp_path / "installed" / "written").read_text() == "whole"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("link_mode", ["hardlink", "copy"])
def test_installers_that_outlive_their_envctl_spoil_nothing(
    link_mode: str, tmp_path: Path, envctl: Envctl, tiny: Tiny
) -> None:
    seed = secrets.token_hex(4)
    chance = random.Random(seed)
    path = _large(tiny, tmp_path, modules=2000)
    folders = f"{tiny.wheels},{tmp_path / 'wheels'}"
    settings = {"ENVD_INDEX__FIND_LINKS": folders, "ENVD_BUILD__LINK_MODE": link_mode}
    store = Store(envctl.root)
    orphans = 0
    began = time.monotonic()
    assert envctl("build", "-m", path, **settings).returncode == 0
    pace_s = time.monotonic() - began

    for count in range(30):
        where = f"seed {seed}, round {count}"
        for one in store.ids():
            removal.remove(store, one)
        argv = envctl.argv("build", "-m", path)
        builder = subprocess.Popen(
            argv, env=envctl.env | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if link_mode == "copy":
            wait_for(lambda: _installers(tmp_path) or builder.poll() is not None)  # noqa: B023
            time.sleep(chance.uniform(0, 0.1))
        else:
            time.sleep(chance.uniform(0, pace_s))
        builder.kill()
        builder.communicate()
        orphans += bool(_installers(tmp_path))

        _see_whole(store, where)
        again = envctl("build", "-m", path, **settings)
        assert again.returncode == 0, f"{where}: {again.stderr}"
        _see(store, where)
        assert _processes_of(tmp_path) == [], where
        assert len(store.ids()) == 1

    if link_mode == "copy":
        assert orphans > 10


@pytest.fixture(scope="module")
def act(tiny: Tiny) -> Iterator[Callable[..., dict[str, object]]]:
    """Do an operation of `tests.crashing` in a process of its own, and return how that ended."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crashing"],
        env=os.environ | tiny.settings,
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        sending, answering = server.stdin, server.stdout

        def ask(root: Path, operation: str, failpoint: str) -> dict[str, object]:
            print(json.dumps([str(root), operation, failpoint]), file=sending, flush=True)
            return json.loads(answering.readline())

        yield ask


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """A folder with two models, and a root where one was built, and removed."""
    folder = tmp_path_factory.mktemp("pattern")
    path = tiny.model(folder / "model")
    tiny.model(folder / "impossible", "tiny-none")
    environments = Environments(config.load(root=folder / "root", environ=tiny.settings))
    ready = environments.ready(environments.ask(model.read(path)))
    removal.remove(environments.store, ready.environment.id)
    fake.tidy(environments.store)
    return folder


@pytest.fixture
def built(pattern: Path, tmp_path: Path) -> Path:
    """A root like that of the pattern, with the models beside it."""
    shutil.copytree(pattern, tmp_path / "pattern", symlinks=True)
    return tmp_path / "pattern" / "root"


def _pace(daemon: Daemon, path: Path) -> float:
    """Return how long *daemon* takes to build and to answer, in seconds, and end it."""
    with daemon.client() as client:
        began = time.monotonic()
        client.predict(path, {"inputs": [1]})
        taken_s = time.monotonic() - began
    daemon.process.kill()
    daemon.process.communicate()
    return taken_s


@contextlib.contextmanager
def _asking(daemon: Daemon, path: Path) -> Iterator[Daemon]:
    """Let a client ask *daemon* for a prediction meanwhile, which the daemon does not survive."""
    with daemon.client() as client:

        def ask() -> None:
            with contextlib.suppress(EnvdError):
                client.predict(path, {"inputs": [1]})

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            yield daemon
        finally:
            daemon.process.kill()
            daemon.process.communicate()
            asking.join()


def _see(store: Store, where: str = "") -> None:
    """See that nothing half built is served, and that nothing is left after the sweep."""
    _see_whole(store, where)
    fake.tidy(store)
    assert fake.remains(store) == [], where


def _see_whole(store: Store, where: str) -> None:
    for found in filter(None, map(store.find, store.ids())):
        record = store.layout.files(found.id, found.manifest.attempt)
        assert contents.faults(found.prefix, record, found.manifest.files) == [], where
        assert _runs({"said": str(found.python)}), where


def _runs(ended: dict[str, object]) -> bool:
    """Whether the environment that an operation has said can be used."""
    argv = [str(ended["said"]), "-I", "-c", "import tiny_a"]
    return subprocess.run(argv, check=False).returncode == 0


def _large(tiny: Tiny, folder: Path, modules: int) -> Path:
    """Return a model whose environment takes uv some time."""
    (folder / "wheels").mkdir()
    files = {f"large/m{count}": f"VALUE = {count}\n" * 50 for count in range(modules)}
    wheel(folder / "wheels", "tiny-large", "1.0", **files)
    return tiny.model(folder / "model", "tiny-a", "tiny-large")


def _installers(folder: Path) -> list[str]:
    """Return the installers that fill an environment below *folder*."""
    return [
        one for one in _processes_of(folder) if " pip install " in one and "--target" not in one
    ]
