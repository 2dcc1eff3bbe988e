"""Models that have a name: what their workers get, whether they are ready, who may load them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from envd_client import AsyncClient, Client
from envd_client.errors import (
    EnvdError,
    ModelInvalidError,
    ModelNotFoundError,
    ModelRaisedError,
    PermissionDeniedError,
    RequestInvalidError,
    SettingsInvalidError,
)
from envd_client.v1 import envd_pb2 as api
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.called import Called
from tests.conftest import Daemon, environment, is_running, launch, one_python, stop, wait_for
from tests.tiny import Tiny

# Answers with the variables that its input names, its process and its model_config.
SHOW = """
import os


class Model:
    def __init__(self, config):
        self.config = config

    def predict(self, data):
        if data == "raise":
            raise RuntimeError("refused with " + os.environ["API_KEY"])
        if isinstance(data, dict):
            open(data["begun"], "w").close()
            while not os.path.exists(data["end"]):
                pass
        return {name: os.environ.get(name) for name in data}, os.getpid(), self.config


def _load_pyfunc(path, model_config=None):
    LOAD
    return Model(model_config)
"""
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def show(tiny: Tiny, path: Path, load: str = "pass", more: str = "") -> Path:
    """Write a model that shows what it runs with, and runs *load* when it is loaded."""
    tiny.model(path)
    (path / "code" / "tiny_loader.py").write_text(SHOW.replace("LOAD", load))
    with (path / "MLmodel").open("a") as file:
        file.write(more)
    return path


@dataclass(frozen=True)
class Served:
    """A daemon with a settings file, and the folder of both."""

    folder: Path
    daemon: Daemon
    env: dict[str, str]

    @property
    def envctl(self) -> Called:
        return Called(self.daemon.root, self.env)

    def health(self, service: str) -> int | None:
        """Return what health says of *service*, None if it knows none of that name."""
        with grpc.insecure_channel(f"unix:{self.daemon.root}/predict.sock") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                return stub.Check(health_pb2.HealthCheckRequest(service=service)).status
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return None

    def workers(self) -> list[str]:
        """Return the models that workers have loaded."""
        with self.daemon.client() as client:
            return [one.model for one in client.list_workers()]

    def frontend(self) -> Client:
        """Return a client that has the predict socket only."""
        socket = self.daemon.root / "predict.sock"
        return Client(socket, admin_target=socket, timeout_s=60)

    def get(self, name: str) -> api.Model:
        with self.daemon.client() as client:
            (found,) = [one for one in client.list_models() if name in (one.name, one.path)]
            return found


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny, tools: Path
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    wanting = "env_vars: [API_KEY, MODE, ABSENT_KEY]\n"
    show(tiny, folder / "shown", more=wanting)
    show(tiny, folder / "broken", load="raise OSError('broken for good')")
    (folder / "variables").write_text("MODE=from file\nFILE=too\n")
    (folder / "variables").chmod(0o600)
    (folder / "open").touch(0o644)
    file = folder / "envd.toml"
    file.write_text(f"""
[models]
lazy = "{folder}/shown"
[models.shown]
uri = "{folder}/shown"
env = {{ API_KEY = "s3cret-key", MODE = "table" }}
env_file = "{folder}/variables"
gpu = ""
preload = true
model_config = {{ a = 1, b = [true] }}
[models.broken]
uri = "{folder}/broken"
preload = true
[models.open]
uri = "{folder}/broken"
env_file = "{folder}/open"
[models.gone]
uri = "{folder}/gone"
[models.lacking]
uri = "{folder}/lacking"
preload = true
check = true
[models.unchecked]
uri = "{folder}/lacking"
[models.another]
uri = "{folder}/another"
check = true
[models.waiting]
uri = "{folder}/waiting"
check = true
""")
    asked = "saved_input_example_info: {artifact_path: example.json}\n"
    show(tiny, folder / "lacking", more=asked)
    show(tiny, folder / "another", more=asked)
    for name, body in (("lacking", "import bs4"), ("another", "return [1, 2]")):
        module = folder / name / "code" / "tiny_loader.py"
        module.write_text(
            module.read_text().replace('if data == "raise":', f"{body}\n        if 0:")
        )
        (folder / name / "example.json").write_text('{"inputs": ["A"]}')
    show(tiny, folder / "waiting", more=asked)
    example = {"inputs": {"begun": f"{folder}/begun", "end": f"{folder}/end"}}
    (folder / "waiting" / "example.json").write_text(json.dumps(example))
    root = folder / "root"
    settings = {**tiny.settings, **one_python(tools), "ENVD_CONFIG": str(file)}
    daemon = launch(root, home, **settings)
    yield Served(folder, daemon, environment(root, home, **settings))
    stop(daemon)


def test_what_is_preloaded_is_ready_before_anybody_asks(served: Served) -> None:
    wait_for(lambda: served.health("models/shown") == SERVING)
    wait_for(lambda: served.get("broken").state == api.Model.FAILED)

    with served.daemon.client() as client:
        answer = client.predict("shown", ["API_KEY"])
    broken = served.get("broken")

    assert answer.worker_origin == "warm"
    assert served.health("models/broken") == NOT_SERVING
    assert "broken for good" in broken.failure.message
    assert served.health("models/lazy") == NOT_SERVING
    assert served.health("models/wine") is None
    assert served.health("") == SERVING


def test_a_model_that_does_not_answer_its_own_example_is_not_ready(served: Served) -> None:
    wait_for(lambda: served.get("lacking").state == api.Model.FAILED)
    failure = served.get("lacking").failure
    with served.daemon.client() as client:
        # Nobody wants it checked there.
        unchecked = client.load_model("unchecked")
        well = client.load_model("another")
        (served.folder / "another" / "output_example.json").write_text('{"predictions": [1, 3]}')
        with pytest.raises(EnvdError) as caught:
            client.load_model("another")

    assert failure.reason == "MODEL_INVALID"
    assert "does not answer its own input example" in failure.message
    assert "`bs4` is not in its environment; `beautifulsoup4` brings it" in failure.message
    assert served.health("models/lacking") == NOT_SERVING
    assert (unchecked.state, well.state) == (api.Model.READY, api.Model.READY)
    assert "otherwise than when it was logged" in str(caught.value)
    assert served.health("models/another") == NOT_SERVING
    assert not [one for one in served.workers() if "/another" in one]

    with served.daemon.client() as client:
        answered = client.predict("another", {"inputs": ["A"]})

    # Whoever asks it nonetheless does not make it ready for all.
    assert answered.predictions == [1, 2]
    assert served.get("another").state == api.Model.FAILED
    assert served.health("models/another") == NOT_SERVING


def test_workers_get_what_the_table_of_their_model_says(served: Served) -> None:
    asked = ["API_KEY", "MODE", "FILE", "CUDA_VISIBLE_DEVICES", "ENVD_CONFIG"]
    with served.daemon.client() as client:
        answer = client.predict("shown", asked)
        variables, pid, config = answer.predictions
        changed = client.predict("shown", asked, model_config={"a": 2}).predictions
        plain = client.predict("lazy", asked)

    assert variables == {
        "API_KEY": "s3cret-key",
        "MODE": "table",
        "FILE": "too",
        "CUDA_VISIBLE_DEVICES": "",
        "ENVD_CONFIG": None,
    }
    assert config == {"a": 1, "b": [True]}
    assert changed[0] == variables
    assert changed[1] != pid
    assert changed[2] == {"a": 2, "b": [True]}
    # What has another name is another table's, and has none of these.
    assert plain.predictions[0] == dict.fromkeys(asked)
    assert plain.predictions[2] is None
    assert [one.subject for one in answer.notes if one.code == "ENV_VARS_MISSING"] == ["ABSENT_KEY"]
    assert [one.subject for one in plain.notes if one.code == "ENV_VARS_MISSING"] == [
        "API_KEY, MODE, ABSENT_KEY"
    ]


def test_a_file_of_variables_that_has_changed_means_another_worker(served: Served) -> None:
    with served.daemon.client() as client:
        _, before, _ = client.predict("shown", []).predictions
        (served.folder / "variables").write_text("FILE=changed\n")

        def shown() -> list[object]:
            return list(client.predict("shown", ["FILE"]).predictions)

        # What was looked at within two milliseconds is not looked at again.
        wait_for(lambda: shown()[0] == {"FILE": "changed"})
        after = shown()[1]

    assert after != before
    # Though it was to stay: nobody will ask for it any more.
    wait_for(lambda: not is_running(before))


def test_the_path_of_a_served_model_is_served_as_its_first_name_says(served: Served) -> None:
    with served.daemon.client() as client:
        by_name = client.predict("lazy", []).predictions
        by_path = client.predict(served.folder / "shown", []).predictions

    assert by_path == by_name


def test_a_model_that_raises_gives_no_secret_away_and_names_what_is_missing(
    served: Served,
) -> None:
    with served.daemon.client() as client:
        with pytest.raises(ModelRaisedError) as caught:
            client.predict("shown", {"inputs": "raise"})
        listed = client.list_models()

    assert "refused with ***" in caught.value.message
    assert "`ABSENT_KEY`" in caught.value.message
    assert "s3cret" not in f"{caught.value.message}{caught.value.metadata}{listed}"
    # It is loaded all the same.
    assert served.health("models/shown") == SERVING


def test_variables_that_others_can_read_are_not_used(served: Served) -> None:
    with served.daemon.client() as client, pytest.raises(SettingsInvalidError) as caught:
        client.predict("open", [])

    assert "has the mode 0644, which is open to others" in caught.value.message
    assert served.get("open").failure.reason == "SETTINGS_INVALID"


def test_a_name_is_told_with_those_near_it(served: Served) -> None:
    with served.daemon.client() as client:
        with pytest.raises(ModelNotFoundError) as caught:
            client.predict("shwon", [])
        with pytest.raises(ModelNotFoundError) as unloaded:
            client.unload_model("wine")

    assert "no served model is called `shwon`; give `shown`" in caught.value.message
    assert "no served model is called `wine`" in unloaded.value.message


def test_a_model_that_is_mended_is_ready_with_the_next_request(served: Served, tiny: Tiny) -> None:
    with served.daemon.client() as client:
        with pytest.raises(ModelNotFoundError):
            client.predict("gone", [])
        state = served.get("gone").state
        show(tiny, served.folder / "gone")
        client.predict("gone", [])
        found = served.get("gone")

    assert state == api.Model.FAILED
    assert (found.state, found.worker_count, found.failure.reason) == (api.Model.READY, 1, "")
    assert found.environment_id
    assert served.health("models/gone") == SERVING


def test_a_frontend_may_load_models_of_the_settings_and_no_others(
    served: Served, tiny: Tiny, tmp_path: Path
) -> None:
    other = tiny.model(tmp_path / "other")
    with served.frontend() as client:
        loaded = client.load_model("lazy")
        by_path = client.load_model(served.folder / "shown")
        unloaded = client.unload_model("lazy")
        for name, more in ((other, {}), ("lazy", {"name": "mine"})):
            with pytest.raises(PermissionDeniedError):
                client.load_model(name, **more)
        with pytest.raises(PermissionDeniedError):
            client.unload_model(other)

    assert (loaded.name, loaded.state) == ("lazy", api.Model.READY)
    assert loaded.worker_count >= 1
    assert by_path.name == "lazy"
    assert unloaded.state == api.Model.UNLOADED
    assert served.health("models/lazy") == NOT_SERVING


def test_a_name_is_given_taken_over_and_gone(served: Served, tiny: Tiny, tmp_path: Path) -> None:
    first, second = (tiny.model(tmp_path / one, f"tiny-a=={one}") for one in ("1.0", "2.0"))
    broken = served.folder / "broken"
    with served.daemon.client() as client:
        loaded = client.load_model(first, name="mine")
        one = client.predict("mine", [])
        client.load_model(second, name="mine")
        two = client.predict("mine", [])
        with pytest.raises(ModelInvalidError):
            client.load_model(broken, name="mine")
        three = client.predict("mine", [])
        health = served.health("models/mine")
        with pytest.raises(RequestInvalidError, match="the settings call a model `shown`"):
            client.load_model(first, name="shown")
        with pytest.raises(RequestInvalidError, match="is no name for a model"):
            client.load_model(first, name="a/b")
        client.unload_model("mine")
        with pytest.raises(ModelNotFoundError):
            client.predict("mine", [])

    assert (loaded.name, loaded.uri, loaded.state) == ("mine", str(first), api.Model.READY)
    assert [one.worker_origin, two.worker_origin] == ["warm", "warm"]
    # What cannot be loaded takes nothing over.
    assert [one.predictions[0], two.predictions[0], three.predictions[0]] == ["1.0", "2.0", "2.0"]
    assert health == SERVING
    assert served.health("models/mine") == UNKNOWN


def load_beside(served: Served, model: Path, name: str) -> tuple[threading.Thread, list[EnvdError]]:
    """Have a thread load *model* as *name*; return it, and the list that its error comes into."""
    errors: list[EnvdError] = []

    def load() -> None:
        with served.daemon.client() as client:
            try:
                client.load_model(model, name=name)
            except EnvdError as error:
                errors.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    return loading, errors


def test_who_asks_last_has_the_name_whoever_is_loaded_first(
    served: Served, tiny: Tiny, tmp_path: Path
) -> None:
    begun, end = tmp_path / "begun", tmp_path / "end"
    waits = f"open('{begun}', 'w')\n    while not os.path.exists('{end}'):\n        pass"
    slow = show(tiny, tmp_path / "slow", waits)
    quick = tiny.model(tmp_path / "quick")
    loading, errors = load_beside(served, slow, "wanted")
    wait_for(begun.exists)
    with served.daemon.client() as client:
        with pytest.raises(ModelInvalidError):
            client.load_model(served.folder / "broken", name="wanted")
        before = served.get("wanted")
        client.load_model(quick, name="wanted")
        end.touch()
        loading.join()
        wait_for(lambda: str(slow) in served.workers())

    # What cannot be loaded keeps nobody from it.
    assert (before.uri, before.state) == (str(slow), api.Model.LOADING)
    assert served.get("wanted").uri == str(quick)
    assert "its name given to another" in errors[0].message


def test_who_does_not_wait_finds_it_loaded_later(
    served: Served, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a", "tiny-b")
    with served.daemon.client() as client:
        loading = client.load_model(model, wait=False)
        wait_for(lambda: served.get(str(model)).state == api.Model.READY)
        answer = client.predict(model, [])
        client.unload_model(model)
        left = [one for one in client.list_models() if one.path == str(model)]

    assert loading.state in {api.Model.UNLOADED, api.Model.LOADING}
    assert answer.worker_origin == "warm"
    assert left == []


def test_a_busy_worker_is_unloaded_when_it_has_answered(
    served: Served, tiny: Tiny, tmp_path: Path
) -> None:
    model = show(tiny, tmp_path / "model")
    begun, end = tmp_path / "begun", tmp_path / "end"
    data = json.dumps({"inputs": {"begun": str(begun), "end": str(end)}})
    answers = []
    with served.daemon.client() as client:
        asking = threading.Thread(target=lambda: answers.append(client.predict(model, data)))
        asking.start()
        wait_for(begun.exists)
        client.load_model(model)
        client.unload_model(model)
        other = client.predict(model, []).predictions[1]
        end.touch()
        asking.join()

    _, pid, _ = answers[0].predictions
    assert pid != other
    wait_for(lambda: not is_running(pid))


def test_what_is_unloaded_while_it_is_loaded_is_told_to_who_waits(
    served: Served, tiny: Tiny, tmp_path: Path
) -> None:
    model = show(
        tiny, tmp_path / "model", f"open('{tmp_path}/begun', 'w'); import time; time.sleep(60)"
    )
    loading, errors = load_beside(served, model, "slow")
    wait_for((tmp_path / "begun").exists)
    with served.daemon.client() as client:
        client.unload_model("slow")
    loading.join()

    assert "unloaded while it was being loaded" in errors[0].message
    assert served.health("models/slow") == UNKNOWN


def test_what_is_unloaded_while_it_is_checked_is_ready_when_it_answers(served: Served) -> None:
    end = served.folder / "end"

    def load() -> None:
        with served.daemon.client() as client, contextlib.suppress(EnvdError):
            client.load_model("waiting")

    loading = threading.Thread(target=load)
    loading.start()
    wait_for((served.folder / "begun").exists)
    with served.daemon.client() as client:
        client.unload_model("waiting")
        end.touch()
        loading.join()
        unloaded = served.health("models/waiting")
        client.predict("waiting", [])

    assert unloaded == NOT_SERVING
    assert served.health("models/waiting") == SERVING


def test_envctl_lists_and_loads_and_shows_them(served: Served, tiny: Tiny, tmp_path: Path) -> None:
    envctl, model = served.envctl, tiny.model(tmp_path / "model")

    loaded = envctl("models", "load", model, "--name", "verbs")
    answer = envctl("predict", "-m", "verbs", "--model-config", "{}", stdin='{"inputs": [1]}')
    listed = json.loads(envctl("models", "list", "--json").stdout)
    table = envctl("models", "list").stdout
    shown = json.loads(envctl("models", "show", "-m", "verbs", "--json").stdout)
    unloaded = envctl("models", "unload", "verbs")
    again = envctl("models", "unload", "verbs")

    assert (loaded.stdout, loaded.returncode) == ("verbs  ready\n", 0)
    assert answer.stdout == '{"predictions": ["2.0", [1]]}\n'
    assert {"broken", "gone", "lazy", "open", "shown", "verbs"} <= {one["name"] for one in listed}
    (row,) = [one for one in listed if one["name"] == "verbs"]
    assert row == {
        "name": "verbs",
        "uri": str(model),
        "path": str(model),
        "digest": shown["digest"],
        "environment_id": row["environment_id"],
        "state": "ready",
        "ready": True,
        "workers": 1,
        "notes": row["notes"],
        "failure": None,
    }
    assert "failed: MODEL_INVALID" in table
    assert shown["flavors"]["python_function"]["loader_module"] == "tiny_loader"
    assert unloaded.stdout == "verbs  unloaded\n"
    assert again.returncode == 1
    assert "no served model is called `verbs`" in again.stderr


def test_what_was_not_loaded_is_forgotten_as_it_is_listed(served: Served, tmp_path: Path) -> None:
    envctl, gone = served.envctl, str(tmp_path / "gone")
    given = [gone, "odd://me:secret@store/m"]
    # Whose path is found first.
    named = ["models", "load", gone, "--name", "forgotten"]

    def listed() -> list[tuple[str | None, str]]:
        found = json.loads(envctl("models", "list", "--json").stdout)
        return [(one["name"], one["uri"]) for one in found]

    before = listed()
    loads = [envctl("models", "load", one) for one in given] + [envctl(*named)]
    nameless = [uri for name, uri in listed() if name is None and (name, uri) not in before]
    unloads = [envctl("models", "unload", uri) for uri in nameless]

    assert [one.returncode for one in loads] == [1, 2, 1]
    assert nameless == [gone, "odd://***@store/m"]
    assert [one.returncode for one in unloads] == [0, 0], [one.stderr for one in unloads]
    assert listed() == before


def test_the_settings_are_shown_without_the_values_of_variables(served: Served) -> None:
    text = served.envctl("config").stdout
    document = json.loads(served.envctl("config", "--json").stdout)

    assert '* [models.shown] env = { API_KEY = "***", MODE = "***" }' in text
    assert document["models"]["shown"] == {
        "uri": f"{served.folder}/shown",
        "env": {"API_KEY": "***", "MODE": "***"},
        "env_file": f"{served.folder}/variables",
        "gpu": "",
        "preload": True,
        "model_config": {"a": 1, "b": [True]},
    }
    assert all(one["meaning"] for one in document["model_settings"].values())
    assert {"uri", "env", "workers", "queue"} < set(document["model_settings"])
    assert "s3cret" not in f"{text}{document}"


def test_what_a_model_says_of_itself_is_shown(served: Served, tiny: Tiny, tmp_path: Path) -> None:
    example = '{"inputs": [1]}\n'
    columns = '[{"name": "age", "type": "long", "required": false}]'
    more = f"""\
saved_input_example_info:
  artifact_path: input_example.json
  serving_input_path: serving_input_example.json
signature:
  inputs: '{columns}'
  outputs: '[{{"type": "tensor", "tensor-spec": {{"dtype": "int64", "shape": [-1]}}}}]'
  params: '[{{"name": "top", "type": "long", "default": 5, "shape": null}}]'
metadata:
  envd: {{batch: true, env_vars: [API_KEY]}}
"""
    model = show(tiny, tmp_path / "model", more=more)
    (model / "serving_input_example.json").write_text(example)

    text = served.envctl("models", "show", model).stdout
    document = json.loads(served.envctl("models", "show", model, "--json").stdout)

    assert document["signature"]["inputs"] == json.loads(columns)
    assert document["input_example"] == example
    assert document["input_example_path"] == "serving_input_example.json"
    assert (document["env_vars"], document["batch"]) == (["API_KEY"], True)
    assert (document["code_path"], document["state"]) == ("code", "unloaded")
    rows = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    assert rows["input"] == "example  serving_input_example.json:"
    assert rows["output"] == "int64 [-1]"
    assert rows["param"] == "top: long = 5"
    assert "input          age: long, optional\n" in text
    assert text.endswith(example)


@pytest.mark.parametrize(
    ("signature", "shown"),
    [
        ("a text", ""),
        ("{inputs: '5', outputs: {a: b}}", ""),
        (r"""{inputs: '[{"name": "\ud800", "type": "long"}]'}""", "input          \\ud800: long\n"),
    ],
)
def test_a_signature_that_is_none_keeps_nobody_from_the_rest(
    served: Served, tiny: Tiny, tmp_path: Path, signature: str, shown: str
) -> None:
    model = show(tiny, tmp_path / "model", more=f"signature: {signature}\n")

    done = served.envctl("models", "show", model)

    assert done.returncode == 0, done.stderr
    assert f"flavor         python_function\n{shown}" in done.stdout


def test_an_event_loop_has_the_same_calls(served: Served, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model")

    async def calls() -> list[api.Model]:
        async with AsyncClient(served.daemon.root / "predict.sock", timeout_s=60) as client:
            loaded = await client.load_model(model, name="async")
            listed = [one for one in await client.list_models() if one.name == "async"]
            shown = await client.get_model("async")
            return [loaded, *listed, shown, await client.unload_model("async")]

    found = asyncio.run(calls())

    assert {one.name for one in found} == {"async"}
    assert [one.worker_count for one in found] == [1, 1, 1, 0]
    assert [one.HasField("details") for one in found] == [False, False, True, False]


def test_alone_envctl_serves_the_models_of_its_settings(served: Served, tmp_path: Path) -> None:
    alone = Called(tmp_path / "root", served.env | {"ENVD_ROOT": str(tmp_path / "root")})

    answer = alone("predict", "-m", "shown", stdin='{"inputs": ["API_KEY"]}')
    raised = alone("predict", "-m", "shown", stdin='{"inputs": "raise"}')
    listed = json.loads(alone("models", "list", "--json").stdout)
    load = alone("models", "load", "shown")
    shown = json.loads(alone("models", "show", "shown", "--json").stdout)

    assert json.loads(answer.stdout)["predictions"][0] == {"API_KEY": "s3cret-key"}
    assert "note: the model reads `ABSENT_KEY`" in answer.stderr
    assert "refused with ***" in raised.stderr
    assert [one["name"] for one in listed] == [
        "another", "broken", "gone", "lacking", "lazy", "open", "shown", "unchecked", "waiting"
    ]  # fmt: skip
    assert {one["state"] for one in listed} == {"unloaded"}
    assert load.returncode == 3
    assert "no daemon runs" in load.stderr
    assert shown["env_vars"] == ["API_KEY", "MODE", "ABSENT_KEY"]
