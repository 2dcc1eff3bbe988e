"""Workers: one per model, kept, replaced, stopped; and what model code cannot do to them."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from envd_client.errors import EnvdError, WorkerDiedError

from tests.conftest import Daemon, Envctl, environment, wait_for
from tests.tiny import Tiny

PID = "        import os; return os.getpid()"


def test_a_worker_is_kept_between_requests(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body=PID)
    with module_daemon.client() as client:
        answers = [client.predict(model, {"inputs": []}) for _ in range(3)]

    assert len({one.predictions for one in answers}) == 1
    assert [one.worker_origin for one in answers] == ["fresh", "warm", "warm"]


def test_a_changed_model_gets_a_new_worker(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body="        return 'before'")
    with module_daemon.client() as client:
        before = client.predict(model, {"inputs": []}).predictions
        loader = model / "code" / "tiny_loader.py"
        loader.write_text(loader.read_text().replace("before", "after"))
        after = client.predict(model, {"inputs": []}).predictions

    assert (before, after) == ("before", "after")


def test_a_worker_that_dies_costs_its_own_request_and_is_replaced(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    body = "        import os\n        return os._exit(7) if data == 'die' else 'alive'"
    dying = tiny.model(tmp_path / "dying", body=body)
    other = tiny.model(tmp_path / "other", body=PID)
    with module_daemon.client() as client:
        pid = client.predict(other, {"inputs": []}).predictions
        client.predict(dying, {"inputs": "live"})
        with pytest.raises(WorkerDiedError) as raised:
            client.predict(dying, {"inputs": "die"})
        again = client.predict(dying, {"inputs": "live"}).predictions

        assert client.predict(other, {"inputs": []}).predictions == pid
    assert (raised.value.code.name, raised.value.reason) == ("UNAVAILABLE", "WORKER_DIED")
    assert raised.value.retry_after_s is not None
    assert "exit status 7" in raised.value.message
    assert again == "alive"


def test_what_a_worker_had_not_read_when_it_died_is_asked_elsewhere(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path, home: Path
) -> None:
    model = tiny.model(tmp_path / "model", body="        return data")
    envctl = Envctl(module_daemon.root, environment(module_daemon.root, home))

    def worker() -> dict[str, Any]:
        listed = json.loads(envctl("workers", "list", "--json").stdout)
        return next(one for one in listed if one["model"] == str(model))

    with module_daemon.client() as client, ThreadPoolExecutor() as pool:
        client.predict(model, {"inputs": "first"})
        pid = worker()["pid"]
        os.kill(pid, signal.SIGSTOP)
        asking = pool.submit(client.predict, model, {"inputs": "second"})
        wait_for(lambda: worker()["under_way"])
        os.kill(pid, signal.SIGKILL)

        assert asking.result().predictions == "second"


def test_what_a_model_prints_is_not_taken_for_an_answer(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    body = (
        "        import os, sys\n"
        "        for stream in (1, 2):\n"
        "            os.write(stream, os.urandom(1000000))\n"
        "        print('printed', flush=True)\n"
        "        return 'answered'"
    )
    model = tiny.model(tmp_path / "model", body=body)
    with module_daemon.client() as client:
        answers = [client.predict(model, {"inputs": []}).predictions for _ in range(3)]

    assert answers == ["answered"] * 3
    assert any(
        b"printed" in log.read_bytes() for log in (module_daemon.root / "logs").glob("worker-*")
    )


def test_a_worker_sees_nothing_of_the_daemons(start_daemon, tiny: Tiny, tmp_path: Path) -> None:
    body = (
        "        import os\n"
        "        links = [os.readlink('/proc/self/fd/' + fd) for fd in os.listdir('/proc/self/fd')"
        " if os.path.exists('/proc/self/fd/' + fd)]\n"
        "        return [dict(os.environ), links]"
    )
    daemon = start_daemon(tmp_path / "root", **tiny.settings, AWS_SECRET_ACCESS_KEY="canary")
    model = tiny.model(tmp_path / "model", body=body)
    with daemon.client() as client:
        variables, links = client.predict(model, {"inputs": []}).predictions

    assert "canary" not in json.dumps(variables)
    assert set(variables) - {"LC_CTYPE"} <= {
        "PATH", "VIRTUAL_ENV", "HOME", "TMPDIR", "LANG", "MLFLOW_DISABLE_TELEMETRY",
    }  # fmt: skip
    sockets = [one for one in links if one.startswith("socket:")]
    assert len(sockets) == 1, links
    assert not [one for one in links if "held" in one], "a lease reached model code"


def test_many_callers_at_once_each_get_their_own_answer(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    models = [tiny.model(tmp_path / name, body=f"        return ['{name}', data]") for name in "ab"]
    with module_daemon.client() as client, ThreadPoolExecutor(16) as threads:

        def ask(number: int) -> object:
            return client.predict(models[number % 2], {"inputs": [number] * number}).predictions

        answers = list(threads.map(ask, range(200)))

    assert answers == [["ab"[number % 2], [number] * number] for number in range(200)]


def test_an_idle_worker_is_stopped_and_its_lease_ends(
    start_daemon, tiny: Tiny, tmp_path: Path
) -> None:
    daemon = start_daemon(tmp_path / "root", **tiny.settings, ENVD_WORKERS__IDLE_TIMEOUT="200ms")
    model = tiny.model(tmp_path / "model", body=PID)
    with daemon.client() as client:
        answer = client.predict(model, {"inputs": []})
        held = client.get(answer.environment_id).leases
        deadline = time.monotonic() + 10
        while client.get(answer.environment_id).leases and time.monotonic() < deadline:
            time.sleep(0.05)

        assert held
        assert not client.get(answer.environment_id).leases
        assert not Path(f"/proc/{answer.predictions}").exists()
        assert client.predict(model, {"inputs": []}).predictions != answer.predictions
    assert not list((daemon.root / "scratch").glob("*"))[1:]


def test_an_environment_at_work_cannot_be_removed_and_an_idle_one_can(
    daemon: Daemon, envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    body = (
        "        import os, time\n"
        "        open(data[0], 'w').close()\n"
        "        while data[0].endswith('second') and not os.path.exists(data[0] + '-over'):\n"
        "            time.sleep(0.01)\n"
        "        return 'done'"
    )
    model = tiny.model(tmp_path / "model", body=body)
    answers = []
    with daemon.client() as client:
        env_id = client.predict(model, [str(tmp_path / "first")]).environment_id
        caller = threading.Thread(
            target=lambda: answers.append(client.predict(model, [str(tmp_path / "second")]))
        )
        caller.start()
        while not (tmp_path / "second").exists():
            time.sleep(0.01)
        refused = envctl("rm", env_id)
        (tmp_path / "second-over").touch()
        caller.join()
        removed = envctl("rm", env_id[:6])

        assert refused.returncode == 1
        assert "in use" in refused.stderr
        assert answers[0].predictions == "done"
        assert removed.returncode == 0, removed.stderr
        assert list(client.list()) == []
        assert client.predict(model, [str(tmp_path / "third")]).predictions == "done"


def test_a_model_that_never_finishes_loading_is_given_up(
    start_daemon, tiny: Tiny, tmp_path: Path
) -> None:
    daemon = start_daemon(tmp_path / "root", **tiny.settings, ENVD_WORKERS__START_TIMEOUT="500ms")
    model = tiny.model(tmp_path / "model")
    (model / "code" / "tiny_loader.py").write_text("import time; time.sleep(600)")
    with daemon.client() as client, pytest.raises(EnvdError) as raised:
        client.predict(model, {"inputs": []})

    assert raised.value.reason == "MODEL_INVALID"
    assert "not loaded within" in raised.value.message


def test_not_a_number_leaves_as_null_with_a_note(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body="        return [1.5, float('nan'), float('inf')]")
    with module_daemon.client() as client:
        answer = client.predict(model, {"inputs": []})

    assert answer.predictions == [1.5, None, None]
    assert "NAN_AS_NULL" in [note.code for note in answer.notes]


def test_large_answers_come_whole(module_daemon: Daemon, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model", body="        return 'x' * data")
    with module_daemon.client() as client:
        assert len(client.predict(model, {"inputs": 30_000_000}).predictions) == 30_000_000


def test_where_no_worker_can_be_started_for_want_of_descriptors_that_is_said(
    daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model")
    spawner = _spawner(daemon)
    before = resource.prlimit(spawner, resource.RLIMIT_NOFILE)
    refused = []
    with daemon.client() as client:
        env_id = client.predict(model, {"inputs": [1]}).environment_id
        idle = {one.name for one in Path(f"/proc/{spawner}/fd").iterdir()}
        # None for its socket, none for its lease, none for what it is started with.
        for spare in range(4):
            resource.prlimit(spawner, resource.RLIMIT_NOFILE, (len(idle) + spare, before[1]))
            other = tiny.model(tmp_path / f"{spare}")
            with pytest.raises(EnvdError) as raised:
                client.predict(other, {"inputs": [1]})
            refused.append(raised.value)
        resource.prlimit(spawner, resource.RLIMIT_NOFILE, before)
        answer = client.predict(other, {"inputs": [1]})
        left = {one.name for one in Path(f"/proc/{spawner}/fd").iterdir()}

    assert {(one.code.name, one.reason) for one in refused} == {
        ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    }
    assert all("raise the limits" in one.message for one in refused)
    # What was short for a while is not held against the template.
    assert (answer.environment_id, answer.worker_origin) == (env_id, "forked")
    # It has its lease itself, and there is nothing of the others.
    assert len(left) == len(idle)


def _spawner(daemon: Daemon) -> int:
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return next(pid for pid, command in commands.items() if "spawner" in command)


def test_nobody_waits_while_what_a_worker_wrote_is_deleted(
    module_daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    body = (
        "        import os\n"
        "        if data != 'write':\n"
        "            os._exit(0)\n"
        "        for number in range(20000):\n"
        "            os.symlink('nothing', f'{number:05}')\n"
        "        return os.getcwd()"
    )
    writing = tiny.model(tmp_path / "writing", body=body)
    other = tiny.model(tmp_path / "other")
    answered = 0
    with module_daemon.client() as client:
        client.predict(other, {"inputs": [1]})
        scratch = Path(client.predict(writing, {"inputs": "write"}).predictions)
        begun = threading.Thread(target=_end, args=(client, writing))
        begun.start()
        wait_for(
            lambda: not (scratch / "00000").is_symlink() or not (scratch / "19999").is_symlink()
        )
        while scratch.exists():
            client.predict(other, {"inputs": [1]})
            answered += 1
        begun.join()

    # Whoever waited would have been answered once, at the end.
    assert answered > 3


def _end(client, model: Path) -> None:
    with pytest.raises(WorkerDiedError):
        client.predict(model, {"inputs": "end"})


def test_workers_are_listed_and_one_is_restarted(
    daemon: Daemon, tiny: Tiny, tmp_path: Path, home: Path
) -> None:
    model = tiny.model(tmp_path / "m", body="        import os\n        return os.getpid()")
    other = tiny.model(tmp_path / "n", body="        return 1")
    envctl = Envctl(daemon.root, environment(daemon.root, home))
    with daemon.client() as client:
        pid = client.predict(model, {"inputs": [1]}).predictions
        client.predict(other, {"inputs": [1]})

        second, first = json.loads(envctl("workers", "list", "--json").stdout)
        assert (first["pid"], first["model"], first["answers"]) == (pid, str(model), 1)
        assert (first["origin"], second["origin"]) == ("fresh", "forked")
        assert first["reason"] == "it is the first model of its environment"
        header, *rows = (line.split() for line in envctl("workers", "list").stdout.splitlines())
        # The memory may not have been measured yet.
        (row,) = (dict(zip(header, one, strict=False)) for one in rows if one[0] == str(pid))
        assert (row["ANSWERS"], row["NOW"], row["WAITING"]) == ("1", "0", "0")

        assert envctl("workers", "restart", pid).stdout == f"{pid} of {model} is replaced\n"
        wait_for(lambda: client.predict(model, {"inputs": [1]}).predictions != pid)
        refused = envctl("workers", "restart", pid)
        assert (refused.returncode, "no worker has the pid" in refused.stderr) == (1, True)
