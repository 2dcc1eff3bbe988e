"""What `envctl doctor` looks at of who may ask: certificates, keys, tokens, sockets, groups."""

from __future__ import annotations

import grp
import ssl
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from envd import credentials, exposure
from envd.addresses import Sockets
from envd.config import Settings

_SOON_S = 14 * 86400
_VERSION, _UTC_TIME = 0xA0, 0x17
# In the part of a certificate that is signed, without the version: before it are the serial
# number, the algorithm and the issuer.
_VALIDITY = 3
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


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
        until = min(end for _, end in validities(Path(path).read_text()))
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


def validities(pem: str) -> Iterator[tuple[float, float]]:
    """Yield from when and until when the certificates in *pem* are good (RFC 5280, 4.1).

    Raises:
        OSError: one is none.
    """
    for part in pem.split(_BEGIN)[1:]:
        text = f"{_BEGIN}{part.partition(_END)[0]}{_END}"
        try:
            yield _validity(ssl.PEM_cert_to_DER_cert(text))
        except (ValueError, IndexError) as error:
            message = "this is no certificate"
            raise OSError(message) from error


def _validity(der: bytes) -> tuple[float, float]:
    signed = _elements(_elements(der)[0][1])[0][1]
    parts = [one for one in _elements(signed) if one[0] != _VERSION]
    begin, end = _elements(parts[_VALIDITY][1])
    return _moment(*begin), _moment(*end)


def _moment(tag: int, content: bytes) -> float:
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(content.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _elements(content: bytes) -> list[tuple[int, bytes]]:
    """Return the elements of DER in *content*, by tag."""
    found, place = [], 0
    while place < len(content):
        tag, length, place = content[place], content[place + 1], place + 2
        if length & 0x80:
            digits = length & 0x7F
            length, place = int.from_bytes(content[place : place + digits], "big"), place + digits
        found.append((tag, content[place : place + length]))
        place += length
    return found


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
