"""What `envctl doctor` looks at of who may ask: certificates, keys, tokens, sockets, groups."""

from __future__ import annotations

import grp
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

from envd.access import certificates, credentials, exposure
from envd.addresses import Sockets
from envd.config import Settings

_SOON_S = 14 * 86400


def access(settings: Settings) -> tuple[str, str]:
    """Say whom TCP is open to, and whether what that takes is good, for a while yet."""
    exposure.check(settings)
    known, given = credentials.load(settings), settings.access
    found = [f"{len(known.tokens)} tokens"] if given.tokens else []
    found += [f"{len(known.grants)} names in certificates"] if known.grants else []
    for key in ("tls_cert", "client_ca"):
        path = getattr(given, key)
        if not path:
            continue
        until = min(end for _, end in certificates.validities(Path(path).read_text()))
        day = datetime.fromtimestamp(until, UTC).date().isoformat()
        found.append(f"`{path}` until {day}")
        if until < time.time() + _SOON_S:
            when = "has ended" if until < time.time() else "ends"
            to_do = f"`{path}` {when} on {day}: renew it, and `systemctl reload envd` (SIGHUP)"
            return ", ".join(found), to_do
    if given.tls_key and Path(given.tls_key).stat().st_mode & stat.S_IRWXO:
        return ", ".join(found), f"everybody may read the key: `chmod o= {given.tls_key}`"
    return ", ".join(found) or "whoever can open the sockets", ""


def sockets(settings: Settings, chosen: Sockets) -> tuple[str, str]:
    """Say who can open the sockets of a daemon that runs, and whether its groups can."""
    found = []
    wanted = {
        chosen.predict: settings.access.group,
        chosen.admin: settings.access.admin_group,
    }
    for path, group in wanted.items():
        status = path.stat()
        if not stat.S_ISSOCK(status.st_mode):
            return str(path), "it is no socket: restart the daemon"
        if stat.S_IMODE(status.st_mode) & stat.S_IRWXO:
            return str(path), f"everybody may connect: `chmod o= {path}`"
        has_group = bool(status.st_mode & stat.S_IWGRP)
        found.append(f"{path}{f' (group {_name(status.st_gid)})' if has_group else ''}")
        if group and not (has_group and status.st_gid == exposure.gid(group)):
            return ", ".join(found), f"the group `{group}` cannot open `{path}`: restart the daemon"
        if group and (folder := _closed(path, status.st_gid)):
            to_do = f"the group `{group}` does not come through `{folder}`: `chmod` it, or another"
            return ", ".join(found), f"{to_do} `--socket`"
    return ", ".join(found), ""


def _closed(path: Path, gid: int) -> Path | None:
    """Return the directory on the way to *path* that a group does not come through."""
    for folder in path.parents:
        status = folder.stat()
        is_open = status.st_mode & stat.S_IXOTH
        if not is_open and not (status.st_mode & stat.S_IXGRP and status.st_gid == gid):
            return folder
    return None


def _name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
