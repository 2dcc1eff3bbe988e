"""What `envctl doctor` looks at: each check says what it found, and what to do if that is wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from uv import find_uv_bin

import envd
from envd import addresses, plain
from envd.access import exposure
from envd.addresses import Sockets
from envd.build import Interpreters
from envd.cli import checks_access
from envd.config import Settings
from envd.errors import EnvdError
from envd.sandbox import tiers
from envd.settings import values
from envd.store import Store

_FEWEST_FILES = 4096
_REMOTE = ("nfs", "cifs", "smb", "fuse.sshfs", "9p")
_LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; all is well where there is nothing `to_do`."""

    name: str
    found: str
    to_do: str = ""

    def document(self) -> dict[str, object]:
        """Return it as JSON values."""
        return {"name": self.name, "ok": not self.to_do, "found": self.found, "to_do": self.to_do}


def everything(
    read: Callable[[], Settings], file: Path | None, ask: Callable[[Settings, Sockets], object]
) -> Iterator[Finding]:
    """Yield what is found of this machine, by the settings that *read* reads from *file*.

    *ask* asks a daemon for something, and raises EnvdError where it does not answer.
    """
    yield _versions()
    try:
        settings = read()
    except EnvdError as error:
        yield Finding("settings", str(file or "variables"), error.message)
        return
    yield Finding("settings", str(file or "no file"))
    for name, check in _CHECKS.items():
        yield _tried(name, lambda check=check: check(settings))  # type: ignore[misc]
    sockets = addresses.find(settings.root)
    if sockets is None:
        yield Finding("daemon", "none runs on this root; envctl works by itself")
        return
    yield _tried("sockets", lambda: checks_access.sockets(settings, sockets))
    yield _tried("daemon", lambda: _daemon(settings, sockets, ask))


def _tried(name: str, check: Callable[[], tuple[str, str]]) -> Finding:
    try:
        return Finding(name, *check())
    except (EnvdError, OSError, subprocess.SubprocessError) as error:
        return Finding(name, "", getattr(error, "message", str(error)))


def _versions() -> Finding:
    names = ("grpcio", "py-rattler", "conda-lock", "mlflow-skinny", "opentelemetry-sdk")
    found = [f"envd {envd.__version__}", f"Python {platform.python_version()}"]
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return Finding("versions", ", ".join([*found, f"Linux {platform.release()}"]))


def _root(settings: Settings) -> tuple[str, str]:
    store, root = Store(settings.root), settings.root
    store.check()
    store.check_format()
    above = _existing(root)
    if not os.access(above, os.W_OK):
        return str(root), f"`{above}` cannot be written in; own it, or give another `--root`"
    kind = _kind(above)
    if kind.startswith(_REMOTE):
        return f"{root} ({kind})", "locks do not hold on it; give a root on a local disk"
    return f"{root} ({kind}{'' if root.exists() else ', not there yet'})", ""


def _disk(settings: Settings) -> tuple[str, str]:
    disk = shutil.disk_usage(_existing(settings.root))
    least = max(values.share(settings.gc.min_free, disk.total), settings.build.reserve)
    found = f"{plain.size(disk.free)} free of {plain.size(disk.total)}"
    if disk.free < least:
        need = f"{plain.size(least)} are to be free (`gc.min_free`, `build.reserve`)"
        return found, f"{need}: `envctl gc`, a smaller `gc.max_size`, or a larger disk"
    return found, ""


def _files(settings: Settings) -> tuple[str, str]:
    del settings
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    to_do = "a worker takes two: raise it (`ulimit -n`, LimitNOFILE)"
    return f"{most} may be open", to_do if 0 <= most < _FEWEST_FILES else ""


def _pythons(settings: Settings) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        # It keeps what they answered, and looking must leave nothing.
        is_usable = os.access(settings.root, os.W_OK)
        place = settings if is_usable else dataclasses.replace(settings, root=Path(scratch))
        found = Interpreters(place).found()
    versions = sorted({one.python.version for one in found}, key=_numbers, reverse=True)
    if versions:
        return ", ".join(versions), ""
    may_download = settings.python.download == "auto" and not settings.index.offline
    to_do = "install one, or name its directory in `python.roots`"
    return "none", "" if may_download else to_do


def _uv(settings: Settings) -> tuple[str, str]:
    del settings
    try:
        done = subprocess.run(
            [find_uv_bin(), "--version"], capture_output=True, text=True, check=True, env={},
            timeout=_LIMIT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return str(error), "install the package `uv` beside envd, for its own user to run"
    return done.stdout.strip(), ""


def _conda(settings: Settings) -> tuple[str, str]:
    missing = [one for one in ("rattler", "conda_lock") if importlib.util.find_spec(one) is None]
    exe = settings.conda.exe
    if exe and not shutil.which(exe):
        return exe, "`conda.exe` is no program; name one, or none"
    if not missing:
        return f"solved by {exe or 'rattler'}", ""
    is_wanted = settings.resolve.env_manager != "virtualenv"
    return "not installed", "`pip install 'envd-daemon[conda]'`" if is_wanted else ""


def _sandbox(settings: Settings) -> tuple[str, str]:
    as_daemon = exposure.settled(settings)
    found = tiers.judge(as_daemon, tiers.look(as_daemon))
    return found.sentence().removeprefix("sandbox "), ""


def _daemon(
    settings: Settings, sockets: Sockets, ask: Callable[[Settings, Sockets], object]
) -> tuple[str, str]:
    document: dict[str, Any] = json.loads((settings.root / "daemon.json").read_text())
    ask(settings, sockets)
    version = document.get("version", "unknown")
    tier = (document.get("sandbox") or {}).get("tier", "unknown")
    found = f"envd {version}, pid {document['pid']}, profile {document['profile']}, sandbox {tier}"
    if version != envd.__version__:
        return found, f"it is another version than this one, {envd.__version__}: restart it"
    return found, ""


def _existing(path: Path) -> Path:
    """Return *path*, or what of it is there."""
    return next(one for one in (path, *path.parents) if one.exists())


def _kind(path: Path) -> str:
    """Return of which kind the filesystem of *path* is."""
    found = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if path.resolve().is_relative_to(target) and len(target) >= len(found[0]):
            found = target, kind
    return found[1]


def _numbers(version: str) -> list[int]:
    return [int(one) for one in version.split(".") if one.isdigit()]


_CHECKS: dict[str, Callable[[Settings], tuple[str, str]]] = {
    "root": _root,
    "disk": _disk,
    "files": _files,
    "pythons": _pythons,
    "uv": _uv,
    "conda": _conda,
    "sandbox": _sandbox,
    "access": checks_access.access,
}
