"""`envctl serve`: one model over HTTP, without a daemon or beside one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Daemon, Envctl, wait_for
from tests.tiny import Tiny
from tests.web import Web, ask

WAITS = """\
        import os, time
        if isinstance(data, str):
            open(data + '.begun', 'w').close()
            while not os.path.exists(data):
                time.sleep(0.01)
        return os.getpid()
"""


@contextlib.contextmanager
def serving(envctl: Envctl, *arguments: object) -> Iterator[tuple[Web, subprocess.Popen[str]]]:
    """Run `envctl serve`, in a session of its own as a terminal's job has."""
    process = subprocess.Popen(
        envctl.argv("serve", "-p", 0, *arguments),
        env=envctl.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Web(Daemon(envctl.root, process), process.stdout.readline().strip()), process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def test_a_model_is_built_loaded_served_and_drained(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model, gate = tiny.model(tmp_path / "my model", body=WAITS), tmp_path / "gate"
    with serving(envctl, "-m", model) as (web, process):
        ready = [web("GET", path).status for path in ("/ping", "/models/my%20model/ping")]
        found = web("POST", "/invocations", {"inputs": 1})
        with contextlib.closing(web.connection()) as idle, ThreadPoolExecutor(1) as threads:
            ask(idle, "GET", "/health")
            last = threads.submit(web, "POST", "/invocations", {"inputs": str(gate)})
            wait_for(Path(f"{gate}.begun").exists)
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            # As Ctrl-C does: to all of the job.
            os.killpg(process.pid, signal.SIGINT)
            wait_for(lambda: idle.sock.recv(1) == b"")
            gate.touch()
            answered = last.result()
        said = process.communicate(timeout=60)[1]

    assert (ready, found.status, answered.status) == ([200, 200], 200, 200)
    assert process.returncode == 0
    assert re.search(r"^Max core file size +[01] ", limits, re.MULTILINE)
    assert "locking: " in said
    assert "serving my model; Ctrl-C stops it" in said
    assert not (envctl.root / "daemon.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_its_model_is_loaded(
    envctl: Envctl, tiny: Tiny, tmp_path: Path, number: int
) -> None:
    waits = tiny.model(tmp_path / "waits")
    (waits / "code" / "tiny_loader.py").write_text(
        f"import time\nopen('{tmp_path}/begun', 'w').close()\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        envctl.argv("serve", "-p", 0, "-m", waits),
        env=envctl.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for((tmp_path / "begun").exists)

    os.killpg(process.pid, number)
    printed, said = process.communicate(timeout=20)

    assert (process.returncode, printed) == (0, "")
    assert "Traceback" not in said
    assert "serving" not in said


def test_a_daemon_on_the_same_root_does_not_mind(
    daemon: Daemon, envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body=WAITS)
    document = (daemon.root / "daemon.json").read_text()
    more = ("--name", "it", "--workers", 2, "--timeout", "30s")
    with daemon.client() as client, serving(envctl, "-m", model, *more) as (web, process):
        pids = {web("POST", "/models/it/invocations", {"inputs": 1}).document["predictions"]}
        pids |= {client.predict(model, {"inputs": 1}).predictions}
        # The first of its workers answers while the other is being started.
        wait_for(lambda: _starts(web) == 2)
        process.terminate()
        status = process.wait(60)
        pids |= {client.predict(model, {"inputs": 1}).predictions}

    assert status == 0
    # One of its own, and one of the daemon's.
    assert len(pids) == 2
    assert (daemon.root / "daemon.json").read_text() == document


def _starts(web: Web) -> int:
    """Return how many workers have been started."""
    lines = web("GET", "/metrics").body.decode().splitlines()
    found = [line for line in lines if line.startswith("envd_worker_starts_total{")]
    return sum(int(float(line.split()[1])) for line in found)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-m", "{bad}"], 1, "raised"),
        (["-m", "{good}", "-h", "0.0.0.0"], 2, "--host: `http.listen` is 0.0.0.0:0"),
        (["-m", "{good}", "--workers", "none"], 2, "--workers"),
        (["-m", "{good}", "--name", "a/b"], 2, "is no name for a model"),
        (["-m", "nobody"], 1, "no served model is called `nobody`"),
        (["-m", "{good}", "-p", "70000"], 2, "70000"),
    ],
)
def test_what_cannot_be_served_is_told(
    envctl: Envctl, tiny: Tiny, tmp_path: Path, arguments, status: int, said: str
) -> None:
    good, bad = tiny.model(tmp_path / "good"), tiny.model(tmp_path / "bad")
    (bad / "code" / "tiny_loader.py").write_text("raise ValueError('it raised')\n")
    given = [one.format(good=good, bad=bad) for one in arguments]

    done = envctl("serve", "-p", 0, *given)

    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_of_the_settings_is_served_as_they_say(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body="        import os; return os.environ['WHO']")
    file = tmp_path / "envd.toml"
    file.write_text(f'[models.it]\nuri = "{model}"\nenv = {{ WHO = "me" }}\n'
                    f'[models.other]\nuri = "{tmp_path}/none"\n')  # fmt: skip
    with serving(envctl, "-m", "it", "--config", file) as (web, _):
        found = web("POST", "/invocations", {"inputs": 1})
        other = web("POST", "/models/other/invocations", {"inputs": 1})

    assert found.document == {"predictions": "me"}
    assert other.status == 404
    assert json.loads(other.body)["error_code"] == "RESOURCE_DOES_NOT_EXIST"
