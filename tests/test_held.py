"""The kernel's locks, held and lost by real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from envd import process
from envd.events import Progress
from envd.held import Owner, exclusively, if_free, read_owner
from tests.conftest import is_running, wait_for

# Each says what it does on its standard output, and then waits to be killed.
COUNT = """
import sys, time
from pathlib import Path
from envd.held import exclusively

lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with exclusively(lock, lambda _: None):
        found = int(counter.read_text())
        time.sleep(0.005)
        counter.write_text(str(found + 1))
"""
HOLD = """
import sys, time
from pathlib import Path
from envd.held import exclusively

with exclusively(Path(sys.argv[1]), lambda _: None) as held:
    print("holds", flush=True)
    time.sleep(60)
"""
# An installer that inherits the lock, or does not, and has a child of its own that has left
# the session and lost its parents.
INSTALL = """
import math, os, sys
from pathlib import Path
from envd import child
from envd.held import exclusively

INSTALLER = '''
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if (pid := os.fork()) == 0:
        time.sleep(60)
    print(os.getppid(), pid, flush=True)
    os._exit(0)
os.wait()
time.sleep(60)
'''
lock, inherits = Path(sys.argv[1]), sys.argv[2] == "inherits"
with exclusively(lock, lambda _: None, Path("/the/log")) as held:
    child.run(
        [sys.executable, "-I", "-S", "-c", INSTALLER],
        env={}, cwd=lock.parent, limits=child.Limits(math.inf), token=held.token,
        pass_fds=[held.descriptor] if inherits else [],
        on_line=lambda line: print(line, flush=True),
    )
"""


@contextmanager
def running(*argv: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program until the end of the test."""
    process = subprocess.Popen(
        [str(one) for one in argv], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def python(script: str, *arguments: object) -> tuple[object, ...]:
    return (sys.executable, "-c", script, *arguments)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def never(_: Owner | None) -> None:
    pytest.fail("it had to wait")


@contextmanager
def waiting(lock: Path) -> Iterator[tuple[list[Owner | None], threading.Event]]:
    """Wait for *lock* in a thread; yield who it was told to wait for, and whether it got it."""
    told: list[Owner | None] = []
    got = threading.Event()

    def take() -> None:
        with exclusively(lock, told.append):
            got.set()

    thread = threading.Thread(target=take)
    thread.start()
    yield told, got
    thread.join(10)
    assert not thread.is_alive()


def test_who_got_away_with_the_descriptor_keeps_nobody_out(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusively(lock, never) as held:
        away = subprocess.Popen(["sleep", "60"], pass_fds=[held.descriptor])
    try:
        with exclusively(lock, never):
            pass
    finally:
        away.kill()
        away.wait()


def test_two_processes_exclude_each_other(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    argv = python(COUNT, tmp_path / "held" / "lock", counter, 8)
    with running(*argv) as one, running(*argv) as other:
        assert (one.wait(30), other.wait(30)) == (0, 0)

    assert counter.read_text() == "16"


def test_two_threads_exclude_each_other(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    with ExitStack() as other, exclusively(lock, never):
        told, got = other.enter_context(waiting(lock))
        wait_for(lambda: bool(told))
        # Unlike fcntl's locks, flock's survive that the file is closed elsewhere.
        os.close(os.open(lock, os.O_RDONLY))
        was_got = got.wait(0.2)

    assert not was_got
    assert got.is_set()


def test_whoever_waits_is_told_for_whom_again_and_again(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    with running(*python(HOLD, lock)) as holder:
        assert line_of(holder) == "holds"
        with waiting(lock) as (told, got):
            wait_for(lambda: bool(told))
            assert not got.wait(0.2)
            kill(holder)

    assert got.is_set()
    assert len(told) > 2
    assert told[0] is not None
    assert (told[0].pid, told[0].host) == (holder.pid, os.uname().nodename)


def test_nobody_is_told_anything_where_nobody_has_to_wait(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusively(tmp_path / "a" / "b" / "lock", never):
            pass


def test_the_death_of_the_holder_lets_go(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with running(*python(HOLD, lock)) as holder:
        assert line_of(holder) == "holds"
        kill(holder)

    with exclusively(lock, never):
        found = read_owner(lock)

    assert found is not None
    assert found.pid == os.getpid()


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusively(tmp_path / "lock", never):
        _ = 1 / 0

    with exclusively(tmp_path / "lock", never):
        pass


def test_a_holder_and_its_installer_are_alive_until_they_are_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    with running(*python(INSTALL, lock, "inherits")) as holder:
        installer, child = map(int, line_of(holder).split())
        living = read_owner(lock)
        was_alive = living is not None and living.is_alive()
        kill(holder)

        assert living is not None
        assert living.pid == holder.pid
        assert living.log == Path("/the/log")
        assert was_alive
        assert not living.is_alive()
        assert is_running(installer)
        assert is_running(child)
        process.end_work(living.token)

    assert not is_running(installer)
    assert not is_running(child)


@pytest.mark.parametrize("inherits", ["inherits", "closed"])
def test_the_installer_of_a_dead_holder_is_ended_before_its_lock_is_used(
    tmp_path: Path, inherits: str
) -> None:
    lock = tmp_path / "lock"

    with running(*python(INSTALL, lock, inherits)) as holder:
        installer, child = map(int, line_of(holder).split())
        kill(holder)
        with exclusively(lock, lambda _: None):
            left = [pid for pid in (installer, child) if is_running(pid)]

    assert left == []


def test_another_process_ends_the_installer_of_a_dead_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    with running(*python(INSTALL, lock, "inherits")) as holder:
        installer, child = map(int, line_of(holder).split())
        kill(holder)
        with running(*python(HOLD, lock)) as taker:
            assert line_of(taker) == "holds"
            left = [pid for pid in (installer, child) if is_running(pid)]

    assert left == []


def test_the_installer_of_a_dead_holder_is_ended_where_its_file_is_found_free(
    tmp_path: Path,
) -> None:
    lock = tmp_path / "lock"

    with running(*python(INSTALL, lock, "closed")) as holder:
        installer, child = map(int, line_of(holder).split())
        kill(holder)
        with if_free(lock) as is_free:
            left = [pid for pid in (installer, child) if is_running(pid)]

    assert is_free
    assert left == []


def test_the_installer_of_a_living_holder_is_left_alone(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    with running(*python(INSTALL, lock, "inherits")) as holder:
        installer, child = map(int, line_of(holder).split())
        with waiting(lock) as (told, got):
            wait_for(lambda: bool(told))
            was_got = got.wait(0.3)
            were_running = [is_running(pid) for pid in (installer, child)]
            kill(holder)

    assert not was_got
    assert were_running == [True, True]
    assert not is_running(installer)
    assert not is_running(child)


@pytest.mark.parametrize("field", ["host", "namespace"])
def test_a_holder_elsewhere_is_never_judged_dead(tmp_path: Path, field: str) -> None:
    lock = tmp_path / "lock"

    with running(*python(INSTALL, lock, "inherits")) as holder:
        pids = [int(one) for one in line_of(holder).split()]
        kill(holder)
        entry = json.loads(lock.read_text())
        lock.write_text(json.dumps(entry | {field: "elsewhere"}))
        with waiting(lock) as (told, got):
            wait_for(lambda: bool(told))
            was_got = got.wait(0.2)
            were_running = [is_running(pid) for pid in pids]
            process.end_work(entry["token"])

    assert told[0] is not None
    assert told[0].is_alive()
    assert not was_got
    assert were_running == [True, True]


def test_whoever_waits_sees_how_far_it_is(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    with ExitStack() as other, exclusively(lock, never) as held:
        told, _ = other.enter_context(waiting(lock))
        for progress in (Progress(9, 10, 10**12), Progress(10, 10, 1)):
            held.tell(progress)
            wait_for(lambda progress=progress: told and told[-1] and told[-1].progress == progress)

    assert {one.token for one in told if one} == {held.token}


def test_work_within_other_work_is_a_part_of_it(tmp_path: Path) -> None:
    with (
        exclusively(tmp_path / "one", never) as above,
        exclusively(tmp_path / "two", never, within=above) as below,
    ):
        assert below.token.startswith(f"{above.token}.")


def test_nobody_is_named_in_a_file_that_is_let_go(tmp_path: Path) -> None:
    with exclusively(tmp_path / "lock", never):
        assert read_owner(tmp_path / "lock") is not None

    assert read_owner(tmp_path / "lock") is None


@pytest.mark.parametrize("content", ["", "[1]", "null", "{}", "\0" * 256, '[5, "0", "host", 6]'])
def test_a_file_that_names_nobody_is_held_by_somebody_unknown(tmp_path: Path, content: str) -> None:
    lock = tmp_path / "lock"

    with running(*python(HOLD, lock)) as holder:
        assert line_of(holder) == "holds"
        lock.write_text(content)
        with waiting(lock) as (told, _):
            wait_for(lambda: bool(told))
            kill(holder)

    assert set(told) == {None}


def test_a_pid_that_was_given_to_another_is_not_the_holder() -> None:
    mine = Owner(os.getpid(), "1", os.uname().nodename, process.namespace(), "token", 0.0)

    assert not mine.is_alive()


def test_the_file_stays_when_nobody_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusively(lock, never):
        inode = lock.stat().st_ino

    with exclusively(lock, never):
        pass

    assert lock.stat().st_ino == inode


def test_a_link_is_not_held(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic links"), exclusively(tmp_path / "lock", never):
        pass

    assert not (tmp_path / "elsewhere").exists()
