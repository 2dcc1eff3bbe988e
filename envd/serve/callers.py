"""Who asks, and what they may: as the socket says, or the credential that they bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from envd.access import tokens
from envd.access.credentials import Credentials
from envd.access.roles import Role
from envd.errors import PermissionDeniedError, UnauthenticatedError
from envd.model import naming

_SCHEME = "bearer "
# Of the certificate that a caller has shown, as those of openssl: `DNS:front.example`.
Names = Callable[[], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a role, and how the log calls them."""

    role: Role
    name: str

    @property
    def is_admin(self) -> bool:
        """Whether they may do anything."""
        return self.role is Role.ADMIN

    def check_may(self, wanted: Role | None) -> None:
        """See that they may do what takes the role *wanted*; None is nobody's.

        Raises:
            PermissionDeniedError: they may not.
        """
        if wanted is None or not self.role.covers(wanted):
            takes = f"it takes the role `{wanted.value}`" if wanted else "nobody may"
            message = (
                f"{self.name} may not do that: {takes}; ask on the admin socket, or with a "
                "credential that has it"
            )
            raise PermissionDeniedError(message, role=self.role.value)

    def check_may_name(self, model: str, *terms: object) -> None:
        """See that they may have *model* run, with what is not its own if there are any *terms*.

        Whoever may have environments built may name paths and URIs. Others are left to the
        models that have a name, as those are.

        Raises:
            PermissionDeniedError: they may not.
        """
        if self.role.covers(Role.BUILD) or (naming.is_name(model) and not any(terms)):
            return
        message = (
            f"{self.name} may ask models by their names only, and as they are: a path, a URI, "
            "other packages or another configuration take the role `build`"
        )
        raise PermissionDeniedError(message, role=self.role.value)


class Door(Protocol):
    """Tells who asks."""

    def caller(self, authorization: str | None, names: Names) -> Caller:
        """Return who sends *authorization*, and has a certificate with these *names*.

        Raises:
            UnauthenticatedError: nobody known.
        """


@dataclass(frozen=True, slots=True)
class Opened:
    """A socket: whoever can open it is one caller."""

    by: Caller

    def caller(self, authorization: str | None, names: Names) -> Caller:
        """Return that caller, whatever is sent."""
        del authorization, names
        return self.by


class Guarded:
    """An address that anybody may reach: a token decides, or where none is sent a certificate."""

    def __init__(self, known: Callable[[], Credentials]) -> None:
        """Go by the credentials that are *known* when somebody asks."""
        self._known = known

    def caller(self, authorization: str | None, names: Names) -> Caller:
        """Return whose token is sent, or whose certificate has a role; see `Door`."""
        known = self._known()
        if authorization is not None:
            return _of_token(known, authorization)
        if not known.client_ca:
            message = "nobody is asked here without a token; send `authorization: Bearer TOKEN`"
            raise UnauthenticatedError(message)
        if found := known.role_of(names()):
            return Caller(found[0], f"certificate {found[1]}")
        message = "no name in this certificate has a role here (`access.certificates`)"
        raise UnauthenticatedError(message)


def _of_token(known: Credentials, authorization: str) -> Caller:
    given = authorization[len(_SCHEME) :].strip()
    is_bearer = authorization[: len(_SCHEME)].lower() == _SCHEME
    token = tokens.find(known.tokens, given) if is_bearer else None
    if token is None:
        message = "this token is not one of the daemon's; `envctl token` makes one"
        raise UnauthenticatedError(message)
    return Caller(token.role, f"token {token.name}")
