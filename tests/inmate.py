"""A model that tries what it is told to, and says what came of it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envd_client import Client

from tests.tiny import Tiny

SECRET = "known to nobody else"
_LIBC = ctypes.CDLL(None)

HELPERS = """
import ctypes, errno, os, signal, socket, subprocess, sys, time

LIBC = ctypes.CDLL(None, use_errno=True)
HELD = []
KEPT = ctypes.create_string_buffer(b'the secret of the other')

class Piece(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]

def called(name, *arguments):
    if getattr(LIBC, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def read(path):
    with open(path) as file:
        return file.read(100)

def write(path, text='x'):
    with open(path, 'w') as file:
        return file.write(text)

def sent(family, kind, address):
    with socket.socket(getattr(socket, family), getattr(socket, kind)) as one:
        one.settimeout(5)
        one.connect(address)
        return one.send(b'from inside')

def from_memory(pid, address):
    with open('/proc/%d/mem' % pid, 'rb') as file:
        file.seek(address)
        return file.read(10).decode()

def by_call(pid, address):
    here = ctypes.create_string_buffer(10)
    ours, theirs = Piece(ctypes.addressof(here), 10), Piece(address, 10)
    called('process_vm_readv', pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    return here.raw.decode()

def by_descriptor(path):
    # What may be passed may be opened so, and nothing be read of it.
    descriptor = os.open(path, os.O_PATH)
    try:
        os.chmod('/proc/self/fd/%d' % descriptor, 0o777)
        os.fchmod(descriptor, 0o777)
    finally:
        os.close(descriptor)

def descriptors():
    every = {fd: '/proc/self/fd/' + fd for fd in os.listdir('/proc/self/fd')}
    return {fd: os.readlink(path) for fd, path in every.items() if os.path.lexists(path)}

def listen(name):
    one = socket.socket(socket.AF_UNIX)
    one.bind('\\0' + name)
    one.listen()
    HELD.append(one)

def children(count):
    started = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(['/bin/sleep', '60']))
    finally:
        for one in started:
            one.kill()
            one.wait()

def left_behind(mark):
    code = 'import os, time; os.setsid(); os.fork(); time.sleep(600)'
    nowhere = subprocess.DEVNULL
    subprocess.Popen([sys.executable, '-I', '-S', '-c', code, mark], stdout=nowhere, stderr=nowhere)

def tried(code):
    try:
        found = eval(code)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        return repr(error)
    return 'done' if found is None else found
"""
_BODY = (
    "        import inmate\n        return {key: inmate.tried(code) for key, code in data.items()}"
)


def model(tiny: Tiny, path: Path, **more: Any) -> Path:
    """Write a model that answers {name: expression} with what each gives, or its error."""
    tiny.model(path, body=_BODY, **more)
    (path / "code" / "inmate.py").write_text(HELPERS)
    return path


def ask(client: Client, model: Path | str, /, **expressions: str) -> dict[str, Any]:
    found: dict[str, Any] = client.predict(model, {"inputs": expressions}).predictions
    return found


@dataclass(frozen=True)
class Outside:
    """What is there outside, of the daemon's own user, and may not be reached."""

    folder: Path
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket
    abstract: socket.socket
    process: subprocess.Popen[bytes]
    # Of memory that whoever knows one of both may have.
    number: int
    shared: int

    @property
    def got(self) -> list[bytes]:
        """What has come over the sockets."""
        found = []
        for one in (self.tcp, self.unix, self.abstract):
            try:
                connection, _ = one.accept()
            except BlockingIOError:
                continue
            with connection:
                connection.settimeout(5)
                found.append(connection.recv(100))
        with suppress(BlockingIOError):
            found.append(self.udp.recv(100))
        return found

    def attempts(self, root: Path) -> dict[str, str]:
        """Return what to try to get out, and to what is outside."""
        pid, path = self.process.pid, repr(str(self.folder))
        tcp, udp = self.tcp.getsockname(), self.udp.getsockname()
        return {
            "file": f"read({path} + '/secret')",
            "home": f"os.listdir({path})",
            "shadow": "read('/etc/shadow')",
            "root": f"os.listdir({str(root)!r})",
            "locks": f"os.listdir({str(root / 'held')!r})",
            "environments": f"os.listdir({str(root / 'environments')!r})",
            "new": f"write({path} + '/new')",
            "scratch": f"write({str(root / 'scratch' / 'new')!r})",
            "environment": "write(sys.prefix + '/new')",
            "mode": f"os.chmod({path}, 0o777)",
            "program": f"os.chmod({path} + '/secret', 0o4755)",
            "opened": f"by_descriptor({path})",
            "owner": f"os.chown({path}, {os.getuid()}, {os.getgid()})",
            "attribute": f"os.setxattr({path} + '/secret', 'user.envd', b'1')",
            "module": "write(__import__('tiny_a').__file__, 'VERSION = 0')",
            "model": "write(__file__, '')",
            "core_pattern": "write('/proc/sys/kernel/core_pattern', '|/bin/true')",
            "tcp": f"sent('AF_INET', 'SOCK_STREAM', {tcp!r})",
            "udp": f"sent('AF_INET', 'SOCK_DGRAM', {udp!r})",
            "unix": f"sent('AF_UNIX', 'SOCK_STREAM', {path} + '/socket')",
            "abstract": f"sent('AF_UNIX', 'SOCK_STREAM', {self.abstract.getsockname()!r})",
            "admin": f"sent('AF_UNIX', 'SOCK_STREAM', {str(root / 'admin.sock')!r})",
            "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) and 'done'",
            "signal": f"os.kill({pid}, 15)",
            "everybody": "os.kill(-1, 15)",
            "limits": f"__import__('resource').prlimit({pid}, 7, (64, 64))",
            "watch": "called('fanotify_init', 0x200, 0)",
            "numbered": f"called('shmget', {self.number}, 10, 0)",
            "attached": f"called('shmctl', {self.shared}, 2, ctypes.create_string_buffer(200))",
            "trace": f"called('ptrace', 16, {pid}, 0, 0)",
            "memory": f"from_memory({pid}, 0)",
            "environ": f"read('/proc/{pid}/environ')",
            "namespaces": "called('unshare', 0x10000000)",
            "mount": "called('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
            "setuid": "os.setuid(1)",
        }


@contextmanager
def outside(folder: Path) -> Iterator[Outside]:
    """Have files, sockets and a process that a model is to be kept from."""
    folder.mkdir()
    (folder / "secret").write_text(SECRET)
    with ExitStack() as stack:
        families = [("AF_INET", "SOCK_STREAM"), ("AF_INET", "SOCK_DGRAM")]
        families += [("AF_UNIX", "SOCK_STREAM")] * 2
        sockets = [
            stack.enter_context(socket.socket(getattr(socket, family), getattr(socket, kind)))
            for family, kind in families
        ]
        names: list[Any] = [("127.0.0.1", 0)] * 2 + [str(folder / "socket")]
        names.append(f"\0envd-test-{os.getpid()}-{folder.name}")
        for one, name in zip(sockets, names, strict=True):
            one.bind(name)
            one.settimeout(0)
            if one.type == socket.SOCK_STREAM:
                one.listen()
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"],
                                   stdin=subprocess.PIPE, env={"TOKEN": SECRET})  # fmt: skip
        with process:
            number = process.pid
            shared = _LIBC.shmget(number, 10, 0o1600)
            stack.callback(_LIBC.shmctl, shared, 0, None)
            before = folder.stat().st_mode, (folder / "secret").stat().st_mode
            yield Outside(folder, *sockets, process, number, shared)
            assert process.poll() is None
            assert (folder.stat().st_mode, (folder / "secret").stat().st_mode) == before
            # As it was, and not removed.
            assert shared == _LIBC.shmget(number, 10, 0) != -1
            process.kill()


def is_anywhere(mark: str) -> bool:
    """Whether a process runs that has *mark* among its arguments."""
    return any(_of(mark))


def end_all(mark: str) -> None:
    """Kill the processes that have *mark* among their arguments."""
    for pid in _of(mark):
        os.kill(pid, signal.SIGKILL)


def _of(mark: str) -> Iterator[int]:
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                yield int(pid)
        except OSError:
            continue
