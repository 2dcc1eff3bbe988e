"""Envctl and envd where they meet shells: closed streams, narrow terminals, colors, completion."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from envd.cli.main import group
from envd.cli.table import Table
from tests.conftest import Envctl, environment, wait_for

CLOSED = 'exec "$0" "$@" {}'


def closed(streams: str, argv: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run *argv* without the *streams* that a shell calls so."""
    shell = ["/bin/sh", "-c", CLOSED.format(streams), *argv]
    return subprocess.run(shell, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_streams_are_closed_does_what_it_does(envctl: Envctl, streams: str) -> None:
    done = closed(streams, envctl.argv("list", "--json"), envctl.env)
    failed = closed(streams, envctl.argv("show", "0123"), envctl.env)

    assert (done.returncode, failed.returncode) == (0, 1)
    assert "Traceback" not in done.stderr + failed.stderr


def test_nothing_on_standard_input_is_no_input(envctl: Envctl, tmp_path: Path) -> None:
    argv = envctl.argv("predict", "-m", tmp_path / "model")

    of_closed = closed("<&-", argv, envctl.env)
    empty = closed("</dev/null", argv, envctl.env)

    for done in (of_closed, empty):
        assert done.returncode == 2, done.stderr
        assert "nothing came on standard input; give the input by -i FILE" in done.stderr


def test_what_the_system_refuses_is_said_without_a_number(envctl: Envctl) -> None:
    done = closed(">/dev/full", envctl.argv("list", "--json"), envctl.env)

    assert (done.returncode, done.stderr) == (1, "envctl: No space left on device\n")


def test_a_root_that_cannot_be_one_is_said_to_be_so(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "file"
    root.touch()
    argv = [f"{Path(sys.executable).parent}/envd", "--root", str(root)]

    done = closed("", argv, environment(root, home))

    assert done.returncode == 1
    assert done.stderr.startswith(f"envd: cannot work in `{root}`: ")
    assert "give another with `--root`" in done.stderr


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["build", "-m"], "dir"),
        (["build"], "dir"),
        (["models", "load"], "dir"),
        (["requirements", "add", "-m"], "dir"),
        (["predict", "-i"], "file"),
        (["check", "-i"], "file"),
    ],
)
def test_a_shell_completes_models_and_files(words: list[str], kind: str) -> None:
    completion = ShellComplete(group, {}, "envctl", "_ENVCTL_COMPLETE")

    found = completion.get_completions(words, "./mo")

    assert [(one.value, one.type) for one in found] == [("./mo", kind)]


def test_a_daemon_whose_streams_are_closed_starts(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "root"
    argv = [f"{Path(sys.executable).parent}/envd", "--root", str(root)]
    shell = ["/bin/sh", "-c", CLOSED.format("<&- >&- 2>&-"), *argv]

    process = subprocess.Popen(shell, env=environment(root, home))
    try:
        wait_for(lambda: (root / "daemon.json").exists() or process.poll() is not None)
        assert process.poll() is None
        # A child takes for its own streams what has these numbers.
        streams = {Path(f"/proc/{process.pid}/fd/{number}").readlink() for number in range(3)}
        assert streams == {Path("/dev/null")}
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def on_terminal(columns: int, argv: list[str], env: dict[str, str]) -> str:
    """Return what *argv* writes to a terminal so wide."""
    terminal, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = b""
    try:
        process = subprocess.Popen(argv, stdin=its, stdout=its, stderr=its, env=env)
        os.close(its)
        # An error says that nobody has the other end any more.
        with contextlib.suppress(OSError):
            while part := os.read(terminal, 1 << 16):
                written += part
        assert process.wait(60) == 0
    finally:
        os.close(terminal)
    return written.decode()


def test_no_color_is_no_color(envctl: Envctl, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {python_function: {env: conda.yaml}}\n")
    (model / "conda.yaml").write_text("channels: [defaults]\ndependencies: [python=3.11]\n")
    argv = envctl.argv("migrate", model)

    colored = on_terminal(80, argv, envctl.env | {"NO_COLOR": ""})
    plain = on_terminal(80, argv, envctl.env | {"NO_COLOR": "1"})

    assert "\x1b[32m+channels: [conda-forge]" in colored
    assert "+channels: [conda-forge]" in plain
    assert "\x1b" not in plain


def show(columns: int) -> list[str]:
    """Return the lines of a table with ids and paths in a terminal so wide."""
    program = "from tests.test_terminal import table; table().show()"
    # What runs the tests may have said how wide its own is.
    env = {"PATH": os.environ["PATH"], "TERM": "xterm", "NO_COLOR": "1"}
    return on_terminal(columns, [sys.executable, "-c", program], env).splitlines()


def table() -> Table:
    found = Table()
    found.columns("ID", "STATE")
    found.numbers("SIZE")
    found.text("MODEL")
    found.row("daa528713294", "ready", "672.8 MB", "/models/of/somebody/who/likes/long/names/iris")
    return found


def test_a_table_folds_what_is_long_where_there_is_room_and_else_cuts_nothing() -> None:
    wide, folded, narrow = (show(columns) for columns in (100, 60, 30))

    row = "daa528713294  ready  672.8 MB  /models/of/somebody/who/likes/long/names/iris"
    assert wide[1] == narrow[1].rstrip() == row
    assert folded[1].rstrip().startswith("daa528713294  ready  672.8 MB  /models/of/somebody/who")
    assert "".join(line[31:].strip() for line in folded[1:]) == row[31:]
