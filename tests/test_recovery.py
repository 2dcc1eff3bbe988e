"""Starting is recovering: remains are swept, what cannot be used is said, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envd import process
from envd.store import Store, layout, sweep
from tests.called import Called
from tests.conftest import Daemon, Envctl, environment, one_python, wait_for
from tests.tiny import Tiny

_INPUT = '{"inputs": [1]}'
_ANSWER = '{"predictions": ["2.0", [1]]}\n'
_HALF, _DELETED = "0" * 32, "1" * 32
_STRANGER = 12345


@pytest.fixture
def envctl(envctl: Envctl, tools: Path) -> Called:
    return Called(envctl.root, envctl.env | one_python(tools))


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> Path:
    return tiny.model(tmp_path / "model")


@pytest.fixture
def start(envctl: Envctl, start_daemon: Callable[..., Daemon], tiny: Tiny) -> Callable[[], Daemon]:
    """Start a daemon on the root of `envctl`."""
    return lambda: start_daemon(envctl.root, **tiny.settings)


@pytest.fixture
def dead() -> str:
    """What a process called its files that has ended."""
    with subprocess.Popen(["true"]) as gone:
        pid = gone.pid
    return process.stamp().replace(f".{os.getpid()}", f".{pid}")


def _built(envctl: Envctl, model: Path) -> str:
    done = envctl("build", "-m", model, "--json")
    found: str = json.loads(done.stdout)["id"]
    assert found, done.stderr
    return found


def _listed(envctl: Envctl) -> list[dict[str, object]]:
    done = envctl("list", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def _refused(home: Path, root: Path, *arguments: object, **more: str) -> str:
    """Start a daemon that does not, and return what it says."""
    done = subprocess.run(
        [f"{Path(sys.executable).parent}/envd", *map(str, arguments)],
        env=environment(root, home, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def _tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return what is in *root* and when it was changed."""
    found = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def _remains(root: Path, ready: str, dead: str) -> list[Path]:
    """Leave behind what processes leave that are killed, and return all of it."""
    environments = root / "environments"
    folders = [
        environments / _HALF / "feedbeef" / "lib",
        environments / _DELETED / "feedbeef" / "lib",
        # Replaced by the one that is ready, and used until its user ended.
        environments / ready / "feedbeef" / "lib",
        root / "scratch" / f"{dead}.feedbeef",
        root / "scratch" / f".{dead}.feedbeef",
        layout.IN_MEMORY[0] / f"{layout.IN_MEMORY[1]}{dead}.feedbeef",
        root / "trash" / "removed.feedbeef" / "lib",
    ]
    (spec,) = (root / "specs").iterdir()
    written = [root, environments / ready, root / "pins", root / "failures", spec]
    files = [folder / f".unfinished.{dead}.feedbeef" for folder in written]
    files += [folder / "file" for folder in folders]
    files += [environments / _DELETED / "deleting.json"]
    for folder in folders:
        folder.mkdir(parents=True)
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    return [*folders, *files, environments / _HALF, environments / _DELETED]


@pytest.mark.parametrize("how", ["daemon", "gc"])
def test_what_dead_processes_left_is_swept(
    envctl: Envctl, model: Path, start: Callable[[], Daemon], dead: str, how: str
) -> None:
    ready = _built(envctl, model)
    remains = _remains(envctl.root, ready, dead)
    alive = envctl.root / f".unfinished.{process.stamp()}.feedbeef"
    alive.write_text("{")

    if how == "daemon":
        start()
    else:
        envctl("gc")

    wait_for(lambda: not [one for one in remains if one.exists()], limit_s=20)
    wait_for(lambda: not list((envctl.root / "trash").iterdir()), limit_s=20)
    assert alive.exists()
    assert [one["id"] for one in _listed(envctl)] == [ready]
    assert envctl("predict", "-m", model, stdin=_INPUT).stdout == _ANSWER


_WORKS = """
import sys
from pathlib import Path
from envd.store import Store

for made in (Store(Path(sys.argv[1])).scratch(), Store(Path(sys.argv[1])).scratch_in_memory()):
    (made.path / "file").touch()
    print(made.path, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a namespace of pids alone")
def test_what_a_container_that_has_ended_worked_in_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    store.create()
    # Its processes are others than those that have these numbers here.
    argv = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", _WORKS]
    with subprocess.Popen(
        [*argv, str(store.layout.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as container:
        assert container.stdout
        made = [Path(container.stdout.readline().strip()) for _ in range(2)]
        sweep.leftovers(store)
        while_it_works = [(one / "file").exists() for one in made]
        container.kill()
    wait_for(lambda: not _held(store.layout.scratch), limit_s=20)
    sweep.leftovers(store)

    assert not any(one.name.startswith(process.stamp().split(".")[0]) for one in made)
    assert while_it_works == [True, True]
    assert [one.exists() for one in made] == [False, False]


def _held(folder: Path) -> list[Path]:
    """Return the directories in *folder* that a process holds."""
    inodes = Path("/proc/locks").read_text()
    return [one for one in folder.iterdir() if f":{one.stat().st_ino} " in inodes]


def test_what_a_process_with_the_same_pid_worked_in_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    store.create()
    mine = store.scratch()
    # A container that is started again gives the same numbers.
    other = mine.path.with_name(f"{process.stamp()}.feedbeef")
    other.mkdir()

    sweep.leftovers(store)

    assert mine.path.exists()
    assert not other.exists()
    os.close(mine.descriptor)
    sweep.leftovers(store)
    assert not mine.path.exists()


@pytest.fixture
def own_python(envctl: Envctl, tmp_path: Path) -> Iterator[Path]:
    """The only Python that envctl finds: one that the test may change."""
    real = Path(sys._base_executable).resolve()
    python = tmp_path / "python" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    shutil.copy2(real, python)
    (tmp_path / "python" / "lib").symlink_to(real.parent.parent / "lib")
    envctl.env["PATH"] = str(python.parent)
    envctl.env.pop("PYENV_ROOT", None)
    return python


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_without_its_interpreter_an_environment_is_absent_and_built_again(
    envctl: Envctl, model: Path, own_python: Path, what: str
) -> None:
    ready = _built(envctl, model)
    if what == "gone":
        other = own_python.parent.parent.with_name("other")
        own_python.parent.parent.rename(other)
        envctl.env["PATH"] = str(other / "bin")
    else:
        os.utime(own_python)

    (absent,) = _listed(envctl)
    answered = envctl("predict", "-m", model, "-v", stdin=_INPUT)
    (again,) = _listed(envctl)

    assert (absent["id"], absent["state"]) == (ready, "absent")
    assert str(own_python) in str(absent["failure"])
    assert "gone or has changed" in str(absent["failure"])
    assert answered.stdout == _ANSWER
    assert "installing" in answered.stderr
    assert (again["id"], again["state"], again["failure"]) == (ready, "ready", None)


@pytest.mark.parametrize("how", ["daemon", "list"])
def test_a_bad_index_is_moved_aside_and_made_again(
    envctl: Envctl, model: Path, start: Callable[[], Daemon], how: str
) -> None:
    ready = _built(envctl, model)
    # What has just changed is not kept yet.
    time.sleep(0.1)
    envctl("list")
    index = envctl.root / "index.sqlite"
    good, bad = index.read_bytes(), b"This is no database." * 1000
    index.write_bytes(bad)
    if how == "daemon":
        start()

    listed = [_listed(envctl) for _ in range(2)]

    assert [[one["id"] for one in found] for found in listed] == [[ready]] * 2
    assert [one.read_bytes() for one in envctl.root.glob("index.bad-*")] == [bad]
    assert index.read_bytes()[:16] == good[:16]


def test_a_store_of_a_newer_format_is_listed_and_never_written(
    envctl: Envctl, model: Path, home: Path, tiny: Tiny
) -> None:
    ready = _built(envctl, model)
    time.sleep(0.1)
    envctl("list")
    (envctl.root / "format").write_text("99\n")
    # Whatever a newer envd keeps there, and what it builds just now.
    (envctl.root / "environments" / ready / "unknown").mkdir()
    (envctl.root / "environments" / ("0" * 32) / "attempt").mkdir(parents=True)
    before = _tree(envctl.root)
    reads: list[tuple[object, ...]] = [("list", "--all"), ("show", ready), ("verify", ready)]
    writes: list[tuple[object, ...]] = [
        ("build", "-m", model),
        ("predict", "-m", model),
        ("run", "-m", model, "--", "true"),
        ("lock", "-m", model),
        ("pin", ready),
        ("unpin", ready),
        ("rm", ready),
        ("rm", ready, "--force"),
        ("verify", ready, "--repair"),
        ("gc",),
        ("cancel", ready),
    ]

    read = [envctl(*one) for one in reads]
    refused = {one: envctl(*one, stdin=_INPUT) for one in writes}
    document = json.loads(envctl("build", "-m", model, "--json").stdout)
    refused_daemon = _refused(home, envctl.root, **tiny.settings)
    after = _tree(envctl.root)

    assert [one.returncode for one in read] == [0] * len(reads)
    assert ready[:12] in read[0].stdout
    for verb, done in refused.items():
        assert done.returncode == 1, verb
        assert "written by a newer envd" in done.stderr, verb
    assert document["failure"]["reason"] == "ROOT_UNUSABLE"
    assert "written by a newer envd" in refused_daemon
    assert after == before


@pytest.mark.parametrize("what", ["owner", "group", "world"])
def test_a_root_that_others_own_or_may_write_is_refused(
    envctl: Envctl, model: Path, home: Path, tiny: Tiny, what: str
) -> None:
    ready = _built(envctl, model)
    if what == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root may give a directory away")
        os.chown(envctl.root, _STRANGER, -1)
    else:
        envctl.root.chmod(0o770 if what == "group" else 0o702)
    verbs: list[tuple[object, ...]] = [("list",), ("predict", "-m", model), ("gc",)]
    if what == "owner":
        verbs += [(one, "-m", model) for one in ("build", "lock", "explain")]
        verbs += [(one, ready) for one in ("show", "pin", "unpin", "rm", "verify", "logs")]
        verbs += [("cancel", ready), ("run", "-m", model, "--", "true")]

    refused = {one: envctl(*one, stdin=_INPUT) for one in verbs}
    daemon = _refused(home, envctl.root, **tiny.settings)
    os.chown(envctl.root, os.geteuid(), -1)
    envctl.root.chmod(0o700)

    advice = "--root" if what == "owner" else f"chmod go-w {envctl.root}"
    for verb, done in refused.items():
        assert done.returncode == 1, verb
        assert done.stdout == "", verb
        assert str(envctl.root) in done.stderr, verb
        assert advice in done.stderr, verb
        assert what != "owner" or f"user {_STRANGER}" in done.stderr, verb
    assert advice in daemon
    assert [one["id"] for one in _listed(envctl)] == [ready]


@pytest.mark.parametrize("text", ["", "two", "0", "-1", "99"])
def test_a_store_of_a_format_that_cannot_be_told_is_only_read(
    envctl: Envctl, model: Path, text: str
) -> None:
    ready = _built(envctl, model)
    (envctl.root / "format").write_text(text)

    listed, removed = _listed(envctl), envctl("rm", ready)

    assert [one["id"] for one in listed] == [ready]
    assert removed.returncode == 1
    assert "written by a newer envd" in removed.stderr


def test_environments_that_others_may_write_are_refused(envctl: Envctl, model: Path) -> None:
    _built(envctl, model)
    environments = envctl.root / "environments"
    environments.chmod(0o777)

    refused = envctl("predict", "-m", model, stdin=_INPUT)
    environments.chmod(0o755)

    assert refused.returncode == 1
    assert f"`chmod go-w {environments}`" in refused.stderr
    assert envctl("predict", "-m", model, stdin=_INPUT).stdout == _ANSWER


def test_a_root_with_control_characters_is_refused(envctl: Envctl, tmp_path: Path) -> None:
    root = tmp_path / "a\nroot"

    refused = envctl("--root", root, "list")

    assert refused.returncode == 2
    assert "control characters" in refused.stderr
    assert not root.exists()


def test_a_second_daemon_on_other_sockets_names_the_first_and_leaves(
    envctl: Envctl, start: Callable[[], Daemon], home: Path, tiny: Tiny, tmp_path: Path
) -> None:
    first = start()

    said = _refused(home, envctl.root, "--socket", tmp_path / "s" / "p.sock", **tiny.settings)

    assert f"the daemon with pid {first.pid} holds" in said
    assert first.process.poll() is None
    assert json.loads((envctl.root / "daemon.json").read_text())["pid"] == first.pid


def test_what_an_older_envd_left_is_built_anew(envctl: Envctl, model: Path) -> None:
    ready = _built(envctl, model)
    home = envctl.root / "environments" / ready
    before = {one.name for one in home.glob("*/")} - {"used-by"}
    manifest = json.loads((home / "ready.json").read_text())
    (home / "ready.json").write_text(json.dumps(manifest | {"format": 1}))
    (envctl.root / "format").unlink()

    listed = _listed(envctl)
    answered = envctl("predict", "-m", model, "-v", stdin=_INPUT)

    assert [one["state"] for one in listed] == ["absent"]
    assert answered.stdout == _ANSWER
    assert "installing" in answered.stderr
    assert [one["id"] for one in _listed(envctl)] == [ready]
    assert before.isdisjoint(one.name for one in home.glob("*"))
    assert (envctl.root / "format").read_text() == "2\n"
