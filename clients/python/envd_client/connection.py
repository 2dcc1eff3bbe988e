"""Finds the daemon's sockets and settles how a client talks to them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import grpc
import grpc.aio

from envd_client.attempts import Attempts
from envd_client.credentials import Credentials
from envd_client.errors import SettingsInvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_TIMEOUT_S = 600.0
DEFAULT_MAX_MESSAGE_BYTES = 64 << 20
# Heads must pass; gRPC's -1 for any size is none, since the daemon has a limit as well.
_SMALLEST_LIMIT_BYTES = 1024
# sun_path has 108 bytes, the last one a zero.
_LONGEST_SOCKET_PATH = 107
_LARGEST_PORT = 65535


@dataclass(frozen=True)
class Connection:
    """Where the daemon listens, what a message may weigh and how long a call may take."""

    target: str
    given_admin_target: str | None
    timeout_s: float | None
    max_message_bytes: int
    retries: int
    credentials: Credentials = field(default_factory=Credentials)

    @property
    def admin_target(self) -> str:
        """The target that takes what changes or removes environments.

        It is the given one, else the socket beside the target, else the target itself: over
        TCP it is the credential that says what a caller may.
        """
        if self.given_admin_target is not None:
            return self.given_admin_target
        if not self.target.startswith("unix:"):
            return self.target
        socket = Path(unquote(self.target.removeprefix("unix:")))
        return grpc_target(socket.with_name("admin.sock"))

    @property
    def options(self) -> list[tuple[str, int]]:
        """The options of a channel."""
        return [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # gRPC would go on to wait two minutes, long after a daemon has restarted.
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]

    def channel(self, target: str) -> grpc.Channel:
        """Open a channel to *target*.

        Raises:
            SettingsInvalidError: a file of the credentials cannot be read.
        """
        if credentials := self.credentials.of_channel(target):
            return grpc.secure_channel(target, credentials, self.options)
        return grpc.insecure_channel(target, self.options)

    def aio_channel(self, target: str) -> grpc.aio.Channel:
        """Open a channel to *target* for an event loop; raises as `channel` does."""
        if credentials := self.credentials.of_channel(target):
            return grpc.aio.secure_channel(target, credentials, self.options)
        return grpc.aio.insecure_channel(target, self.options)

    def attempts(self, timeout_s: float | None) -> Attempts:
        """Start the time of a call, the client's own unless *timeout_s* is given."""
        return Attempts(self.timeout_s if timeout_s is None else timeout_s, self.retries)


def connection(
    target: str | os.PathLike[str] | None,
    *,
    admin_target: str | os.PathLike[str] | None,
    timeout_s: float | None,
    max_message_bytes: int,
    retries: int,
    tls_ca: str | os.PathLike[str] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Connection:
    """Return the connection that the arguments of a client describe.

    Raises:
        SettingsInvalidError: nothing says where the daemon listens, or the credentials do not
            fit together, or no message is as small as the largest may be.
    """
    if max_message_bytes < _SMALLEST_LIMIT_BYTES:
        message = f"`max_message_bytes` is {_SMALLEST_LIMIT_BYTES} or more; give another"
        raise SettingsInvalidError(message)
    # Those of the environment are for the daemon that the environment names.
    named = environ if target is None else {}
    credentials = Credentials(
        tls_ca=tls_ca or named.get("ENVD_TLS_CA") or None,
        tls_cert=tls_cert or named.get("ENVD_TLS_CERT") or None,
        tls_key=tls_key or named.get("ENVD_TLS_KEY") or None,
        token=token,
        token_file=token_file or (None if token else named.get("ENVD_TOKEN_FILE") or None),
    )
    return Connection(
        grpc_target(default_target() if target is None else target),
        None if admin_target is None else grpc_target(admin_target),
        timeout_s,
        max_message_bytes,
        retries,
        credentials,
    )


def default_target(environ: Mapping[str, str] = os.environ) -> str:
    """Return where the daemon of this user listens.

    Raises:
        SettingsInvalidError: the environment does not say.
    """
    if environ.get("ENVD_SOCKET"):
        return environ["ENVD_SOCKET"]
    if announced := _announced(environ):
        return announced
    if environ.get("XDG_RUNTIME_DIR"):
        return f"{environ['XDG_RUNTIME_DIR']}/envd/predict.sock"
    message = "nothing says where envd listens; give a target or set `ENVD_SOCKET`"
    raise SettingsInvalidError(message, metadata={"setting": "ENVD_SOCKET"})


def _announced(environ: Mapping[str, str]) -> str | None:
    """Return the socket that the daemon of this user's root wrote into its `daemon.json`."""
    home = environ.get("HOME") or Path("~").expanduser()
    state = environ.get("XDG_STATE_HOME") or Path(home, ".local/state")
    root = environ.get("ENVD_ROOT") or Path(state, "envd")
    try:
        return str(json.loads(Path(root, "daemon.json").read_text())["predict"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def grpc_target(target: str | os.PathLike[str]) -> str:
    """Return *target*, the path of a socket or host:port, as gRPC spells it.

    Raises:
        SettingsInvalidError: it can be neither.
    """
    text = os.fspath(target)
    scheme, colon, rest = text.partition(":")
    if scheme == "unix":
        return _unix(rest.removeprefix("//"))
    is_path = not colon or "/" in scheme
    return _unix(text) if is_path else _address(text)


def _address(text: str) -> str:
    port = text.rpartition(":")[2]
    # gRPC takes the rest of a division by 65536, and asks whoever listens there.
    if port.isdecimal() and not 0 < int(port) <= _LARGEST_PORT:
        message = f"`{text}` has no port from 1 to {_LARGEST_PORT}; give HOST:PORT"
        raise SettingsInvalidError(message, metadata={"target": text})
    return text


def _unix(path: str) -> str:
    socket = Path(path).expanduser().absolute()
    if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
        message = f"the path `{socket}` is too long for a socket; give a shorter one"
        raise SettingsInvalidError(message, metadata={"target": str(socket)})
    # gRPC reads a URI: a bare `%`, `#` or `?` would name another file.
    return f"unix:{quote(str(socket))}"
