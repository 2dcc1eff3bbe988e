"""Unix sockets that a group may open, and the directories it has to pass for that."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from envd.access import exposure
from envd.errors import SettingsInvalidError

_OF_GROUP, _PASSED, _PASSED_BY_ALL = 0o660, 0o710, 0o711


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Make sockets within that only their owner can open, with no moment when others can."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def is_left(path: Path) -> bool:
    """Whether there is a socket that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX) as probe:
        # Who does not take up connections is there, too.
        probe.settimeout(0)
        return path.is_socket() and probe.connect_ex(str(path)) == errno.ECONNREFUSED


def check_unheard(path: Path) -> None:
    """See that no other program listens at *path*: gRPC would take the socket from it.

    Raises:
        SettingsInvalidError: one does.
    """
    if path.is_socket() and not is_left(path):
        message = f"another program listens on `{path}`; stop it, or give another `--socket`"
        raise SettingsInvalidError(message, socket=path)


def let_in(path: Path, group: str) -> None:
    """Have *group* open the socket at *path* that was made private; nobody if it is empty.

    Raises:
        SettingsInvalidError: that cannot be.
    """
    if not group:
        return
    # Whatever is put in its place meanwhile is left alone.
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        itself = f"/proc/self/fd/{descriptor}"
        # While it has another group, that may not open it.
        os.chown(itself, -1, _gid(group))
        os.chmod(itself, _OF_GROUP)  # noqa: PTH101
    except OSError as error:
        raise _refused(path, group, error) from error
    finally:
        os.close(descriptor)


def let_pass(folder: Path, groups: Collection[str]) -> None:
    """Have *groups* come to sockets in *folder*, and nothing else of it.

    One that holds nothing but sockets and their locks is envd's own, and gets the mode; of any
    other one does not know what comes to light.

    Raises:
        SettingsInvalidError: they cannot, and it is not envd's own.
    """
    wanted, found = {_gid(one) for one in groups if one}, folder.stat()
    is_theirs = found.st_mode & stat.S_IXGRP and wanted == {found.st_gid}
    if not wanted or is_theirs or found.st_mode & stat.S_IXOTH:
        return
    named = ", ".join(sorted({one for one in groups if one}))
    if not all(one.is_socket() or one.name.endswith(".lock") for one in folder.iterdir()):
        message = (
            f"`{folder}` lets the group `{named}` not come to the sockets in it, and holds other "
            "things; give them a directory of their own, as in `--socket /run/envd/predict.sock`"
        )
        raise SettingsInvalidError(message, path=folder)
    try:
        if len(wanted) == 1:
            os.chown(folder, -1, wanted.pop())
            folder.chmod(_PASSED)
        else:
            folder.chmod(_PASSED_BY_ALL)
    except OSError as error:
        raise _refused(folder, named, error) from error


def _gid(group: str) -> int:
    found = exposure.gid(group)
    # It was there when the settings were checked.
    return -1 if found is None else found


def _refused(path: Path, group: str, error: OSError) -> SettingsInvalidError:
    message = (
        f"`{path}` cannot be the group `{group}`'s: {error.strerror}; have the daemon's user in "
        "that group (`usermod -aG`, `SupplementaryGroups=` of the unit)"
    )
    return SettingsInvalidError(message, path=path)
