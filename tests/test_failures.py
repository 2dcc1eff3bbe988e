"""Everything that can be wrong with a call: a message, a code, a status, and nothing left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from envd_client.errors import EnvdError

from tests.conftest import Daemon, Envctl
from tests.tiny import Tiny

GOOD = b'{"inputs": [1]}'


def _missing(_: Tiny, path: Path) -> Path:
    return path


def _without_mlmodel(tiny: Tiny, path: Path) -> Path:
    (tiny.model(path) / "MLmodel").unlink()
    return path


def _broken_yaml(tiny: Tiny, path: Path) -> Path:
    (tiny.model(path) / "MLmodel").write_text("flavors:\n  python_function: [\n")
    return path


def _no_python_function(tiny: Tiny, path: Path) -> Path:
    (tiny.model(path) / "MLmodel").write_text("flavors:\n  sklearn:\n    code: null\n")
    return path


def _outside(tiny: Tiny, path: Path) -> Path:
    text = "flavors:\n  python_function:\n    loader_module: x\n    code: ../../outside\n"
    (tiny.model(path) / "MLmodel").write_text(text)
    return path


def _unknown_package(tiny: Tiny, path: Path) -> Path:
    return tiny.model(path, "tiny-a", "no-such-package==1.0")


def _no_such_version(tiny: Tiny, path: Path) -> Path:
    return tiny.model(path, "tiny-a==9.9")


def _no_such_python(tiny: Tiny, path: Path) -> Path:
    return tiny.model(path, python="3.99.1")


def _missing_import(tiny: Tiny, path: Path) -> Path:
    return tiny.model(path, body="        import cv2")


def _raises(tiny: Tiny, path: Path) -> Path:
    return tiny.model(path, body="        raise ValueError('seven')")


def _cannot_load(tiny: Tiny, path: Path) -> Path:
    (tiny.model(path) / "code" / "tiny_loader.py").write_text("raise RuntimeError('eight')")
    return path


def _good(tiny: Tiny, path: Path) -> Path:
    return tiny.model(path)


CASES = [
    (_missing, GOOD, "NOT_FOUND", "MODEL_NOT_FOUND", ["model", "MLmodel"]),
    (_without_mlmodel, GOOD, "NOT_FOUND", "MODEL_NOT_FOUND", ["no `MLmodel` file"]),
    (_broken_yaml, GOOD, "FAILED_PRECONDITION", "MODEL_INVALID", ["MLmodel", "line 3"]),
    (_no_python_function, GOOD, "FAILED_PRECONDITION", "MODEL_INVALID", ["python_function"]),
    (_outside, GOOD, "FAILED_PRECONDITION", "MODEL_INVALID", ["../../outside"]),
    (_unknown_package, GOOD, "FAILED_PRECONDITION", "SOLVE_FAILED", ["no-such-package"]),
    (_no_such_version, GOOD, "FAILED_PRECONDITION", "SOLVE_FAILED", ["tiny-a", "9.9"]),
    (_no_such_python, GOOD, "FAILED_PRECONDITION", "PYTHON_UNAVAILABLE", ["3.99.1", "3.11"]),
    (_missing_import, GOOD, "FAILED_PRECONDITION", "IMPORT_FAILED", ["`cv2`", "opencv"]),
    (_raises, GOOD, "UNKNOWN", "MODEL_RAISED", ["ValueError", "seven"]),
    (_cannot_load, GOOD, "FAILED_PRECONDITION", "MODEL_INVALID", ["cannot be loaded", "eight"]),
    (_good, b"{nonsense", "INVALID_ARGUMENT", "PAYLOAD_INVALID", ["not JSON"]),
    (_good, b'{"rows": []}', "INVALID_ARGUMENT", "PAYLOAD_INVALID", ["dataframe_split"]),
    (_good, b"\xff\xfe", "INVALID_ARGUMENT", "PAYLOAD_INVALID", ["utf-8"]),
]


@pytest.mark.parametrize(
    ("make", "payload", "code", "reason", "said"),
    CASES,
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_is_said_the_same_by_daemon_and_command(
    daemon_of_module: Daemon,
    envctl_of_module: Envctl,
    tiny: Tiny,
    tmp_path: Path,
    make,
    payload: bytes,
    code: str,
    reason: str,
    said: list[str],
) -> None:
    model = make(tiny, tmp_path / "model")
    (tmp_path / "payload.json").write_bytes(payload)

    with daemon_of_module.client() as client, pytest.raises(EnvdError) as raised:
        client.predict(model, payload)
    done = envctl_of_module("predict", "-m", model, "-i", tmp_path / "payload.json")

    assert (raised.value.code.name, raised.value.reason) == (code, reason), raised.value.message
    assert (done.returncode, done.stdout) == (1, "")
    for message in (raised.value.message, done.stderr):
        assert all(one in message for one in said), message
        assert "Traceback" not in message
    for root in (daemon_of_module.root, envctl_of_module.root):
        assert not _half_made(root)


@pytest.fixture(scope="module")
def daemon_of_module(tmp_path_factory, home: Path, tiny: Tiny):
    from tests.conftest import launch, stop

    found = launch(tmp_path_factory.mktemp("failures") / "root", home, **tiny.settings)
    yield found
    stop(found)


@pytest.fixture(scope="module")
def envctl_of_module(tmp_path_factory, home: Path, tiny: Tiny) -> Envctl:
    from tests.conftest import environment

    root = tmp_path_factory.mktemp("failures") / "root"
    return Envctl(root, environment(root, home, **tiny.settings))


def _half_made(root: Path) -> list[Path]:
    """Return what a failed call left: unready environments, scratch, rubbish."""
    unready = [one for one in root.glob("environments/*") if not (one / "ready.json").exists()]
    return unready + list(root.glob("trash/*"))


def test_a_wrong_command_line_is_a_usage_error(envctl: Envctl, tmp_path: Path) -> None:
    cases = [
        ("predict",),
        ("predict", "-m", tmp_path, "-i", tmp_path / "absent.json"),
        ("nonsense",),
        ("build",),
    ]

    for case in cases:
        done = envctl(*case, stdin="{}")
        assert done.returncode == 2, (case, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_named_with_file_and_line(envctl: Envctl, tmp_path: Path) -> None:
    file = tmp_path / "envd.toml"
    file.write_text("[workers]\nidle_timeout = '5m'\n\n[python]\nmatch = 'perhaps'\n")

    done = envctl("config", "--config", file)

    assert done.returncode == 2
    assert f"{file}:5" in done.stderr
    assert "perhaps" in done.stderr
    assert "`minor`" in done.stderr


def test_a_failed_build_says_so_in_its_json_and_has_a_log(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    import json

    model = _unknown_package(tiny, tmp_path / "model")

    done = envctl("build", "-m", model, "--json")
    document = json.loads(done.stdout)
    log = envctl("logs", document["spec_key"][:8])

    assert done.returncode == 1
    assert (document["id"], document["state"]) == (None, "failed")
    assert document["failure"]["reason"] == "SOLVE_FAILED"
    assert document["failure"]["class"] == "spec"
    assert "no-such-package" in log.stdout


def test_a_root_that_cannot_be_written_is_named(envctl: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the root should be")
    model = tiny.model(tmp_path / "model")

    done = envctl("build", "-m", model, "--root", blocked)

    assert done.returncode == 1
    assert str(blocked) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # uv tries for ten seconds
def test_an_index_that_does_not_answer_is_worth_another_try(
    start_daemon, tiny: Tiny, tmp_path: Path
) -> None:
    daemon = start_daemon(
        tmp_path / "root", ENVD_INDEX__URLS="http://user:secret@127.0.0.1:9/simple"
    )
    model = tiny.model(tmp_path / "model")

    with daemon.client() as client, pytest.raises(EnvdError) as raised:
        client.predict(model, {"inputs": [1]})

    assert (raised.value.code.name, raised.value.reason) == ("UNAVAILABLE", "INDEX_UNREACHABLE")
    assert raised.value.retry_after_s is not None
    assert "secret" not in raised.value.message
    kept = [one for one in daemon.root.rglob("*") if one.is_file() and "cache" not in one.parts]
    assert not [one for one in kept if b"secret" in one.read_bytes()]


def test_a_broken_environment_is_built_again(envctl: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model")
    envctl("build", "-m", model)
    home = next(envctl.root.glob("environments/*"))
    (home / "ready.json").write_text('{"format": 1, "env_id"')

    done = envctl("predict", "-m", model, stdin=GOOD.decode())

    assert done.returncode == 0, done.stderr
    shutil.rmtree(home)
    again = envctl("predict", "-m", model, stdin=GOOD.decode())
    assert again.stdout == done.stdout
