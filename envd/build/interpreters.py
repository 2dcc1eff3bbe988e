"""Finds the Pythons of this machine, and chooses or downloads the one a model asks for.

Looked in, in this order: `python.roots`, pyenv's versions, PATH, and what uv downloaded.
pyenv's shims are never run: they answer for another version, or not at all. They do say
where pyenv lies, though, which nothing else does when PYENV_ROOT is not set.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from envd import config, durable
from envd.config import Settings
from envd.errors import IndexUnreachableError, PythonUnavailableError
from envd.events import Line, Note, OnEvent, Stage
from envd.lock.uv import Uv
from envd.spec import Python
from envd.spec.python import release

_OLDEST = (3, 6)
_EXECUTABLE = re.compile(r"python3?(\.\d+)?")
_PROBE_TIMEOUT_S = 20
_PROBE = """
import json, platform, sys, sysconfig
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": "%d.%d.%d" % sys.version_info[:3],
    "abi": sysconfig.get_config_var("SOABI") or "",
    "platform": "%s-%s" % (sys.platform, platform.machine()),
    "libc": "-".join(platform.libc_ver()),
    "is_venv": sys.prefix != sys.base_prefix,
}))
"""
_ANSWER = {**dict.fromkeys(("implementation", "version", "abi", "platform", "libc"), str),
           "is_venv": bool}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that is on this machine."""

    path: Path
    python: Python


class Interpreters:
    """The Pythons of this machine; each is asked once what it is."""

    def __init__(self, settings: Settings) -> None:
        """Look where *settings* say."""
        self._settings = settings
        self._uv = Uv(settings)
        self._probes = self._uv.pythons / "probes.json"

    def obtain(self, requested: str | None, on_event: OnEvent) -> tuple[Interpreter, Note | None]:
        """Return the interpreter for *requested*, asking and downloading as it must.

        Raises:
            PythonUnavailableError: none fits and none can be downloaded.
        """
        found = self.found()
        if picked := self.pick(requested, found):
            return picked
        return self._download(requested or "3", found, on_event), None

    def pick(
        self, requested: str | None, found: Sequence[Interpreter]
    ) -> tuple[Interpreter, Note | None] | None:
        """Return the one of *found* for *requested* (`3.9.18`, `3.9`), noting a difference.

        The exact patch release comes first, then the newest of the same minor. None asks
        for the newest there is.
        """
        wanted = release(requested or "")
        fitting = [one for one in found if one.python.release[: len(wanted)] == wanted]
        if fitting:
            return max(fitting, key=lambda one: one.python.release), None
        near = [one for one in found if one.python.release[:2] == wanted[:2]]
        if not near or self._settings.python.match == "exact":
            return None
        nearest = max(near, key=lambda one: one.python.release)
        return nearest, _differs(requested, nearest)

    def known(self) -> tuple[list[Interpreter], bool]:
        """Return the Pythons that have been asked before, and whether those are all there are.

        It starts no process.
        """
        unasked: list[Path] = []
        found = self._answering(self._read_probes(), unasked.append)
        return found, not unasked

    def found(self) -> list[Interpreter]:
        """Return every Python of this machine that envd can use, the preferred place first."""
        probes = self._read_probes()
        count = len(probes)
        found = self._answering(probes, _probe)
        if len(probes) > count:
            durable.write_json(self._probes, probes)
        return found

    def _answering(
        self,
        probes: dict[str, dict[str, object]],
        probe: Callable[[Path], dict[str, object] | None],
    ) -> list[Interpreter]:
        """Return the usable candidates, *probe* answering for those *probes* lacks."""
        found = []
        for path in self._candidates():
            if not (key := _key(path)):
                continue
            answer = probes.get(key)
            if answer is None and (answer := probe(path)) is not None:
                probes[key] = answer
            if answer and (python := _usable(answer)):
                found.append(Interpreter(path, python))
        return found

    def _read_probes(self) -> dict[str, dict[str, object]]:
        try:
            probes = json.loads(self._probes.read_text())
        except (OSError, ValueError):
            return {}
        known = probes.items() if isinstance(probes, dict) else ()
        # Else it is asked again.
        return {key: one for key, one in known if one == {} or _is_answer(one)}

    def _candidates(self) -> Iterator[Path]:
        """Yield every interpreter once, as the file it is in the end."""
        seen = set()
        for real in self._places():
            if real not in seen:
                seen.add(real)
                yield real

    def _places(self) -> Iterator[Path]:
        variables = config.passed(("PYENV_ROOT", "PATH"))
        path = variables.get("PATH", os.defpath)
        folders = [Path(folder) for folder in path.split(os.pathsep) if folder.startswith("/")]
        pyenvs = [Path(variables["PYENV_ROOT"])] if "PYENV_ROOT" in variables else []
        pyenvs += [Path("~/.pyenv").expanduser()]
        pyenvs += [folder.parent for folder in folders if folder.name == "shims"]
        for root in map(Path, self._settings.python.roots):
            yield from _installed(root.expanduser())
        for pyenv in pyenvs:
            yield from _installed(pyenv / "versions")
        for folder in folders:
            if folder.name != "shims":
                yield from _executables(folder)
        yield from _installed(self._uv.pythons)
        yield from _installed(Path("~/.local/share/uv/python").expanduser())

    def _download(
        self, requested: str, found: Sequence[Interpreter], on_event: OnEvent
    ) -> Interpreter:
        allowed = self._settings.python.download == "auto" and not self._settings.index.offline
        detail = "`python.download` or `index.offline` forbids to download it"
        if allowed:
            on_event(Stage("python", f"downloading Python {requested}"))
            detail = "it could not be downloaded: " + self._run_download(requested, on_event)
            wanted = release(requested)
            now = [one for one in self.found() if one.python.release[: len(wanted)] == wanted]
            if now:
                return now[0]
        versions = sorted({one.python.version for one in found}, key=release)
        message = (
            f"Python {requested} is not here and {detail}. Here are: "
            f"{', '.join(versions) or 'none'}. Install it, or name its directory in `python.roots`"
        )
        raise PythonUnavailableError(message, requested=requested, found=", ".join(versions))

    def _run_download(self, requested: str, on_event: OnEvent) -> str:
        """Let uv download a Python, and return what it says."""
        arguments = ["python", "install", requested, "--no-bin"]
        try:
            finished = self._uv.run(
                arguments, on_line=lambda line: on_event(Line(line)), may_download_python=True
            )
        except IndexUnreachableError as error:
            return error.message
        return " ".join(line.strip() for line in finished.tail[-3:])


def _key(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{path} {status.st_mtime_ns} {status.st_size}"


def _installed(root: Path) -> Iterator[Path]:
    """Yield the interpreters of a directory that holds one Python per directory."""
    if root.is_dir():
        for folder in sorted(root.iterdir()):
            yield from _looked_up(folder / "bin", "python3")


def _executables(folder: Path) -> Iterator[Path]:
    yield from _looked_up(folder, None)


def _looked_up(folder: Path, name: str | None) -> tuple[Path, ...]:
    try:
        return _interpreters_in(str(folder), folder.stat().st_mtime_ns, name)
    except OSError:
        return ()


@lru_cache(256)
def _interpreters_in(folder: str, mtime_ns: int, name: str | None) -> tuple[Path, ...]:
    """Return the Pythons in *folder* as it was at *mtime_ns*; `/usr/bin` has thousands of names.

    Only the one called *name*, if that is given.
    """
    del mtime_ns
    names = sorted(os.listdir(folder)) if name is None else [name]  # noqa: PTH208
    found = []
    for one in names:
        with contextlib.suppress(OSError, RuntimeError):
            real = Path(folder, one).resolve(strict=True) if _EXECUTABLE.fullmatch(one) else None
            if real and os.access(real, os.X_OK):
                found.append(real)
    return tuple(found)


def _probe(path: Path) -> dict[str, object] | None:
    """Ask the interpreter *path* what it is.

    An empty answer means that it does not work, None that it did not answer this time.
    """
    try:
        answer = subprocess.run(
            [path, "-I", "-c", _PROBE],
            capture_output=True,
            check=True,
            env={"PATH": os.defpath},
            cwd="/",
            timeout=_PROBE_TIMEOUT_S,
        )
        found = json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        return None
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    return found if _is_answer(found) else {}


def _is_answer(found: object) -> bool:
    """Whether *found* is what the probe prints: another program called so prints what it likes."""
    if not isinstance(found, dict) or found.keys() != _ANSWER.keys():
        return False
    return all(isinstance(found[key], kind) for key, kind in _ANSWER.items())


def _usable(answer: dict[str, object]) -> Python | None:
    if not answer or answer["is_venv"] or answer["implementation"] != "cpython":
        return None
    python = Python(**{key: str(value) for key, value in answer.items() if key != "is_venv"})
    return python if python.release >= _OLDEST else None


def _differs(requested: str | None, chosen: Interpreter) -> Note:
    message = f"the model asks for Python {requested}; Python {chosen.python.version} is used"
    return Note("PYTHON_PATCH_DIFFERS", message, chosen.python.version)
