"""The daemon as a service: what it tells systemd, its log, and settings read again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from envd_client import Client
from envd_client.errors import EnvdError
from envd_client.v1 import envd_pb2 as api
from grpc_health.v1 import health_pb2, health_pb2_grpc

from envd import config
from envd.config import Settings
from envd.serve import reloading
from envd.serve.notify import Notifier
from tests.conftest import Daemon, environment, wait_for
from tests.service_manager import Manager, stop_first_thread
from tests.tiny import Tiny

WATCHDOG_S = 0.3
SERVING = health_pb2.HealthCheckResponse.SERVING
NONE = "STATUS=serving 0 models with 0 workers"
ONE = "STATUS=serving 1 models with 1 workers"
WAITS = """\
        import os, time
        open(data[0] + '.begun', 'w').close()
        while not os.path.exists(data[0]):
            time.sleep(0.01)
        return 'awake'
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(str(tmp_path / "notify"))) as found:
        yield found


# what systemd hears


def test_systemd_hears_of_a_whole_life(
    start_daemon: Callable[..., Daemon], manager: Manager, tiny: Tiny, tmp_path: Path
) -> None:
    model, gate = tiny.model(tmp_path / "model", body=WAITS), tmp_path / "gate"
    daemon = start_daemon(tmp_path / "root", **tiny.settings, **manager.variables(WATCHDOG_S))
    manager.until(NONE, "READY=1", "WATCHDOG=1")
    answers: list[object] = []
    with daemon.client() as client, _health(daemon) as watching:
        caller = threading.Thread(
            target=lambda: answers.append(client.predict(model, [str(gate)]).predictions)
        )
        caller.start()
        wait_for(Path(f"{gate}.begun").exists)
        manager.until(ONE)
        daemon.process.terminate()
        manager.until("STOPPING=1", "WATCHDOG=1")
        states = [next(watching), next(watching)]
        gate.touch()
        caller.join()

    assert daemon.process.wait(20) == 0
    manager.rest()
    assert answers == ["awake"]
    assert states == [SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert manager.said.count("READY=1") == 1
    assert "STATUS=draining; 1 requests under way" in manager.said


def test_the_watchdog_is_not_fed_while_nothing_can_be_started(
    start_daemon: Callable[..., Daemon], manager: Manager, tmp_path: Path
) -> None:
    daemon = start_daemon(tmp_path / "root", **manager.variables(WATCHDOG_S))
    manager.until("READY=1", "WATCHDOG=1", "WATCHDOG=1")
    spawner = _spawner(daemon.pid)

    os.kill(spawner, signal.SIGSTOP)
    manager.within(WATCHDOG_S)
    missed = manager.within(3 * WATCHDOG_S)
    os.kill(spawner, signal.SIGCONT)

    assert missed == []
    manager.until("WATCHDOG=1")


def test_the_watchdog_is_not_fed_while_the_loop_stands_still(
    start_daemon: Callable[..., Daemon], manager: Manager, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as opened, contextlib.redirect_stderr(opened):
        daemon = start_daemon(tmp_path / "root", **manager.variables(WATCHDOG_S))
    manager.until("READY=1", "WATCHDOG=1", "WATCHDOG=1")

    with contextlib.contextmanager(stop_first_thread)(daemon.pid):
        manager.rest()
        missed = manager.within(3 * WATCHDOG_S)

    assert missed == []
    manager.until("WATCHDOG=1")
    # What systemd does then, and what is to be found of it.
    daemon.process.send_signal(signal.SIGABRT)
    assert daemon.process.wait(20) == -signal.SIGABRT
    assert re.search(r"(?s)Current thread.*serve/main\.py", log.read_text())


def test_without_a_watchdog_systemd_hears_of_the_rest(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    with contextlib.closing(Manager(f"@{tmp_path}")) as manager:
        # That of somebody else, as whoever was started by a service may find it.
        watchdog = manager.variables(WATCHDOG_S) | {"WATCHDOG_PID": "1"}
        daemon = start_daemon(tmp_path / "root", **watchdog)
        daemon.process.terminate()
        manager.until("READY=1", "STOPPING=1")

        assert daemon.process.wait(20) == 0
        assert "WATCHDOG=1" not in manager.said + manager.rest()


def test_what_systemd_has_no_room_for_is_said_later(tmp_path: Path) -> None:
    with contextlib.closing(Manager(str(tmp_path / "notify"))) as manager:
        notifier = Notifier(manager.variables(WATCHDOG_S))
        most = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        for number in range(2 * most + 2):
            notifier.status(str(number))
        notifier.ready()
        lost = "READY=1" not in manager.rest()
        notifier.stopping()

        assert lost
        manager.rest()
        notifier.status("over")
        manager.rest()

    assert manager.said == [
        *(f"STATUS={number}" for number in range(2 * most + 2)),
        "READY=1",
        "STOPPING=1",
        "STATUS=over",
    ]


@contextlib.contextmanager
def _health(daemon: Daemon) -> Iterator[Iterator[int]]:
    """Watch the health of *daemon*."""
    with grpc.insecure_channel(f"unix:{daemon.root}/predict.sock") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = stub.Watch(health_pb2.HealthCheckRequest(service="envd.v1.Predictions"))
        yield (one.status for one in watching)


def _spawner(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(
        int(one) for one in children if "spawner" in Path(f"/proc/{one}/cmdline").read_text()
    )


# settings read again


@dataclass(frozen=True)
class Reloaded:
    """A daemon with a settings file and a log."""

    daemon: Daemon
    manager: Manager
    file: Path
    log: Path

    def __call__(self, text: str) -> str:
        """Have it read *text* for its settings and return what it logs of that."""
        self.file.write_text(text)
        before = len(self.log.read_text())
        self.daemon.process.send_signal(signal.SIGHUP)
        self.manager.until("RELOADING=1", "READY=1")
        return self.log.read_text()[before:]


@pytest.fixture
def reload(
    start_daemon: Callable[..., Daemon], manager: Manager, tiny: Tiny, tmp_path: Path
) -> Reloaded:
    file, log = tmp_path / "envd.toml", tmp_path / "log"
    file.write_text(f'[models]\none = "{tiny.model(tmp_path / "one")}"\n')
    settings = tiny.settings | manager.variables() | {"ENVD_CONFIG": str(file)}
    with log.open("w") as opened, contextlib.redirect_stderr(opened):
        daemon = start_daemon(tmp_path / "root", **settings)
    manager.until("READY=1")
    return Reloaded(daemon, manager, file, log)


def test_models_get_and_lose_their_names_when_settings_are_read_again(
    reload: Reloaded, tiny: Tiny, tmp_path: Path
) -> None:
    two = tiny.model(tmp_path / "two", body="        return os.environ.get('MODE')")
    (two / "code" / "tiny_loader.py").write_text(
        "import os\n" + (two / "code" / "tiny_loader.py").read_text()
    )
    table = f"[models.two]\nuri = '{two}'\npreload = true\nenv = {{ MODE = 'MODE_HERE' }}\n"
    with reload.daemon.client() as client:
        first = client.predict("one", {"inputs": [1]}).predictions
        # The settings have the last word on whose a name is.
        client.load_model(tmp_path / "one", name="two")
        said = reload(table.replace("MODE_HERE", "fast"))
        wait_for(lambda: _states(client) == {"two": "READY"})
        fast = client.predict("two", {"inputs": [1]}).predictions
        with pytest.raises(EnvdError) as gone:
            client.predict("one", {"inputs": [1]})
        states = [_state(reload.daemon, f"models/{name}") for name in ("one", "two")]
        reload(table.replace("MODE_HERE", "slow"))
        slow = client.predict("two", {"inputs": [1]}).predictions

    assert first == ["2.0", [1]]
    assert "the settings were read again; 1 models have a name" in said
    assert states == [health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, SERVING]
    assert (fast, slow) == ("fast", "slow")
    assert gone.value.reason == "MODEL_NOT_FOUND"


def test_limits_change_and_what_takes_a_restart_is_named(
    reload: Reloaded, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body="        import time; time.sleep(1)")
    limit = "[workers]\ntime_limit = '100ms'\nstart_timeout = 77\n[gc]\nkeep = 3\n"

    said = reload(limit)

    with reload.daemon.client() as client, pytest.raises(EnvdError, match=r"within 0\.1 s"):
        client.predict(model, {"inputs": [1]})
    assert "when it is restarted: workers.start_timeout gc.keep\n" in said


def test_settings_that_are_wrong_change_nothing(reload: Reloaded) -> None:
    said = [
        reload("[workers]\nqueue = 10\n\nidle_timeout = 'soon'\n"),
        reload("[workers]\nqueu = 10\n"),
        reload("[workers\n"),
    ]

    with reload.daemon.client() as client:
        assert client.predict("one", {"inputs": [1]}).predictions == ["2.0", [1]]
    kept = "ERROR envd.serve.reloading: the settings stay as they were: "
    assert f"{kept}{reload.file}:4: `workers.idle_timeout` cannot be 'soon'" in said[0]
    assert f"{kept}{reload.file}:2: there is no setting `[workers] queu`" in said[1]
    assert re.search(rf"{kept}cannot read .*{reload.file}.*line 1", said[2])


def test_what_changes_without_a_restart_is_settings() -> None:
    names = {f"{row.section}.{row.name}" for row in config.fields()}

    same, later = reloading.merged(Settings(Path("/a")), Settings(Path("/b")))

    assert names > reloading.LIVE
    assert (same, later) == (Settings(Path("/a")), [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gc]\n\nkeep = -1\n", ":3: `gc.keep` cannot be -1"),
        ("[gc]\nkep = 1\n", ":2: there is no setting `[gc] kep`"),
        ("[gc\n", "line 1"),
    ],
)
def test_wrong_settings_are_said_before_anything_starts(
    tmp_path: Path, home: Path, text: str, said: str
) -> None:
    (tmp_path / "envd.toml").write_text(text)

    done = subprocess.run(
        [f"{Path(sys.executable).parent}/envd", "--config", tmp_path / "envd.toml"],
        env=environment(tmp_path / "root", home),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert done.returncode == 2
    assert f"{tmp_path}/envd.toml" in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "root").exists()


def _state(daemon: Daemon, service: str) -> int:
    with grpc.insecure_channel(f"unix:{daemon.root}/predict.sock") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        watching = health_pb2_grpc.HealthStub(channel).Watch(request)
        return next(iter(watching)).status


def _states(client: Client) -> dict[str, str]:
    return {one.name: api.Model.State.Name(one.state) for one in client.list_models() if one.name}


# the log


def test_a_log_in_json_has_an_object_in_each_line(
    start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    raising = tiny.model(tmp_path / "two\nlines", body="        raise RuntimeError('a\\nb')")
    missing = f"[models.odd]\nuri = '{tmp_path}/none'\npreload = true\n"
    (tmp_path / "envd.toml").write_text(f"[daemon]\nlog_format = 'json'\n{missing}")
    log = tmp_path / "log"
    with log.open("w") as file, contextlib.redirect_stderr(file):
        daemon = start_daemon(
            tmp_path / "root", **tiny.settings, ENVD_CONFIG=str(tmp_path / "envd.toml")
        )
    with daemon.client() as client, pytest.raises(EnvdError):
        client.predict(raising, {"inputs": [1]})
    wait_for(lambda: "was not loaded" in log.read_text())
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "read again" in log.read_text())

    found = [json.loads(line) for line in log.read_text().splitlines()]

    assert {"warning", "info"} <= {one["level"] for one in found}
    assert any("odd was not loaded" in one["message"] for one in found)
    for one in found:
        assert list(one)[:4] == ["time", "level", "logger", "message"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", one["time"])


PROGRAM = """
import logging, os, sys
from envd.serve import log_lines
if sys.argv[2] == "journal":
    found = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
log_lines.begin(sys.argv[1], verbose=True)
log = logging.getLogger("envd.some")
log.info("began", extra={"request": " [r-1]"})
try:
    raise ValueError("one\\ntwo")
except ValueError:
    log.exception("failed on %s", "\\x1b\\n")
"""


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("where", ["pipe", "journal"])
def test_the_journal_is_told_how_grave_each_line_is(form: str, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form, where], capture_output=True, text=True, check=True
    )

    first, *rest = done.stderr.splitlines()
    marks = ("<6>", "<3>") if where == "journal" else ("", "")
    assert first.startswith(marks[0])
    assert all(line.startswith(marks[1]) for line in rest)
    plain = [line.removeprefix(marks[1]) for line in rest]
    if form == "json":
        (last,) = map(json.loads, plain)
        assert json.loads(first.removeprefix(marks[0]))["request"] == "r-1"
        assert (last["level"], last["message"]) == ("error", "failed on \x1b\n")
        assert last["exception"].endswith("ValueError: one\ntwo")
    else:
        assert first.endswith("INFO envd.some [r-1]: began")
        assert ("<" not in first and first[:2] == "20") == (where == "pipe")
        assert plain[0].endswith(r"ERROR envd.some: failed on \x1b\n")
        assert all(line.startswith("  ") for line in plain[1:])
        assert plain[-1] == "  two"
