"""Real packages for the tests' conda-forge, made of this machine's Pythons and of wheels.

They are for this machine: its Pythons use its own libssl, libsqlite3 and the like.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from uv import find_uv_bin

from envd.build import Interpreters
from envd.config import Settings
from tests.conda_channel import LONG_AGO, PURE, Archive, File, Link, Package, write

_PUBLISHED = {
    "3.7.16": date(2022, 12, 6), "3.9.18": date(2023, 8, 24), "3.11.7": date(2023, 12, 4),
}  # fmt: skip
_FOLDERS_LEFT_OUT = {
    "__pycache__", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "pydoc_data", "site-packages",
    "test", "tests", "tkinter", "turtledemo",
}  # fmt: skip
# Sought at once: there are tests that hide what is on PATH.
_STRIP = shutil.which("strip")
_MODULES_LEFT_OUT = ("_ctypes_test", "_test", "_tkinter", "_xx", "xx")
_PREFIX = "/opt/the_prefix_that_stands_in_packages_made_for_tests"
_COMMAND = """#!{prefix}/bin/python
import sys

from {module} import {function}

sys.exit({function}())
"""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the package index, which becomes a package for one Python if it is not pure.

    It depends on what its metadata says, and on `also`.
    """

    name: str
    version: str
    published: date
    also: tuple[str, ...] = ()
    python: str = "3.7"


# The newest there were when the models for Python 3.7 were logged.
TOOLS = (
    Wheel("pip", "22.3.1", date(2022, 11, 5), also=("setuptools", "wheel")),
    Wheel("setuptools", "65.6.3", date(2022, 11, 24)),
    Wheel("wheel", "0.38.4", date(2022, 11, 9)),
)
SKLEARN = (
    Wheel("scipy", "1.4.1", date(2019, 12, 19)),
    Wheel("numpy", "1.21.6", date(2022, 4, 12)),
    Wheel("scikit-learn", "0.22.2.post1", date(2020, 3, 4)),
    Wheel("joblib", "1.2.0", date(2022, 9, 16)),
)


class CondaForge:
    """Archives in a folder that all processes of a run share: each is made once, when wanted."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        # At once as well; of two Pythons of a version envd takes the first.
        found = reversed(Interpreters(Settings(folder)).found())
        self._prefixes = {one.python.version: one.path.parents[1] for one in found}

    def archives(self, *wanted: str | Wheel) -> list[Archive]:
        """Return the archives of Pythons, by their versions, and of wheels."""
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(self._archives, wanted))
        return [one for archives in found for one in archives]

    def _archives(self, wanted: str | Wheel) -> list[Archive]:
        if isinstance(wanted, str):
            return self._once(f"python-{wanted}", lambda: _python(wanted, self._prefixes[wanted]))
        name = f"{wanted.name}-{wanted.version}-{wanted.python}"
        return self._once(name, lambda: [_from_index(wanted)])

    def _once(self, name: str, make: Callable[[], Iterable[Package]]) -> list[Archive]:
        done = self.folder / f"{name}.json"
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                made = [write(self.folder, one) for one in make()]
                done.write_text(json.dumps([(one.path.name, one.record) for one in made]))
        return [
            Archive(self.folder / path, record) for path, record in json.loads(done.read_text())
        ]


def _python(version: str, prefix: Path) -> list[Package]:
    """Return the packages of the Python in *prefix*, which runs wherever they are installed."""
    minor, abi = _minor(version), _abi(version)
    name = f"python{minor}"
    commands = {f"bin/{one}": Link(name) for one in ("python", "python3")}
    return [
        Package(
            "python",
            version,
            "0_cpython",
            constrains=[f"python_abi {minor}.* *_{abi}"],
            files=commands | _compiled(prefix, name) | dict(_library(prefix, name)),
            noarch="",
            published=_PUBLISHED.get(version, LONG_AGO),
        ),
        Package("python_abi", minor, f"0_{abi}", constrains=[f"python {minor}.* *_cpython"]),
    ]


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _abi(version: str) -> str:
    major, minor = version.split(".")[:2]
    return f"cp{major}{minor}{'m' if int(minor) < 8 else ''}"


def _compiled(prefix: Path, name: str) -> dict[str, File | Link]:
    """Return the program and the libraries of a Python, without what debuggers read."""
    found = [
        prefix / "bin" / name,
        *prefix.glob("lib/libpython*.so*"),
        *prefix.glob(f"lib/{name}/lib-dynload/*.so"),
    ]
    kept = [one for one in found if not one.name.startswith(_MODULES_LEFT_OUT)]
    links = {one: Link(str(one.readlink())) for one in kept if one.is_symlink()}
    files = [one for one in kept if one not in links]
    with TemporaryDirectory() as scratch:
        copies = [shutil.copy(one, scratch) for one in files]
        if _STRIP:
            subprocess.run([_STRIP, "--strip-unneeded", *copies], check=True)
        stripped = dict(zip(files, (Path(one).read_bytes() for one in copies), strict=True))
    movable = {one: File(_movable(one, stripped[one], prefix), is_executable=True) for one in files}
    return {str(one.relative_to(prefix)): file for one, file in (links | movable).items()}


def _movable(path: Path, content: bytes, prefix: Path) -> bytes:
    """Return the *content* of *path*, which looks for libpython beside itself.

    What is written over is longer, so that no section moves.
    """
    old = f"{prefix}/lib\0".encode()
    new = f"$ORIGIN/{os.path.relpath(prefix / 'lib', path.parent)}".encode()
    return content.replace(old, new.ljust(len(old), b"\0"))


def _library(prefix: Path, name: str) -> Iterator[tuple[str, File]]:
    """Yield the modules of a Python that are written in it; none of its site-packages."""
    for folder, folders, names in os.walk(prefix / "lib" / name):
        folders[:] = [
            one for one in folders if one not in _FOLDERS_LEFT_OUT and not one.startswith("config-")
        ]
        for path in (Path(folder, one) for one in names if not one.endswith((".pyc", ".exe"))):
            content = path.read_bytes()
            found = str(prefix) if str(prefix).encode() in content else ""
            yield str(path.relative_to(prefix)), File(content, prefix=found)
    yield f"lib/{name}/site-packages/README.txt", File(b"Here are the packages.\n")


def _from_index(wheel: Wheel) -> Package:
    """Return the package of *wheel*, which is downloaded unless uv has it."""
    with TemporaryDirectory() as folder:
        subprocess.run(
            [
                find_uv_bin(), "pip", "install", "--quiet", "--no-config", "--system-certs",
                "--no-deps", "--only-binary", ":all:", "--target", folder,
                "--python", sys.executable, "--python-version", wheel.python,
                f"{wheel.name}=={wheel.version}",
            ],
            check=True,
        )  # fmt: skip
        (info,) = Path(folder).glob("*.dist-info")
        return _package(wheel, Distribution.at(info), info)


def _package(wheel: Wheel, distribution: Distribution, info: Path) -> Package:
    needs = [*_needs(distribution.requires or [], wheel.python), *wheel.also]
    commands = distribution.entry_points.select(group="console_scripts")
    pythons = distribution.metadata.json.get("requires_python", "")
    if "Root-Is-Purelib: true" in (distribution.read_text("WHEEL") or ""):
        return Package(
            wheel.name,
            wheel.version,
            PURE,
            depends=[*_needs([f"python{pythons}"], wheel.python), *needs],
            entry_points=[f"{one.name} = {one.value}" for one in commands],
            files=_files(distribution, info, "site-packages"),
            noarch="python",
            published=wheel.published,
        )
    major, minor = wheel.python.split(".")
    scripts = {f"bin/{one.name}": _script(one) for one in commands}
    return Package(
        wheel.name,
        wheel.version,
        f"py{major}{minor}_0",
        depends=[
            f"python >={wheel.python},<{major}.{int(minor) + 1}.0a0",
            f"python_abi {wheel.python}.* *_{_abi(wheel.python)}",
            *needs,
        ],
        files=scripts | _files(distribution, info, f"lib/python{wheel.python}/site-packages"),
        noarch="",
        published=wheel.published,
    )


def _needs(requirements: Iterable[str], python: str) -> Iterator[str]:
    """Yield, as conda writes it, what is required on *python* without extras."""
    for one in map(Requirement, requirements):
        if not one.marker or one.marker.evaluate({"extra": "", "python_version": python}):
            yield f"{one.name.lower()} {one.specifier}".strip()


def _files(distribution: Distribution, info: Path, home: str) -> dict[str, File]:
    """Return what a wheel has put beside *info*, without tests; *home* is where it comes to lie."""
    there = [one for one in distribution.files or () if one.parts[0] not in {"bin", ".."}]
    kept = [one for one in there if "tests" not in one.parts and one.suffix != ".exe"]
    files = {f"{home}/{one}": File((info.parent / one).read_bytes()) for one in kept}
    record = "".join(f"{one},,\n" for one in kept)
    return files | {
        f"{home}/{info.name}/INSTALLER": File(b"conda"),
        f"{home}/{info.name}/RECORD": File(record.encode()),
    }


def _script(command: EntryPoint) -> File:
    text = _COMMAND.format(prefix=_PREFIX, module=command.module, function=command.attr)
    return File(text.encode(), is_executable=True, prefix=_PREFIX)
