"""Overrides as callers give them: another environment for one call, and for nobody else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from envd_client import AsyncClient, Client
from envd_client.errors import RequestInvalidError, SolveFailedError
from envd_client.v1 import envd_pb2 as api

from tests.called import Called
from tests.conftest import Daemon, Envctl, launch, one_python, stop
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def more_settings(tools: Path) -> dict[str, str]:
    return one_python(tools)


@pytest.fixture(scope="module")
def either(either: Envctl) -> Envctl:
    return Called(either.root, either.env)


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny, more_settings: dict[str, str]
) -> Iterator[Daemon]:
    """A daemon of this module's, on a root of its own."""
    found = launch(
        tmp_path_factory.mktemp("clients") / "root", home, **tiny.settings | more_settings
    )
    yield found
    stop(found)


OPTION = "--pip-requirements-override"
# The version of the one package, and whether the other is there as well.
BOTH = (
    "        import importlib.util; "
    "return [tiny_a.VERSION, importlib.util.find_spec('tiny_b') is not None]"
)
BAD = ["tiny-a==", "./tiny_a-1.0-py3-none-any.whl", "--pre"]


def predicted(envctl: Envctl, model: Path, *options: str) -> tuple[list[Any], str]:
    """Return what *model* says of itself, and the id of its environment."""
    done = envctl("predict", "-m", model, "--json", *options, stdin='{"inputs": [1]}')
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    return document["answer"]["predictions"], document["id"]


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def kept(root: Path) -> set[str]:
    """Return what calls may leave: environments, specs, locks and the logs of builds."""
    found = [
        one for name in ("environments", "specs", "trash", "logs") for one in root.glob(f"{name}/*")
    ]
    return {str(one.relative_to(root)) for one in found} - {"logs/builders.log"}


def test_an_override_is_given_in_any_form_and_order_and_leaks_to_nobody(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==2.0", body=BOTH)

    before = predicted(either, model)
    overridden = [
        predicted(either, model, OPTION, "tiny-b,Tiny_A == 1.0"),
        predicted(either, model, "-r", "tiny-b", "-r", "tiny-a>=1,<2"),
    ]
    twice = said(either("explain", model, "--json", OPTION, "tiny-a==1.0", OPTION, "tiny-b"))
    added = predicted(either, model, "-r", "tiny-b")
    after = predicted(either, model)

    assert before == after
    assert before[0] == ["2.0", False]
    assert [answer for answer, _ in overridden] == [["1.0", True]] * 2
    assert twice["env_id"] == overridden[0][1]
    assert added[0] == ["2.0", True]
    assert len({before[1], added[1], *(env_id for _, env_id in overridden)}) == 3


def test_every_verb_gives_an_override_the_same_keys(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a>=2")
    override = ("-r", "tiny-a==1.0,tiny-b")

    lock = tomllib.loads(either("lock", "-m", model, *override).stdout)
    explained = said(either("explain", "-m", model, "--json", *override))
    plain = said(either("explain", "-m", model, "--json"))
    built = said(either("build", "-m", model, "--json", *override))
    again = said(either("build", "-m", model, "--json", *override))
    answer, env_id = predicted(either, model, *override)

    assert {one["name"]: one["version"] for one in lock["packages"]} == {
        "setuptools": "68.0", "tiny-a": "1.0", "tiny-b": "1.0",
    }  # fmt: skip
    asked = [one["text"] for one in explained["spec"]["requirements"]]
    assert asked == ["tiny-a==1", "tiny-b"]
    assert built["spec_key"] == explained["spec_key"] != plain["spec_key"]
    assert built["id"] == again["id"] == explained["env_id"] == env_id
    assert again["cached"]
    assert answer[0] == "1.0"


@pytest.mark.parametrize("verb", ["predict", "build", "lock", "explain"])
def test_what_is_no_requirement_is_a_usage_error_and_leaves_nothing(
    either: Envctl, tiny: Tiny, tmp_path: Path, verb: str
) -> None:
    model = tiny.model(tmp_path / "model")
    before = kept(either.root)

    for text in BAD if verb == "build" else BAD[:1]:
        done = either(verb, "-m", model, OPTION, "tiny-b", OPTION, text, stdin='{"inputs": [1]}')
        assert (done.returncode, done.stdout) == (2, ""), (text, done.stderr)
        assert "override 2" in done.stderr
        assert "Traceback" not in done.stderr

    assert kept(either.root) == before


def test_an_override_that_cannot_be_met_fails_alone(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model")
    before = {one for one in kept(either.root) if one.startswith("environments")}

    done = either("predict", "-m", model, "-r", "tiny-a==9.9", stdin='{"inputs": [1]}')

    assert (done.returncode, done.stdout) == (1, "")
    assert "tiny-a==9.9" in done.stderr
    assert {one for one in kept(either.root) if one.startswith("environments")} == before
    assert predicted(either, model)[0] == ["2.0", [1]]


def test_both_clients_give_overrides_and_refuse_a_text(
    daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", body=BOTH)
    override = ["tiny-a==1.0", "tiny-b"]
    data = {"inputs": [1]}

    async def ask() -> tuple[list[Any], str, str]:
        async with AsyncClient(daemon.root / "predict.sock", timeout_s=60) as client:
            answer = await client.predict(model, data, pip_requirements_override=override)
            spec = await client.resolve(model, pip_requirements_override=override)
            built = await client.build(model, pip_requirements_override=override)
            assert built.state == api.Environment.READY
            for wrong in ("tiny-a==1.0", ["tiny-a=="]):
                with pytest.raises(RequestInvalidError):
                    await client.predict(model, data, pip_requirements_override=wrong)
            return answer.predictions, answer.environment_id, spec.spec_key

    with daemon.client() as client:
        plain = client.predict(model, data)
        answer = client.predict(model, data, pip_requirements_override=override)
        spec = client.resolve(model, pip_requirements_override=override, lock=True)
        built = client.build(model, pip_requirements_override=override)
        _refuse(client, model)
        before = kept(daemon.root)
        with pytest.raises(SolveFailedError):
            client.predict(model, data, pip_requirements_override=["no-such-package"])
        environments = {one for one in before if one.startswith("environments")}
        assert {one for one in kept(daemon.root) if one.startswith("environments")} == environments

    assert (plain.predictions, answer.predictions) == (["2.0", False], ["1.0", True])
    assert built.cached
    assert built.id == spec.environment_id == answer.environment_id != plain.environment_id
    assert asyncio.run(ask()) == (["1.0", True], answer.environment_id, spec.spec_key)


def _refuse(client: Client, model: Path) -> None:
    for call in (
        lambda given: client.predict(model, [1], pip_requirements_override=given),
        lambda given: client.build(model, pip_requirements_override=given),
        lambda given: client.resolve(model, pip_requirements_override=given, lock=True),
    ):
        with pytest.raises(RequestInvalidError, match="is a list"):
            call("tiny-a==1.0")
        with pytest.raises(RequestInvalidError, match="override 2") as raised:
            call(["tiny-b", "tiny-a=="])
        assert (raised.value.code.name, raised.value.reason) == (
            "INVALID_ARGUMENT", "REQUEST_INVALID",
        )  # fmt: skip


def test_callers_with_and_without_overrides_at_once_keep_apart(
    daemon: Daemon, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==2.0", body=BOTH)
    cases = [
        ((), ["2.0", False]),
        (("tiny-a==1.0",), ["1.0", False]),
        (("tiny-b", "tiny-a<2"), ["1.0", True]),
    ]

    with daemon.client() as client, ThreadPoolExecutor(6) as threads:

        def ask(number: int) -> tuple[int, list[Any], str, str]:
            override = cases[number % 3][0]
            answer = client.predict(model, [number], pip_requirements_override=override)
            return number % 3, answer.predictions, answer.environment_id, answer.worker_origin

        cold = list(threads.map(ask, range(12)))
        warm = [*threads.map(ask, range(30)), *map(ask, range(6))]

    for number, answer, _, _ in cold + warm:
        assert answer == cases[number][1]
    assert {origin for *_, origin in warm} == {"warm"}
    ids = {(number, env_id) for number, _, env_id, _ in cold + warm}
    assert Counter(number for number, _ in ids) == {0: 1, 1: 1, 2: 1}
    assert len({env_id for _, env_id in ids}) == 3
    assert {one.name for one in daemon.root.glob("environments/*")} == {one for _, one in ids}
