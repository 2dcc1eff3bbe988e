"""What a reviewer broke once: odd paths, odd ends, odd moments."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from envd_client import Client
from envd_client.errors import (
    EnvdError,
    EnvironmentInUseError,
    EnvironmentNotFoundError,
    PermissionDeniedError,
    from_rpc_error,
)
from envd_client.v1 import envd_pb2 as api
from envd_client.v1 import envd_pb2_grpc as services
from grpc_health.v1 import health_pb2, health_pb2_grpc

from envd.build import Interpreters
from envd.builds.builds import Build, Builds
from envd.environments.asked import Asked
from envd.errors import SolveFailedError
from envd.events import OnEvent
from envd.model import mlmodel
from envd.run.channel import Channel
from envd.run.envd_worker import protocol
from envd.run.processes import Processes
from envd.store import Store
from tests.conftest import Daemon, Envctl, environment, lose_interpreter, wait_for
from tests.house import House
from tests.tiny import Tiny, sdist

ASK = '{"inputs": [1]}'
ANSWER = {"predictions": ["2.0", [1]]}


def test_odd_characters_in_the_paths_of_root_and_model(
    start_daemon: Callable[..., Daemon], home: Path, tiny: Tiny, tmp_path: Path
) -> None:
    root = tmp_path / "ä b#%20{x}"
    model = tiny.model(tmp_path / "mödel {0} %20#")
    envctl = Envctl(root, environment(root, home, **tiny.settings))

    alone = envctl("predict", "-m", model, stdin=ASK)
    start_daemon(root, **tiny.settings)
    asked = envctl("predict", "-m", model, stdin=ASK)
    listed = json.loads(envctl("list", "--json").stdout)

    assert json.loads(alone.stdout or "null") == ANSWER, alone.stderr
    assert json.loads(asked.stdout or "null") == ANSWER, asked.stderr
    assert listed[0]["models"] == [str(model)]


def test_a_changed_base_python_takes_nothing_from_a_worker_that_runs(
    start_daemon: Callable[..., Daemon], home: Path, tiny: Tiny, tmp_path: Path
) -> None:
    base = Path(sys.base_prefix)
    roots = tmp_path / "pythons"
    (roots / "one" / "bin").mkdir(parents=True)
    python = roots / "one" / "bin" / "python3"
    shutil.copy2(base / "bin" / f"python3.{sys.version_info.minor}", python)
    (roots / "one" / "lib").symlink_to(base / "lib")
    (roots / "one" / "include").symlink_to(base / "include")
    settings = tiny.settings | {"ENVD_PYTHON__ROOTS": str(roots)}
    body = "        import os, sys; return [sys.prefix, os.path.isdir(sys.prefix)]"
    model = tiny.model(tmp_path / "model", body=body)
    daemon = start_daemon(tmp_path / "root", **settings)
    envctl = Envctl(daemon.root, environment(daemon.root, home, **settings))
    with daemon.client() as client:
        before = client.predict(model, {"inputs": []})
        os.utime(python, (1, 1))
        broken = json.loads(envctl("list", "--json").stdout)
        after = client.predict(model, {"inputs": []})

    assert Path(before.predictions[0]).exists(), "a worker's environment was removed under it"
    assert [one["state"] for one in broken] == ["absent"]
    assert "interpreter" in broken[0]["failure"]["message"]
    assert after.predictions[1]
    assert after.predictions[0] != before.predictions[0]


def test_an_environment_without_its_python_can_be_removed(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    envctl("build", "-m", tiny.model(tmp_path / "model"))
    manifest = next(envctl.root.glob("environments/*/ready.json"))
    lose_interpreter(manifest)

    removed = envctl("rm", manifest.parent.name[:8])

    assert removed.returncode == 0, removed.stderr
    assert not manifest.parent.exists()


def test_a_failing_build_is_made_once_for_one_prediction(
    start_daemon: Callable[..., Daemon], home: Path, tiny: Tiny, tmp_path: Path
) -> None:
    wheels, count = tmp_path / "wheels", tmp_path / "count"
    wheels.mkdir()
    sdist(wheels, "broken", "1.0", f"open({str(count)!r}, 'a').write('x'); raise SystemExit(1)")
    settings = tiny.settings | {"ENVD_INDEX__FIND_LINKS": f"{tiny.wheels},{wheels}"}
    start_daemon(tmp_path / "root", **settings)
    envctl = Envctl(tmp_path / "root", environment(tmp_path / "root", home, **settings))

    done = envctl("predict", "-m", tiny.model(tmp_path / "model", "broken"), stdin=ASK)

    assert done.returncode == 1
    assert "broken" in done.stderr
    assert count.read_text() == "x"


def test_an_import_that_fails_otherwise_advises_to_install_nothing(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    within = tiny.model(tmp_path / "within", body="        from tiny_a import nothere")
    library = tiny.model(
        tmp_path / "library",
        body="        raise ImportError('libGL.so.1: cannot open shared object file')",
    )
    with module_daemon.client() as client:
        errors = [_refused(client, model) for model in (within, library)]

    assert [one.reason for one in errors] == ["MODEL_RAISED", "MODEL_RAISED"]
    assert "cannot import name 'nothere'" in errors[0].message
    assert "libGL.so.1" in errors[1].message


def test_long_errors_in_any_script_arrive_as_what_they_are(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body="        raise ValueError('中' * 1990)")
    with module_daemon.client() as client:
        error = _refused(client, model)

    assert (error.code.name, error.reason) == ("UNKNOWN", "MODEL_RAISED")
    assert "中" in error.message


@pytest.mark.parametrize(
    ("body", "reason", "said"),
    [
        ("import sys; sys.exit(3)", "MODEL_RAISED", "SystemExit"),
        ("import os; os._exit(3)", "WORKER_DIED", "exit status 3"),
        ("import os; os.kill(os.getpid(), 40)", "WORKER_DIED", "signal"),
        ("import os; os.kill(os.getpid(), 11)", "WORKER_DIED", "SIGSEGV"),
    ],
)
def test_every_end_of_a_worker_is_told_as_it_was(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path, body: str, reason: str, said: str
) -> None:
    model = tiny.model(tmp_path / "model", body=f"        {body}")
    with module_daemon.client() as client:
        error = _refused(client, model)

    assert error.reason == reason
    assert said in error.message


def test_a_request_that_hangs_costs_the_next_ones_nothing(
    start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    daemon = start_daemon(tmp_path / "root", **tiny.settings, ENVD_WORKERS__STOP_GRACE="200ms")
    body = "        import time; time.sleep(600 * data); return 'answered'"
    model = tiny.model(tmp_path / "model", body=body)
    with daemon.client() as client:
        client.predict(model, {"inputs": 0})
        with pytest.raises(EnvdError) as raised:
            client.predict(model, {"inputs": 1}, timeout_s=0.5)
        time.sleep(0.5)
        again = client.predict(model, {"inputs": 0}, timeout_s=20)

    assert raised.value.code.name == "DEADLINE_EXCEEDED"
    assert again.predictions == "answered"


@pytest.mark.slow
def test_a_busy_worker_is_not_taken_for_a_stuck_one(
    start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    daemon = start_daemon(tmp_path / "root", **tiny.settings, ENVD_WORKERS__STOP_GRACE="400ms")
    body = "        import os, time; time.sleep(0.1); return os.getpid()"
    model = tiny.model(tmp_path / "model", body=body)
    with daemon.client() as client, ThreadPoolExecutor(24) as threads:
        pid = client.predict(model, {"inputs": 0}).predictions

        def ask(number: int) -> object:
            # Two of three give up long before their turn comes.
            try:
                return client.predict(
                    model, {"inputs": 0}, timeout_s=20 if number % 3 == 0 else 0.3
                ).predictions
            except EnvdError as error:
                return error.code.name

        answers = list(threads.map(ask, range(24)))

    assert set(answers[::3]) == {pid}
    assert set(answers) <= {pid, "DEADLINE_EXCEEDED"}
    assert "DEADLINE_EXCEEDED" in answers


def test_too_many_open_files_are_said_to_be_that(home: Path, tiny: Tiny, tmp_path: Path) -> None:
    root = tmp_path / "root"
    models = [tiny.model(tmp_path / f"model{number}") for number in range(25)]
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"ulimit -n 48; exec {Path(sys.executable).parent}/envd"],
        env=environment(root, home, **tiny.settings),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    reasons = set()
    try:
        with Client(root / "predict.sock") as client:
            for model in models:
                try:
                    client.predict(model, {"inputs": [1]})
                except EnvdError as error:
                    reasons.add(error.reason)
    finally:
        process.terminate()
        process.communicate(timeout=60)

    assert reasons == {"LIMIT_REACHED"}


def test_builders_at_once_do_not_write_over_each_others_log(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model")

    with ThreadPoolExecutor(4) as threads:
        built = [
            json.loads(one.stdout)
            for one in threads.map(lambda _: envctl("build", "-m", model, "--json"), range(4))
        ]
    log = envctl("logs", built[0]["spec_key"][:8]).stdout

    assert "\0" not in log
    assert log.count("== installing") == 1
    assert "waiting" not in log


def test_a_model_that_cannot_be_built_does_not_hide_the_others(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    good = tiny.model(tmp_path / "good")

    done = envctl("build", tmp_path / "absent", good, "--json")

    absent, built = json.loads(done.stdout)
    assert done.returncode == 1
    assert (absent["state"], absent["failure"]["reason"]) == ("failed", "MODEL_NOT_FOUND")
    assert built["state"] == "ready"


def test_watchers_do_not_keep_the_daemon_from_stopping(daemon: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{daemon.root}/predict.sock") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)

        daemon.process.terminate()

        assert daemon.process.wait(timeout=15) == 0


def test_a_killed_command_leaves_nothing_for_ever(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    body = f"        open({str(begun)!r}, 'w').close(); import time; time.sleep(600 * data)"
    model = tiny.model(tmp_path / "model", body=body)
    command = subprocess.Popen(
        envctl.argv("predict", "-m", model), env=envctl.env, stdin=subprocess.PIPE, text=True
    )
    assert command.stdin is not None
    command.stdin.write('{"inputs": 1}')
    command.stdin.close()
    while not begun.exists():
        time.sleep(0.01)
    command.send_signal(signal.SIGKILL)
    command.wait()
    assert list((envctl.root / "scratch").iterdir())

    envctl("build", "-m", tiny.model(tmp_path / "other", "tiny-a==1.0"))

    assert not list((envctl.root / "scratch").iterdir())


def test_the_client_finds_the_daemon_of_the_root(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENVD_SOCKET", raising=False)
    monkeypatch.setenv("ENVD_ROOT", str(module_daemon.root))

    with Client() as client:
        answer = client.predict(tiny.model(tmp_path / "model"), {"inputs": [1]})

    assert answer.predictions == ANSWER["predictions"]


@pytest.mark.parametrize("kind", ["directory", "file", "admin"])
def test_a_socket_that_cannot_be_had_is_refused_plainly(
    home: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("admin.sock" if kind == "admin" else "taken")
    if kind == "directory":
        path.mkdir()
    if kind == "file":
        path.write_text("precious")

    done = subprocess.run(
        [f"{Path(sys.executable).parent}/envd", "--socket", path],
        env=environment(tmp_path / "root", home),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_link_to_an_artifact_that_changed_is_a_changed_model(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    body = "        import os; return open(os.path.dirname(__file__) + '/../w.txt').read()"
    model = tiny.model(tmp_path / "model", body=body + "  # read at each call")
    loader = model / "code" / "tiny_loader.py"
    loader.write_text(
        loader.read_text()
        .replace("class Model:", "W = open(__file__[:-19] + 'w.txt').read()\n\n\nclass Model:")
        .replace(body.strip(), "return W")
    )
    (tmp_path / "blob").write_text("one")
    (model / "w.txt").symlink_to(tmp_path / "blob")
    with module_daemon.client() as client:
        before = client.predict(model, {"inputs": []}).predictions
        (tmp_path / "blob").write_text("two")
        after = client.predict(model, {"inputs": []}).predictions

    assert (before, after) == ("one", "two")


def test_the_form_of_llm_providers_is_answered_unwrapped(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body="        return {'echo': data}")
    chat = '{"messages": [{"role": "user", "content": "hello"}]}'
    with module_daemon.client() as client:
        answer = client.predict(model, chat)

    assert json.loads(answer.payload) == {"echo": json.loads(chat)}


def test_a_denied_call_says_so_with_a_reason(module_daemon: Daemon) -> None:
    channel = grpc.insecure_channel(f"unix:{module_daemon.root}/predict.sock")
    with channel, pytest.raises(grpc.RpcError) as raised:
        services.EnvironmentsStub(channel).DeleteEnvironment(
            api.DeleteEnvironmentRequest(id="abcd")
        )

    assert isinstance(from_rpc_error(raised.value), PermissionDeniedError)


def test_what_is_being_built_cannot_be_removed(daemon: Daemon, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model")
    with daemon.client() as client:
        env_id = client.predict(model, {"inputs": []}).environment_id
        with (daemon.root / "held" / f"build-{env_id}").open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(EnvdError) as raised:
                client.delete(env_id)
        client.delete(env_id)

    assert raised.value.reason == "ENVIRONMENT_IN_USE"
    assert "being built" in raised.value.message


@pytest.mark.slow
def test_removing_again_and_again_costs_no_caller_its_answer(
    daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    models = [tiny.model(tmp_path / name) for name in "abc"]
    until = time.monotonic() + 5

    def ask(client: Client, model: Path) -> set[str]:
        given = set()
        while time.monotonic() < until:
            given.add(json.dumps(client.predict(model, {"inputs": [1]}).predictions))
        return given

    def remove(client: Client, env_id: str) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(EnvironmentInUseError, EnvironmentNotFoundError):
                client.delete(env_id)
            list(client.list())

    with daemon.client() as client, ThreadPoolExecutor(4) as threads:
        env_id = client.predict(models[0], {"inputs": []}).environment_id
        removing = threads.submit(remove, client, env_id)
        answers = [threads.submit(ask, client, model) for model in models]

        assert [one.result() for one in answers] == [{'["2.0", [1]]'}] * 3
        removing.result()


def test_an_answer_that_comes_as_its_caller_leaves_is_not_waited_for() -> None:
    async def leave() -> int:
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await Channel.over(ours, 1 << 20)
            call = asyncio.create_task(channel.call(protocol.PREDICT, {}))
            await asyncio.sleep(0)
            channel.data_received(protocol.HEADER.pack(0, 1, protocol.DONE, 2) + b"{}")
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            channel.close()
            return channel.under_way

    assert asyncio.run(leave()) == 0


def test_a_patient_caller_does_not_pay_for_an_impatient_one(
    start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    daemon = start_daemon(tmp_path / "root", **tiny.settings, ENVD_WORKERS__STOP_GRACE="300ms")
    body = "        import time; time.sleep(data); return 'answered'"
    model = tiny.model(tmp_path / "model", body=body)
    with daemon.client() as client, ThreadPoolExecutor(2) as threads:
        client.predict(model, {"inputs": 0})
        impatient = threads.submit(client.predict, model, {"inputs": 600}, timeout_s=0.5)
        time.sleep(0.2)
        patient = threads.submit(client.predict, model, {"inputs": 0}, timeout_s=30)

        assert patient.result().predictions == "answered"
        assert isinstance(impatient.exception(), EnvdError)


def test_what_was_built_and_removed_is_not_building(
    daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    with daemon.client() as client:
        building = client.build(tiny.model(tmp_path / "model"))
        built = list(client.watch(building.spec_key))[-1].environment
        client.delete(built.id)
        with pytest.raises(EnvironmentNotFoundError):
            client.get(building.spec_key)


def test_what_a_package_says_while_it_is_built_is_not_the_indexs_word(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    sdist(wheels, "broken", "1.0", "raise RuntimeError('database: Connection refused')")
    links = {"ENVD_INDEX__FIND_LINKS": f"{tiny.wheels},{wheels}"}

    done = envctl("build", "-m", tiny.model(tmp_path / "model", "broken"), "--json", **links)

    assert json.loads(done.stdout)["failure"]["reason"] == "INSTALL_FAILED"


def test_an_attempt_that_was_replaced_goes_when_nobody_uses_it(
    envctl: Envctl, start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model")
    env_id = json.loads(envctl("build", "-m", model, "--json").stdout)["id"]
    home = envctl.root / "environments" / env_id
    leased = Store(envctl.root).lease(env_id)
    assert leased is not None
    first = leased[0].prefix
    lose_interpreter(home / "ready.json")

    envctl("build", "-m", model)
    second = Store(envctl.root).find(env_id)
    still_there = first.exists()
    leased[1].close()
    start_daemon(envctl.root)

    assert still_there
    assert second is not None
    assert second.prefix.exists()
    wait_for(lambda: not first.exists())


def _refused(client: Client, model: Path) -> EnvdError:
    with pytest.raises(EnvdError) as raised:
        client.predict(model, {"inputs": []})
    return raised.value


def test_a_lock_of_any_length_is_selected_from_beside_the_loop(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.ask("tiny-a")
    builds = builds_of(house, monkeypatch)
    threads = []
    select = Asked.of

    def slow(*given: Any) -> Asked:
        threads.append(threading.current_thread())
        return select(*given)

    monkeypatch.setattr(Asked, "of", slow)

    asyncio.run(builds.ask(mlmodel.read(house.model)))

    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


@pytest.mark.parametrize("fails", [False, True])
def test_an_upgrade_waits_for_the_build_under_way_and_then_starts(
    house: House, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    asked = house.ask("tiny-a")
    model = mlmodel.read(house.model)
    builds = builds_of(house, monkeypatch)
    begun, may_end = [], asyncio.Event()

    async def run(task: str, about: dict[str, Any], _: OnEvent, __: str) -> dict[str, Any]:
        assert task == "build"
        begun.append(about["upgrade"])
        await may_end.wait()
        if fails and not about["upgrade"]:
            message = "no such package"
            raise SolveFailedError(message)
        return {"cached": False}

    async def ask() -> tuple[list[Build], list[bool]]:
        plain = builds.start(asked, model)
        upgrade = builds.start(asked, model, upgrade=True)
        again = builds.start(asked, model, upgrade=True)
        joined = builds.start(asked, model)
        await asyncio.sleep(0.05)
        early = [*begun]
        may_end.set()
        await asyncio.wait([upgrade.done])
        assert plain.done.done()
        assert bool(plain.done.exception()) is fails
        assert upgrade.done.exception() is None
        return [plain, upgrade, again, joined], early

    monkeypatch.setattr(builds._builders, "run", run)
    monkeypatch.setattr(builds, "_built", lambda build: build)

    (plain, upgrade, again, joined), early = asyncio.run(ask())

    assert early == [False]
    assert begun == [False, True]
    assert again is upgrade is not plain
    assert joined is plain
    assert builds.get(asked.spec.key) is upgrade


def test_models_of_one_spec_and_other_days_are_built_each(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = house.ask("tiny-a")
    model = mlmodel.read(house.model)
    builds = builds_of(house, monkeypatch)

    async def run(task: str, about: dict[str, Any], _: OnEvent, __: str) -> dict[str, Any]:
        del task, about
        return {"cached": False}

    async def ask() -> list[Build]:
        return [builds.start(replace(asked, day=day), model)
                for day in ("2024-02-10", "2024-02-28", "2024-02-10")]  # fmt: skip

    monkeypatch.setattr(builds._builders, "run", run)
    monkeypatch.setattr(builds, "_built", lambda build: build)

    first, second, third = asyncio.run(ask())

    assert first is third is not second
    assert builds.get(asked.spec.key) is second


def builds_of(house: House, monkeypatch: pytest.MonkeyPatch) -> Builds:
    """Return the builds of a daemon that knows one Python, and starts no process."""
    known = (house.interpreter,), True
    monkeypatch.setattr(Interpreters, "known", lambda _: known)
    return Builds(house.settings, cast("Processes", None))
