"""A root that resolves over a folder of packages or local indexes, and models for it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

from envd import lock as locks
from envd.build import Interpreter
from envd.config import Settings
from envd.environments.asked import Asked
from envd.environments.environments import Environments, Ready
from envd.events import Event
from envd.lock import Lock, Question
from envd.lock.provided import Provided
from envd.lock.uv import Uv
from envd.model import mlmodel
from envd.settings.sections import Index, Python, Resolve, Security
from envd.spec import Dependencies, Terms, of, policy, requirement_file
from envd.spec.requirement_file import Requirements

PURE = "py3-none-any"


def wheel(folder: Path, name: str, version: str, tag: str = PURE, requires: str = "") -> str:
    """Write a wheel and return its SHA-256."""
    path = wheel_file(folder, name, version, tag, *([requires] if requires else []))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel_file(
    folder: Path, name: str, version: str, tag: str = PURE, *requires: str, module: str = ""
) -> Path:
    """Write a wheel and return where it is; *module* is what stands in its module."""
    file = name.replace("-", "_")
    path = folder / f"{file}-{version}-{tag}.whl"
    info = f"{file}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{file}.py", module or f"TAG = {tag!r}\nVERSION = {version!r}\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def sdist(folder: Path, name: str, version: str, files: dict[str, str] | None = None) -> str:
    """Write a source distribution and return its SHA-256."""
    path = folder / f"{name}-{version}.tar.gz"
    metadata = f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in ({"PKG-INFO": metadata} | (files or {})).items():
            entry = tarfile.TarInfo(f"{name}-{version}/{file}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions(lock: Lock) -> list[str]:
    return [f"{one.name}=={one.version}" for one in lock.packages]


class House:
    """A folder of wheels, and a root that resolves over nothing else unless it is told to."""

    def __init__(self, folder: Path, interpreter: Interpreter) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self.model = folder / "model"
        self.model.mkdir()
        (folder / "empty").mkdir()
        self.interpreter = interpreter
        self.events: list[Event] = []
        self.settings = Settings(
            folder / "root",
            index=Index(
                # Were the setting forgotten, nothing would be asked of the real index.
                urls=((folder / "empty").as_uri(),),
                find_links=(str(self.wheels),),
                no_index=True,
            ),
            # What models ask for is what they get: no setuptools beside it.
            resolve=Resolve(repair=False),
            python=Python(download="never"),
        )

    @property
    def root(self) -> Path:
        return self.settings.root

    @property
    def environments(self) -> Environments:
        return Environments(self.settings)

    def with_index(self, **changed: object) -> House:
        """Use other settings of the index."""
        index = replace(self.settings.index, **changed)  # type: ignore[arg-type]
        self.settings = replace(self.settings, index=index)
        return self

    def with_indexes(self, *urls: str) -> House:
        """Use the indexes *urls*, and no folder."""
        return self.with_index(urls=urls, find_links=(), no_index=False)

    def with_security(self, **changed: object) -> House:
        """Use other settings of the security."""
        self.settings = replace(self.settings, security=Security(**changed))  # type: ignore[arg-type]
        return self

    def resolve(
        self,
        *lines: str,
        build: tuple[str, ...] = (),
        constraints: tuple[str, ...] = (),
        day: str | None = None,
        provided: tuple[Provided, ...] = (),
    ) -> Lock:
        """Lock *lines*, of a model that was logged on *day*, where some is *provided*."""
        asked = self._read(lines)
        found = Dependencies(
            python=None,
            build=self._read(build).requirements,
            asked=replace(asked, constraints=self._read(constraints).requirements),
            notes=(),
            day=day,
        )
        spec = of(found, self.interpreter.python, self.settings.index)
        question = Question(spec, self.interpreter.path, self.model, day, provided=provided)
        self.events = []
        return locks.resolve(question, Uv(self.settings), self.events.append)

    def _read(self, lines: tuple[str, ...]) -> Requirements:
        rules = policy.of(self.settings.security)
        return requirement_file.read_entries(self.model, "file", lines, rules)

    def ask(self, *lines: str, day: str = "", name: str = "model") -> Asked:
        """Write *lines* into a model that was logged on *day* and ask for its environment."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        logged = f"utc_time_created: '{day} 12:00:00.000000'\n" if day else ""
        (path / "requirements.txt").write_text("\n".join(lines))
        (path / "python_env.yaml").write_text(
            f"python: {self.interpreter.python.version}\ndependencies:\n- -r requirements.txt\n"
        )
        (path / "MLmodel").write_text(
            "flavors:\n  python_function:\n    loader_module: tiny_loader\n"
            f"    env:\n      virtualenv: python_env.yaml\n{logged}"
        )
        self.events = []
        return self.environments.ask(mlmodel.read(path), Terms(), self.events.append)

    def ready(self, asked: Asked, *, upgrade: bool = False) -> Ready:
        """Build what was asked for."""
        self.events = []
        return self.environments.ready(asked, self.events.append, upgrade=upgrade)

    def lock_of(self, asked: Asked) -> Lock:
        """Return the lock that is kept of what was asked for."""
        lock = self.environments.store.specs.lock(asked.spec.key, asked.day)
        assert lock is not None
        return lock


def installed(ready: Ready, module: str) -> str:
    """Return the text of a module in an environment."""
    (path,) = ready.environment.prefix.glob(f"lib/python*/site-packages/{module}.py")
    return path.read_text()


class Repository:
    """A git repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        return f"git+{self.folder.as_uri()}"

    def commit(self) -> str:
        """Commit all there is and return the commit's name."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message=One more")
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        who = {f"GIT_{role}_{what}": "tester@localhost"
               for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}  # fmt: skip
        return subprocess.run(
            ["git", "-C", self.folder, *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **who},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
