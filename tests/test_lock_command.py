"""`envctl lock`: a lock is made once, kept, carried in the model, and renewed when asked to."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.called import Called
from tests.conftest import Envctl, one_python
from tests.index import Index
from tests.tiny import Tiny, wheel


@pytest.fixture(scope="module")
def more_settings(tools: Path) -> dict[str, str]:
    return one_python(tools)


@pytest.fixture(scope="module")
def either(either: Envctl) -> Envctl:
    return Called(either.root, either.env)


@pytest.fixture
def envctl(envctl: Envctl, more_settings: dict[str, str]) -> Envctl:
    return Called(envctl.root, envctl.env | more_settings)


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Wheels of this module's own, to which newer ones are added."""
    return Tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def growing(tiny: Tiny) -> str:
    """Return the name of a distribution that has one version so far: 1.0."""
    name = f"growing-{next(NUMBERS)}"
    wheel(tiny.wheels, name, "1.0")
    return name


def model_of(tiny: Tiny, path: Path, name: str) -> Path:
    body = f"        import importlib.metadata as m; return m.version('{name}')"
    return tiny.model(path, "tiny-a==1.0", f"{name}>=1", body=body)


def predicted(envctl: Envctl, model: Path) -> Any:
    done = envctl("predict", "-m", model, stdin='{"inputs": [1]}')
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["predictions"]


def locked(text: str) -> dict[str, str]:
    return {one["name"]: one["version"] for one in tomllib.loads(text)["packages"]}


def test_a_lock_is_a_pylock_toml_on_standard_output_or_in_a_file(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a>=1", "tiny-b")
    output = tmp_path / "deep" / "pylock.toml"
    output.parent.mkdir()

    printed = either("lock", "-m", model)
    written = either("lock", "-m", model, "-o", output)
    as_json = either("lock", "-m", model, "--json")
    json_written = either("lock", "-m", model, "--json", "-o", tmp_path / "lock.json")

    assert printed.returncode == 0, printed.stderr
    document = tomllib.loads(printed.stdout)
    assert document["lock-version"] == "1.0"
    assert locked(printed.stdout) == {"setuptools": "68.0", "tiny-a": "2.0", "tiny-b": "1.0"}
    for one in document["packages"]:
        (file,) = one["wheels"]
        assert len(file["hashes"]["sha256"]) == 64
        assert file["name"].endswith(".whl")
    assert (written.stdout, json_written.stdout) == ("", "")
    assert output.read_text() == printed.stdout
    assert [one.name for one in output.parent.iterdir()] == ["pylock.toml"]
    assert json.loads(as_json.stdout) == document
    assert (tmp_path / "lock.json").read_text() == as_json.stdout
    assert not [one for one in either.root.glob("environments/*") if (one / "ready.json").exists()]


def test_a_lock_replaces_a_file_as_a_whole(either: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a>=1", "tiny-b")
    output = tmp_path / "pylock.toml"
    output.write_text("old")
    os.link(output, tmp_path / "other-name")

    done = either("lock", "-m", model, "-o", output)

    assert done.returncode == 0, done.stderr
    assert tomllib.loads(output.read_text())["created-by"] == "envd"
    assert (tmp_path / "other-name").read_text() == "old"
    assert either("lock", "-m", model, "-o", tmp_path).returncode == 2
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_a_lock_is_written_through_a_link_and_into_what_is_no_file(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a>=1", "tiny-b")
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("pylock.toml")
    os.mkfifo(pipe)

    # Nobody waits for a reader, who takes it all at once.
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    piped = either("lock", "-m", model, "-o", pipe)
    through = os.read(end, 1 << 16)
    os.close(end)
    linked = either("lock", "-m", model, "-o", link)

    assert (piped.returncode, linked.returncode) == (0, 0), piped.stderr + linked.stderr
    assert pipe.is_fifo()
    assert tomllib.loads(through.decode())["created-by"] == "envd"
    assert link.is_symlink()
    assert (tmp_path / "pylock.toml").read_bytes() == through


def test_another_platform_is_refused_before_anything_is_locked(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "nowhere==1")

    done = envctl("lock", "-m", model, "--platform", "osx-arm64")

    assert (done.returncode, done.stdout) == (2, "")
    assert "give `--env-manager conda` too, or no `--platform`" in done.stderr


def test_a_file_that_cannot_be_written_is_named(either: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    model, output = tiny.model(tmp_path / "model", "tiny-a>=1", "tiny-b"), Path("/proc/lock.toml")

    done = either("lock", "-m", model, "-o", output)

    assert done.returncode == 1
    assert f"envctl: `{output}`: " in done.stderr


@pytest.mark.parametrize("verb", ["lock", "predict", "dockerfile"])
def test_a_directory_to_write_to_must_be_there(envctl: Envctl, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("a file")

    for folder in (tmp_path / "missing", tmp_path / "file"):
        done = envctl(verb, "-m", tmp_path / "model", "-o", folder / "pylock.toml")

        assert (done.returncode, done.stdout) == (2, "")
        assert f"there is no directory `{folder}`" in done.stderr

    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("verb", ["lock", "predict", "dockerfile"])
def test_what_cannot_be_written_is_told_before_the_work(
    envctl: Envctl, tmp_path: Path, verb: str
) -> None:
    # Nobody may write to a program that runs.
    running = shutil.copy(shutil.which("sleep") or "", tmp_path / "running")
    with subprocess.Popen([running, "600"]) as process:
        try:
            outputs = [Path("/proc/there"), *([] if verb == "dockerfile" else [Path(running)])]
            told = {one: envctl(verb, "-m", tmp_path / "missing", "-o", one) for one in outputs}
        finally:
            process.kill()

    for output, done in told.items():
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"envctl: `{output}`: ")
        assert "missing" not in done.stderr


def test_looking_whether_a_file_can_be_written_leaves_it_as_it_is(
    envctl: Envctl, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.write_text("what was there")

    for output in (there, tmp_path / "new"):
        assert envctl("predict", "-m", tmp_path / "model", "-i", there, "-o", output).returncode

    assert [one.name for one in tmp_path.iterdir()] == ["there"]
    assert there.read_text() == "what was there"


def test_a_lock_is_kept_until_it_is_upgraded(
    either: Envctl, tiny: Tiny, growing: str, tmp_path: Path
) -> None:
    model = model_of(tiny, tmp_path / "model", growing)

    first = either("lock", "-m", model)
    answers = [predicted(either, model)]
    wheel(tiny.wheels, growing, "1.5")
    second = either("lock", "-m", model)
    answers.append(predicted(either, model))
    before = json.loads(either("build", "-m", model, "--json").stdout)
    upgraded = either("lock", "-m", model, "--upgrade")
    answers.append(predicted(either, model))
    after = json.loads(either("build", "-m", model, "--json").stdout)

    assert first.stdout == second.stdout
    assert "locking:" not in second.stderr
    assert locked(first.stdout)[growing] == "1.0"
    assert locked(upgraded.stdout)[growing] == "1.5", upgraded.stderr
    assert answers == ["1.0", "1.0", "1.5"]
    assert before["spec_key"] == after["spec_key"]
    assert before["id"] != after["id"]
    assert before["cached"]
    assert after["cached"]
    assert json.loads(either("show", before["id"], "--json").stdout)["state"] == "ready"


def test_an_upgrade_that_fails_leaves_the_lock_that_was(
    either: Envctl, tiny: Tiny, growing: str, tmp_path: Path
) -> None:
    model = model_of(tiny, tmp_path / "model", growing)
    first = either("lock", "-m", model)
    (tiny.wheels / f"{growing.replace('-', '_')}-2.0-py3-none-any.whl").write_text("no wheel")

    failed = either("lock", "-m", model, "--upgrade")
    second = either("lock", "-m", model)

    assert (failed.returncode, failed.stdout) == (1, "")
    assert growing in failed.stderr
    assert "the log is in" in failed.stderr
    assert second.stdout == first.stdout


def test_a_lock_in_the_model_goes_with_it(
    either: Envctl, tiny: Tiny, growing: str, tmp_path: Path
) -> None:
    model = model_of(tiny, tmp_path / "model", growing)
    # Written on another machine, as it were.
    elsewhere = ("--root", tmp_path / "elsewhere")
    done = either("lock", "-m", model, "-o", model / "pylock.toml", *elsewhere)
    assert done.returncode == 0, done.stderr
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "pylock.toml").unlink()
    wheel(tiny.wheels, growing, "1.5")

    answers = [predicted(either, one) for one in (model, copy)]
    explained = json.loads(either("explain", "-m", model, "--json").stdout)
    renewed = either("lock", "-m", model, "--upgrade", "-o", model / "pylock.toml")
    built = json.loads(either("build", "-m", model, "--json").stdout)
    answers.append(predicted(either, model))

    assert answers == ["1.0", "1.5", "1.5"]
    assert "LOCK_HONOURED" in [one["code"] for one in explained["notes"]]
    assert renewed.returncode == 0, renewed.stderr
    assert locked((model / "pylock.toml").read_text())[growing] == "1.5"
    assert built["cached"]
    assert built["id"] == json.loads(either("build", "-m", copy, "--json").stdout)["id"]


def test_a_stale_lock_in_the_model_is_told_with_the_command_that_renews_it(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==1.0")
    envctl("lock", "-m", model, "-o", model / "pylock.toml")
    (model / "requirements.txt").write_text("tiny-a==1.0\ntiny-b")

    stale = envctl("build", "-m", model)
    (command,) = re.findall("`envctl (lock .*?)`", stale.stderr)
    renewed = envctl(*command.replace("MODEL", str(model)).split())

    assert stale.returncode == 1
    assert "does not hold what the model asks for: tiny-b" in stale.stderr
    assert renewed.returncode == 0, renewed.stderr
    assert "tiny-b" in locked((model / "pylock.toml").read_text())


@pytest.mark.parametrize("with_daemon", [False, True], ids=["alone", "daemon"])
def test_what_is_locked_needs_no_network_and_what_is_not_says_so(
    start_daemon: Callable[..., Any],
    envctl: Envctl,
    tiny: Tiny,
    more_settings: dict[str, str],
    tmp_path: Path,
    *,
    with_daemon: bool,
) -> None:
    known = tiny.model(tmp_path / "known", "tiny-a==1.0")
    unknown = tiny.model(tmp_path / "unknown", "tiny-b==1.0", "tiny-a")
    with Index() as index:
        for one in tiny.wheels.glob("[ts]*.whl"):
            index.add(one)
        settings = {"ENVD_INDEX__URLS": index.url, "ENVD_INDEX__NO_INDEX": "false",
                    "ENVD_INDEX__FIND_LINKS": ""}  # fmt: skip
        first = envctl("lock", "-m", known, **settings)
        answer = envctl("predict", "-m", known, stdin='{"inputs": [1]}', **settings)
    settings["ENVD_INDEX__OFFLINE"] = "true"
    if with_daemon:
        start_daemon(envctl.root, **settings, **more_settings)

    again = envctl("lock", "-m", known, **settings)
    renewed = envctl("predict", "-m", known, stdin='{"inputs": [1]}', **settings)
    refused = [
        envctl(*verb, "-m", unknown, stdin='{"inputs": [1]}', **settings)
        for verb in (("lock",), ("predict",), ("lock", "--upgrade"))
    ]

    assert first.returncode == 0, first.stderr
    assert again.stdout == first.stdout
    assert renewed.stdout == answer.stdout == '{"predictions": ["1.0", [1]]}\n'
    for done in refused:
        assert (done.returncode, done.stdout) == (1, "")
        assert "not locked yet and envd is offline" in done.stderr
        assert "`envctl lock`" in done.stderr
