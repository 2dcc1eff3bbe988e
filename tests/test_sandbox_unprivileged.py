"""The same sandbox where envd is nobody's: no right of root's is needed for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from envd.config import Settings
from envd.run import memory
from envd.run.envd_worker import protocol
from envd.sandbox import bounds
from envd.sandbox.bounds import Ground, Room
from envd.sandbox.cgroups import NO_LIMITS, Limits
from envd.sandbox.tiers import Sandbox, judge, parsed
from tests import inmate
from tests.conftest import wait_for
from tests.worker_program import JSON, PROGRAM, Talk, load_head, model, small_environment

_NOBODY: dict[str, Any] = (
    {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
)
_TRY = f"{inmate.HELPERS}\n"
_BODY = "return {key: tried(code) for key, code in data.items()}"


@dataclass(frozen=True)
class Yard:
    """A folder that anybody may read: an environment, two models, and envd's own program."""

    folder: Path
    python: Path
    program: str
    ground: Ground

    def start(self, argv: Sequence[str], *given: socket.socket | int) -> subprocess.Popen[bytes]:
        """Start a program of envd's as nobody, with the descriptors *given*."""
        numbers = [one if isinstance(one, int) else one.fileno() for one in given]
        names = {f"{{{place}}}": str(one) for place, one in enumerate(numbers)}
        return subprocess.Popen(
            [names.get(one, one) for one in argv],
            pass_fds=numbers,
            env={"HOME": "/tmp", "TMPDIR": "/tmp"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **_NOBODY,
        )

    @contextlib.contextmanager
    def mount(self, path: Path) -> Iterator[int]:
        """A mount of *path*, from a broker."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            broker = self.start([str(self.python), "-I", "-S", "-B", self.program, "broker",
                                 "{0}"], theirs)  # fmt: skip
            theirs.close()
            ours.send(os.fsencode(path))
            said, descriptors, _, _ = socket.recv_fds(ours, 1 << 12, 1)
            assert descriptors, said
        broker.wait()
        try:
            yield descriptors[0]
        finally:
            os.close(descriptors[0])

    def steps(self, limits: Limits = Limits()) -> dict[str, Any]:  # noqa: B008
        """Return what confines a worker, whose model is the second descriptor."""
        steps = self.ground.worker(limits, network=False, scratch=Path("/tmp"))
        return steps | {"model": 1}


@pytest.fixture(scope="module")
def yard() -> Iterator[Yard]:
    folder = Path(tempfile.mkdtemp(prefix="envd-yard."))
    try:
        folder.chmod(0o755)
        system = Path("/usr/bin/python3")
        python = (system if system.exists() else Path(sys._base_executable)).resolve()
        environment = small_environment(folder / "environment", python, tiny_a="VERSION = '1.0'\n")
        program = str(shutil.copytree(PROGRAM, folder / "envd_worker"))
        for name in ("one", "two"):
            model(folder / name, _BODY, _TRY)
        with pytest.MonkeyPatch.context() as patch:
            # What a test's own user may not read.
            patch.setattr(bounds, "PROGRAM", program)
            patch.setattr(sys, "executable", str(python))
            settings = Settings(folder / "root")
            sandbox = Sandbox(2, 2)
            ground = Ground(folder / "environment", python, sandbox, settings)
            yield Yard(folder, environment, program, ground)
    finally:
        shutil.rmtree(folder)


def _predict(talk: Talk, **what: str) -> dict[str, Any]:
    answer = talk.ask(protocol.PREDICT, JSON, json.dumps({"inputs": what}).encode())
    found: dict[str, Any] = json.loads(answer.payload)["predictions"]
    return found


def _load(talk: Talk) -> None:
    talk.ask(protocol.LOAD, load_head(Path("/model"), code="/model/code"))


@contextlib.contextmanager
def _fresh(yard: Yard, limits: Limits = Limits()) -> Iterator[tuple[Talk, int]]:  # noqa: B008
    ours, theirs = socket.socketpair()
    argv = [str(yard.python), "-I", "-B", yard.program, "serve", "{0}"]
    document = {"is_worker": True, "confinement": yard.steps(limits)}
    document["outer"] = yard.ground.outer(network=False)
    with ours, theirs, yard.mount(yard.folder / "one") as mount:
        process = yard.start(bounds.confined(argv, document, ["{0}", "{1}"]), theirs, mount)
        theirs.close()
        talk = Talk(ours)
        _load(talk)
        yield talk, process.pid
    assert process.wait(60) == 0


def test_nobody_can_have_everything(yard: Yard) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = yard.start([str(yard.python), "-I", "-S", "-B", yard.program, "probe", "{0}"],
                             theirs)  # fmt: skip
        process.wait()
        found = parsed(ours.recv(1 << 16))

    assert found["all"]
    assert found["root"] == (os.getuid() == 0 and not _NOBODY)
    assert judge(yard.ground.settings, found).best == 2


def test_a_worker_of_nobodys_is_as_alone_as_one_of_roots(yard: Yard, tmp_path: Path) -> None:
    with inmate.outside(tmp_path / "outside") as outside, _fresh(yard) as (talk, pid):
        attempts = outside.attempts(tmp_path / "root")
        found = _predict(talk, **attempts)
        own = _predict(
            talk,
            who="os.getuid()",
            processes="[one for one in os.listdir('/proc') if one.isdigit()]",
            here="write('/tmp/here')",
            model="read('/model/MLmodel')[:7]",
            above="os.listdir('/model/..') == os.listdir('/')",
            other=f"read({str(yard.folder / 'two' / 'MLmodel')!r})",
        )
        taken = memory.taken(pid)

        assert outside.got == []
    refused = {"ENOENT", "ESRCH", "ECONNREFUSED", "EACCES", "EPERM", "EROFS", "EINVAL",
               "ENETUNREACH"}  # fmt: skip
    assert {name: one for name, one in found.items() if one not in refused} == {}
    uid = _NOBODY.get("user", os.getuid())
    assert own == {
        "who": uid, "processes": ["1"], "here": 1, "model": "flavors", "above": True,
        "other": "ENOENT",
    }  # fmt: skip
    # The memory of all three: who waits outside, who waits inside, and the worker.
    assert taken > 5 << 20


def test_without_cgroups_resource_limits_hold_a_worker(yard: Yard) -> None:
    with _fresh(yard, Limits(memory=300 << 20, processes=10)) as (talk, _):
        found = _predict(talk, many="children(30)", much="len(bytearray(400 << 20))", one="1 + 1")

    assert found == {"many": "EAGAIN", "much": "MemoryError()", "one": 2}


def test_forked_workers_of_nobodys_are_kept_from_each_other(yard: Yard) -> None:
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.settimeout(60)
    (yard.folder / "template.json").write_text(json.dumps({"modules": [], "is_inside": True}))
    argv = [str(yard.python), "-I", "-B", yard.program, "template", "{0}", "{1}"]
    document = {"passed": 2, "outer": yard.ground.outer(network=False), "cwd": "/tmp"}
    log = os.open(os.devnull, os.O_WRONLY)
    with control, theirs, contextlib.ExitStack() as stack:
        file = stack.enter_context((yard.folder / "template.json").open())
        argv = bounds.confined(argv, document, ["{0}", "{1}"])
        process = yard.start(argv, theirs, file.fileno())
        assert json.loads(control.recv(1 << 16))["ready"]
        talks, pids = [], []
        for number, name in enumerate(("one", "two"), 1):
            ours, worker = socket.socketpair()
            mount = stack.enter_context(yard.mount(yard.folder / name))
            given = [worker.fileno(), mount, log]
            order = {"start": number, "log": 2, "env": {"HOME": "/tmp"}, "cwd": "/tmp",
                     "given": 3, "confinement": yard.steps()}  # fmt: skip
            socket.send_fds(control, [json.dumps(order).encode()], given)
            started = json.loads(control.recv(1 << 16))
            worker.close()
            talks.append(Talk(stack.enter_context(ours)))
            _load(talks[-1])
            pids.append(memory.inside(process.pid, started["pid"]))
        one, two = talks
        address = _predict(one, at="ctypes.addressof(KEPT)", file="write('/tmp/mine')")["at"]
        # As it is called outside, and by their template.
        found = _predict(
            two,
            mine="read('/tmp/mine')",
            **{
                f"{name} {pid}": code
                for pid in (*pids, *range(2, 8))
                for name, code in {
                    "memory": f"from_memory({pid}, {address})",
                    "call": f"by_call({pid}, {address})",
                    "trace": f"called('ptrace', 16, {pid}, 0, 0)",
                    "signal": f"os.kill({pid}, 9)",
                }.items()
            },
        )
        same = _predict(two, at="ctypes.addressof(KEPT)")["at"]

        assert set(found.values()) <= {"ENOENT", "ESRCH", "EPERM", "EACCES"}
        assert same == address
        assert all(pids)
        assert all(memory.taken(one) > 0 for one in pids)
        assert _predict(one, alive="1") == {"alive": 1}
    os.close(log)
    process.wait(60)
    wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in pids), 10)


@pytest.mark.parametrize("links", [True, False])
def test_a_build_of_nobodys_is_kept_to_its_room(yard: Yard, tmp_path: Path, *, links: bool) -> None:
    root = yard.folder / f"root-{links}"
    work = root / "work"
    for one in (root, work, root / "other", root / "cache"):
        one.mkdir()
        os.chown(one, *(_NOBODY.get(name, os.getuid()) for name in ("user", "group")))
    (root / "other" / "file").write_text("another's")
    room = Room((yard.folder / "environment",), (work, root / "cache"), network=True, links=links)
    settings = Settings(root)
    document = bounds.built(settings, Sandbox(2, 2), room, NO_LIMITS)
    code = (
        f"{inmate.HELPERS}\nimport json\n"
        "attempts = json.loads(sys.argv[1])\n"
        "write('result', json.dumps({key: tried(code) for key, code in attempts.items()}))"
    )
    with inmate.outside(tmp_path / "outside") as outside:
        attempts = (
            {"write": "write('result')"}
            | outside.attempts(root)
            | {
                "other": f"read({str(root / 'other' / 'file')!r})",
                "link": f"os.link({str(work / 'result')!r}, {str(root / 'cache' / 'linked')!r})",
                "mode of another's": f"os.chmod({str(root / 'other')!r}, 0o777)",
                "at home": f"write({bounds.home(settings)!r} + '/new')",
                "processes": "sorted(one for one in os.listdir('/proc') if one.isdigit())",
            }
        )
        for name in ("model", "module", "environment"):
            attempts.pop(name)
        argv = [str(yard.python), "-I", "-S", "-c", code, json.dumps(attempts)]
        argv = bounds.confined(argv, document | {"passed": 0, "cwd": str(work)}, [])
        assert yard.start(argv).wait(60) == 0
        found = json.loads((work / "result").read_text())

        assert sorted(outside.got) == [b"from inside"] * 2
    mine = {name: found.pop(name) for name in ("at home", "processes", "write", "netlink")}
    assert mine == {"at home": 1, "processes": ["1"], "write": 1, "netlink": "done"}
    # Who may link runs nothing that is to be kept from the modes of files.
    both = found.pop("link"), found.pop("mode of another's")
    assert both == (("done", "done") if links else ("EXDEV", "ENOENT"))
    assert {found.pop("tcp"), found.pop("udp")} == {11}
    refused = {"ENOENT", "ESRCH", "ECONNREFUSED", "EACCES", "EPERM", "EROFS", "EINVAL"}
    assert {name: one for name, one in found.items() if one not in refused} == {}
    # It belongs to whoever built it.
    assert (work / "result").stat().st_uid == _NOBODY.get("user", os.getuid())
