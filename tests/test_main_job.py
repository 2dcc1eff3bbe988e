"""The main job, on real models: from a directory to the answer MLflow gave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
from envd_client.errors import ImportFailedError, StreamUnsupportedError
from packaging.version import Version

from envd import config
from envd.build import Interpreters
from envd.run import envd_worker
from tests.conftest import Daemon, Envctl, environment, expected, is_running, link_cache, wait_for
from tests.tiny import Tiny, sdist

ANSWERING = ["a", "b", "b3", "c1", "c2", "d"]


@pytest.mark.parametrize(
    "letter",
    # All of them are asked of the daemon; what envctl does by itself is the same for each.
    ["a", "c1", *(pytest.param(one, marks=pytest.mark.slow) for one in ("b", "b3", "c2", "d"))],
)
def test_envctl_prints_the_answer_mlflow_gave_and_nothing_else(
    shared_envctl: Envctl, tmp_path: Path, letter: str
) -> None:
    model = expected(letter)
    (tmp_path / "payload.json").write_text(json.dumps(model.payload))

    done = shared_envctl("predict", "-m", model.path, "-i", tmp_path / "payload.json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == model.answer


@pytest.mark.parametrize("letter", ANSWERING)
def test_the_daemon_gives_the_answer_mlflow_gave(shared_daemon: Daemon, letter: str) -> None:
    model = expected(letter)

    with shared_daemon.client() as client:
        answer = client.predict(model.path, model.payload)

    assert json.loads(answer.payload) == model.answer


@pytest.mark.parametrize("letter", ["a", "b", pytest.param("b3", marks=pytest.mark.slow)])
def test_so_it_does_when_it_is_asked_in_tensors(shared_daemon: Daemon, letter: str) -> None:
    import numpy as np
    from tritonclient.grpc import InferenceServerClient, InferInput

    model = expected(letter)
    table = model.payload["dataframe_split"]
    columns = zip(table["columns"], np.array(table["data"], "float64").T, strict=True)
    with shared_daemon.client() as client:
        client.load_model(model.path, name=letter)
    with InferenceServerClient(f"unix:{shared_daemon.root}/predict.sock") as triton:
        inputs = []
        for name, values in columns:
            inputs.append(InferInput(name, [len(values), 1], "FP64"))
            inputs[-1].set_data_from_numpy(values.reshape(-1, 1))
        # Of these one has no signature that says so.
        answer = triton.infer(letter, inputs, parameters={"content_type": "pd"})

    predictions = answer.as_numpy("output-1").ravel().tolist()
    assert predictions == model.answer["predictions"]


def test_models_that_share_an_environment_and_a_module_name_keep_their_answers(
    shared_daemon: Daemon,
) -> None:
    models = [expected("c1"), expected("c2")]

    with shared_daemon.client() as client, ThreadPoolExecutor(8) as threads:

        def ask(number: int) -> tuple[int, object, str]:
            model = models[number % 2]
            answer = client.predict(model.path, model.payload)
            return number, json.loads(answer.payload), answer.environment_id

        in_turn = [ask(number) for number in range(6)]
        at_once = list(threads.map(ask, range(40)))

    for number, answer, _ in in_turn + at_once:
        assert answer == models[number % 2].answer
    assert len({environment_id for _, _, environment_id in in_turn + at_once}) == 1


def test_a_model_of_mlflows_answers_item_by_item(shared_daemon: Daemon, tmp_path: Path) -> None:
    # In the environment of another, whose MLflow loads it.
    model = shutil.copytree(expected("c1").path, tmp_path / "model")
    (model / "code" / "speaking.py").write_text(
        "class Model:\n"
        "    def predict(self, model_input, params=None):\n        return 'all'\n\n"
        "    def predict_stream(self, model_input, params=None):\n"
        "        yield from model_input['messages'][-1]['content'].split()\n\n\n"
        "def _load_pyfunc(path):\n    return Model()\n"
    )
    text = (model / "MLmodel").read_text().replace("streamable: false", "streamable: true")
    (model / "MLmodel").write_text(text.replace("mlflow.pyfunc.model", "speaking"))
    asked = json.dumps({"messages": [{"role": "user", "content": "one by one"}]})
    with shared_daemon.client() as client:
        stream = client.predict_stream(model, asked)
        assert list(stream) == ["one", "by", "one"]
        other = client.predict(expected("c1").path, expected("c1").payload)
        # That one is none that streams.
        with pytest.raises(StreamUnsupportedError):
            list(client.predict_stream(expected("c1").path, expected("c1").payload))
    assert stream.answer.environment_id == other.environment_id


def test_old_models_run_on_the_python_they_were_saved_with(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        ids = [
            client.predict(model.path, model.payload).environment_id
            for model in (expected("b"), expected("b3"))
        ]
        pythons = [client.get(one, full=True) for one in ids]

    for found in pythons:
        assert found.python.actual.startswith("3.7.")
        config = Path(found.prefix, "pyvenv.cfg").read_text()
        assert f"version_info = {found.python.actual}" in config


def test_a_missing_module_is_named_with_its_distribution(
    shared_daemon: Daemon, shared_envctl: Envctl, tmp_path: Path
) -> None:
    model = expected("f")
    (tmp_path / "payload.json").write_text(json.dumps(model.payload))

    with shared_daemon.client() as client, pytest.raises(ImportFailedError) as raised:
        client.predict(model.path, model.payload)
    done = shared_envctl("predict", "-m", model.path, "-i", tmp_path / "payload.json")

    assert raised.value.code.name == "FAILED_PRECONDITION"
    assert raised.value.reason == "IMPORT_FAILED"
    assert raised.value.metadata["module"] == "bs4"
    assert raised.value.metadata["distribution"] == "beautifulsoup4"
    assert (done.returncode, done.stdout) == (1, "")
    assert "`bs4`" in done.stderr
    assert "`beautifulsoup4`" in done.stderr


def test_a_model_is_built_and_answered_with_nothing_but_path_and_home(
    shared_envctl: Envctl, tmp_path: Path
) -> None:
    # Somebody else's project, and a pip that points nowhere, where the command is run.
    (tmp_path / "pyproject.toml").write_text(
        '[tool.uv]\nindex-url = "http://127.0.0.1:9/simple"\nno-index = true\n'
    )
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = http://127.0.0.1:9/simple\n")
    (tmp_path / "uv.toml").write_text('index-url = "http://127.0.0.1:9/simple"\n')
    (tmp_path / ".config" / "pip").mkdir(parents=True)
    (tmp_path / "pip.conf").rename(tmp_path / ".config" / "pip" / "pip.conf")
    model = tmp_path / "model"
    model.mkdir()
    (model / "loader.py").write_text(
        "import six\n\n\ndef _load_pyfunc(path):\n    return Model()\n\n\n"
        "class Model:\n    def predict(self, data):\n        return six.__version__\n"
    )
    (model / "requirements.txt").write_text("six==1.16.0\n")
    (model / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: loader\n    code: .\n"
        "    python_version: 3.11.7\n"
    )

    done = subprocess.run(
        shared_envctl.argv("predict", "-m", "./model"),
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        cwd=tmp_path,
        input='{"inputs": [1]}',
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert json.loads(done.stdout or "null") == {"predictions": "1.16.0"}, done.stderr
    assert (tmp_path / ".local/state/envd/environments").is_dir()


@pytest.mark.slow
def test_twenty_commands_at_once_build_once(envctl: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model")

    with ThreadPoolExecutor(20) as threads, _Attempts(envctl.root) as attempts:
        done = list(
            threads.map(
                lambda number: envctl("predict", "-m", model, stdin=f'{{"inputs": [{number}]}}'),
                range(20),
            )
        )

    assert [json.loads(one.stdout)["predictions"] for one in done] == [
        ["2.0", [number]] for number in range(20)
    ], done[0].stderr
    assert len(attempts.seen) == 1


def test_twenty_callers_of_a_daemon_build_once(daemon: Daemon, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model")

    with (
        daemon.client() as client,
        ThreadPoolExecutor(20) as threads,
        _Attempts(daemon.root) as attempts,
    ):
        answers = list(threads.map(lambda n: client.predict(model, {"inputs": [n]}), range(20)))

    assert [one.predictions for one in answers] == [["2.0", [number]] for number in range(20)]
    assert len(attempts.seen) == 1


@pytest.mark.parametrize(
    ("victim", "link_mode"),
    [
        ("alone", "hardlink"),
        pytest.param("group", "hardlink", marks=pytest.mark.slow),
        pytest.param("alone", "copy", marks=pytest.mark.slow),
    ],
)
def test_after_a_builder_is_killed_midway_the_next_caller_gets_the_answer(
    shared_envctl: Envctl, home: Path, tmp_path: Path, victim: str, link_mode: str
) -> None:
    root, model = tmp_path / "root", expected("b")
    shared_envctl("build", "-m", model.path)
    link_cache(shared_envctl.root, root)
    envctl = Envctl(root, environment(root, home, ENVD_BUILD__LINK_MODE=link_mode))
    (tmp_path / "payload.json").write_text(json.dumps(model.payload))
    builder = subprocess.Popen(
        envctl.argv("build", "-m", model.path),
        env=envctl.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: any(root.glob("environments/*/*/lib/python3*/site-packages/*/*")))
    half_built = next(root.glob("environments/*/*/"))
    (os.killpg if victim == "group" else os.kill)(builder.pid, signal.SIGKILL)
    builder.wait()

    done = envctl("predict", "-m", model.path, "-i", tmp_path / "payload.json")

    assert json.loads(done.stdout or "null") == model.answer, done.stderr
    assert not half_built.exists()
    ready = json.loads(next(root.glob("environments/*/ready.json")).read_text())
    left = {one.name for one in next(root.glob("environments/*")).iterdir()}
    attempt = ready["attempt"]
    assert left == {"ready.json", "used", "used-by", attempt, f"{attempt}.files"}
    assert not list((root / "trash").glob("*"))


def test_an_installer_left_behind_is_ended_before_the_next_build(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    once = tmp_path / "once"
    # The first build hangs, and says so; a second one would not.
    body = (
        f"import time; first = not os.path.exists({str(once)!r}); "
        f"open({str(once)!r}, 'a').write(str(os.getpid()) + ' '); time.sleep(600 * first)"
    )
    sdist(wheels, "hanging", "1.0", body)
    model = tiny.model(tmp_path / "model", "tiny-a", "hanging")
    links = {"ENVD_INDEX__FIND_LINKS": f"{tiny.wheels},{wheels}"}
    builder = subprocess.Popen(
        envctl.argv("build", "-m", model), env=envctl.env | links, start_new_session=True
    )
    wait_for(lambda: once.exists() and once.read_text().endswith(" "))
    builder.kill()
    builder.wait()
    backend = int(once.read_text())
    assert is_running(backend), "the installer should have outlived its builder"

    done = envctl("predict", "-m", model, stdin='{"inputs": [1]}', **links)

    assert json.loads(done.stdout or "null") == {"predictions": ["2.0", [1]]}, done.stderr
    assert not is_running(backend)


def test_a_build_that_is_told_to_end_ends_the_wheels_it_makes(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    begun = tmp_path / "begun"
    body = f"import time; open({str(begun)!r}, 'a').write(str(os.getpid()) + ' '); time.sleep(60)"
    sdist(wheels, "slow", "1.0", body)
    model = tiny.model(tmp_path / "model", "tiny-a", "slow")
    links = {"ENVD_INDEX__FIND_LINKS": f"{tiny.wheels},{wheels}"}
    builder = subprocess.Popen(envctl.argv("build", "-m", model), env=envctl.env | links)
    wait_for(lambda: begun.exists() and begun.read_text().endswith(" "))

    builder.terminate()
    status = builder.wait(timeout=20)

    assert status == 128 + signal.SIGTERM
    assert not is_running(int(begun.read_text()))
    assert not list((envctl.root / "scratch").glob("*"))


def test_build_prints_what_was_built_and_then_that_it_is_cached(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "Tiny_A == 1.0")

    first, second = (json.loads(envctl("build", "-m", model, "--json").stdout) for _ in range(2))
    listed = json.loads(envctl("list", "--json").stdout)

    assert set(first) == {
        "id", "spec_key", "state", "cached", "seconds", "manager", "python", "as_of", "notes",
        "failure", "model",
    }  # fmt: skip
    assert (first["state"], first["cached"], first["failure"]) == ("ready", False, None)
    assert first["manager"] == "virtualenv"
    assert len(first["id"]) == 32
    assert len(first["spec_key"]) == 64
    assert second == first | {"cached": True}
    assert [one["id"] for one in listed] == [first["id"]]
    assert listed[0]["models"] == [str(model)]
    assert set(listed[0]) == set(first) - {"model"} | {
        "created", "last_used", "bytes", "bytes_exclusive", "leases", "pinned", "models",
        "uses",
    }  # fmt: skip


def test_specs_that_resolve_to_the_same_lock_share_one_environment(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    pinned = tiny.model(tmp_path / "pinned", "tiny-a==2.0")
    ranged = tiny.model(tmp_path / "ranged", "# the newest", "TINY.a>=1")

    first = json.loads(envctl("build", "-m", pinned, "--json").stdout)
    second = json.loads(envctl("build", "-m", ranged, "--json").stdout)

    assert first["id"] == second["id"]
    assert first["spec_key"] != second["spec_key"]
    assert second["cached"]


def test_every_python_of_this_machine_is_a_target(tiny: Tiny, home: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    envctl = Envctl(root, environment(root, home, **tiny.index))
    body = "        import sys; return '.'.join(map(str, sys.version_info[:3]))"
    found = Interpreters(config.load(root=envctl.root, environ={})).found()
    versions = sorted({one.python.version for one in found})
    models = [tiny.model(tmp_path / one, python=one, body=body) for one in versions]

    built = json.loads(envctl("build", *models, "--json").stdout)
    answers = [
        json.loads(envctl("predict", "-m", model, stdin='{"inputs": 1}').stdout) for model in models
    ]

    assert [one["python"]["actual"] for one in built] == versions
    assert [one["predictions"] for one in answers] == versions


def test_another_patch_release_is_used_with_a_note_unless_the_settings_forbid_it(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    minor = "{}.{}".format(*sys.version_info)
    model = tiny.model(tmp_path / "model", python=f"{minor}.99")

    built = json.loads(envctl("build", "-m", model, "--json").stdout)
    refused = envctl(
        "build", "-m", model, ENVD_PYTHON__MATCH="exact", ENVD_PYTHON__DOWNLOAD="never"
    )

    assert built["python"]["requested"] == f"{minor}.99"
    assert built["python"]["actual"].startswith(f"{minor}.")
    assert "PYTHON_PATCH_DIFFERS" in [note["code"] for note in built["notes"]]
    assert refused.returncode == 1
    assert f"{minor}.99 is not here" in refused.stderr


def test_tables_come_as_csv_and_params_reach_the_model(
    shared_envctl: Envctl, envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = expected("a")
    table = model.payload["dataframe_split"]
    rows = [table["columns"], *table["data"]]
    (tmp_path / "rows.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    taking = tiny.model(tmp_path / "model", body="        return params")
    loader = taking / "code" / "tiny_loader.py"
    loader.write_text(loader.read_text().replace("self, data", "self, data, params=None"))

    csv = shared_envctl("predict", "-m", model.path, "-i", tmp_path / "rows.csv")
    given = envctl("predict", "-m", taking, "--params", '{"k": 2}', stdin='{"inputs": 1}')
    within = envctl("predict", "-m", taking, stdin='{"inputs": 1, "params": {"k": 3}}')

    assert json.loads(csv.stdout or "null") == model.answer, csv.stderr
    assert json.loads(given.stdout) == {"predictions": {"k": 2}}
    assert json.loads(within.stdout) == {"predictions": {"k": 3}}


def test_what_a_model_leaves_open_is_of_the_month_it_was_logged_in(
    home: Path, tmp_path: Path
) -> None:
    # The daemon of the shared root has settings of its own.
    envctl = Envctl(tmp_path / "root", environment(tmp_path / "root", home))
    early, late = (_dated(tmp_path / day, day) for day in ("2024-02-14", "2024-02-28"))

    done = envctl("lock", "-m", early)
    explained = [json.loads(envctl("explain", one, "--json").stdout) for one in (early, late)]
    today = envctl("lock", "-m", early, ENVD_RESOLVE__AS_OF="now")

    assert done.returncode == 0, done.stderr
    assert today.returncode == 0, today.stderr
    of_month, of_today = (
        {one["name"]: Version(one["version"]) for one in tomllib.loads(text)["packages"]}
        for text in (done.stdout, today.stdout)
    )
    assert of_month["mlflow"].release[:2] == (2, 10)
    assert of_month["numpy"].release[:2] == (1, 26)
    assert Version("2.1") <= of_month["pandas"] <= Version("2.2.0")
    for name in ("mlflow", "numpy", "pandas"):
        assert of_today[name] > of_month[name]
    # Released on the thirteenth, and pinned.
    assert str(of_month["scikit-learn"]) == "1.4.1.post1"
    assert explained[0]["spec_key"] == explained[1]["spec_key"]
    assert explained[0]["env_id"] == explained[1]["env_id"] is not None


def _dated(path: Path, day: str) -> Path:
    """Copy a real model without the versions it was logged with, as of another day."""
    model = Path(shutil.copytree(expected("d").path, path))
    (model / "requirements.txt").write_text("mlflow\nscikit-learn==1.4.1.post1\n")
    lines = (model / "MLmodel").read_text().splitlines()
    kept = [one for one in lines if not one.startswith(("mlflow_version", "utc_time_created"))]
    text = "\n".join([*kept, f"utc_time_created: '{day} 05:59:29.603392'", ""])
    (model / "MLmodel").write_text(text)
    return model


class _Attempts:
    """Sees every attempt that appears below a root meanwhile."""

    def __init__(self, root: Path) -> None:
        self._root, self._over = root, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.seen: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.005):
            found = self._root.glob("environments/*/*/")
            self.seen |= {one.name for one in found if one.name != "used-by"}


def test_a_table_made_at_once_is_the_one_that_mlflow_makes(shared_envctl: Envctl) -> None:
    program, worker = Path(__file__).with_name("compare_tables.py"), Path(envd_worker.__file__)
    compare = ("python", program, worker.parent.parent)

    done = shared_envctl("run", "-m", expected("a").path, "--", *compare)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
