"""Children, run to their end or to a limit: real processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envd import child, process
from envd.child import Finished, Limits
from tests.conftest import is_running, wait_for

# It leaves the session and loses its parents, and nobody waits for it.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(f"{os.getpid()}\\n")
        time.sleep(60)
    os._exit(0)
os.wait()
while not (os.path.exists(sys.argv[1]) and os.path.getsize(sys.argv[1])):
    time.sleep(0.001)
"""


class StopError(Exception):
    """What somebody has raised."""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Finished]:
    """Run a Python program with time enough, unless something else is said."""

    def run(script: str, *arguments: object, **options: object) -> Finished:
        given = {"limits": in_s(20), "env": {"PATH": os.defpath}, "cwd": tmp_path} | options
        argv = [sys.executable, "-I", "-S", "-c", script, *map(str, arguments)]
        return child.run(argv, **given)  # type: ignore[arg-type]

    return run


def in_s(seconds: float, **others: object) -> Limits:
    return Limits(time.monotonic() + seconds, **others)  # type: ignore[arg-type]


def pid_in(path: Path) -> int:
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"), 10)
    return int(path.read_text())


@contextlib.contextmanager
def took_less_than(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def stop(*_: object) -> None:
    raise StopError


def test_the_lines_come_as_they_are_written(run: Callable[..., Finished]) -> None:
    lines: list[str] = []
    script = (
        "import sys; out = sys.stdout.buffer\n"
        "out.write(b'one\\r\\ntwo\\n\\nthree \\xff \\xc3\\xa9\\rfour'); out.flush()\n"
        "print('five', file=sys.stderr); sys.exit(3)"
    )

    found = run(script, on_line=lines.append)

    assert lines == ["one", "two", "", "three \ufffd \u00e9", "fourfive"]
    assert found == Finished(3, tuple(lines), "")


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        child.run([str(tmp_path / "none")], env={}, cwd=tmp_path, limits=in_s(1))


def test_a_line_without_an_end_comes_in_pieces(run: Callable[..., Finished]) -> None:
    lengths: list[int] = []
    script = "import os\nfor _ in range(1 << 8): os.write(1, bytes(1 << 20))"

    run(script, on_line=lambda line: lengths.append(len(line)))

    assert sum(lengths) == 1 << 28
    assert max(lengths) == 1 << 16


def test_what_takes_too_long_is_ended(run: Callable[..., Finished]) -> None:
    with took_less_than(30):
        found = run("import time; print('begun', flush=True); time.sleep(60)", limits=in_s(0.6))

    assert found == Finished(-9, ("begun",), "time")


def test_what_is_silent_is_ended(run: Callable[..., Finished]) -> None:
    with took_less_than(30):
        found = run("import time; time.sleep(60)", limits=in_s(20, silence_s=0.2))

    assert found.ended_by == "silence"


@pytest.mark.parametrize(
    "work",
    [
        "print('here', flush=True)",
        "out.write(bytes(10))",
        "os.pread(given.fileno(), 10, 0)",
        "subprocess.call(['true'])",
    ],
)
def test_what_shows_a_sign_of_life_goes_on(run: Callable[..., Finished], work: str) -> None:
    found = run(
        "import os, subprocess, time\n"
        "out, given = open('out', 'wb', buffering=0), open('/dev/zero', 'rb')\n"
        f"for _ in range(14):\n    {work}\n    time.sleep(0.05)",
        limits=in_s(20, silence_s=0.3),
    )

    assert (found.status, found.ended_by) == (0, "")


def test_whoever_watches_is_told_what_was_written(run: Callable[..., Finished]) -> None:
    told: list[int] = []

    run(
        "import subprocess, time\n"
        "subprocess.run(['head', '-c', '1000000', '/dev/zero'], stdout=open('out', 'wb'))\n"
        "time.sleep(0.65)",
        limits=in_s(20, watch=told.append),
    )

    # On a slow machine there may be one before it was written.
    assert 1 <= len(told) <= 3
    assert 1_000_000 <= told[-1] < 1_100_000


@pytest.mark.parametrize("how", ["watch", "on_line"])
def test_what_whoever_watches_raises_ends_everything(
    run: Callable[..., Finished], tmp_path: Path, how: str
) -> None:
    script = f"{DAEMON}\nprint('here', flush=True)\ntime.sleep(60)"
    options = {"limits": in_s(20, watch=stop)} if how == "watch" else {"on_line": stop}

    with pytest.raises(StopError):
        run(script, tmp_path / "pid", **options)

    assert not is_running(pid_in(tmp_path / "pid"))


@pytest.mark.parametrize(
    ("then", "options", "ended_by"),
    [
        ("", {}, ""),
        ("os.abort()", {}, ""),
        ("time.sleep(60)", {"deadline": 0.6}, "time"),
        ("time.sleep(60)", {"silence_s": 0.5}, "silence"),
    ],
)
def test_whoever_left_the_session_is_ended_too(
    run: Callable[..., Finished],
    tmp_path: Path,
    then: str,
    options: dict[str, float],
    ended_by: str,
) -> None:
    options = {"deadline": 20.0} | options
    limits = Limits(time.monotonic() + options.pop("deadline"), **options)

    with took_less_than(30):
        found = run(f"{DAEMON}\n{then}", tmp_path / "pid", limits=limits)

    assert found.ended_by == ended_by
    assert not is_running(pid_in(tmp_path / "pid"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_nothing_behind(
    run: Callable[..., Finished], tmp_path: Path, error: type[BaseException]
) -> None:
    def interrupt(_: str) -> None:
        raise error

    with pytest.raises(error):
        run(f"{DAEMON}\nprint('here', flush=True)", tmp_path / "pid", on_line=interrupt)

    assert not is_running(pid_in(tmp_path / "pid"))


def test_whoever_wiped_its_variables_is_ended_with_its_parent(
    run: Callable[..., Finished], tmp_path: Path
) -> None:
    script = (
        "import subprocess, sys, time\n"
        "argv = ['sh', '-c', 'echo $$ > pid; sleep 60']\n"
        "child = subprocess.Popen(argv, env={}, start_new_session=True)\n"
        "time.sleep(60)"
    )

    run(script, limits=in_s(0.4))

    assert not is_running(pid_in(tmp_path / "pid"))


def test_a_pipe_that_stays_open_holds_nobody_up(run: Callable[..., Finished]) -> None:
    script = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid(); time.sleep(60)\n"
        "print('the last word')"
    )

    with took_less_than(30):
        found = run(script)

    assert found == Finished(0, ("the last word",))


def test_all_that_was_written_is_read_though_the_end_came_first(
    run: Callable[..., Finished],
) -> None:
    def wait(line: str) -> None:
        if line == "first":
            time.sleep(0.2)

    found = run("print('first', flush=True)\nfor one in range(5000): print(one)", on_line=wait)

    assert found.tail[-1] == "4999"


def test_a_child_inherits_the_files_it_is_given_and_no_others(
    run: Callable[..., Finished], tmp_path: Path
) -> None:
    with (tmp_path / "given").open("w") as given:
        number = given.fileno()
        found = run(
            "import os; print([one for one in range(99) if os.path.exists(f'/dev/fd/{one}')])",
            pass_fds=[number],
        )

    assert found.tail == (str([0, 1, 2, number]),)


def test_the_parts_of_work_are_ended_with_it_and_no_other_work() -> None:
    names = ["a", "a.b", "a.b.c", "ab", "b.a", ""]
    running = [
        subprocess.Popen(["sleep", "60"], env={"PATH": os.defpath, "ENVD_WORK": name})
        for name in names
    ]
    try:
        process.end_work("a")

        assert [is_running(one.pid) for one in running] == [False, False, False, True, True, True]
    finally:
        for one in running:
            one.kill()
            one.wait()


def test_whoever_ends_work_spares_itself_and_its_parents(run: Callable[..., Finished]) -> None:
    script = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from envd import process\n"
        "os.fork() and sys.exit(os.wait()[1])\n"
        "process.end_work(sys.argv[1]); print('still here')"
    )

    token = process.new_token()
    found = run(script, token, *sys.path, token=token)

    assert found == Finished(0, ("still here",))


def test_work_is_a_part_of_what_its_process_works_for() -> None:
    alone = process.new_token(environ={})
    part = process.new_token(environ={"ENVD_WORK": "above"})
    named = process.new_token("given", environ={"ENVD_WORK": "above"})

    assert alone.isalnum()
    assert part.startswith("above.")
    assert named.startswith("given.")
    assert process.new_token(environ={}) != alone


def test_a_child_knows_what_it_works_for(run: Callable[..., Finished]) -> None:
    found = run("import os; print(os.environ['ENVD_WORK'])", token="given")

    assert found.tail[0].startswith("given.")


def test_two_parts_of_one_work_end_without_each_other(run: Callable[..., Finished]) -> None:
    found: list[Finished] = []
    script = "import time; print('begun', flush=True); time.sleep(0.3)"
    has_begun = threading.Event()

    thread = threading.Thread(
        target=lambda: found.append(run(script, token="given", on_line=lambda _: has_begun.set()))
    )
    thread.start()
    has_begun.wait(10)
    run("", token="given")
    thread.join(10)

    assert found == [Finished(0, ("begun",))]


def test_ending_costs_next_to_nothing() -> None:
    started = time.process_time()
    for _ in range(10):
        process.end_work("nobody")

    assert (time.process_time() - started) / 10 < 0.05
