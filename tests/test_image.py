"""What an image of models is built from, and what never gets into it."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from envd.errors import RequestInvalidError
from envd.image import context, dockerfile
from envd.image.dockerfile import Image
from tests.called import Called
from tests.conftest import Envctl
from tests.tiny import Tiny

CANARY = "c4n4ry"
INDEX = f"https://somebody:{CANARY}@packages.example/simple"


@pytest.fixture
def envctl(envctl: Envctl) -> Envctl:
    return Called(envctl.root, envctl.env)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "envd_daemon-0.1.0-py3-none-any.whl").touch()
    return folder


def test_one_model_lies_there_with_its_lock(
    envctl: Envctl, tiny: Tiny, tmp_path: Path, wheels: Path
) -> None:
    model, output = tiny.model(tmp_path / "model"), tmp_path / "image"
    (model / "code" / "linked.py").symlink_to("tiny_loader.py")

    done = envctl("dockerfile", "-m", model, "-o", output, "--wheels", wheels)

    assert (done.returncode, done.stdout) == (0, f"{output}\n"), done.stderr
    copied = output / "models" / "model"
    lock = tomllib.loads((copied / "pylock.toml").read_text())
    assert [one["name"] for one in lock["packages"]] == ["setuptools", "tiny-a"]
    assert (copied / "MLmodel").read_text() == (model / "MLmodel").read_text()
    assert not (copied / "code" / "linked.py").is_symlink()
    assert not (model / "pylock.toml").exists()
    # What is changed there is changed there only.
    assert (copied / "MLmodel").stat().st_nlink == 1
    text = (output / "Dockerfile").read_text()
    assert 'CMD ["envctl", "serve", "-m", "/models/model", "-h", "0.0.0.0", "-p", "8080"]' in text
    assert "USER 10001:10001" in text
    assert "HEALTHCHECK" in text
    assert [one.name for one in (output / "wheels").iterdir()] == [
        "envd_daemon-0.1.0-py3-none-any.whl"
    ]


def test_several_models_are_served_by_their_names(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    models = [tiny.model(tmp_path / name) for name in ("a", "b c")]

    asked = [option for one in (*models, models[0]) for option in ("-m", one)]
    done = envctl("dockerfile", *asked, "-o", tmp_path / "image", "--json")

    found = json.loads(done.stdout)
    assert [one["name"] for one in found["models"]] == ["a", "b c"]
    assert re.fullmatch(r"python:3\.\d+-slim", found["base"])
    settings = tomllib.loads((tmp_path / "image" / "envd.toml").read_text())
    assert settings["models"] == {
        name: {"uri": f"/models/{name}", "preload": True} for name in ("a", "b c")
    }
    text = (tmp_path / "image" / "Dockerfile").read_text()
    assert 'CMD ["envd", "--config", "/etc/envd/envd.toml"]' in text


def test_a_lock_of_the_models_own_goes_with_it(envctl: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model")
    assert envctl("lock", "-m", model, "-o", model / "pylock.toml").returncode == 0
    own = (model / "pylock.toml").read_text()

    assert envctl("dockerfile", "-m", model, "-o", tmp_path / "image").returncode == 0

    assert (tmp_path / "image" / "models" / "model" / "pylock.toml").read_text() == own


def test_what_is_secret_is_no_part_of_it(envctl: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model")
    output = tmp_path / "image"

    done = envctl("dockerfile", "-m", model, "-o", output, ENVD_INDEX__URLS=f"own={INDEX}")

    assert done.returncode == 0, done.stderr
    assert "--secret id=envd,src=FILE" in done.stderr
    written = [one.read_bytes() for one in output.rglob("*") if one.is_file()]
    assert written
    assert not [one for one in (*written, done.stdout.encode(), done.stderr.encode())
                if CANARY.encode() in one]  # fmt: skip


def test_the_builder_gets_what_is_secret_in_a_file(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    """A program called buildah that keeps what it is given."""
    programs, seen = tmp_path / "bin", tmp_path / "seen"
    programs.mkdir()
    (programs / "buildah").write_text(
        "#!/bin/sh\n"
        f'[ "$1" = info ] && exit 0\nprintf "%s\\n" "$@" > {seen}\n'
        f'for one; do case "$one" in id=envd,src=*) /bin/cp "${{one#*src=}}" {seen}.secret; '
        f'/bin/ls -l "${{one#*src=}}" > {seen}.mode;; esac; done\necho hello\n'
    )
    (programs / "buildah").chmod(0o755)
    model = tiny.model(tmp_path / "model")

    done = envctl(
        "build-image", "-m", model, "-t", "tiny:1", "--with", "buildah", "--", "--no-cache",
        ENVD_INDEX__URLS=f"{INDEX},own={INDEX}", PATH=f"{programs}:{envctl.env['PATH']}",
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "tiny:1\n"), done.stderr
    argv = seen.read_text()
    assert argv.startswith("build\n--format\ndocker\n-t\ntiny:1\n--secret\n")
    assert "\n--no-cache\n" in argv
    assert CANARY not in argv
    secret = Path(f"{seen}.secret").read_text()
    assert f"ENVD_INDEX__URLS={INDEX},own={INDEX}\n" in secret
    assert f"PIP_INDEX_URL={INDEX}\nPIP_EXTRA_INDEX_URL={INDEX}\n" in secret
    assert Path(f"{seen}.mode").read_text().startswith("-rw------- ")
    assert not os.path.exists(argv.splitlines()[-1])  # noqa: PTH110


def test_a_builder_that_fails_or_is_missing_is_told(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "buildah").write_text('#!/bin/sh\n[ "$1" = info ] || exit 7\n')
    (programs / "buildah").chmod(0o755)
    model, path = tiny.model(tmp_path / "model"), f"{programs}:{envctl.env['PATH']}"

    failed = envctl("build-image", "-m", model, "-t", "tiny", PATH=path)
    missing = envctl("build-image", "-m", model, "-t", "tiny", "--with", "podman", PATH=path)

    assert (failed.returncode, missing.returncode) == (1, 1)
    assert "buildah ended with status 7" in failed.stderr
    assert "`podman` does not work here; install one" in missing.stderr


def test_what_cannot_be_in_an_image_leaves_nothing(
    envctl: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    outward, upward, twin = (tiny.model(tmp_path / name / "model") for name in "abc")
    (outward / "code" / "shadow").symlink_to("/etc/shadow")
    (upward / "code" / "again").symlink_to("..")
    round_ = tiny.model(tmp_path / "d" / "model")
    for name, other in ("one", "two"), ("two", "one"):
        (round_ / name).mkdir()
        (round_ / name / "other").symlink_to(f"../{other}")
    folder = tmp_path / "images"
    folder.mkdir()
    refused = {
        "leads out of the model": ("-m", outward),
        "the link `code/again` of the model": ("-m", upward),
        "in which there are links to directories": ("-m", round_),
        "would both be called `model`": ("-m", twin, "-m", upward),
        "is no image": ("-m", twin, "--base", "x\nRUN evil"),
        "is no package of Debian's": ("-m", twin, "--apt", "x; evil"),
        "no wheel of envd-daemon": ("-m", twin, "--wheels", folder),
    }

    for said, arguments in refused.items():
        done = envctl("dockerfile", *arguments, "-o", folder / "image")
        assert done.returncode in {1, 2}
        assert said in done.stderr
        assert not list(folder.iterdir())

    (folder / "image").mkdir()
    # A model that could not be locked: nobody waits for that in vain.
    unlocked = tiny.model(tmp_path / "e" / "model", "nowhere==1")
    done = envctl("dockerfile", "-m", unlocked, "-o", folder / "image")
    assert (done.returncode, list((folder / "image").iterdir())) == (2, [])
    assert "is there already" in done.stderr


def test_the_base_has_the_newest_python_of_the_models_that_envd_runs_on() -> None:
    assert dockerfile.base_for(["3.9.18", "3.13.1", "3.11.2"]) == "python:3.13-slim"
    assert dockerfile.base_for(["3.8.20"]) == "python:3.12-slim"


def test_variables_are_written_so_that_they_are_read_as_they_are() -> None:
    image = Image(("a",), "debian", "1", variables=(("ENVD_RESOLVE__AS_OF", 'n"$ow'),))

    text = dockerfile.text(image)

    assert 'ENVD_RESOLVE__AS_OF="n\\"\\$ow"' in text
    assert context.secret({"A": "it's"}) == "A='it'\"'\"'s'\n"
    with pytest.raises(RequestInvalidError):
        Image(("a",), "--privileged", "1").check()
