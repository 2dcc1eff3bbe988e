"""Who sends a request, and whether it is not the page of another site that has it sent."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Collection

from starlette.requests import Request

from envd.access.roles import Role
from envd.config import Settings
from envd.errors import PermissionDeniedError
from envd.serve.callers import Caller, Door, Guarded, Opened
from envd.settings import values

_UNIX = "unix:"
_CREDENTIALS = struct.Struct("3i")
_KINDS = ("DNS", "URI", "email")


class Visitors:
    """Those who come to one listener."""

    def __init__(self, settings: Settings, guarded: Guarded | None, anybody: Opened) -> None:
        """Let in whom *guarded* knows over TCP, or *anybody* of this machine."""
        listen = settings.http.listen
        self._is_unix = listen.startswith(_UNIX)
        name = f"whoever opens {listen.rpartition('/')[2]}"
        of_socket = Opened(Caller(Role.PREDICT, name))
        self._door: Door = of_socket if self._is_unix else guarded or anybody
        self._is_open = not self._is_unix and guarded is None and not settings.access.open

    def caller(self, request: Request) -> Caller:
        """Return who sends *request*.

        Raises:
            UnauthenticatedError: nobody known.
        """
        return self._door.caller(request.headers.get("authorization"), lambda: _names(request))

    def check_host(self, request: Request, hosts: Collection[str]) -> None:
        """See that *request* is for this daemon, and for no site whose name was led here.

        A page of that site could read the answers: to a browser, it is of the same.

        Raises:
            PermissionDeniedError: its Host is none of *hosts*, nor this machine.
        """
        host = values.host_of(request.headers.get("host", ""))
        is_any = not host or self._is_unix or not (self._is_open or hosts)
        if not is_any and not _is_one(host, hosts) and not values.is_own(host):
            message = "this daemon is not known by that name (`Host`); `http.hosts` says by which"
            raise PermissionDeniedError(message, host=host)


def check_site(request: Request, hosts: Collection[str]) -> None:
    """See that it is no page of another site than *hosts* that asks, through a user's browser.

    It could not read the answer, and need not: a model would run, or be unloaded.

    Raises:
        PermissionDeniedError: it is one.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    # A browser knows better than what proxies leave of the headers.
    if site == "same-origin" or (origin and _is_one(values.host_of(_authority(origin)), hosts)):
        return
    host = request.headers.get("host", "").lower()
    if site == "cross-site" or (origin is not None and _authority(origin) != host):
        message = "a page of another site may not ask this"
        raise PermissionDeniedError(message)


def peer(request: Request) -> str:
    """Return from where *request* comes; through a Unix socket, from which process."""
    if request.client:
        return f"{request.client.host}:{request.client.port}"
    transport: asyncio.BaseTransport = request.state.transport
    found = transport.get_extra_info("socket")
    try:
        packed = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return _UNIX
    pid, uid, _ = _CREDENTIALS.unpack(packed)
    return f"{_UNIX} pid {pid} uid {uid}"


def _names(request: Request) -> list[str]:
    """Return the names in the certificate of whoever is connected."""
    transport: asyncio.BaseTransport = request.state.transport
    found = (transport.get_extra_info("peercert") or {}).get("subjectAltName", ())
    return [f"{kind}:{name}" for kind, name in found if kind in _KINDS]


def _is_one(name: str, hosts: Collection[str]) -> bool:
    return any(one.lower() == name for one in hosts)


def _authority(origin: str) -> str:
    return origin.partition("://")[2].lower()
