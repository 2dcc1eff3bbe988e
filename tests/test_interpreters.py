"""The Pythons of a machine: real ones, and programs that answer as others would."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from envd.build.interpreters import Interpreter, Interpreters
from envd.config import Settings
from envd.errors import PythonUnavailableError
from envd.events import Event, ignore
from envd.settings.sections import Index
from envd.settings.sections import Python as PythonSettings

REAL = Path(sys._base_executable).resolve()
VERSION = platform.python_version()
MINOR = "{}.{}".format(*sys.version_info)


class Machine:
    """A home, a PATH and a pyenv that have nothing in them yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pyenv = folder / "home" / ".pyenv"
        self.bin = folder / "bin"
        self.runs = folder / "runs"
        for path in (self.pyenv / "versions", self.bin):
            path.mkdir(parents=True)

    def interpreters(self, *, index: Index = Index(), **python: object) -> Interpreters:  # noqa: B008
        asked = {"download": "never"} | python
        return Interpreters(
            Settings(self.folder / "root", index=index, python=PythonSettings(**asked))  # type: ignore[arg-type]
        )

    def real(self, path: Path) -> Path:
        """Let *path* be the Python that runs the tests."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(REAL)
        return path

    def fake(self, path: Path, version: str, **answer: object) -> Path:
        """Write a program that answers as the Python *version* would, and notes each run."""
        document = {
            "implementation": "cpython", "version": version, "abi": "cpython",
            "platform": "linux", "libc": "glibc", "is_venv": False,
        } | answer  # fmt: skip
        return self.program(path, f"echo {path} >> {self.runs}; echo '{json.dumps(document)}'")

    def program(self, path: Path, script: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def in_pyenv(self, version: str) -> Path:
        return self.pyenv / "versions" / version / "bin" / "python3"

    def was_run(self) -> list[str]:
        return self.runs.read_text().splitlines() if self.runs.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(machine.bin))
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    return machine


def versions(found: Iterable[Interpreter]) -> list[str]:
    return [one.python.version for one in found]


def test_the_real_python_says_what_it_is(machine: Machine) -> None:
    machine.real(machine.in_pyenv(VERSION))

    (found,) = machine.interpreters().found()

    assert found.path == REAL
    assert found.python.implementation == "cpython"
    assert found.python.version == VERSION
    assert found.python.release == sys.version_info[:3]
    assert found.python.minor == MINOR
    assert found.python.abi.startswith(f"cpython-{MINOR.replace('.', '')}")
    assert found.python.platform == f"linux-{platform.machine()}"
    assert found.python.libc == "-".join(platform.libc_ver())


def test_a_python_that_lies_in_many_places_is_one(machine: Machine) -> None:
    machine.real(machine.in_pyenv(VERSION))
    machine.real(machine.in_pyenv(MINOR))
    machine.real(machine.bin / "python3")
    machine.real(machine.bin / f"python{MINOR}")

    assert len(machine.interpreters().found()) == 1


def test_every_place_is_looked_in_the_preferred_first(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(machine.folder / "pyenv"))
    monkeypatch.setenv(
        "PATH", f"{machine.bin}:{machine.folder}/missing:{machine.folder}/shimmed/shims"
    )
    root = machine.folder / "opt"
    machine.fake(root / "any-name" / "bin" / "python3", "3.13.1")
    machine.fake(machine.folder / "pyenv" / "versions" / "x" / "bin" / "python3", "3.13.2")
    machine.fake(machine.in_pyenv("y"), "3.13.3")
    machine.fake(machine.folder / "shimmed" / "versions" / "z" / "bin" / "python3", "3.13.4")
    machine.fake(machine.bin / "python3.13", "3.13.5")
    machine.fake(machine.folder / "root" / "pythons" / "uvs" / "bin" / "python3", "3.13.6")
    machine.fake(
        machine.folder / "home/.local/share/uv/python/cpython-3.13.7/bin/python3", "3.13.7"
    )

    found = machine.interpreters(roots=(str(root),)).found()

    assert versions(found) == [f"3.13.{number}" for number in range(1, 8)]


def test_only_what_is_called_python_is_run(machine: Machine) -> None:
    for name in (
        "python",
        "python3",
        "python3.9",
        "python2.7",
        "python3-config",
        "python3.9m",
        "sh",
    ):
        machine.fake(machine.bin / name, "3.9.1")

    machine.interpreters().found()

    assert [Path(path).name for path in machine.was_run()] == ["python", "python3", "python3.9"]


def test_the_shims_of_pyenv_are_never_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shims = machine.pyenv / "shims"
    for name in ("python", "python3", "python3.9"):
        machine.fake(shims / name, "3.9.1")
    machine.fake(machine.in_pyenv("3.8.1"), "3.8.1")
    monkeypatch.setenv("PATH", f"{shims}:{machine.bin}")

    found = machine.interpreters().found()

    assert versions(found) == ["3.8.1"]
    assert machine.was_run() == [str(machine.in_pyenv("3.8.1"))]


def test_each_python_is_asked_once(machine: Machine) -> None:
    for version in ("3.8.1", "3.9.1"):
        machine.fake(machine.in_pyenv(version), version)
    machine.program(machine.bin / "python3", f"echo broken >> {machine.runs}; exit 1")

    first = machine.interpreters().found()
    runs = machine.was_run()
    again = machine.interpreters().found()

    assert versions(first) == ["3.8.1", "3.9.1"]
    assert again == first
    assert len(runs) == 3
    assert machine.was_run() == runs


def test_a_python_that_has_changed_is_asked_again(machine: Machine) -> None:
    path = machine.fake(machine.in_pyenv("3.8"), "3.8.1")
    machine.interpreters().found()
    machine.fake(path, "3.8.2")
    os.utime(path, ns=(1, 1))

    assert versions(machine.interpreters().found()) == ["3.8.2"]


def test_known_pythons_are_those_asked_before(machine: Machine) -> None:
    machine.fake(machine.in_pyenv("3.8.1"), "3.8.1")
    interpreters = machine.interpreters()

    before = interpreters.known()
    was_run_before = machine.was_run()
    found = interpreters.found()
    machine.fake(machine.in_pyenv("3.9.1"), "3.9.1")
    after = interpreters.known()

    assert (before, was_run_before) == (([], False), [])
    assert after == (found, False)
    assert len(machine.was_run()) == 1


@pytest.mark.parametrize("said", ["3", "[]", "null", '"3.9.1"', '{"version": "3.9.1"}'])
def test_what_says_something_else_than_a_python_is_none_and_asked_once(
    machine: Machine, said: str
) -> None:
    machine.program(machine.bin / "python3", f"echo x >> {machine.runs}; echo '{said}'")
    machine.fake(machine.in_pyenv("3.8.1"), "3.8.1")
    machine.fake(machine.in_pyenv("3.8.2"), "3.8.2", abi=None)
    machine.fake(machine.in_pyenv("3.8.3"), "3.8.3", more="")

    found = [versions(machine.interpreters().found()) for _ in range(2)]

    assert found == [["3.8.1"]] * 2
    assert machine.was_run().count("x") == 1


def test_what_was_remembered_of_it_is_forgotten(machine: Machine) -> None:
    path = machine.fake(machine.in_pyenv("3.8.1"), "3.8.1")
    machine.interpreters().found()
    probes = machine.folder / "root" / "pythons" / "probes.json"
    kept = json.loads(probes.read_text())
    probes.write_text(json.dumps({key: {"version": "3.8.1"} for key in kept}))

    assert versions(machine.interpreters().found()) == ["3.8.1"]
    assert json.loads(probes.read_text()) == kept
    assert machine.was_run() == [str(path)] * 2


@pytest.mark.parametrize("content", ["", "not json", '{"half'])
def test_a_broken_memory_is_forgotten(machine: Machine, content: str) -> None:
    machine.fake(machine.in_pyenv("3.8.1"), "3.8.1")
    probes = machine.folder / "root" / "pythons" / "probes.json"
    probes.parent.mkdir(parents=True)
    probes.write_text(content)

    assert versions(machine.interpreters().found()) == ["3.8.1"]


def test_what_does_not_work_is_left_out(machine: Machine) -> None:
    scripts = {"a": "exit 1", "b": "echo no JSON", "c": "kill -9 $$", "d": ":"}
    for version, script in scripts.items():
        machine.program(machine.in_pyenv(version), script)
    machine.in_pyenv("e").parent.mkdir(parents=True)
    machine.in_pyenv("e").symlink_to("nowhere")
    machine.in_pyenv("f").mkdir(parents=True)
    machine.fake(machine.in_pyenv("g"), "3.8.1").chmod(0o644)
    machine.in_pyenv("h").parent.mkdir(parents=True)
    machine.in_pyenv("h").symlink_to(machine.in_pyenv("h"))
    machine.in_pyenv("i").parent.mkdir(parents=True)
    machine.in_pyenv("i").write_bytes(b"\x7fELF")
    machine.in_pyenv("i").chmod(0o755)
    (machine.pyenv / "versions" / "file").touch()
    machine.fake(machine.in_pyenv("z"), "3.8.2")

    assert versions(machine.interpreters().found()) == ["3.8.2"]


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        ("2.7.18", {}),
        ("3.5.9", {}),
        ("3.9.1", {"implementation": "pypy"}),
        ("3.9.1", {"is_venv": True}),
    ],
)
def test_what_cannot_hold_environments_is_left_out(
    machine: Machine, version: str, answer: dict[str, object]
) -> None:
    machine.fake(machine.in_pyenv("x"), version, **answer)

    assert machine.interpreters().found() == []


def some_pythons(machine: Machine) -> None:
    for version in ("3.8.1", "3.9.2", "3.9.18", "3.10.4", "3.9.7"):
        machine.fake(machine.in_pyenv(version), version)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [("3.9.7", "3.9.7"), ("3.9.2", "3.9.2"), ("3.9", "3.9.18"), ("3", "3.10.4"), (None, "3.10.4"),
     ("3.10", "3.10.4")],
)  # fmt: skip
def test_the_python_that_fits_is_taken_without_a_word(
    machine: Machine, requested: str | None, expected: str
) -> None:
    some_pythons(machine)

    found, note = machine.interpreters(match="exact").obtain(requested, ignore)

    assert (found.python.version, note) == (expected, None)


def test_of_two_that_are_the_same_the_preferred_is_taken(machine: Machine) -> None:
    machine.fake(machine.bin / "python3.9", "3.9.1")
    machine.fake(machine.in_pyenv("3.9.1"), "3.9.1")

    found, _ = machine.interpreters().obtain("3.9", ignore)

    assert found.path == machine.in_pyenv("3.9.1")


def test_else_the_newest_of_the_same_minor_is_taken_with_a_note(machine: Machine) -> None:
    some_pythons(machine)

    found, note = machine.interpreters().obtain("3.9.3", ignore)

    assert found.python.version == "3.9.18"
    assert note is not None
    assert (note.code, note.subject) == ("PYTHON_PATCH_DIFFERS", "3.9.18")
    assert "3.9.3" in note.message


@pytest.mark.parametrize(
    ("match", "requested"),
    [("exact", "3.9.3"), ("minor", "3.11"), ("minor", "3.1"), ("minor", "2.7.18")],
)
def test_where_none_fits_what_is_here_is_listed(
    machine: Machine, match: str, requested: str
) -> None:
    some_pythons(machine)
    interpreters = machine.interpreters(match=match)

    with pytest.raises(PythonUnavailableError) as caught:
        interpreters.obtain(requested, ignore)

    here = "3.8.1, 3.9.2, 3.9.7, 3.9.18, 3.10.4"
    assert f"Python {requested} is not here" in caught.value.message
    assert f"Here are: {here}." in caught.value.message
    assert caught.value.metadata == {"requested": requested, "found": here}


def test_where_nothing_is_here_it_says_so(machine: Machine) -> None:
    with pytest.raises(PythonUnavailableError, match="Here are: none"):
        machine.interpreters().obtain("3.9", ignore)


def test_offline_nothing_is_downloaded(machine: Machine) -> None:
    interpreters = machine.interpreters(download="auto", index=Index(offline=True))
    events: list[Event] = []

    with pytest.raises(PythonUnavailableError, match=r"`index\.offline` forbids to download it"):
        interpreters.obtain("3.9", events.append)

    assert events == []
