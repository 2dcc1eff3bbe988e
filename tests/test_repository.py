"""A repository folder: which models it offers, and what it is not read for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from envd.errors import SettingsInvalidError
from envd.model import repository
from tests.conftest import Envctl, environment
from tests.tiny import Tiny


def _model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "MLmodel").touch()
    return path


def _offered(folder: Path) -> list[tuple[str, str]]:
    return [(one.name, one.version) for one in repository.read(folder)]


def test_versions_are_numbers_in_their_order_and_a_plain_model_is_the_first(tmp_path: Path) -> None:
    for name in ("b/10", "b/9", "b/007", "b/newest", "b/1.5", "b/-1", "b/x/1", "a", ".hidden/1"):
        _model(tmp_path / name)
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "a" / "2").mkdir()
    (tmp_path / "file").touch()

    assert _offered(tmp_path) == [("a", "1"), ("b", "007"), ("b", "9"), ("b", "10")]


def test_links_are_followed_within_the_folder_and_not_out_of_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    outside = _model(tmp_path / "outside")
    _model(home / "model" / "1")
    (home / "model" / "2").symlink_to(home / "model" / "1")
    (home / "model" / "3").symlink_to(outside)
    (home / "other").symlink_to("model")
    (home / "out").symlink_to(outside)
    (home / "up").symlink_to("..")
    (home / "loop").symlink_to("loop")
    (home / "gone").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(home)

    found = [("model", "1"), ("model", "2"), ("other", "1"), ("other", "2")]
    assert _offered(home) == found
    assert _offered(tmp_path / "link") == found
    path = next(one.path for one in repository.read(home) if one.version == "2")
    assert path == home / "model" / "1"


def test_a_folder_of_very_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_MOST", 10)
    for number in range(9):
        _model(tmp_path / "models" / "many" / str(number))
    for number in range(5):
        (tmp_path / "folders" / str(number) / "x").mkdir(parents=True)

    assert len(_offered(tmp_path / "models")) == 9
    assert _offered(tmp_path / "folders") == []
    _model(tmp_path / "models" / "one")
    (tmp_path / "folders" / "1" / "y").mkdir()
    for folder in ("models", "folders"):
        with pytest.raises(SettingsInvalidError, match="holds over 10"):
            repository.read(tmp_path / folder)


def test_a_daemon_does_not_start_with_a_folder_it_cannot_use(
    tmp_path: Path, home: Path, tiny: Tiny
) -> None:
    _model(tmp_path / "folder" / "iris" / "1")
    file = tmp_path / "envd.toml"

    def said(text: str) -> str:
        file.write_text(text)
        done = subprocess.run(
            [f"{Path(sys.executable).parent}/envd", "--config", file],
            env=environment(tmp_path / "root", home, **tiny.settings),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        return done.stderr

    assert "cannot be read" in said('[models]\nrepository = "/nowhere"\n')
    both = f'[models]\nrepository = "{tmp_path}/folder"\niris = "/somewhere"\n'
    assert "has a model `iris`, and so have the settings" in said(both)


def test_alone_envctl_knows_its_models(tmp_path: Path, envctl: Envctl, tiny: Tiny) -> None:
    tiny.model(tmp_path / "folder" / "echoes" / "2", "tiny-a==2.0")
    tiny.model(tmp_path / "folder" / "echoes" / "1", "tiny-a==1.0")
    setting = {"ENVD_MODELS__REPOSITORY": str(tmp_path / "folder")}

    answer = envctl("predict", "-m", "echoes", stdin='{"inputs": [1]}', **setting)
    listed = envctl("models", "list", **setting)

    assert answer.stdout == '{"predictions": ["2.0", [1]]}\n', answer.stderr
    assert "echoes" in listed.stdout
