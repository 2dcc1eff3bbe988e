"""Whom a daemon is open to, as its settings say, and what of that is refused."""

from __future__ import annotations

import dataclasses
import grp

from envd.config import Settings
from envd.errors import SettingsInvalidError
from envd.settings.sections import Access
from envd.settings.values import is_loopback

_UNIX, _PROFILE = "unix:", "security.profile"
_HOW = "`access.tls_cert` and `access.tls_key`, and `access.tokens` or `access.client_ca`"


def check(settings: Settings) -> None:
    """See that whoever can reach the daemon can be told apart, and is not overheard.

    Raises:
        SettingsInvalidError: that is not so, or the groups or files of `[access]` do not fit.
    """
    access = settings.access
    for key in ("group", "admin_group"):
        _check_group(settings, key, getattr(access, key))
    _check_fits(settings, access)
    for key, address in _addresses(settings).items():
        is_guarded = access.open or (access.tls_cert and is_told_apart(access))
        if not is_loopback(address) and not is_guarded:
            message = (
                f"{settings.where(key)} is {address}, which others than this machine reach: that "
                f"takes {_HOW}; or give an address of this machine's own, as 127.0.0.1, or say "
                "with `access.open` that something else guards the network"
            )
            raise SettingsInvalidError(message, setting=key)


def is_told_apart(access: Access) -> bool:
    """Whether callers over TCP have to say who they are."""
    return bool(access.tokens or access.client_ca)


def settled(settings: Settings) -> Settings:
    """Return *settings* with the profile `standard` for `auto`, if others reach a daemon of theirs.

    Without a credential any user of the machine can connect to its own addresses.
    """
    security, access = settings.security, settings.access
    is_shared = access.group or access.admin_group or _addresses(settings)
    if security.profile != "auto" or not is_shared:
        return settings
    # It is not what the settings say.
    places = {key: place for key, place in settings.places.items() if key != _PROFILE}
    security = dataclasses.replace(security, profile="standard")
    return dataclasses.replace(settings, security=security, places=places)


def is_for_others(settings: Settings) -> bool:
    """Whether others than its user may name a daemon models by paths and URIs.

    Or as good as that: its settings say that it is not `dev`. Whoever comes over TCP and does not
    have to say who they are asks models by their names.
    """
    access, security = settings.access, settings.security
    if security.profile in {"auto", "dev"}:
        return False
    is_shared = access.group or access.admin_group or is_told_apart(access)
    return bool(is_shared) or _PROFILE in settings.places


def _addresses(settings: Settings) -> dict[str, str]:
    """Return where it listens on TCP, by the setting that says so."""
    given = {"daemon.grpc": settings.daemon.grpc, "http.listen": settings.http.listen}
    return {key: one for key, one in given.items() if one and not one.startswith(_UNIX)}


def _check_group(settings: Settings, key: str, name: str) -> None:
    if name and gid(name) is None:
        message = f"{settings.where(f'access.{key}')}: there is no group `{name}`; make it first"
        raise SettingsInvalidError(message, setting=f"access.{key}")


def gid(group: str) -> int | None:
    """Return the number of the Unix *group*, None if there is none."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def _check_fits(settings: Settings, access: Access) -> None:
    """See that no setting is without another that it needs."""
    wrong = (
        ("tls_cert", access.tls_cert and not access.tls_key, "needs `access.tls_key`"),
        ("tls_key", access.tls_key and not access.tls_cert, "needs `access.tls_cert`"),
        ("client_ca", access.client_ca and not access.tls_cert, "needs `access.tls_cert`"),
        (
            "client_ca",
            access.client_ca and not (access.certificates or access.tokens),
            "lets nobody in: give `access.certificates`, or `access.tokens`",
        ),
        ("certificates", access.certificates and not access.client_ca, "need `access.client_ca`"),
        ("open", access.open and is_told_apart(access), "lets in everybody: give no credentials"),
    )
    for key, is_wrong, why in wrong:
        if is_wrong:
            message = f"{settings.where(f'access.{key}')} {why}"
            raise SettingsInvalidError(message, setting=f"access.{key}")
