"""What a client says who it is with, and knows the daemon by, where that is not a Unix socket."""

from __future__ import annotations

import os
import re
from pathlib import Path

import grpc

from envd_client.errors import SettingsInvalidError

# Which only processes of this machine hear; resolvers of gRPC may stand before it.
_LOOPBACK = re.compile(r"(?:dns:/{0,3}|ipv[46]:)?(?:localhost|127(?:\.\d{1,3}){3}|\[::1\]):\d+")
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


class Credentials:
    """A token, or a certificate and its key, and the CAs that a daemon's certificate is of.

    What of them is a file is read when it is needed, the token again when its file has changed.
    """

    def __init__(
        self,
        *,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
    ) -> None:
        """Keep what is given.

        Raises:
            SettingsInvalidError: it does not fit together.
        """
        if token is not None and token_file is not None:
            message = "give a `token` or a `token_file`, and not both"
            raise SettingsInvalidError(message)
        if (tls_cert is None) != (tls_key is None):
            message = "a `tls_cert` takes its `tls_key`, and the other way round"
            raise SettingsInvalidError(message)
        self._ca, self._cert, self._key = tls_ca, tls_cert, tls_key
        self._file = token_file
        self._token = None if token is None else _checked(token, "the `token`")
        self._identity: tuple[int, int, int] | None = None

    def of_channel(self, target: str) -> grpc.ChannelCredentials | None:
        """Return what TLS to *target* takes, None where there is to be none.

        There is, but to a Unix socket, and to this machine if neither a CA nor a certificate
        is given: whatever else is sent is read by whoever is between.

        Raises:
            SettingsInvalidError: a file cannot be read, or that of the CAs has none.
        """
        is_near = target.startswith("unix:") or (
            _LOOPBACK.fullmatch(target) and self._ca is None and self._cert is None
        )
        if is_near:
            return None
        ca = _read(self._ca)
        # gRPC would say so in its log only, and that the daemon cannot be reached.
        if ca is not None and b"CERTIFICATE-----" not in ca:
            message = f"`{self._ca}` has no certificate in it; give the PEM file of the CAs"
            raise SettingsInvalidError(message)
        return grpc.ssl_channel_credentials(ca, _read(self._key), _read(self._cert))

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """Return what a call takes along, None if there is no token.

        Raises:
            SettingsInvalidError: its file cannot be read, or holds none.
        """
        if self._file is not None:
            self._look_again(self._file)
        return None if self._token is None else (("authorization", f"Bearer {self._token}"),)

    def _look_again(self, file: str | os.PathLike[str]) -> None:
        try:
            found = os.stat(file)  # noqa: PTH116
        except OSError as error:
            raise _unreadable(file, error) from error
        identity = found.st_ino, found.st_mtime_ns, found.st_size
        if identity != self._identity:
            text = (_read(file) or b"").decode(errors="replace").strip()
            self._token = _checked(text, f"the token in `{os.fspath(file)}`")
            self._identity = identity


def _checked(token: str, what: str) -> str:
    if not _TOKEN.fullmatch(token):
        # Not the token itself.
        message = f"{what} is none; it is what `envctl token` prints on its standard output"
        raise SettingsInvalidError(message)
    return token


def _read(file: str | os.PathLike[str] | None) -> bytes | None:
    try:
        return None if file is None else Path(file).read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: str | os.PathLike[str] | None, error: OSError) -> SettingsInvalidError:
    return SettingsInvalidError(f"`{file}` cannot be read: {error.strerror}; give another")
