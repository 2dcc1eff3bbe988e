"""What a worker, a template or a program of a build may see and use, as `confined` takes it."""

from __future__ import annotations

import ctypes
import functools
import glob
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from envd.config import Settings
from envd.sandbox import cores
from envd.sandbox.cgroups import Limits
from envd.sandbox.tiers import FULL, PROGRAM, SCOPED_SINCE, Sandbox

# Where a worker finds its model in sandbox 2, and what it may write in.
MODEL, TMP = "/model", "/tmp"  # noqa: S108
NAMESPACES = ("user", "mount", "pid", "net", "ipc", "uts", "cgroup")
# As many as the kernel follows.
_MOST_LINKS = 40
_INTERNET = ("ipv4", "ipv6", "netlink")
# Libraries, programs, and what they look up of the machine: nothing that is kept secret.
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
    "/etc/alternatives", "/etc/ca-certificates", "/etc/fonts", "/etc/gai.conf",
    "/etc/group", "/etc/host.conf", "/etc/hosts", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/localtime", "/etc/magic", "/etc/mime.types",
    "/etc/nsswitch.conf", "/etc/OpenCL", "/etc/passwd", "/etc/pki/ca-trust",
    "/etc/pki/tls/cert.pem", "/etc/pki/tls/certs", "/etc/pki/tls/openssl.cnf",
    "/etc/protocols", "/etc/resolv.conf", "/etc/services", "/etc/ssl/cert.pem",
    "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/timezone",
    "/sys/devices/system/cpu", "/sys/devices/system/node",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def system() -> list[str]:
    """Return what every program may read of the machine."""
    found = [one for one in _SYSTEM if os.path.lexists(one)]
    # Where a link leads is read, too: `/etc/resolv.conf` leads to /run.
    return [*found, *(real for one in found if (real := os.path.realpath(one)) not in found)]


def of_interpreter(python: Path) -> list[str]:
    """Return what *python* needs to run: what it is a link to, that, and its libraries.

    Not all that is installed with it: a Python in `~/.local/bin` does not make `~/.local`
    readable.
    """
    real, links = python.resolve(), list(_links(python))
    found = dict.fromkeys([*links, real, real.parent.parent / "lib"])
    return [str(one) for one in found if not one.is_relative_to("/usr")]


def _links(path: Path) -> Iterator[Path]:
    """Yield what *path* leads to that is a link itself."""
    for _ in range(_MOST_LINKS):
        if not path.is_symlink():
            return
        path = Path(os.path.normpath(path.parent / path.readlink()))
        if path.is_symlink():
            yield path


@dataclass(frozen=True, slots=True)
class Ground:
    """What one environment's processes may read: it, its interpreter, and what settings name."""

    prefix: Path
    base: Path
    sandbox: Sandbox
    settings: Settings

    @property
    def read(self) -> list[str]:
        """The paths that are read as they are."""
        given = [*system(), *self.settings.workers.readable]
        return [one for one in dict.fromkeys(given) if Path(one).exists()]

    @property
    def own(self) -> list[str]:
        """Those that may be the daemon's alone."""
        base = of_interpreter(self.base)
        inside = [one for one in base if not Path(one).is_relative_to(self.prefix)]
        return [str(self.prefix), PROGRAM, *inside]

    @property
    def devices(self) -> list[str]:
        """The devices that settings name."""
        named = (glob.glob(one) for one in self.settings.workers.devices)  # noqa: PTH207
        return sorted(path for paths in named for path in paths)

    def may_use_network(self, own: bool | None) -> bool:  # noqa: FBT001
        """Whether a model may use the network, of which that is said in its own settings."""
        if self.sandbox.tier == 0:
            return True
        return self.settings.workers.network == "on" if own is None else own

    def outer(self, *, network: bool) -> dict[str, Any]:
        """Return what processes live inside of in sandbox 2."""
        found: dict[str, Any] = {
            "namespaces": _namespaces(network=network),
            "places": [MODEL],
            "devices": self.devices,
            "read": self.read,
            "owned": self.own,
        }
        return found | ({"user": self.sandbox.user} if self.sandbox.user else {})

    def worker(self, limits: Limits, *, network: bool, scratch: Path) -> dict[str, Any]:
        """Return what confines a worker, fresh or forked, but its model and its group."""
        resources = {"core": cores.NONE} | _resources(limits, self.sandbox)
        if self.sandbox.tier == FULL and limits.processes:
            # In a user namespace of one's own nobody else's count, and no cgroup is waited for.
            resources["nproc"] = limits.processes
        if self.sandbox.tier == 0:
            # Files and network are as they are for whoever runs envd. What workers may not do
            # is to read the memory of each other, which those of one template could.
            return {"limits": resources} | (
                {"landlock": {"scoped": True}} if can_keep_apart() else {}
            )
        if self.sandbox.tier == FULL:
            return {
                "namespaces": _namespaces(network=network),
                "scratch": {
                    "at": TMP,
                    "size": self.settings.workers.scratch,
                    "kept": _below(TMP, [*self.read, *self.own]),
                },
                "model_at": MODEL,
                "limits": resources,
                "drop_capabilities": True,
                "landlock": _files(["/"], [TMP, "/dev"], network=network),
                "seccomp": {"sockets": ["unix", *(_INTERNET if network else ())]},
            }
        read = [*self.read, *self.own, "/proc"]
        written = [str(scratch), *_DEVICES, *self.devices]
        return {
            "limits": resources,
            "drop_capabilities": True,
            "landlock": _files(read, written, network=network),
            # By path, landlock lets a process connect to any socket of its user's.
            "seccomp": _calls(network=network, among=True),
        }

    def template(self, scratch: Path, *, network: bool) -> dict[str, Any]:
        """Return what confines a template, which is to fork workers of any model."""
        if self.sandbox.tier in {0, FULL}:
            return {}
        written = [str(scratch.parent), *_DEVICES, *self.devices]
        return {
            "limits": {"core": cores.NONE},
            "drop_capabilities": True,
            "landlock": _files(["/"], written, network=network),
            "seccomp": _calls(network=network, among=True),
        }


def _resources(limits: Limits, sandbox: Sandbox) -> dict[str, int]:
    """Return what comes nearest to *limits* without cgroups: each process has those alone.

    Processes are counted for each user and namespace: elsewhere all of the user's are.
    """
    if sandbox.groups:
        return {}
    found = {"data": limits.memory}
    found |= {"nproc": limits.processes} if sandbox.tier == FULL else {}
    return {name: value for name, value in found.items() if value}


@functools.cache
def can_keep_apart() -> bool:
    """Whether this kernel can keep workers from reaching into each other."""
    return landlock_version() >= SCOPED_SINCE


def landlock_version() -> int:
    """Return the version of landlock in this kernel; 0 where there is none."""
    # The number of landlock_create_ruleset, which says it for this flag.
    version: int = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(0, version)


def _namespaces(*, network: bool) -> list[str]:
    return [one for one in NAMESPACES if not (network and one == "net")]


def _files(read: Sequence[str], written: Sequence[str], *, network: bool) -> dict[str, Any]:
    return {"read": list(read), "write": list(written), "scoped": True, "tcp": network}


def _calls(*, network: bool, among: bool) -> dict[str, Any]:
    return {"sockets": _INTERNET if network else (), "among": among}


def _below(folder: str, paths: Iterable[str]) -> list[str]:
    return [one for one in dict.fromkeys(paths) if one.startswith(f"{folder}/")]


def interpreter(python: Path, settings: Settings) -> list[Path]:
    """Return what *python*, which may be that of an environment, needs to run."""
    prefix = python.parent.parent
    if python.is_relative_to(settings.root):
        own = [prefix]
    elif (prefix / "pyvenv.cfg").exists():
        # That of envd itself, which has its packages beside it.
        own = [prefix / name for name in ("pyvenv.cfg", "bin", "lib")]
    else:
        own = []
    return [*own, *map(Path, of_interpreter(python))]


def local_path(url: str) -> Path | None:
    """Return the path that *url* is of: a path itself, or the URL of a file; None of others."""
    scheme, _, rest = re.sub(r"^[\w.-]+=(?=\w+://)", "", url).partition("://")
    if not rest:
        return Path(url) if url.startswith("/") else None
    return Path(unquote(rest)) if scheme.endswith("file") and rest.startswith("/") else None


def programs() -> list[Path]:
    """Return where programs are that lie nowhere at home: what PATH names."""
    home = Path.home().resolve()
    found = [Path(one) for one in os.environ.get("PATH", os.defpath).split(os.pathsep) if one]
    return [one for one in found if one.is_absolute() and not one.resolve().is_relative_to(home)]


@dataclass(frozen=True, slots=True)
class Room:
    """What a program of a build may `read` besides the system, and `write`, and if it may ask.

    Nothing else of the root is there for it, nor of anybody's home. A program that `links`
    files from one of its places to another has the whole root to change the mode of what it
    cannot open: it must run nothing that a package brings.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    network: bool = False
    links: bool = False


def home(settings: Settings) -> str:
    """Return where a build is at home in sandbox 2: /tmp, unless the root lies there."""
    return "/build" if settings.root.resolve().is_relative_to(TMP) else TMP


def built(settings: Settings, sandbox: Sandbox, room: Room, limits: Limits) -> dict[str, Any]:
    """Return what confines a program of a build."""
    resources = {"core": cores.NONE} | _resources(limits, sandbox)
    if sandbox.tier == 0:
        return {"confinement": {"limits": resources}}
    given = [str(one) for one in (*room.read, *room.write) if one.exists()]
    # Where a link leads is what is read.
    read = list(dict.fromkeys([*system(), *given, *map(os.path.realpath, given)]))
    written = [str(one) for one in room.write] + (
        [home(settings), "/dev"] if sandbox.tier == FULL else list(_DEVICES)
    )
    steps: dict[str, Any] = {
        "limits": resources,
        "drop_capabilities": True,
        "landlock": _files([*read, "/proc"], written, network=room.network),
        # No socket of the file system: the daemon's lie in the root.
        "seccomp": _calls(network=room.network, among=sandbox.tier < FULL),
    }
    if sandbox.tier < FULL:
        # Who waits outside of it has the lock, which is nothing for what is built.
        return {"outer": {}, "confinement": steps}
    roots = list(dict.fromkeys([settings.root, settings.root.resolve()]))
    # Hard links are within one mount only; what of the root is whose is left to landlock then.
    # Landlock alone lets who owns a file change its mode: that of the daemon's sockets.
    places = roots if room.links else [one for one in room.write if one.exists()]
    mounted = _outermost([*places, *(one.resolve() for one in places)])
    outer = {
        "namespaces": _namespaces(network=room.network),
        "read": [one for one in read if not any(map(Path(one).is_relative_to, mounted))],
        "write": list(map(str, mounted)),
        "scratch": home(settings),
        "size": settings.build.scratch,
    }
    return {"outer": outer, "confinement": steps}


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return those of *paths* that lie below none of the others."""
    every = set(paths)
    return sorted(one for one in every if every.isdisjoint(one.parents))


def confined(argv: Sequence[str], document: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Return the command that runs *argv* confined as *document* says, with descriptors *given*."""
    return program(json.dumps({"argv": list(argv), **document}), given)


def program(text: str, given: Sequence[str]) -> list[str]:
    """Return the command that confines as *text* says, or the file whose descriptor that is."""
    return [sys.executable, "-I", "-S", "-B", PROGRAM, "confined", text, *given]
