"""Serves HTTP in a loop that is not its own: listens, drains, ends."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from envd.access import credentials, openings
from envd.config import Settings
from envd.errors import SettingsInvalidError
from envd.serve.http.connection import Connection
from envd.serve.http.edge import Edge

_UNIX, _INFERENCE = "unix:", "/v2"
_BACKLOG, _LOOK_S, _LAST_S = 512, 0.02, 5


class Http:
    """Serves some routes at one address."""

    def __init__(self, edge: Edge, routes: Sequence[Route]) -> None:
        """Serve *routes*, within the limits that the settings of *edge* say."""
        self._edge = edge
        self._path = ""
        self._tls: ssl.SSLContext | None = None
        app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
        # It would lead to whatever host the client names.
        app.router.redirect_slashes = False
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        config.load()
        # Only what its connections share and what counts them: `serve` would take the signals
        # of the process.
        self._server = uvicorn.Server(config)
        self._listener: asyncio.Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    def heed(self, settings: Settings) -> None:
        """Answer from now on by *settings*, as far as they are looked up for each request."""
        self._edge.settings = settings
        if self._tls:
            credentials.load_chain(self._tls, settings.access)

    async def start(self) -> str:
        """Listen, and return the URL, or `unix:` and the path of the socket.

        Raises:
            SettingsInvalidError: the address cannot be had.
        """
        settings = self._edge.settings
        listen, access = settings.http.listen, settings.access
        try:
            listening = self._listening(listen)
        except OSError as error:
            message = f"HTTP cannot be served at `{listen}`: {error}; set `http.listen`"
            raise SettingsInvalidError(message, setting="http.listen") from error
        loop = asyncio.get_running_loop()
        if access.tls_cert and not self._path:
            self._tls = credentials.server_context(access)
        limit_s = settings.http.read_timeout if self._tls else None
        listen_on = loop.create_unix_server if self._path else loop.create_server
        self._listener = await listen_on(
            self._connection,
            sock=listening,
            ssl=self._tls,
            ssl_handshake_timeout=None if limit_s == math.inf else limit_s,
        )
        self._ticking = asyncio.create_task(self._tick())
        if self._path:
            return listen
        scheme, host = "https" if self._tls else "http", listen.rpartition(":")[0]
        return f"{scheme}://{host}:{listening.getsockname()[1]}"

    def drain(self) -> None:
        """Have each connection closed when it has its answer; new ones hear that it is over."""
        self._edge.is_draining = True
        for connection in list(self._server.server_state.connections):
            connection.shutdown()

    async def close(self) -> None:
        """Listen no more, and let those who read their answer, a large one maybe, do so."""
        if self._listener:
            self._listener.close()
        if self._path:
            Path(self._path).unlink(missing_ok=True)  # noqa: ASYNC240
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_S):
                while self._server.server_state.connections:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
        if self._ticking:
            self._ticking.cancel()

    def _connection(self) -> asyncio.BaseProtocol:
        config, state = self._server.config, self._server.server_state
        return Connection(self._edge.settings.http, config=config, server_state=state, app_state={})

    async def _tick(self) -> None:
        """Keep the date of the answers."""
        while True:
            await self._server.on_tick(0)
            await asyncio.sleep(1)

    def _listening(self, listen: str) -> socket.socket:
        if listen.startswith(_UNIX):
            self._path = path = listen.removeprefix(_UNIX)
            group = self._edge.settings.access.group
            openings.let_pass(Path(path).parent, {group})
            found = _unix(path)
            openings.let_in(Path(path), group)
            return found
        host, _, port = listen.rpartition(":")
        is_6 = host.startswith("[")
        found = socket.socket(socket.AF_INET6 if is_6 else socket.AF_INET)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host.strip("[]"), int(port)))
            found.listen(_BACKLOG)
        except OSError:
            found.close()
            raise
        return found


def _unix(path: str) -> socket.socket:
    """Return a socket at *path* that only its owner can open.

    Raises:
        OSError: it cannot be there, or somebody listens on it.
    """
    found = socket.socket(socket.AF_UNIX)
    try:
        if openings.is_left(Path(path)):
            Path(path).unlink()
        with openings.private():
            found.bind(path)
        found.listen(_BACKLOG)
    except OSError:
        found.close()
        raise
    return found


async def _refused(request: Request, error: Exception) -> Response:
    """Answer what no route takes as servers of its protocol do."""
    assert isinstance(error, HTTPException)  # noqa: S101
    key = "error" if request.url.path.startswith(f"{_INFERENCE}/") else "detail"
    return JSONResponse({key: error.detail}, error.status_code, error.headers)
