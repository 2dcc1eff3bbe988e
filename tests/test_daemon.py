"""The daemon's life: one per root, private sockets, draining, and nothing left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from envd_client import Client
from envd_client.errors import EnvdError
from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services
from grpc_health.v1 import health_pb2, health_pb2_grpc

from envd.serve.roles import ROLES
from tests.conftest import Daemon, Envctl, environment, is_running, wait_for
from tests.tiny import Tiny

ASLEEP = "        import time; open(data[0], 'w').close(); time.sleep(0.7); return 'awake'"


def test_it_says_where_it_listens_and_only_its_owner_can_connect(module_daemon: Daemon) -> None:
    document = json.loads((module_daemon.root / "daemon.json").read_text())

    assert document["pid"] == module_daemon.pid
    assert document["profile"] == "dev"
    for name in ("predict", "admin"):
        mode = Path(document[name]).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600


def test_a_second_daemon_says_who_holds_the_root_and_leaves(
    module_daemon: Daemon, home: Path, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model")

    second = subprocess.run(
        [f"{Path(sys.executable).parent}/envd"],
        env=environment(module_daemon.root, home),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert second.returncode == 1
    assert str(module_daemon.pid) in second.stderr
    with module_daemon.client() as client:
        assert client.predict(model, {"inputs": [1]}).predictions == ["2.0", [1]]


def test_two_roots_cannot_share_a_socket(module_daemon: Daemon, home: Path, tmp_path: Path) -> None:
    other = subprocess.run(
        [f"{Path(sys.executable).parent}/envd", "--socket", module_daemon.root / "predict.sock"],
        env=environment(tmp_path / "other", home),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert other.returncode == 1
    assert "predict.sock" in other.stderr


def test_envctl_asks_the_daemon_of_its_root(daemon: Daemon, envctl: Envctl, tiny: Tiny) -> None:
    model = tiny.model(daemon.root.parent / "model")

    first = envctl("predict", "-m", model, "-v", stdin='{"inputs": [1]}')
    second = envctl("predict", "-m", model, "-v", stdin='{"inputs": [1]}')
    listed = json.loads(envctl("list", "--json").stdout)

    assert first.stdout == second.stdout == '{"predictions": ["2.0", [1]]}\n'
    assert "fresh worker" in first.stderr
    assert "warm worker" in second.stderr
    assert listed[0]["leases"], "the daemon's worker should hold a lease"


@pytest.mark.slow
def test_envctl_gives_up_on_a_daemon_that_is_there_and_silent(
    daemon: Daemon, envctl: Envctl
) -> None:
    daemon.process.send_signal(signal.SIGSTOP)

    done = envctl("list")

    assert done.returncode == 3
    assert "does not answer" in done.stderr


def test_envctl_works_by_itself_after_the_daemon_was_killed(
    daemon: Daemon, envctl: Envctl, tiny: Tiny
) -> None:
    model = tiny.model(daemon.root.parent / "model")
    envctl("predict", "-m", model, stdin='{"inputs": [1]}')
    daemon.process.kill()
    daemon.process.wait()

    done = envctl("predict", "-m", model, stdin='{"inputs": [2]}')

    assert done.stdout == '{"predictions": ["2.0", [2]]}\n', done.stderr


def test_sigterm_lets_the_request_under_way_end(daemon: Daemon, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model", body=ASLEEP)
    answers = []
    with daemon.client() as client:
        caller = threading.Thread(
            target=lambda: answers.append(client.predict(model, [str(tmp_path / "begun")]))
        )
        caller.start()
        wait_for((tmp_path / "begun").exists)
        daemon.process.terminate()
        caller.join()

        assert answers[0].predictions == "awake"
        assert daemon.process.wait(timeout=20) == 0
        with pytest.raises(EnvdError):
            client.predict(model, [str(tmp_path / "begun")])


def test_nothing_outlives_a_daemon_that_is_killed(
    daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    # A child in a session of its own, which a signal to the worker's group does not reach.
    body = (
        "        import subprocess, os\n"
        "        child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "        return [os.getpid(), child.pid]"
    )
    model = tiny.model(tmp_path / "model", body=body)
    with daemon.client() as client:
        pids = client.predict(model, {"inputs": []}).predictions

    daemon.process.kill()
    daemon.process.wait()

    wait_for(lambda: not any(is_running(pid) for pid in pids))


def test_the_daemon_stops_when_its_spawner_is_killed(daemon: Daemon) -> None:
    spawner = next(pid for pid in _children(daemon.pid) if "spawner" in _command(pid))

    os.kill(spawner, signal.SIGKILL)

    assert daemon.process.wait(timeout=20) is not None


def test_health_answers_per_service(module_daemon: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{module_daemon.root}/predict.sock") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        states = [
            stub.Check(health_pb2.HealthCheckRequest(service=name)).status
            for name in ("", "envd.v1.Predictions", "envd.v1.Environments")
        ]

    assert states == [health_pb2.HealthCheckResponse.SERVING] * 3


def test_what_only_an_admin_may_do_is_denied_on_the_predict_socket(module_daemon: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{module_daemon.root}/predict.sock") as channel:
        stub = services.EnvironmentsStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.DeleteEnvironment(api.DeleteEnvironmentRequest(id="abcd"))

    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_every_rpc_has_a_role() -> None:
    served = {
        f"/{service.full_name}/{method.name}"
        for service in api.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }

    assert served == {name for name in ROLES if name.startswith("/envd.v1.")}


def test_what_is_no_message_is_refused_and_not_logged(
    start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as file, contextlib.redirect_stderr(file):
        daemon = start_daemon(tmp_path / "root", **tiny.settings)
    health = "/grpc.health.v1.Health"

    with grpc.insecure_channel(f"unix:{daemon.root}/predict.sock") as channel:
        with pytest.raises(grpc.RpcError) as one:
            channel.unary_unary(f"{health}/Check")(b"\xff")
        with pytest.raises(grpc.RpcError) as many:
            next(channel.unary_stream(f"{health}/Watch")(b"\xff"))

    assert [one.value.code(), many.value.code()] == [grpc.StatusCode.INVALID_ARGUMENT] * 2
    assert log.read_text() == ""


def test_a_build_can_be_watched_left_and_found_again(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==1.0", "tiny-b")
    with module_daemon.client() as client:
        building = client.build(model)
        events = list(client.watch(building.spec_key))
        after = list(client.watch(building.spec_key))

    assert building.state == api.Environment.BUILDING
    assert building.id == ""
    assert events[0].environment.state == api.Environment.BUILDING
    assert events[-1].environment.state == api.Environment.READY
    assert [one.sequence for one in events[1:]] == list(range(1, len(events)))
    stages = [one.stage.name for one in events if one.HasField("stage")]
    assert stages == ["locking", "installing", "warming", "publishing"]
    assert len(after) == 1
    assert after[0].environment.id == events[-1].environment.id


def test_a_caller_that_does_not_wait_is_told_to_come_back(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==2.0", "tiny-b")
    with module_daemon.client() as client:
        with pytest.raises(EnvdError) as raised:
            client.predict(model, {"inputs": [1]}, wait=False)
        answer = client.predict(model, {"inputs": [1]})

    assert (raised.value.code.name, raised.value.reason) == ("UNAVAILABLE", "ENVIRONMENT_BUILDING")
    assert raised.value.retry_after_s is not None
    assert answer.predictions == ["2.0", [1]]


def test_the_list_is_paged(daemon: Daemon, tiny: Tiny, tmp_path: Path) -> None:
    models = [tiny.model(tmp_path / v, f"tiny-a=={v}") for v in ("1.0", "2.0")]
    with (
        daemon.client() as client,
        grpc.insecure_channel(f"unix:{daemon.root}/predict.sock") as channel,
    ):
        ids = [client.predict(model, {"inputs": []}).environment_id for model in models]
        stub = services.EnvironmentsStub(channel)
        first = stub.ListEnvironments(api.ListEnvironmentsRequest(page_size=1))
        second = stub.ListEnvironments(
            api.ListEnvironmentsRequest(page_size=1, page_token=first.next_page_token)
        )
        with pytest.raises(grpc.RpcError) as raised:
            stub.ListEnvironments(api.ListEnvironmentsRequest(page_token="nonsense"))

    assert [first.environments[0].id, second.environments[0].id] == sorted(ids)
    assert second.next_page_token == ""
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_socket_path_with_odd_characters_works(home: Path, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model")
    path = tmp_path / "a b%#" / "predict.sock"
    process = subprocess.Popen(
        [f"{Path(sys.executable).parent}/envd", "--socket", path],
        env=environment(tmp_path / "root", home, **tiny.settings),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdout.readline()
        with Client(path) as client:
            assert client.predict(model, {"inputs": [1]}).predictions == ["2.0", [1]]
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
