"""Where a daemon listens, and how others find it: sockets, their locks, `daemon.json`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import envd
from envd import durable, held
from envd.access import openings, owners
from envd.config import Settings, default_root
from envd.errors import RootInUseError, SettingsInvalidError

# sun_path of unix(7) is 108 bytes with its closing zero.
_MAX_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class Sockets:
    """The two sockets of a daemon."""

    predict: Path
    admin: Path

    def check(self) -> None:
        """Refuse a path that no Unix socket can have.

        Raises:
            SettingsInvalidError: it is too long.
        """
        if self.predict == self.admin:
            message = f"`{self.predict}` cannot be the predict and the admin socket at once"
            raise SettingsInvalidError(message, socket=self.predict)
        for path in (self.predict, self.admin):
            if path.exists() and not path.is_socket():
                message = f"`{path}` is there and is no socket; give another `--socket`"
                raise SettingsInvalidError(message, socket=path)
            if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
                message = (
                    f"the socket path `{path}` is over {_MAX_SOCKET_PATH} bytes; "
                    "give a shorter one with `--socket`"
                )
                raise SettingsInvalidError(message, socket=path)

    def check_places(self) -> None:
        """Refuse paths at which somebody else could listen in the place of the daemon.

        Raises:
            SettingsInvalidError: one is.
        """
        for path in (self.predict, self.admin):
            _check_place(path)


def _check_place(path: Path) -> None:
    # Whoever has the lock keeps the daemon from starting.
    for one in (path.parent, path, lock_of(path)):
        if (owner := owners.stranger(one)) is not None:
            message = f"`{one}` belongs to user {owner}; give another `--socket`"
            raise SettingsInvalidError(message, socket=path)
    if folder := owners.replaceable(path):
        message = (
            f"everybody may write in `{folder}`, and listen at `{path}` in the place of envd: "
            f"`chmod o-w {folder}`, or give another `--socket`"
        )
        raise SettingsInvalidError(message, socket=path)


def lock_of(path: Path) -> Path:
    """Return the file that is held by whoever listens at the socket *path*."""
    return path.with_name(f"{path.name}.lock")


def sockets(
    root: Path,
    *,
    predict: str | None,
    admin: str | None,
    environ: Mapping[str, str] = os.environ,
) -> Sockets:
    """Return the sockets of the daemon of *root*, where nothing else is said.

    The default root's are in `$XDG_RUNTIME_DIR/envd`; another root's lie in it, so that
    two roots never share a socket.

    Raises:
        SettingsInvalidError: the predict socket is to be an address.
    """
    runtime = environ.get("XDG_RUNTIME_DIR")
    home = Path(runtime, "envd") if runtime and root == default_root() else root
    named = predict or environ.get("ENVD_SOCKET")
    if named and is_address(named):
        message = f"`{named}` is no path of a socket; where gRPC is on TCP, `daemon.grpc` says"
        raise SettingsInvalidError(message, socket=named)
    chosen = Path(named.removeprefix("unix:")).absolute() if named else home / "predict.sock"
    beside = chosen.with_name("admin.sock")
    return Sockets(chosen, Path(admin.removeprefix("unix:")).absolute() if admin else beside)


def is_address(target: str) -> bool:
    """Whether *target* is HOST:PORT, and not the path of a socket."""
    scheme, colon, _ = target.partition(":")
    return bool(colon) and "/" not in scheme and scheme != "unix"


def is_named(predict: str | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the caller says which daemon to ask."""
    return bool(predict or environ.get("ENVD_SOCKET"))


def target(path: Path) -> str:
    """Return what gRPC calls the socket *path*: a URI, in which `%` and `#` mean something."""
    return "unix:" + urllib.parse.quote(str(path))


@contextlib.contextmanager
def owned(settings: Settings, chosen: Sockets) -> Iterator[None]:
    """Own the root of *settings* and the sockets: a second daemon would take one without a word.

    Raises:
        RootInUseError: another daemon has one of them; the message says who.
        SettingsInvalidError: a group of the settings cannot come to them, or others could
            listen in its place.
    """
    root, groups = settings.root, {chosen.predict.parent: set[str](), chosen.admin.parent: set()}
    groups[chosen.predict.parent].add(settings.access.group)
    groups[chosen.admin.parent].add(settings.access.admin_group)
    for folder in groups:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    chosen.check_places()
    for folder, ones in groups.items():
        openings.let_pass(folder, ones)
    with contextlib.ExitStack() as stack:
        paths = [root / "daemon.lock"]
        paths += [lock_of(path) for path in (chosen.predict, chosen.admin)]
        for path in paths:
            descriptor = held.open_file(path)
            stack.callback(os.close, descriptor)
            if not held.try_lock(descriptor, fcntl.LOCK_EX):
                holder = held.read_owner(path)
                who = f"the daemon with pid {holder.pid}" if holder else "another daemon"
                message = f"{who} holds `{path}`; use it, or stop it first"
                raise RootInUseError(message, path=path, pid=holder.pid if holder else None)
            held.Held(path, descriptor)
        yield


def announce(
    root: Path,
    chosen: Sockets,
    profile: str,
    *,
    http: str = "",
    grpc: str = "",
    sandbox: Mapping[str, object] | None = None,
) -> None:
    """Write `daemon.json`, by which `envctl` finds the daemon of its root and its *profile*.

    *http* is the URL of its HTTP, and *grpc* what it serves on TCP, HOST:PORT, if it does;
    *sandbox* says what is in force.
    """
    document = {
        "pid": os.getpid(),
        "version": envd.__version__,
        "predict": str(chosen.predict),
        "admin": str(chosen.admin),
        "profile": profile,
        "http": http or None,
        "grpc": grpc or None,
        "sandbox": sandbox,
    }
    try:
        durable.write_json(root / "daemon.json", document)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        # What is ready serves from a full disk as well; that of the last daemon misleads.
        (root / "daemon.json").unlink(missing_ok=True)


def find(root: Path) -> Sockets | None:
    """Return the sockets of the daemon that runs on *root*, or None if none does."""
    # Asked of the kernel: probing with a lock could make a starting daemon fail.
    identity = held.identity(root / "daemon.lock")
    if identity not in held.locked_by():
        return None
    try:
        document = json.loads((root / "daemon.json").read_text())
        return Sockets(Path(document["predict"]), Path(document["admin"]))
    except (OSError, ValueError, KeyError):
        return Sockets(root / "predict.sock", root / "admin.sock")
