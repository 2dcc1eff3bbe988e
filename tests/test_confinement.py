"""What a confined worker cannot do, and that a fresh one and a forked one are confined alike."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envd.run.envd_worker import mounts, protocol
from tests.worker_program import (
    JSON,
    PROGRAM,
    Said,
    Talk,
    Template,
    load_head,
    model,
    small_environment,
    worker,
)

# What a daemon gives to the models of its own user.
_DEFAULT: dict[str, Any] = {"landlock": {"scoped": True}, "limits": {"core": 0}}
_ALL = ("user", "mount", "pid", "net", "ipc", "uts", "cgroup")
_MIB = 1 << 20

_TRY = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def called(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
def tried(function, *arguments):
    try:
        found = function(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return found if isinstance(found, (int, str, list)) else 'done'
def write(path, text):
    with open(path, 'w') as file:
        return file.write(text)
def read(path):
    with open(path) as file:
        return file.read()
"""


def _tried(**what: str) -> str:
    """Return the body of a `predict` that tries each of *what*."""
    lines = [f"found[{name!r}] = tried(lambda: {code})" for name, code in what.items()]
    return "\n".join(["found = {}", *lines, "return found"])


# A sibling's secret, at an address that both know.
_SIBLING = """
import ctypes
_KEPT = ctypes.create_string_buffer(b'the secret of the other')
"""
_ADDRESS = "return [os.getpid(), ctypes.addressof(_KEPT)]"
_ATTACK = """
pid, address = data
class Piece(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
def from_memory():
    with open('/proc/%d/mem' % pid, 'rb') as file:
        file.seek(address)
        return file.read(10).decode()
def by_call():
    here = ctypes.create_string_buffer(10)
    ours, theirs = Piece(ctypes.addressof(here), 10), Piece(address, 10)
    called('process_vm_readv', pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    return here.raw.decode()
def traced():
    called('ptrace', 16, pid, 0, 0)
    os.waitpid(pid, 0)
    called('ptrace', 17, pid, 0, 0)
return [tried(one) for one in (from_memory, by_call, traced, lambda: os.kill(pid, 0))]
"""


@pytest.mark.parametrize(
    ("confinement", "expected"),
    [
        (None, ["the secret", "the secret", "done", "done"]),
        (_DEFAULT, ["EACCES", "EPERM", "EPERM", "EPERM"]),
    ],
)
def test_siblings_of_one_template_are_safe_from_each_other(
    tmp_path: Path, confinement: dict[str, Any] | None, expected: list[str]
) -> None:
    python = small_environment(tmp_path / "environment")
    sibling = model(tmp_path / "sibling", _ADDRESS, _SIBLING)
    attacker = model(tmp_path / "attacker", _ATTACK, _TRY)
    more = {} if confinement is None else {"confinement": confinement}
    with Template(["ctypes"], python=python, cwd=tmp_path) as template:
        template.ready()
        with template.worker(**more) as (one, _), template.worker(**more) as (other, _):
            one.load(sibling)
            other.load(attacker)
            target = one.predict({"inputs": []})

            assert other.predict({"inputs": target}) == expected
            assert one.predict({"inputs": []}) == target


def test_a_worker_may_still_signal_and_read_what_is_its_own(tmp_path: Path) -> None:
    body = (
        "import subprocess\n"
        "child = subprocess.Popen(['/bin/sleep', '600'])\n"
        "child.kill()\n"
        f"open('{tmp_path}/written', 'w').close()\n"
        "return [child.wait(), len(os.listdir('/')), socket.socket().bind(('127.0.0.1', 0))]"
    )
    path = model(tmp_path / "model", body, "import socket")
    with _confined(tmp_path, _DEFAULT) as talk:
        talk.load(path)
        killed, entries, _ = talk.predict({"inputs": []})

    assert (killed, entries > 3) == (-9, True)
    assert (tmp_path / "written").exists()


@contextlib.contextmanager
def _confined(
    folder: Path,
    confinement: dict[str, Any],
    given: tuple[int, ...] = (),
    outer: dict[str, Any] | None = None,
) -> Iterator[Talk]:
    """A fresh worker that is confined."""
    python = small_environment(folder / "environment")
    document = {"confinement": confinement, "outer": outer}
    with worker(python, cwd=folder, document=document, given=given) as (talk, _):
        yield talk


def _readable(folder: Path) -> list[str]:
    """Return what a worker has to read to run at all."""
    system = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"]
    return [*system, sys.base_prefix, PROGRAM, str(folder / "environment")]


def _everything(folder: Path, *, at: str = "/model", scratch: str = "/scratch") -> dict[str, Any]:
    return {
        "namespaces": _ALL,
        "scratch": {"at": scratch, "size": 16 * _MIB},
        "model": 1,
        "model_at": at,
        "limits": {"core": 0, "nofile": 256, "fsize": 8 * _MIB},
        "drop_capabilities": True,
        "landlock": {
            "read": [*_readable(folder), "/proc"],
            "write": [scratch, "/dev"],
            "scoped": True,
        },
        "seccomp": {"sockets": ["unix"]},
    }


_OUTSIDE = _tried(
    internet="socket.socket()",
    netlink="socket.socket(socket.AF_NETLINK)",
    unix="socket.socket(socket.AF_UNIX)",
    other_model="read(data['other'])",
    own_model="read('/model/MLmodel')[:7]",
    write_model="write('/model/new', '')",
    above_model="os.listdir('/model/..')",
    shadow="read('/etc/shadow')",
    core_pattern="write('/proc/sys/kernel/core_pattern', '|/bin/true')",
    environment="write(os.__file__, '')",
    scratch="write('/scratch/new', 'x')",
    shared_memory="write('/dev/shm/new', 'x')",
    null="write('/dev/null', 'x')",
    too_much="write('/scratch/big', 'x' * (9 << 20))",
    everybody="os.kill(-1, 9)",
    processes="[one for one in os.listdir('/proc') if one.isdigit()]",
    mount="called('mount', None, b'/', None, 1 << 18, None)",
    namespaces="called('unshare', 0x20000000)",
    trace="called('ptrace', 0, 0, 0, 0)",
    root="os.setuid(0)",
    host="socket.sethostname('mine')",
    who="[os.getuid(), os.getgid(), os.getpid()]",
    where="os.getcwd()",
    files="[one for one in range(3, 256) if os.path.exists('/proc/self/fd/%d' % one)]",
    limits="list(__import__('resource').getrlimit(4))",
)
_SEEN = {
    "internet": "EPERM",
    "netlink": "EPERM",
    "unix": "done",
    "other_model": "ENOENT",
    "own_model": "flavors",
    "write_model": "EROFS",
    "above_model": "EACCES",
    "shadow": "ENOENT",
    "core_pattern": "EACCES",
    "environment": "EROFS",
    "scratch": 1,
    "shared_memory": 1,
    "null": 1,
    "too_much": "EFBIG",
    "everybody": "ESRCH",
    "processes": ["1"],
    "mount": "EPERM",
    "namespaces": "EPERM",
    "trace": "EPERM",
    "root": "EINVAL",
    "host": "EPERM",
    "who": [1000, 1000, 1],
    "where": "/scratch",
    "limits": [0, 0],
}


def _outer(folder: Path) -> dict[str, Any]:
    return {"namespaces": _ALL, "read": _readable(folder), "places": ["/model", "/scratch"]}


def test_a_forked_worker_with_everything_on_is_alone(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    own, other = model(tmp_path / "own", _OUTSIDE, _TRY), model(tmp_path / "other")
    outer = _outer(tmp_path)
    with Template(["ctypes"], python=python, cwd=tmp_path, outer=outer) as template:
        ready = template.ready()
        log = os.open(tmp_path / "worker.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        given = [mounts.detached(str(own)), log]
        order = {"confinement": _everything(tmp_path), "cwd": "/scratch", "log": 2}
        with template.worker(given, **order) as (talk, _):
            for one in given:
                os.close(one)
            _load_at_model(talk)
            found = talk.predict({"inputs": {"other": str(other / "MLmodel")}})

        assert template.hear() == {"exited": 1, "status": 0}
    assert len(found.pop("files")) == 1
    assert found == _SEEN
    assert (ready["pid"], ready["threads"]) == (1, 1)
    assert "alone" not in (tmp_path / "worker.log").read_text()


def test_a_fresh_worker_with_everything_on_is_as_alone_as_a_forked_one(tmp_path: Path) -> None:
    own, other = model(tmp_path / "own", _OUTSIDE, _TRY), model(tmp_path / "other")
    mount = mounts.detached(str(own))
    with _confined(tmp_path, _everything(tmp_path), (mount,), _outer(tmp_path)) as talk:
        os.close(mount)
        _load_at_model(talk)
        found = talk.predict({"inputs": {"other": str(other / "MLmodel")}})

    assert len(found.pop("files")) == 1
    assert found == _SEEN


def _load_at_model(talk: Talk) -> None:
    head = load_head(Path("/model"), code="/model/code")
    talk.ask(protocol.LOAD, head)


def test_landlock_alone_keeps_files_and_tcp_away(tmp_path: Path) -> None:
    body = _tried(
        secret="read(data)",
        internet="socket.socket().connect(('127.0.0.1', 9))",
        own="read(__file__)[:6]",
        elsewhere="write(data + '.new', '')",
        here="write('new', 'x')",
    )
    own = model(tmp_path / "own", body, _TRY)
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "scratch").mkdir()
    rules = {"read": [*_readable(tmp_path), str(own)], "write": [str(tmp_path / "scratch")]}
    with _confined(tmp_path, {"landlock": rules}) as talk:
        talk.load(own, data=str(own))
        found = talk.predict({"inputs": str(tmp_path / "secret")})

    assert found == {
        "secret": "EACCES",
        "internet": "EACCES",
        "own": "import",
        "elsewhere": "EACCES",
        "here": "EACCES",
    }


def test_limits_are_as_low_as_said_and_never_higher(tmp_path: Path) -> None:
    body = "import resource\nreturn [resource.getrlimit(one) for one in data]"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = {"nofile": most + 1, "core": 0, "nproc": 5000}
    with _confined(tmp_path, {"limits": limits}) as talk:
        talk.load(model(tmp_path / "model", body))
        which = [resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC]

        assert talk.predict({"inputs": which}) == [[most, most], [0, 0], [5000, 5000]]


def test_a_worker_joins_its_cgroups_by_descriptors_that_it_does_not_keep(tmp_path: Path) -> None:
    # What `cgroup.procs` is told: that this process joins.
    with (
        (tmp_path / "cgroup.procs").open("w") as procs,
        _confined(tmp_path, {"cgroups": [1]}, (procs.fileno(),)) as talk,
    ):
        talk.load(model(tmp_path / "model", "return os.listdir('/proc/self/fd')"))
        held = talk.predict({"inputs": []})

    assert (tmp_path / "cgroup.procs").read_text() == "0"
    # The socket, and the descriptor that lists them.
    assert len(held) == 5


@pytest.mark.parametrize(
    ("confinement", "why"),
    [
        ({"namespaces": ["mount", "user"], "scratch": {"at": "/nowhere"}}, "hold root"),
        ({"namespaces": ["mount"], "landlock": {"read": ["/"], "write": ["/proc/"]}}, "hold root"),
        ({"cgroups": [3]}, "index"),
        ({"limits": {"happiness": 1}}, "RLIMIT_HAPPINESS"),
        ({"model": 0, "model_at": "/tmp"}, "move_mount|syscall"),
    ],
)
def test_a_worker_that_cannot_be_confined_loads_nothing(
    tmp_path: Path, confinement: dict[str, Any], why: str
) -> None:
    path = model(tmp_path / "model", "return 1", f"open('{tmp_path}/loaded', 'w')")
    with (
        _confined(tmp_path, confinement) as talk,
        pytest.raises(Said, match=why) as raised,
    ):
        talk.load(path)

    assert raised.value.reason == "CONFINEMENT_FAILED"
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    "outer",
    [{"namespaces": ["paradise"]}, {"namespaces": ["mount"], "places": ["model"]}],
)
def test_a_root_that_cannot_be_made_is_no_place_for_models(
    tmp_path: Path, outer: dict[str, Any]
) -> None:
    python = small_environment(tmp_path / "environment")
    with Template([], python=python, cwd=tmp_path, outer=outer) as template:
        assert "no root" in template.hear()["unusable"]
    document = {"outer": outer}
    with worker(python, cwd=tmp_path, document=document) as (talk, _), pytest.raises(Said) as said:
        talk.load(model(tmp_path / "model"))

    assert said.value.reason == "CONFINEMENT_FAILED"


def test_how_a_worker_ended_is_told_through_its_namespace(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    ends = {"os._exit(7)": 7, "import ctypes; ctypes.string_at(0)": -11}
    rules = {"read": ["/"], "write": [str(tmp_path)]}
    confinement = {"namespaces": ["user", "mount", "pid"], "landlock": rules}
    with Template([], python=python, cwd=tmp_path) as template:
        template.ready()
        for number, (body, status) in enumerate(ends.items(), 1):
            with template.worker(confinement=confinement) as (talk, _):
                talk.load(model(tmp_path / str(number), body))
                talk.send((protocol.PREDICT, JSON, b'{"inputs": []}'))

                assert template.hear() == {"exited": number, "status": status}
        # Its first process is deaf to SIGTERM, and to all that it may ignore.
        body = f"import time\nopen('{tmp_path}/begun', 'w').close()\ntime.sleep(600)"
        with template.worker(confinement=confinement) as (talk, pid):
            talk.load(model(tmp_path / "deaf", body))
            # Who waits for it has nothing of what it has.
            assert len(list(Path(f"/proc/{pid}/fd").iterdir())) == 3
            template.say({"kill": 3, "signal": 15})

            assert template.hear() == {"exited": 3, "status": -15}
            assert talk.inbox.take() is None


def test_a_broker_mounts_for_workers_of_other_namespaces(tmp_path: Path) -> None:
    """As a daemon that is not root has it: its spawner has namespaces to mount in."""
    path = model(tmp_path / "model", "return os.listdir('/model/..') == os.listdir('/')")
    (tmp_path / "at").mkdir()
    program = (
        "import os, sys; sys.path.append(sys.argv[1])\n"
        "from envd_worker import broker\n"
        "import socket\n"
        "broker.enter()\n"
        "socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b'.'], "
        "[broker.detached(sys.argv[3])])\n"
        "sys.stdin.read()\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [str(Path(PROGRAM).parent), str(theirs.fileno()), str(path)]
        broker = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program, *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
        )
        _, (mount,), _, _ = socket.recv_fds(ours, 1, 1)
    rules = {"read": ["/"], "write": [str(tmp_path)]}
    confinement = {"namespaces": ["user", "mount"], "landlock": rules}
    confinement |= {"model": 1, "model_at": str(tmp_path / "at")}
    with _confined(tmp_path, confinement, (mount,)) as talk:
        os.close(mount)
        at = tmp_path / "at"
        loaded = talk.ask(protocol.LOAD, load_head(at, code=str(at / "code")))
    broker.communicate()

    assert loaded.head["pid"]
    assert broker.returncode == 0


def test_what_a_kernel_allows_is_told_in_one_line() -> None:
    output = subprocess.run(
        [sys.executable, "-I", "-B", PROGRAM, "probe"], capture_output=True, check=True
    ).stdout
    found = json.loads(output)

    assert output.count(b"\n") == 1
    assert set(found["namespaces"]) == set(_ALL)
    assert isinstance(found["landlock_abi"], int)
    assert found["root"] == (os.getuid() == 0)
    assert {"seccomp", "nested_proc", "detached_mounts", "brokered_mounts"} <= set(found)
