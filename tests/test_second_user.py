"""What another user of the machine can do to a daemon, its root and its sockets: nothing."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from envd_client import Client

from envd.addresses import Sockets
from envd.errors import RootUnusableError, SettingsInvalidError
from envd.store import Store, trash
from tests.conftest import Daemon, environment, launch, stop
from tests.tiny import Tiny

STRANGER = 65534
REFUSED = {"EACCES", "EPERM"}
LIBC = ctypes.CDLL(None, use_errno=True)
Attempt = Callable[[], object]
ENVD = f"{Path(sys.executable).parent}/envd"

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")


def as_stranger(*attempts: Attempt) -> list[str]:
    """Return what each attempt of another user comes to: the name of an error, or `done`."""
    ours, theirs = os.pipe()
    if child := os.fork():
        os.close(theirs)
        with os.fdopen(ours) as answers:
            said = answers.read()
        assert os.waitpid(child, 0)[1] == 0
        found: list[str] = json.loads(said)
        return found
    try:
        os.setgroups([])
        os.setresgid(STRANGER, STRANGER, STRANGER)
        os.setresuid(STRANGER, STRANGER, STRANGER)
        with os.fdopen(theirs, "w") as answer:
            json.dump([tried(one) for one in attempts], answer)
    finally:
        os._exit(0)


def tried(attempt: Attempt) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    """A folder like /tmp: everybody may come there, and write."""
    folder = Path(tempfile.mkdtemp(prefix="envd-ground."))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def daemon(ground: Path, home: Path, tiny: Tiny) -> Iterator[Daemon]:
    """A daemon that has built and answered, with sockets where everybody comes."""
    (ground / "run").mkdir(mode=0o755)
    settings = tiny.settings | {"ENVD_SOCKET": str(ground / "run" / "predict.sock")}
    found = launch(ground / "root", home, **settings)
    try:
        with Client(ground / "run" / "predict.sock", timeout_s=120) as client:
            client.predict(tiny.model(ground / "root" / "model"), {"inputs": 1})
        yield found
    finally:
        stop(found)


def test_nothing_below_the_root_is_read_written_planted_or_held(
    daemon: Daemon, ground: Path
) -> None:
    found = sorted(daemon.root.rglob("*"))
    below = {path.relative_to(daemon.root).parts[0] for path in found}
    assert below >= {"environments", "held", "logs", "daemon.lock", "daemon.json", "cache", "specs"}

    said = as_stranger(*_attempts(daemon.root), *(one for path in found for one in _tries(path)))

    assert len(said) > 500
    assert set(said) <= REFUSED
    assert not list(ground.rglob("planted*"))


def _attempts(folder: Path) -> list[Attempt]:
    return [
        lambda: os.listdir(folder),  # noqa: PTH208
        lambda: os.symlink("/etc/passwd", folder / "planted"),  # noqa: PTH211
        lambda: os.rename(folder, folder.with_name("planted")),  # noqa: PTH104
        lambda: os.chmod(folder, 0o777),  # noqa: PTH101
    ]


def _tries(path: Path) -> list[Attempt]:
    return [
        *_attempts(path),
        lambda: os.open(path, os.O_RDONLY),
        lambda: os.open(path, os.O_WRONLY),
        lambda: os.mkdir(path.with_name("planted")),  # noqa: PTH102
        lambda: _hold(path),
    ]


def _hold(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(path))


def test_sockets_are_not_connected_to_replaced_or_kept_from_the_next_daemon(
    daemon: Daemon, ground: Path
) -> None:
    sockets = [ground / "run" / name for name in ("predict.sock", "admin.sock")]
    locks = [path.with_name(f"{path.name}.lock") for path in sockets]
    connect = [lambda path=path: _connect(path) for path in sockets]
    # That they can be is what its owner sees.
    assert [tried(one) for one in (*connect, lambda: _hold(locks[0].parent))] == ["done"] * 3

    said = as_stranger(
        *connect,
        *(one for path in (*sockets, *locks) for one in _tries(path)[1:]),
        *(lambda path=path: path.unlink() for path in (*sockets, *locks)),  # type: ignore[misc]
    )

    assert len(said) > 30
    assert set(said) <= REFUSED | {"ENOTDIR"}
    assert daemon.process.poll() is None


def test_its_processes_are_not_looked_into_or_signalled(daemon: Daemon) -> None:
    family = [daemon.pid, *_descendants(daemon.pid)]
    assert len(family) >= 3, "a daemon, a spawner, a worker"
    places = ("environ", "fd", "maps", "mem", "cwd", "root", "exe", "io", "stack", "map_files")

    said = as_stranger(
        *(lambda place=place, pid=pid: _look(pid, place) for pid in family for place in places),
        *(lambda pid=pid: os.kill(pid, signal.SIGTERM) for pid in family),  # type: ignore[misc]
        *(lambda pid=pid: _trace(pid) for pid in family),  # type: ignore[misc]
    )

    assert set(said) <= REFUSED
    assert daemon.process.poll() is None


def _look(pid: int, place: str) -> None:
    path = f"/proc/{pid}/{place}"
    if place in {"cwd", "root", "exe"}:
        os.readlink(path)  # noqa: PTH115
    elif place in {"fd", "map_files"}:
        os.listdir(path)  # noqa: PTH208
    else:
        with Path(path).open("rb") as file:
            file.read(1)


def _trace(pid: int) -> None:
    seize = 0x4206
    if LIBC.ptrace(seize, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _descendants(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(one) for one in path.read_text().split()] if path.exists() else []
    return [*children, *(below for one in children for below in _descendants(one))]


def test_what_its_owner_may_not_look_into_is_deleted_and_no_link_followed(yard: Path) -> None:
    outside = owned(yard) / "outside"
    doomed = yard / "root" / "trash" / "one"
    closed = doomed / "closed" / "closed"

    def leave() -> None:
        outside.mkdir()
        (outside / "file").touch()
        closed.mkdir(parents=True)
        (closed / "file").touch()
        (closed / "link").symlink_to(outside)
        for folder in (outside, closed, closed.parent, doomed):
            folder.chmod(0)

    # Root may look into everything.
    said = as_stranger(leave, lambda: os.listdir(closed), lambda: trash.empty(doomed.parent))  # noqa: PTH208

    assert said == ["done", "EACCES", "done"]
    assert list(doomed.parent.iterdir()) == []
    assert stat.S_IMODE(outside.stat().st_mode) == 0
    assert (outside / "file").exists()


# What a stranger has prepared, before a daemon is started.


@pytest.fixture
def yard(ground: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=ground))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def owned(path: Path) -> Path:
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    return path


@pytest.mark.parametrize(
    ("mode", "owner", "holds", "expected"),
    [
        (0o700, STRANGER, "", "belongs to user 65534; give another root"),
        (0o777, 0, "", "others than its owner may write.*`chmod go-w"),
        (0o770, 0, "", "others than its owner may write.*`chmod go-w"),
        (0o755, 0, "folder/", "holds what is not envd's; give a directory of its own"),
        (0o755, 0, "models/", "holds what is not envd's; give a directory of its own"),
        (0o755, 0, "cache/", 0o700),
        (0o755, 0, "", 0o700),
        (0o751, 0, "daemon.log", 0o700),
        (0o755, 0, "format", 0o700),
    ],
)
def test_a_root_that_others_can_look_into_is_closed_or_refused(
    yard: Path, mode: int, owner: int, holds: str, expected: str | int
) -> None:
    root = yard / "root"
    root.mkdir()
    if holds.endswith("/"):
        (root / holds).mkdir()
    elif holds:
        (root / holds).write_text("2\n")
    os.chown(root, owner, owner)
    root.chmod(mode)

    if isinstance(expected, int):
        Store(root).create()
        assert stat.S_IMODE(root.stat().st_mode) == expected
        return
    with pytest.raises(RootUnusableError, match=expected):
        Store(root).create()
    assert stat.S_IMODE(root.stat().st_mode) == mode


def test_a_root_or_a_socket_that_everybody_may_replace_is_refused(yard: Path) -> None:
    (yard / "open" / "below").mkdir(parents=True)
    (yard / "open").chmod(0o777)

    with pytest.raises(RootUnusableError, match="`chmod o-w"):
        Store(yard / "open" / "below" / "root").create()
    with pytest.raises(SettingsInvalidError, match="`chmod o-w"):
        _sockets(yard / "open" / "below").check_places()
    assert not (yard / "open" / "below" / "root" / "format").exists()


def _sockets(folder: Path) -> Sockets:
    return Sockets(folder / "predict.sock", folder / "admin.sock")


def _listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize("name", ["predict.sock", "admin.sock.lock", "predict.sock.lock", "."])
def test_sockets_that_a_stranger_has_prepared_are_refused(yard: Path, name: str) -> None:
    if name == ".":
        owned(yard)
    elif name.endswith(".sock"):
        _listening(yard / name)
        owned(yard / name)
    else:
        (yard / name).touch()
        owned(yard / name)

    with pytest.raises(SettingsInvalidError, match="belongs to user 65534"):
        _sockets(yard).check_places()


def test_links_that_a_stranger_has_planted_are_not_followed(
    yard: Path, home: Path, tiny: Tiny
) -> None:
    target = yard / "target"
    # Owned by the daemon's user, else their owner would give them away.
    (yard / "predict.sock.lock").symlink_to(target)
    settings = tiny.settings | {"ENVD_SOCKET": str(yard / "predict.sock")}
    done = subprocess.run(
        [ENVD], env=environment(yard / "root", home, **settings), capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 1
    assert "predict.sock.lock" in done.stderr
    assert not target.exists()
