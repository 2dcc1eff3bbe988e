"""Runs envctl in forks of a process that has imported it: most of what a command costs is that.

`python -m tests.forked DESCRIPTOR` forks for each request that comes over the socket; what is
forked has arguments, variables, folder and files of its own, and exits as any Python does.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from envd.cli import main

PROJECT = Path(__file__).parent.parent
_MESSAGE_BYTES = 1 << 20


def run(
    argv: Sequence[str], env: Mapping[str, str], stdin: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run the command *argv*, whose first item is envctl, to its end."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as talk,
    ):
        given.write(stdin)
        given.seek(0)
        with theirs:
            request = json.dumps([argv, dict(env), os.getcwd()]).encode()  # noqa: PTH109
            files = [one.fileno() for one in (given, output, talk, theirs)]
            socket.send_fds(_server(), [request], files)
        ours.settimeout(timeout_s)
        status = int(ours.recv(64))
        output.seek(0)
        talk.seek(0)
        return subprocess.CompletedProcess(argv, status, output.read(), talk.read())


@functools.cache
def _server() -> socket.socket:
    """Start the process that forks, once, and return the socket to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
            cwd=PROJECT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    # It ends with the last who has the other end.
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _become_one(requests: socket.socket) -> None:
    """Fork for each of the *requests*; in the fork, return as the command."""
    while True:
        message, files, *_ = socket.recv_fds(requests, _MESSAGE_BYTES, 4)
        if not message:
            os._exit(0)
        if not os.fork():
            break
        for one in files:
            os.close(one)
        _bury()
    requests.close()
    if pid := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(files[3], str(status).encode())
        os._exit(0)
    sys.argv, env, folder = json.loads(message)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for place, one in enumerate(files):
        if place < 3:
            os.dup2(one, place)
        os.close(one)


def _bury() -> None:
    """Wait for the forks that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    # Each is imported when it is first used.
    for name in ("local", *main._VERBS):
        importlib.import_module(f"envd.cli.{name.replace('-', '_')}")
    # What is shared with the forked is not copied then.
    gc.freeze()
    _become_one(socket.socket(fileno=int(sys.argv[1])))
    main.main()
