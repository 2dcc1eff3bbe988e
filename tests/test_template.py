"""A template forks workers that answer as fresh ones do, or says that it cannot."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envd import config
from envd.build import Interpreters
from envd.run.envd_worker import protocol
from tests.conftest import is_running, wait_for
from tests.worker_program import JSON, Said, Template, model, small_environment, worker

# What a model can see of the process it is in.
_SEEN = """
import gc, resource, signal, tempfile, threading
def kind(fd):
    try:
        return os.readlink('/proc/self/fd/' + fd).split('[')[0]
    except OSError:
        return ''
return {
    'path': sys.path,
    'argv': sys.argv[:2],
    'flags': list(sys.flags),
    'environ': dict(os.environ),
    'cwd': os.getcwd(),
    'temporary': tempfile.gettempdir(),
    'signals': {str(one): str(signal.getsignal(one)) for one in range(1, 65)},
    'mask': sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    'leads': [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()],
    'files': sorted(filter(None, map(kind, os.listdir('/proc/self/fd')))),
    'inheritable': [one for one in range(3, 20) if is_open(one) and os.get_inheritable(one)],
    'collects': gc.isenabled(),
    'threads': [threading.active_count(), len(os.listdir('/proc/self/task'))],
    'limits': [resource.getrlimit(one) for one in range(16)],
    'printed': [type(sys.stdout.buffer.raw).__name__, sys.stdout.errors, sys.stdout.encoding],
}
"""
_IS_OPEN = """
def is_open(number):
    return os.path.exists('/proc/self/fd/%d' % number)
"""
_CONFINED = {"confinement": {"landlock": {"scoped": True}, "limits": {"core": 0}}}
_SETS = """
import os, tempfile
os.environ['SET_BY_IMPORT'] = 'yes'
os.environ.pop('DROPPED_BY_IMPORT', None)
tempfile.gettempdir()
"""


def _pythons(tmp: Path) -> list[Path]:
    found = Interpreters(config.load(root=tmp, environ={})).found()
    return list({one.python.minor: one.path for one in found}.values())


def test_a_forked_worker_sees_what_a_fresh_one_sees_on_every_python(tmp_path: Path) -> None:
    path = model(tmp_path / "model", _SEEN, f"import setting\n{_IS_OPEN}")
    env = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "LANG": "C.UTF-8"}
    env["DROPPED_BY_IMPORT"] = "yes"
    log = tmp_path / "worker.log"
    pythons = _pythons(tmp_path / "root")

    for place, base in enumerate(pythons):
        python = small_environment(tmp_path / f"environment-{place}", base, setting=_SETS)
        with worker(python, cwd=tmp_path, env=env, log=log, document=_CONFINED) as (talk, _):
            told = talk.load(path)["modules"]
            fresh = talk.predict({"inputs": [1]})
        with Template(told, python=python, cwd=tmp_path, env=env) as template:
            ready = template.ready()
            with template.worker(env=env, **_CONFINED) as (talk, _):
                loaded = talk.load(path)
                forked = talk.predict({"inputs": [1]})

        assert told == ["setting"], base
        assert loaded["modules"] == []
        assert {"setting", "envd_worker"} <= set(ready["modules"])
        assert ready["threads"] == 1
        assert fresh["environ"].pop("SET_BY_IMPORT") == "yes"
        assert forked["environ"].pop("SET_BY_IMPORT") == "yes"
        assert forked == fresh, base
    assert pythons


def test_modules_are_told_in_order_and_those_of_the_first_answer_after_it(tmp_path: Path) -> None:
    python = small_environment(
        tmp_path / "environment", first="", second="import first", late="", never=""
    )
    path = model(tmp_path / "model", "import late, local\nreturn 1", "import second", local="")
    with worker(python, cwd=tmp_path) as (talk, _):
        loaded = talk.load(path)
        answers = [talk.ask(protocol.PREDICT, JSON, b'{"inputs": [1]}') for _ in range(2)]

    assert loaded["modules"] == ["second", "first"]
    assert loaded["seconds"] > 0
    assert [one.head.get("modules") for one in answers] == [["late"], None]


def test_each_fork_draws_numbers_of_its_own(tmp_path: Path) -> None:
    drawing = "import numpy, random\nreturn [numpy.random.random(), random.random()]"
    path = model(tmp_path / "model", drawing)
    drawn = []
    python = small_environment(tmp_path / "environment", packages=["numpy", "numpy.libs"])
    with Template(["numpy", "random"], python=python, cwd=tmp_path) as template:
        template.ready()
        for _ in range(2):
            with template.worker() as (talk, _):
                talk.load(path)
                drawn += talk.predict({"inputs": []})

    assert len(set(drawn)) == 4


_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(600,), name="ticker", daemon=True).start()
"""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            _THREAD,
            "threads: ticker",
        ),
        ("import _thread, time\n_thread.start_new_thread(time.sleep, (600,))", "the system's"),
    ],
)
def test_a_template_with_threads_is_none(tmp_path: Path, text: str, why: str) -> None:
    python = small_environment(tmp_path / "environment", threaded=text)
    with Template(["threaded"], python=python, cwd=tmp_path) as template:
        said = template.hear()

        assert why in said["unusable"]
        assert template.control.recv(1) == b""


def test_what_cannot_be_imported_is_left_out(tmp_path: Path) -> None:
    python = small_environment(
        tmp_path / "environment",
        broken="import nowhere",
        leaving="import sys; sys.exit(3)",
        good="",
    )
    with Template(["broken", "leaving", "good"], python=python, cwd=tmp_path) as template:
        ready = template.ready()

    assert "good" in ready["modules"]
    assert not {"broken", "leaving"} & set(ready["modules"])


# What a model does, by what its environment has, that a fork would do otherwise.
_LIBRARIES = {
    "joblib": "WHOSE = 'the environment'",
    "unused": "",
    "library": "try:\n    import faster as chosen\nexcept ImportError:\n    chosen = None\n",
}


@pytest.mark.parametrize(
    ("top", "modules", "why"),
    [
        ("import joblib", {"joblib": "WHOSE = 'the model'"}, "joblib"),
        ("", {"unused": ""}, "unused"),
        ("import library", {"faster": ""}, "faster"),
        ("sys.path.insert(0, os.path.dirname(__file__) + '/../more')", {}, "joblib"),
        ("sys.path.append(__file__)", {}, "the import path"),
        ("os.environ['KERAS_BACKEND'] = 'torch'", {}, "KERAS_BACKEND"),
        ("os.environ.pop('GIVEN')", {}, "GIVEN"),
        ("raise ValueError('it cannot')", {}, "it cannot"),
    ],
)
def test_what_a_fork_could_answer_otherwise_needs_a_fresh_worker(
    tmp_path: Path, top: str, modules: dict[str, str], why: str
) -> None:
    python = small_environment(tmp_path / "environment", **_LIBRARIES)
    path = model(tmp_path / "model", "return 1", top, **modules)
    (path / "more").mkdir()
    (path / "more" / "joblib.py").write_text("")
    with Template(["joblib", "library"], python=python, cwd=tmp_path) as template:
        template.ready()
        with (
            template.worker(env={"GIVEN": "1"}) as (talk, _),
            pytest.raises(Said) as raised,
        ):
            talk.load(path)

    assert raised.value.reason == "FRESH_NEEDED"
    assert why in str(raised.value)


def test_the_model_s_own_module_is_the_one_a_fresh_worker_loads(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment", **_LIBRARIES)
    theirs = {"joblib": "WHOSE = 'the model'"}
    path = model(tmp_path / "model", "import joblib\nreturn joblib.WHOSE", **theirs)
    with worker(python, cwd=tmp_path) as (talk, _):
        loaded = talk.load(path)

        assert talk.predict({"inputs": []}) == "the model"
        assert loaded["modules"] == []


_ENDS: dict[str, tuple[str, int]] = {
    "segfault": ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    "exit": ("os._exit(7)", 7),
    "abort": ("os.abort()", -signal.SIGABRT),
    "kill": ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
}


def test_how_a_worker_ended_is_told(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    with Template([], python=python, cwd=tmp_path) as template:
        template.ready()
        for name, (body, status) in _ENDS.items():
            path = model(tmp_path / name, body)
            with template.worker() as (talk, _):
                talk.load(path)
                talk.send((protocol.PREDICT, JSON, b'{"inputs": []}'))
                assert template.hear() == {"exited": template.count, "status": status}, name


def test_a_worker_ends_with_its_socket_and_what_it_left_with_it(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    body = (
        "pid = os.fork()\n"
        "if not pid:\n"
        "    import time\n"
        "    time.sleep(600)\n"
        "print('said', flush=True)\n"
        "return [os.getpid(), pid]"
    )
    path = model(tmp_path / "model", body)
    with Template([], python=python, cwd=tmp_path) as template:
        template.ready()
        with template.worker() as (talk, pid):
            talk.load(path)
            own, left = talk.predict({"inputs": []})
        ended = template.hear()
        wait_for(lambda: not is_running(left))

        assert own == pid
        assert ended == {"exited": 1, "status": 0}
        assert (tmp_path / "worker.log").read_text() == "said\n"


def test_a_worker_is_killed_by_its_number(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    path = model(tmp_path / "model", "sum(iter(int, 1))")
    with Template([], python=python, cwd=tmp_path) as template:
        template.ready()
        with template.worker() as (other, _), template.worker() as (talk, _):
            other.load(model(tmp_path / "other"))
            talk.load(path)
            talk.send((protocol.PREDICT, JSON, b'{"inputs": []}'))
            template.say({"kill": 2, "signal": int(signal.SIGKILL)})

            assert template.hear() == {"exited": 2, "status": -signal.SIGKILL}
            assert other.predict({"inputs": [1]}) == [1]


def test_no_worker_is_started_with_fewer_descriptors_than_were_sent(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    with (
        Template([], python=python, cwd=tmp_path) as template,
        Path(os.devnull).open() as nothing,
    ):
        template.ready()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            said = template.order(theirs, [nothing.fileno()] * 40)
        with template.worker() as (talk, pid):
            talk.load(model(tmp_path / "model"))
            held = [str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()]

    assert (said["failed"], said["errno"]) == (1, 24)
    assert len([one for one in held if one.startswith("socket")]) == 1
    assert len(held) == 4


def _close(template: Template) -> None:
    template.control.close()


def _kill_outer(template: Template) -> None:
    template.process.kill()


def _kill_template(template: Template) -> None:
    os.kill(template.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [_close, _kill_outer, _kill_template])
def test_everything_ends_with_the_daemon_the_outer_process_or_the_template(
    tmp_path: Path, end: Callable[[Template], None]
) -> None:
    python = small_environment(tmp_path / "environment")
    busy = (
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
        f"open('{tmp_path}/begun', 'w').close()\n"
        "sum(iter(int, 1))"
    )
    with (tmp_path / "lease").open("w") as lease:
        given = {"given": [lease.fileno()], "lease": lease.fileno()}
        template = Template([], python=python, cwd=tmp_path, **given)
    with template:
        template.pid = template.ready()["pid"]
        with template.worker() as (idle, one), template.worker() as (talk, other):
            idle.load(model(tmp_path / "idle"))
            talk.load(model(tmp_path / "busy", busy))
            talk.send((protocol.PREDICT, JSON, b'{"inputs": []}'))
            wait_for((tmp_path / "begun").exists)
            everybody = [template.process.pid, template.pid, one, other]
            leases = [_has(pid, tmp_path / "lease") for pid in everybody]
            started = time.monotonic()
            end(template)
            wait_for(lambda: not any(map(is_running, everybody)))
            took = time.monotonic() - started

    assert leases == [True, False, False, False]
    assert took < 10


def _has(pid: int, file: Path) -> bool:
    return str(file) in [str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()]


def test_the_outer_process_ends_as_its_template(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, -signal.SIGTERM)):
        with Template([], python=python, cwd=tmp_path) as template:
            os.kill(template.ready()["pid"], number)
            assert template.process.wait(20) == code
    with Template([], python=python, cwd=tmp_path) as template:
        template.ready()
    assert template.process.returncode == 0


def test_messages_left_unread_are_an_end_as_any_other(tmp_path: Path) -> None:
    python = small_environment(tmp_path / "environment")
    with Template([], python=python, cwd=tmp_path) as template:
        template.ready()
        with template.worker() as (talk, _):
            talk.load(model(tmp_path / "model", "os._exit(1)"))
            talk.send((protocol.PREDICT, JSON, b'{"inputs": []}'))
            wait_for(lambda: not template.says_nothing())
    assert template.process.returncode == 0
    assert "Traceback" not in template.log.read_text()
