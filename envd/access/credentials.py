"""What callers over TCP are known by: the files that `[access]` names, read and seen to fit."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from envd.access import tokens
from envd.access.roles import Role
from envd.access.tokens import Token
from envd.config import Settings
from envd.errors import SettingsInvalidError
from envd.settings.sections import Access


@dataclass(frozen=True, slots=True)
class Credentials:
    """The tokens there are, the roles of names in certificates, and what TLS is served with.

    The PEM texts are empty where there is none: `cert` with its `key`, and the CAs of clients.
    """

    tokens: tuple[Token, ...] = ()
    grants: Mapping[str, Role] = field(default_factory=dict)
    cert: bytes = b""
    key: bytes = field(default=b"", repr=False)
    client_ca: bytes = b""

    def role_of(self, names: Iterable[str]) -> tuple[Role, str] | None:
        """Return the largest role that *names* of a certificate have, and the name that has it."""
        found = [(self.grants[one], one) for one in map(canonical, names) if one in self.grants]
        roles = list(Role)
        return max(found, key=lambda one: roles.index(one[0])) if found else None


def canonical(name: str) -> str:
    """Return a name of a certificate as it compares: those of hosts have no case."""
    kind, _, rest = name.partition(":")
    return f"DNS:{rest.lower()}" if kind == "DNS" else name


def load(settings: Settings) -> Credentials:
    """Read the files that *settings* name.

    Raises:
        SettingsInvalidError: one cannot be used.
    """
    access = settings.access
    if access.tls_cert:
        _check_tls(settings)
    return Credentials(
        _tokens(settings),
        _grants(settings),
        _content(settings, "tls_cert"),
        _content(settings, "tls_key"),
        _content(settings, "client_ca"),
    )


def server_context(access: Access) -> ssl.SSLContext:
    """Return what HTTP is served with.

    Raises:
        OSError: the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_chain(context, access)
    if access.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(access.client_ca)
    return context


def load_chain(context: ssl.SSLContext, access: Access) -> None:
    """Have *context* serve the certificate of *access* from the next connection on."""
    # Else it would ask whoever started this for a password.
    context.load_cert_chain(access.tls_cert, access.tls_key, password=lambda: "")


def _check_tls(settings: Settings) -> None:
    try:
        server_context(settings.access)
    except OSError as error:
        files = "`access.tls_cert`, `access.tls_key` and `access.client_ca`"
        message = (
            f"{settings.where('access.tls_cert')}: TLS cannot be served with {files}: "
            f"{error.strerror or error}; give PEM files that fit, the key without a password"
        )
        raise SettingsInvalidError(message, setting="access.tls_cert") from error


def _content(settings: Settings, name: str) -> bytes:
    path = getattr(settings.access, name)
    try:
        return Path(path).read_bytes() if path else b""
    except OSError as error:
        message = f"{settings.where(f'access.{name}')} cannot be read: {error}"
        raise SettingsInvalidError(message, setting=f"access.{name}") from error


def _tokens(settings: Settings) -> tuple[Token, ...]:
    try:
        return tokens.read(settings.access.tokens) if settings.access.tokens else ()
    except SettingsInvalidError as error:
        message = f"{settings.where('access.tokens')}: {error.message}"
        raise SettingsInvalidError(message, setting="access.tokens") from error


def _grants(settings: Settings) -> dict[str, Role]:
    found: dict[str, Role] = {}
    for one in settings.access.certificates:
        given, _, role = one.rpartition("=")
        if (name := canonical(given)) in found:
            message = f"{settings.where('access.certificates')} give `{name}` a role twice"
            raise SettingsInvalidError(message, setting="access.certificates")
        found[name] = Role(role)
    return found
