"""Reads hostile models and says, a line of JSON each, what came of it and what it cost.

Runs as a process of its own: the hook that watches what is opened cannot be taken off,
and memory is measured by the peak of the process.

    python -m tests.hostile.probe FOLDER < '[[NAME, MODEL, [OVERRIDE, ...], [PROFILE, ...]], ...]'
"""

from __future__ import annotations

import json
import os
import signal
import sys
import sysconfig
import time
from pathlib import Path

from envd import config, spec
from envd.errors import EnvdError
from envd.model import read
from envd.spec import Python

PYTHON = Python("cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
_PROJECT = Path(__file__).resolve().parents[2]
_OPENED = {"open", "os.listdir", "os.scandir"}
_FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.system", "os.posix_spawn", "os.fork",
              "pty.", "urllib.", "ctypes.", "os.remove", "os.rename", "os.mkdir",
              "os.chdir", "os.symlink", "os.link", "shutil.")  # fmt: skip


_LONGEST_S = 5.0


class _TooLongError(BaseException):
    """A reading has taken so long that the others should have their turn."""


class _Watch:
    """What a reading did that it must not."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.done: list[str] = []
        home = os.path.realpath(_PROJECT)
        self._code = tuple(
            f"{os.path.realpath(folder)}/"
            for folder in {sys.prefix, sys.base_prefix, f"{home}/envd",
                           sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
        )  # fmt: skip

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        model = self.model
        if model is None:
            return
        if event.startswith(_FORBIDDEN):
            self.done.append(f"{event} {arguments!r}"[:300])
        elif event in _OPENED and isinstance(arguments[0], str | bytes | os.PathLike):
            self.model = None  # to look at a path is no event of the reading
            path = os.path.realpath(os.fsdecode(arguments[0]))
            self.model = model
            if not f"{path}/".startswith((f"{model}/", *self._code)):
                self.done.append(f"{event} {path}")


def main() -> None:
    """Read what standard input names."""
    root = Path(sys.argv[1])
    cases = json.load(sys.stdin)
    given = {
        profile: config.load(root=root, environ={"ENVD_SECURITY__PROFILE": setting})
        for profile, setting in (("dev", "auto"), ("standard", "standard"))
    }
    signal.signal(signal.SIGPROF, _end)
    watch = _Watch()
    sys.addaudithook(watch)
    # What the first reading imports and compiles belongs to no case.
    _outcome(_read, Path(cases[0][1]), given["dev"], [])
    for name, model, override, profiles in cases:
        for profile in profiles:
            found = _measured(watch, Path(model), given[profile], override)
            print(json.dumps(found | {"case": name, "profile": profile}), flush=True)


def _end(*_: object) -> None:
    raise _TooLongError


def _measured(
    watch: _Watch, model: Path, settings: config.Settings, override: list[str]
) -> dict[str, object]:
    Path("/proc/self/clear_refs").write_text("5")
    resident, started = _kib("VmRSS"), time.process_time()
    watch.done = []
    watch.model = os.path.realpath(model)
    signal.setitimer(signal.ITIMER_PROF, _LONGEST_S)
    found = _outcome(_read, model, settings, override)
    signal.setitimer(signal.ITIMER_PROF, 0)
    watch.model = None
    return found | {
        "cpu_s": time.process_time() - started,
        "grown_kib": _kib("VmHWM") - resident,
        "done": watch.done,
    }


def _outcome(
    reading: object, model: Path, settings: config.Settings, override: list[str]
) -> dict[str, object]:
    assert callable(reading)
    try:
        said = reading(model, settings, override)
    except EnvdError as error:
        # As it goes to a client: text that is none would end the call.
        said = json.dumps(error.document(), ensure_ascii=False)
        said.encode()
        return {"error": type(error).__name__, "said": said, "message": error.message}
    except BaseException as error:  # noqa: BLE001 - whatever comes is what is to be told
        return {"error": type(error).__name__, "said": repr(error)[:2_000], "message": ""}
    return {"error": None, "said": said, "message": ""}


def _read(model: Path, settings: config.Settings, override: list[str]) -> str:
    found = spec.read(read(model), settings, spec.Terms(tuple(override)))
    made = spec.of(found, PYTHON, settings.index)
    notes = [note.document() for note in found.notes + found.asked.notes]
    return json.dumps([notes, made.canonical(), made.key], ensure_ascii=False)


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
