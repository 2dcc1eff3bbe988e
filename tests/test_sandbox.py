"""What a model cannot do in a sandbox, tried for real from inside of its worker."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from envd_client.errors import EnvdError, WorkerDiedError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from envd.config import Settings
from envd.errors import SettingsInvalidError
from envd.sandbox import bounds
from envd.sandbox.tiers import is_wanted, judge
from envd.settings.sections import Security, Workers
from envd.settings.served import Served
from tests import inmate
from tests.conftest import Daemon, Envctl, is_running, launch, stop, wait_for
from tests.inmate import Outside, ask
from tests.tiny import Tiny


@dataclass
class Prison:
    """A daemon of one tier, and models in it: the first is fresh, the others are forked."""

    daemon: Daemon
    tier: int
    fresh: Path
    forked: Path
    other: Path


@pytest.fixture(scope="module", params=[2, 1])
def prison(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    home: Path,
    tiny: Tiny,
    device: str,
) -> Iterator[Prison]:
    folder = tmp_path_factory.mktemp(f"tier{request.param}")
    limited = inmate.model(tiny, folder / "limited")
    (folder / "envd.toml").write_text(
        f"""
        [models.limited]
        uri = "{limited}"
        memory_limit = "200MiB"
        cpu_limit = 1.5
        process_limit = 20
        time_limit = "1s"
        [models.online]
        uri = "{inmate.model(tiny, folder / "online")}"
        network = true
        """
    )
    (folder / "readable").mkdir()
    (folder / "readable" / "file").write_text("for all")
    settings = tiny.settings | {
        "ENVD_CONFIG": str(folder / "envd.toml"),
        "ENVD_SECURITY__SANDBOX": str(request.param),
        "ENVD_WORKERS__SCRATCH": "8MiB",
        "ENVD_WORKERS__READABLE": str(folder / "readable"),
        "ENVD_WORKERS__DEVICES": f"{device[:-1]}*",
    }
    daemon = launch(folder / "root", home, **settings)
    try:
        names = ("fresh", "forked", "other")
        models = [inmate.model(tiny, folder / name) for name in names]
        # What only its owner may read is read by whoever runs it.
        for path in (models[0], *models[0].rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
        with daemon.client() as client:
            origins = [client.predict(one, {"inputs": {}}).worker_origin for one in models]
        assert origins == ["fresh", "forked", "forked"]
        yield Prison(daemon, request.param, *models)
    finally:
        stop(daemon)


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    """A device of the machine's, which is a second /dev/null."""
    if os.getuid():
        # Others may make none.
        yield "/dev/null"
        return
    path = Path(f"/dev/envd-test-{os.getpid()}-0")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    path.chmod(0o666)
    yield str(path)
    path.unlink()


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with inmate.outside(tmp_path_factory.mktemp("outside") / "home") as found:
        yield found


# Errors that say that there is no such thing, and that it may not be had.
_NOTHING = ("ENOENT", "ESRCH", "ECONNREFUSED", "ENETUNREACH")
_REFUSED = ("EACCES", "EPERM", "EROFS", "EINVAL")


def test_health_answers_for_the_tiers(prison: Prison) -> None:
    with grpc.insecure_channel(f"unix:{prison.daemon.root}/predict.sock") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        found = [
            stub.Check(health_pb2.HealthCheckRequest(service=f"sandbox/{tier}")).status
            for tier in (1, 2)
        ]

    status = health_pb2.HealthCheckResponse
    second = status.SERVING if prison.tier > 1 else status.NOT_SERVING
    assert found == [status.SERVING, second]


@pytest.mark.parametrize("which", ["fresh", "forked"])
def test_nothing_outside_is_read_written_signalled_or_talked_to(
    prison: Prison, outside: Outside, which: str
) -> None:
    attempts = outside.attempts(prison.daemon.root)
    with prison.daemon.client() as client:
        env_id = client.predict(prison.fresh, {"inputs": {}}).environment_id
        found = ask(client, getattr(prison, which), **attempts)

    assert outside.got == []
    assert not (outside.folder / "new").exists()
    if prison.tier == 2:
        # The folders in which its environment lies, and what they hold of it.
        seen = {name: found.pop(name) for name in ("root", "environments")}
        assert seen == {"root": ["environments"], "environments": [env_id]}
        # Of what it is kept from, it does not even see that it is there.
        unseen = {name for name, one in found.items() if one in _NOTHING}
        hidden = {"file", "home", "shadow", "locks", "unix", "admin", "signal", "everybody"}
        assert unseen >= hidden | {"memory", "environ"}
    else:
        # Nobody was hit.
        assert found.pop("everybody") == "done"
    assert {name: one for name, one in found.items() if one not in _NOTHING + _REFUSED} == {}


@pytest.mark.parametrize("which", ["fresh", "forked"])
def test_a_worker_has_what_it_needs_and_nothing_of_the_daemons(prison: Prison, which: str) -> None:
    with prison.daemon.client() as client:
        found = ask(
            client,
            getattr(prison, which),
            files="descriptors()",
            variables="dict(os.environ)",
            who="[os.getuid(), os.geteuid(), os.getgid(), os.getgroups()]",
            may="[one.split()[1] for one in open('/proc/self/status') if one.startswith('CapE')]",
            here="write('here')",
            home="write(os.path.expanduser('~/here'))",
            pair="socket.socketpair() and 'done'",
            child="subprocess.run([sys.executable, '-c', 'import tiny_a']).returncode",
            core="__import__('resource').getrlimit(4)",
        )

    files = found.pop("files")
    assert {files.pop(one).partition("worker-")[0] for one in "012"} == {
        "/dev/null", f"{prison.daemon.root}/logs/",
    }  # fmt: skip
    # Its own, and that which lists them.
    (left,) = (one for one in files.values() if not one.startswith("/proc/"))
    assert left.startswith("socket:")
    variables = {"PATH", "VIRTUAL_ENV", "HOME", "TMPDIR", "LANG", "MLFLOW_DISABLE_TELEMETRY"}
    more = {1: {"JOBLIB_MULTIPROCESSING"}, 2: {"LOGNAME"}}[prison.tier]
    assert set(found.pop("variables")) - {"LC_CTYPE"} == variables | more
    uid, effective, gid, groups = found.pop("who")
    assert (effective, gid) == (uid, uid) or os.getuid()
    # Of root's own daemon: in namespaces it is somebody else, elsewhere it has no capability.
    assert uid != 0 or prison.tier == 1
    assert not groups or prison.tier == 1
    assert found.pop("may") == ["0" * 16]
    assert found == {"here": 1, "home": 1, "pair": "done", "child": 0, "core": [1, 1]}


@pytest.mark.parametrize("which", ["fresh", "forked"])
def test_a_worker_is_alone_in_its_namespaces(prison: Prison, which: str) -> None:
    with prison.daemon.client() as client:
        found = ask(
            client,
            getattr(prison, which),
            processes="sorted(map(int, filter(str.isdigit, os.listdir('/proc'))))",
            network="os.listdir('/sys/class/net') + open('/proc/net/dev').read().split()[-17:-16]",
            shared="write('/dev/shm/one')",
            big="len([write('big%d' % one, 'x' * 1000000) for one in range(20)])",
            again="write('small')",
            many="len([write('many%d' % one, '') for one in range(10000)])",
        )

    if prison.tier == 1:
        # What it cannot: it sees which processes there are, and fills the disk.
        assert prison.daemon.pid in found["processes"]
        assert (found["shared"], found["big"], found["many"]) == ("EACCES", 20, 10000)
        return
    assert found["processes"] == [1]
    assert found["shared"] == 1
    assert found["big"] == found["again"] == found["many"] == "ENOSPC"


def test_settings_open_paths_and_devices_to_all_and_the_network_to_one(
    prison: Prison, outside: Outside, device: str
) -> None:
    given = repr(str(prison.fresh.parent / "readable"))
    tcp, udp = outside.tcp.getsockname(), outside.udp.getsockname()
    with prison.daemon.client() as client:
        found = {
            name: ask(
                client,
                name if name == "online" else getattr(prison, name),
                read=f"read({given} + '/file')",
                write=f"write({given} + '/file')",
                device=f"write({device!r})",
                other="write('/dev/kmsg')",
                tcp=f"sent('AF_INET', 'SOCK_STREAM', {tcp!r})",
                udp=f"sent('AF_INET', 'SOCK_DGRAM', {udp!r})",
                unix=f"sent('AF_UNIX', 'SOCK_STREAM', {str(outside.folder / 'socket')!r})",
                abstract=f"sent('AF_UNIX', 'SOCK_STREAM', {outside.abstract.getsockname()!r})",
            )
            for name in ("fresh", "forked", "online")
        }
        origins = {Path(one.model).name: one.origin for one in client.list_workers()}

    for name, one in found.items():
        assert (one["read"], one["device"]) == ("for all", 1)
        kept = {one["write"], one["other"], one["unix"], one["abstract"]}
        assert kept <= {*_NOTHING, *_REFUSED}
        sent = {one["tcp"], one["udp"]}
        assert sent == {11} if name == "online" else sent <= {*_NOTHING, *_REFUSED}
    assert outside.got == [b"from inside"] * 2
    # The templates of a daemon without a network have none.
    assert origins["online"] != origins["forked"]


def test_siblings_of_one_template_cannot_reach_each_other(prison: Prison) -> None:
    with prison.daemon.client() as client:
        known = {Path(one.model).name: one.pid for one in client.list_workers()}
        one = ask(
            client,
            prison.other,
            pid="os.getpid()",
            address="ctypes.addressof(KEPT)",
            folder="os.path.expanduser('~')",
            file="write('mine', 'the secret')",
            shared="write('/dev/shm/mine', 'the secret')",
            abstract="listen('sibling')",
        )
        # As the other is called outside, and may be called by itself and by their template.
        pids = {known["other"], one["pid"], *range(2, 9)} - {1}
        attacks = {
            f"{name} {pid}": code.format(pid=pid, address=one["address"])
            for pid in pids
            for name, code in {
                "memory": "from_memory({pid}, {address})",
                "call": "by_call({pid}, {address})",
                "trace": "called('ptrace', 16, {pid}, 0, 0)",
                "signal": "os.kill({pid}, 9)",
            }.items()
        }
        found = ask(
            client,
            prison.forked,
            mine=f"read({one['folder']!r} + '/mine')",
            shared="read('/dev/shm/mine')",
            abstract="sent('AF_UNIX', 'SOCK_STREAM', '\\0sibling')",
            model=f"read({str(prison.other / 'MLmodel')!r})",
            **attacks,
        )
        still = ask(client, prison.other, pid="os.getpid()", kept="read('mine')")

    assert one["file"] == 10
    made = (one["abstract"], one["shared"])
    assert made == {2: ("done", 10), 1: ("EPERM", "EACCES")}[prison.tier]
    assert still == {"pid": one["pid"], "kept": "the secret"}
    assert {name: one for name, one in found.items() if one not in _NOTHING + _REFUSED} == {}


def test_what_a_worker_leaves_ends_with_it(prison: Prison, tiny: Tiny, tmp_path: Path) -> None:
    mark = f"left-{tmp_path.name}-{prison.tier}"
    model = inmate.model(tiny, tmp_path / "model")
    with prison.daemon.client() as client:
        ask(client, model, left=f"left_behind({mark!r})")
        wait_for(lambda: inmate.is_anywhere(mark))
        with pytest.raises(WorkerDiedError):
            ask(client, model, end="os._exit(3)")

        wait_for(lambda: not inmate.is_anywhere(mark), 10)


def test_its_pid_is_known_outside_and_its_memory_is_measured(prison: Prison) -> None:
    with prison.daemon.client() as client:
        ask(client, prison.forked, alive="1")
        workers = list(client.list_workers())

    assert len(workers) >= 3
    for one in workers:
        assert one.sandbox == prison.tier
        assert Path(f"/proc/{one.pid}").exists()


def test_a_worker_takes_no_more_than_it_may(prison: Prison) -> None:
    document = json.loads((prison.daemon.root / "daemon.json").read_text())
    if not document["sandbox"]["cgroups"]:
        pytest.skip("envd may make no cgroups here")
    with prison.daemon.client() as client:
        client.load_model("limited")
        found = ask(client, "limited", many="children(30)", one="write('one')")
        (pid,) = (one.pid for one in client.list_workers() if "limited" in one.model)
        lines = Path(f"/proc/{_innermost(pid)}/cgroup").read_text().splitlines()
        groups = {line.split(":")[1]: line.split(":")[2] for line in lines}
        with pytest.raises(WorkerDiedError, match="more memory than it may"):
            ask(client, "limited", much="len(bytearray(400 << 20))")
        # It is replaced, and others never heard of it.
        client.load_model("limited")
        with pytest.raises(EnvdError, match="time_limit") as late:
            ask(client, "limited", late="time.sleep(600)")

        assert ask(client, prison.forked, one="1") == {"one": 1}
    assert found == {"many": "EAGAIN", "one": 1}
    assert late.value.code.name == "DEADLINE_EXCEEDED"
    # In a user namespace processes are counted without one.
    for controller in ("cpu", "memory", *(["pids"] if prison.tier == 1 else [])):
        assert groups[controller].rpartition("/")[2].startswith("envd.")
    quota = Path("/sys/fs/cgroup/cpu", groups["cpu"].lstrip("/"), "cpu.cfs_quota_us")
    wait_for(lambda: not quota.exists(), 20)


def _innermost(pid: int) -> int:
    """Return the process that a worker is in the end, whoever waits for it outside."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        name = Path(f"/proc/{children[0]}/comm").read_text().strip()
        if name == "sleep":
            break
        pid = int(children[0])
    return pid


def test_a_killed_spawner_leaves_nobody(
    prison: Prison, home: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """In namespaces nothing outlives it; elsewhere what has left its worker's group may."""
    root, mark = tmp_path / "root", f"orphan-{tmp_path.name}-{prison.tier}"
    settings = tiny.settings | {"ENVD_SECURITY__SANDBOX": str(prison.tier)}
    daemon = launch(root, home, **settings)
    try:
        models = [inmate.model(tiny, tmp_path / name) for name in ("one", "two")]
        with daemon.client() as client:
            for one in models:
                ask(client, one, left=f"left_behind({mark!r})")
            workers = [one.pid for one in client.list_workers()]
        wait_for(lambda: inmate.is_anywhere(mark))
        (spawner,) = _children(daemon.pid)
        os.kill(spawner, signal.SIGKILL)

        wait_for(lambda: not any(map(is_running, workers)), 10)
        if prison.tier == 2:
            wait_for(lambda: not inmate.is_anywhere(mark), 10)
    finally:
        stop(daemon)
        inmate.end_all(mark)


def _children(pid: int) -> list[int]:
    return [
        int(one)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for one in (task / "children").read_text().split()
    ]


def _without_namespaces(argv: list[str]) -> list[str]:
    """Return the command that runs *argv* where there are no namespaces to be had."""
    sockets = {"sockets": ["unix", "ipv4", "netlink"]}
    document = {"passed": 0, "confinement": {"seccomp": sockets}}
    return bounds.confined(argv, document, [])


@pytest.mark.parametrize("profile", ["strict", "standard"])
def test_a_machine_without_namespaces_is_refused_or_has_a_lower_tier(
    envctl: Envctl, tiny: Tiny, tmp_path: Path, profile: str
) -> None:
    argv = _without_namespaces([f"{Path(sys.executable).parent}/envd"])
    env = envctl.env | {"ENVD_SECURITY__PROFILE": profile, "ENVD_MODELS__ROOTS": str(tmp_path)}
    process = subprocess.Popen(
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    daemon = Daemon(envctl.root, process)
    try:
        if profile == "strict":
            _, said = process.communicate(timeout=30)
            assert process.returncode == 2
            assert "sandbox 2 is wanted" in said
            assert "namespaces (cgroup, ipc, mount, net, pid, user, uts)" in said
            assert not (envctl.root / "daemon.json").exists()
            return
        assert process.stdout is not None
        assert process.stdout.readline().startswith("envd ")
        with daemon.client() as client:
            found = ask(
                client, inmate.model(tiny, tmp_path / "model"), shadow="read('/etc/shadow')"
            )
        document = json.loads((envctl.root / "daemon.json").read_text())

        assert found == {"shadow": "EACCES"}
        assert (document["sandbox"]["tier"], document["sandbox"]["best"]) == (1, 1)
        assert any("namespaces" in one for one in document["sandbox"]["missing"])
    finally:
        stop(daemon)


def _found(**changed: Any) -> dict[str, Any]:
    everything: dict[str, Any] = {
        "landlock_abi": 7, "seccomp": True, "namespaces": {"user": True, "net": True},
        "nested_proc": True, "detached_mounts": True, "brokered_mounts": True, "all": True,
    }  # fmt: skip
    return everything | changed


@pytest.mark.parametrize(
    ("profile", "sandbox", "found", "expected"),
    [
        ("dev", "auto", _found(), 0),
        ("standard", "auto", _found(), 2),
        ("strict", "auto", _found(), 2),
        ("dev", "2", _found(), 2),
        ("standard", "1", _found(), 1),
        ("standard", "0", _found(), 0),
        ("standard", "auto", _found(all=False), 1),
        ("standard", "auto", _found(landlock_abi=5), 0),
        ("standard", "auto", _found(seccomp=False), 0),
        ("strict", "auto", _found(all=False, nested_proc=False), "a /proc within another"),
        ("strict", "auto", _found(all=False), "all of it together"),
        ("strict", "auto", _found(landlock_abi=5), "landlock 6 .it has 5."),
        ("strict", "1", _found(), "is sandbox 2"),
        ("standard", "2", _found(all=False), "sandbox 2 is wanted"),
        ("dev", "1", _found(landlock_abi=0), "sandbox 1 is wanted"),
    ],
)
def test_the_tier_is_what_the_settings_want_and_the_machine_has(
    tmp_path: Path, profile: Any, sandbox: Any, found: dict[str, Any], expected: int | str
) -> None:
    settings = Settings(tmp_path, security=Security(profile=profile, sandbox=sandbox))
    if isinstance(expected, int):
        assert judge(settings, found).tier == expected
        return
    with pytest.raises(SettingsInvalidError, match=expected):
        judge(settings, found)


def test_a_python_at_home_makes_nothing_else_readable_there(tmp_path: Path) -> None:
    python = tmp_path / ".local" / "bin" / "python3.12"
    for one in (python, tmp_path / ".local" / "share" / "keyrings" / "secret"):
        one.parent.mkdir(parents=True)
        one.touch()
    (tmp_path / ".local" / "lib").mkdir()

    found = bounds.of_interpreter(python)
    assert found == [str(python), str(tmp_path / ".local" / "lib")]
    assert bounds.of_interpreter(Path("/usr/bin/python3")) == []


def test_a_network_that_cannot_be_off_is_not_said_to_be(tmp_path: Path) -> None:
    own = (Served("model", network=False),)
    for settings in (
        Settings(tmp_path, workers=Workers(network="off")),
        Settings(tmp_path, served=own),
    ):
        assert is_wanted(settings)
        with pytest.raises(SettingsInvalidError, match=r"workers\.network"):
            judge(settings, _found())
    assert judge(Settings(tmp_path, security=Security(sandbox="1"), served=own), _found()).tier


def test_workers_of_root_are_a_user_that_is_there_and_not_root(tmp_path: Path) -> None:
    for name in ("root", "nobody-of-that-name"):
        settings = Settings(tmp_path, security=Security(sandbox="2", user=name))
        if os.getuid() == 0:
            with pytest.raises(SettingsInvalidError, match=r"security\.user"):
                judge(settings, _found())
