"""What the workers of a model are given: of its settings, of all models', of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from envd.config import Settings
from envd.errors import (
    ModelInvalidError,
    ModelNotFoundError,
    ModelRaisedError,
    PayloadInvalidError,
    SettingsInvalidError,
    WorkerDiedError,
)
from envd.model import Model, mlmodel, naming
from envd.run.serving import Serving, Servings
from envd.settings.sections import Workers
from envd.settings.served import Served
from envd.settings.values import Count, Gpus, Location, ModelUri, Table, Variables

WANTING = "env_vars:\n- API_KEY\n- MODE\n- rm -rf /\n"


def model(path: Path, more: str = "") -> Model:
    """Write a model whose `MLmodel` holds *more* besides its loader, and read it."""
    path.mkdir(exist_ok=True)
    text = f"flavors:\n  python_function:\n    loader_module: mine\n{more}"
    (path / "MLmodel").write_text(text)
    return mlmodel.read(path)


def serving(
    folder: Path, served: Served | None = None, more: str = "", **config: object
) -> Serving:
    return Servings(Settings(folder / "root")).of(model(folder / "model", more), served, config)


def variables_file(folder: Path, text: str = "API_KEY=from file\n", mode: int = 0o600) -> Location:
    path = folder / "variables"
    path.write_text(text)
    path.chmod(mode)
    return Location(str(path))


def test_what_a_model_does_not_say_is_as_for_all(tmp_path: Path) -> None:
    workers = Workers(
        per_model="auto",
        max_batch=Count(3),
        template=False,
        queue=Count(5),
        concurrency=Count(7),
    )
    servings = Servings(Settings(tmp_path, workers=workers))

    plain = servings.of(model(tmp_path / "model"))
    own = servings.of(
        model(tmp_path / "model"),
        Served(
            "iris",
            workers=Count(2),
            max_batch=Count(4),
            template=True,
            queue=Count(6),
            concurrency=Count(8),
        ),
    )

    assert plain.names == ()
    assert (plain.workers, plain.max_batch, plain.template) == ("auto", 3, False)
    assert (plain.queue, plain.concurrency, plain.stay) == (5, 7, False)
    assert own.names == ("iris",)
    assert (own.workers, own.max_batch, own.template) == (2, 4, True)
    assert (own.queue, own.concurrency, own.stay) == (6, 8, False)


def test_a_table_goes_before_its_file_and_a_call_before_both(tmp_path: Path) -> None:
    file = variables_file(
        tmp_path, "# mine\n\nA=1\nB = 'two words' \nC=a=b\nD=\"it's\"\nE='a' 'b'\n"
    )
    served = Served(
        "iris",
        env=Variables((("A", "table"),)),
        env_file=file,
        gpu=Gpus("0,1"),
        model_config=Table('{"a": 1, "b": 2}'),
    )

    found = serving(tmp_path, served, b=3)

    gpus = {"CUDA_VISIBLE_DEVICES": "0,1", "NVIDIA_VISIBLE_DEVICES": "0,1"}
    given = {"A": "table", "B": "two words", "C": "a=b", "D": "it's", "E": "'a' 'b'"}
    assert dict(found.env) == given | gpus
    assert json.loads(found.model_config) == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("gpu", "expected"), [(None, None), (Gpus(""), ""), (Gpus("MIG-1/2"), "MIG-1/2")]
)
def test_gpus_are_hidden_only_from_who_is_to_have_none(
    tmp_path: Path, gpu: Gpus | None, expected: str | None
) -> None:
    found = serving(tmp_path, Served("iris", gpu=gpu))

    assert dict(found.env).get("CUDA_VISIBLE_DEVICES") == expected


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({}, True),
        ({"name": "other", "uri": ModelUri("/elsewhere")}, True),
        ({"env": Variables((("API_KEY", "other"),))}, False),
        ({"env": Variables(())}, False),
        ({"gpu": Gpus("")}, False),
        ({"workers": Count(2)}, False),
        ({"model_config": Table('{"a": 1}')}, False),
    ],
)
def test_what_is_run_in_another_way_has_other_workers(
    tmp_path: Path, changed: dict[str, object], *, is_same: bool
) -> None:
    servings = Servings(Settings(tmp_path))
    found = model(tmp_path / "model")
    one = {"name": "iris", "env": Variables((("API_KEY", "s3cret-key"),))}

    first = servings.of(found, Served(**one))  # type: ignore[arg-type]
    second = servings.of(found, Served(**(one | changed)))  # type: ignore[arg-type]

    assert (first == second) is is_same
    assert len({first, second}) == (1 if is_same else 2)
    assert "s3cret" not in repr(first)


def test_a_file_of_variables_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    servings = Servings(Settings(tmp_path))
    found, file = model(tmp_path / "model"), variables_file(tmp_path, "A=1\n")
    served = Served("iris", env_file=file)

    first = servings.of(found, served)
    same = servings.of(found, served)
    variables_file(tmp_path, "A=22\n")
    second = servings.of(found, served)

    assert same is first
    assert (first.env, second.env) == ((("A", "1"),), (("A", "22"),))
    assert second != first
    assert second.replaces(first)

    Path(file).chmod(0o644)
    with pytest.raises(SettingsInvalidError, match="open to others"):
        servings.of(found, served)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o777])
def test_a_file_of_variables_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SettingsInvalidError, match=f"has the mode {mode:04o}") as caught:
        serving(tmp_path, Served("iris", env_file=variables_file(tmp_path, mode=mode)))

    assert caught.value.metadata == {"file": f"{tmp_path}/variables"}


def test_a_group_may_read_a_file_of_variables(tmp_path: Path) -> None:
    found = serving(tmp_path, Served("iris", env_file=variables_file(tmp_path, mode=0o640)))

    assert found.env == (("API_KEY", "from file"),)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_variables_that_is_somebody_elses_is_refused(tmp_path: Path) -> None:
    file = variables_file(tmp_path)
    os.chown(file, 12345, -1)

    with pytest.raises(SettingsInvalidError, match="belongs to the user 12345"):
        serving(tmp_path, Served("iris", env_file=file))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A=1\ns3cret", "has no KEY=VALUE in line 2"),
        ("A=1\n\n2B=s3cret", "has no KEY=VALUE in line 3"),
        ("export A=s3cret", "has no KEY=VALUE in line 1"),
        ("A=s3cret\0", "has no KEY=VALUE in line 1"),
        ("A=s3cret" * (1 << 18), "is over 1048576 bytes"),
    ],
)
def test_a_file_that_holds_no_variables_is_told_without_what_it_holds(
    tmp_path: Path, text: str, why: str
) -> None:
    with pytest.raises(SettingsInvalidError, match=why) as caught:
        serving(tmp_path, Served("iris", env_file=variables_file(tmp_path, text)))

    assert "s3cret" not in caught.value.message


def test_what_is_no_file_of_variables_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)

    for name, why in (
        ("pipe", "not a regular file"),
        ("nothing", "cannot be read"),
        (".", "cannot"),
    ):
        with pytest.raises(SettingsInvalidError, match=why):
            serving(tmp_path, Served("iris", env_file=Location(str(tmp_path / name))))


def test_variables_a_model_reads_and_nobody_gives_are_noted(tmp_path: Path) -> None:
    none = serving(tmp_path, more=WANTING)
    some = serving(tmp_path, Served("iris", env=Variables((("MODE", "x"),))), WANTING)
    file = variables_file(tmp_path, "MODE=\nAPI_KEY=1\n")
    all_of_them = serving(tmp_path, Served("iris", env_file=file), WANTING)

    assert none.missing == ("API_KEY", "MODE")
    (note,) = some.notes
    assert (note.code, note.subject) == ("ENV_VARS_MISSING", "API_KEY")
    assert "`API_KEY`" in note.message
    assert all_of_them.notes == ()


def test_an_error_names_what_is_missing_if_that_may_be_its_cause(tmp_path: Path) -> None:
    found = serving(tmp_path, more=WANTING)
    errors = [
        ModelRaisedError("it raised", model="m"),
        ModelInvalidError("it cannot be loaded", stage="load"),
        WorkerDiedError("it died", stage="load"),
        WorkerDiedError("it died"),
        PayloadInvalidError("it does not fit"),
    ]

    told = [found.explained(one) for one in errors]

    assert ["API_KEY" in one.message for one in told] == [True, True, True, False, False]
    assert told[0].metadata == {"model": "m", "env_vars_missing": "API_KEY,MODE"}
    assert [type(one) for one in told] == [type(one) for one in errors]
    assert told[2].retry_after_s == errors[2].retry_after_s


def test_an_error_gives_no_variable_away(tmp_path: Path) -> None:
    env = Variables((("LONG", "s3cret-key-2"), ("SHORT", "s3cret-key"), ("WORD", "on")))
    found = serving(tmp_path, Served("iris", env=env))

    told = found.explained(
        ModelRaisedError("no s3cret-key-2 on", model="/s3cret-key", traceback="File s3cret-key, 1")
    )

    assert told.message == "no *** on"
    assert told.metadata == {"model": "/s3cret-key", "traceback": "File ***, 1"}


@pytest.mark.parametrize(
    ("more", "served", "expected"),
    [
        ("", None, False),
        ("metadata:\n  envd:\n    batch: true\n", None, True),
        ("metadata:\n  envd:\n    batch: true\n", False, False),
        ("metadata:\n  envd:\n    batch: false\n", None, False),
        ("metadata:\n  batch: true\n", None, False),
        ("metadata:\n  envd:\n", None, False),
        ("metadata: something\n", None, False),
        ("", True, True),
    ],
)
def test_a_model_says_whether_its_rows_are_independent(
    tmp_path: Path, *, more: str, served: bool | None, expected: bool
) -> None:
    assert serving(tmp_path, Served("iris", batch=served), more).batch is expected


def test_a_model_names_further_variables_in_its_metadata(tmp_path: Path) -> None:
    more = f"{WANTING}metadata:\n  envd:\n    env_vars: [MODE, HF_TOKEN]\n"

    assert model(tmp_path / "model", more).env_vars == ("API_KEY", "MODE", "HF_TOKEN")


@pytest.mark.parametrize(
    ("value", "why"), [("batch: perhaps", "`batch` is neither"), ("[]", "`envd` is not a mapping")]
)
def test_metadata_for_envd_that_means_nothing_is_refused(
    tmp_path: Path, value: str, why: str
) -> None:
    with pytest.raises(ModelInvalidError, match=why):
        model(tmp_path / "model", f"metadata:\n  envd:\n    {value}\n")


IRIS = Served("iris", ModelUri("/models/iris"))
OTHERS = (IRIS, Served("irises", ModelUri("models:/iris/2")), Served("same", IRIS.uri))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iris", "iris"),
        ("same", "same"),
        ("/models/iris", "iris"),
        ("/models/x/../iris/", "iris"),
        ("file:///models/iris", "iris"),
        ("models:/iris/2", "irises"),
        ("models:/iris/1", None),
        ("/models", None),
        ("wine", None),
    ],
)
def test_a_model_is_found_by_its_name_its_path_or_its_uri(text: str, expected: str | None) -> None:
    found = naming.find(text, OTHERS)

    assert (found.name if found else None) == expected


def test_a_name_that_no_model_has_is_told_with_those_near_it() -> None:
    assert naming.uri_of("iris", OTHERS) == "/models/iris"
    assert [naming.uri_of(one, ()) for one in ("./a", "a:b", ".")] == ["./a", "a:b", "."]

    with pytest.raises(
        ModelNotFoundError, match="`irisees`; give `irises` or `iris`, or"
    ) as caught:
        naming.uri_of("irisees", OTHERS)

    assert caught.value.metadata == {"model": "irisees", "near": "irises,iris"}
